"""The access log: a line for each visitor and each request, at its end.

Who serves somebody asks ``wanted`` first: without an access log that is all it costs.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from tunnel.log import ACCESS, log_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.addresses import Address
    from tunnel.errors import Code

ENTRY: Final[ContextVar[str]] = ContextVar("ENTRY", default="")
"""The entry that the visitors of this task come to, as its owner knows it."""
MOST_OF_A_PATH: Final = 256
"""Characters of a request's path that are written."""


def wanted() -> bool:
    """Say whether somebody wants the lines."""
    return ACCESS.isEnabledFor(logging.INFO)


def say_served(
    seconds: float,
    *streams: object,
    peer: Address | None = None,
    entry: object = "",
    target: object = None,
    passed: tuple[int, int] | None = None,
    code: Code | None = None,
    method: str | None = None,
    path: str | None = None,
    status: int | None = None,
) -> None:
    """Write the line of a visitor or a request that is over.

    Args:
        seconds: that it took.
        streams: those of a session know whose they are, and maybe the entry.
        peer: the address of the visitor, if it is known.
        entry: where it came to; by default what the streams or ``ENTRY`` say.
        target: what the visitor has chosen, where there is a choice.
        passed: the bytes that came from the visitor, and those that went to it.
        code: how a connection ended.
        method: of a request, like what follows.
        path: as it was asked for; what stands behind ``?`` is not written.
        status: of the answer; None: there was none.
    """
    whose: Mapping[str, str] = {}
    for stream in streams:
        whose = whose or getattr(stream, "whose", {})
        whose = whose or getattr(getattr(stream, "carrier", None), "whose", {})
        entry = entry or getattr(stream, "entry", "")
    up, down = passed or (None, None)
    log_event(ACCESS, logging.INFO, "visitor.served", peer=_text(peer),
        user=whose.get("user"), client=whose.get("client"),
        entry=_text(entry or ENTRY.get()), target=_text(target),
        method=method, path=path and _without_secrets(path), status=status,
        up_bytes=up, down_bytes=down, seconds=round(seconds, 3),
        code=None if code is None else code.name)  # fmt: skip


def _text(value: object) -> str | None:
    return str(value) if value else None


def _without_secrets(path: str) -> str:
    scheme, mark, rest = path.partition("?")[0].partition("://")
    if mark:  # a proxy is asked for http://USER:PASSWORD@HOST/
        host, slash, rest = rest.partition("/")
        path = f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{rest}"
    return path.partition("?")[0][:MOST_OF_A_PATH]
