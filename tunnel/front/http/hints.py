"""What an answer shows of a target that was published in the wrong way.

Targets say it in words of their own, or in no HTTP at all. Here it is known by them,
and said once for each name: to the log, for it is meant for who publishes.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from tunnel.log import log_event
from tunnel.net.listen import LOG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.front.http.heads import AnswerHead

LOOKED_AT_BYTES: Final = 2_048
"""Of a refusal's body: all that are known say it in their first lines."""
LOGGED_BYTES: Final = 120
"""Of a broken line."""
REFUSALS: Final = (400, 403, 421)
_HOST_CHECK: Final = re.compile(
    rb"Blocked request\. This host"  # Vite
    rb"|Invalid Host(?:/Origin)? header|Invalid Host: "  # webpack, MCP SDKs, Starlette
    rb"|Blocked hosts?: "  # Rails
    rb"|<title>DisallowedHost|Invalid HTTP_HOST header"  # Django
    rb"|<title>Jupyter ",
    re.IGNORECASE,
)
_JUPYTER_API: Final = re.compile(rb'\{"message": "Forbidden", "reason": null\}')
"""Its whole answer below ``/api``, of which it says the reason to its own log only."""
_WANTS_TLS: Final = re.compile(
    rb"HTTP request to an HTTPS server"  # Go
    rb"|plain HTTP request was sent to HTTPS port"  # nginx
    rb"|speaking plain HTTP to an SSL-enabled server port",  # Apache
    re.IGNORECASE,
)
_TLS: Final = re.compile(rb"[\x14-\x17]\x03[\x00-\x04]", re.DOTALL)
_HTTP_2: Final = re.compile(rb"...[\x04\x07]\x00\x00\x00\x00\x00", re.DOTALL)
"""The server's first frame is SETTINGS; some give up with GOAWAY at once."""
_MOST_SAID: Final = 1_000
_SAID: Final[dict[tuple[str, str], None]] = {}
"""What was said of which name: bounded, as a wildcard has any number of names."""


def spoken(said: bytes | bytearray) -> str:
    """Say what a target speaks whose answer is not HTTP/1."""
    if _TLS.match(said):
        return "speaks TLS: it is to be published as https://HOST:PORT"
    if _HTTP_2.match(said):
        return "speaks HTTP/2 only: it is to be published with protocol=h2c"
    return "answered something that is not HTTP"


def may_be_hinted(head: AnswerHead) -> bool:
    """Say whether the body of an answer is that is one of ``REFUSALS`` can be read."""
    if head.body.size == 0:
        return False
    kind = b""
    for name, value, _ in head.fields:
        if name == b"content-encoding" and value.lower() != b"identity":
            return False
        if name == b"content-type":
            kind = value.lower()
    return not kind or kind.startswith((b"text/", b"application/json"))


class Look:
    """Looks at the first bytes of an answer's body while they pass.

    Args:
        host: that was asked for.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._seen = bytearray()

    def take(self, pieces: Sequence[bytes]) -> bool:
        """Take what follows; return whether there is more to look at."""
        for piece in pieces:
            self._seen += piece[: LOOKED_AT_BYTES - len(self._seen)]
        if _HOST_CHECK.search(self._seen):
            say_once("host.refused", self._host,
                "the target refuses names it does not know: host=rewrite")  # fmt: skip
        elif _JUPYTER_API.search(self._seen):
            say_once("host.refused", self._host,
                "Jupyter knows no login of this visitor, or refuses names it does not "
                "know: host=rewrite")  # fmt: skip
        elif _WANTS_TLS.search(self._seen):
            say_once("target.wants_tls", self._host,
                "it is to be published as https://HOST:PORT")  # fmt: skip
        else:
            return len(self._seen) < LOOKED_AT_BYTES
        return False


def say_broken(host: str, lines: Sequence[bytes]) -> None:
    """Log the lines of an answer's head that were left out."""
    for line in lines:
        text = line[:LOGGED_BYTES].decode("latin-1")
        more = "…" if len(line) > LOGGED_BYTES else ""
        say_once("answer.line_dropped", host, text + more)


def say_once(event: str, host: str, why: str) -> None:
    """Log something about the target of a name, unless it was said before."""
    key = event + why, host
    if key in _SAID:
        return
    if len(_SAID) >= _MOST_SAID:
        del _SAID[next(iter(_SAID))]
    _SAID[key] = None
    log_event(LOG, logging.WARNING, event, host=host, reason=why)
