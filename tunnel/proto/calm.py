"""Every reason to tell a peer to calm down (protocol.md#calm).

CALM ends a link that is not proved, or else the session. Nothing else makes it, so the
peer always hears which of these causes it was.
"""

from __future__ import annotations

from enum import Enum

from tunnel.errors import Code, RemoteSessionError


class Calm(Enum):
    """The causes; the reason in GO_AWAY begins with the value."""

    FAILED_LOGINS = "too many failed logins"
    SESSIONS = "too many sessions of one user"
    LINKS = "too many links of one user"
    FIELDS = "too many fields in one list"
    NAMES = "too many names in one MAPPING"
    MAPPINGS = "too many MAPPINGs that are not answered yet"
    OPENS = "too many CREATEs in too short a time"
    NUMBERS = "too many numbers in use: CLOSEs were not answered"
    UNREAD = "too much asked for without reading the answers"
    PING = "too many frames without effect, the last a PING"
    WINDOW = "too many frames without effect, the last a WINDOW"
    RECEIVED = "too many frames without effect, the last a RECEIVED"
    DRAINING = "too many frames without effect, the last a GO_AWAY(DRAINING)"
    DATAGRAM = "too many frames without effect, the last a DATAGRAM"
    EXTENSION = "too many frames without effect, the last an unknown extension"


def calm(cause: Calm) -> RemoteSessionError:
    """Make the error that ends a session for ``cause``."""
    return RemoteSessionError(*refusal(cause))


def refusal(cause: Calm, detail: str = "") -> tuple[Code, str]:
    """Return code and reason of a GO_AWAY where there is no session to be ended."""
    return Code.CALM, f"{cause.value}: {detail}" if detail else cause.value
