"""Header fields that are for one hop, and what goes on of a head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.front.http.heads import AnswerHead, Field, RequestHead

# RFC 9110 §7.6.1, and what older programs use.
_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)
_NEVER_BY_CONNECTION: Final = frozenset(
    # Connection may name what is meant for one hop; it cannot take these away.
    (
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"max-forwards",
        b"range",
        b"set-cookie",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    )
)
_NOT_IN_TRAILERS: Final = _HOP_BY_HOP | _NEVER_BY_CONNECTION | {b"trailer"}
_ORDINARY: Final = frozenset((b"keep-alive", b"close", b"upgrade"))


def dropped(connection: frozenset[bytes]) -> frozenset[bytes]:
    """Return the names of the fields that end at this hop."""
    if connection <= _ORDINARY:
        return _HOP_BY_HOP
    named = frozenset(name.replace(b"_", b"-") for name in connection)
    return _HOP_BY_HOP | (named - _NEVER_BY_CONNECTION)


def about_the_visitor(name: bytes) -> bool:
    """Say whether a field tells a target who the visitor is."""
    return name.startswith(b"x-forwarded") or name in _ABOUT_THE_VISITOR


_ABOUT_THE_VISITOR: Final = frozenset(
    # Targets decide about access by them, and the last of them about what is asked for.
    (
        b"forwarded",
        b"proxy",
        b"true-client-ip",
        b"x-original-url",
        b"x-real-ip",
        b"x-rewrite-url",
    )
)


def logs_in(fields: Iterable[Field]) -> bool:
    """Say whether a target may take the connection itself for a login (RFC 4559 §6)."""
    return any(
        name in _OF_LOGINS and _OF_A_CONNECTION.search(value)
        for name, value, _ in fields
    )


_OF_LOGINS: Final = (b"authorization", b"www-authenticate")
_OF_A_CONNECTION: Final = re.compile(rb"\b(?:ntlm|negotiate)\b", re.IGNORECASE)


def trailers(fields: list[Field]) -> list[Field]:
    """Return the trailers that go on: none that a target would believe as a header."""
    return [
        field
        for field in fields
        if field.name not in _NOT_IN_TRAILERS and not about_the_visitor(field.name)
    ]


def framing(head: RequestHead) -> list[bytes]:
    """Return the lines that a request needs at its next hop, besides its fields."""
    lines = [b"Transfer-Encoding: chunked"] if head.body.chunked else []
    wants_trailers = b"te" in head.connection and any(
        name == b"te" and b"trailers" in value.lower() for name, value, _ in head.fields
    )
    words = [b"Upgrade"] if head.upgrade else []
    if wants_trailers:
        lines.append(b"TE: trailers")
        words.append(b"TE")
    if words:
        lines.append(b"Connection: " + b", ".join(words))
    if head.upgrade:
        lines.append(b"Upgrade: " + head.upgrade)
    return lines


def answer_lines(head: AnswerHead) -> list[bytes]:
    """Return the fields of an answer that go on."""
    drop = dropped(head.connection)
    if head.status == 204:
        drop |= {b"content-length"}
    return [line for name, _, line in head.fields if name not in drop]
