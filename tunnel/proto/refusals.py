"""What a client is told whose login was refused, in words that help its user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.errors import CODES, Code, RemoteLinkError
from tunnel.proto.frames import PROTOCOL_VERSION

if TYPE_CHECKING:
    from tunnel.proto.frames import ProtGoAway

UNKNOWN_LOGIN: Final = "unknown name or wrong proof"
"""The reason of an AUTH about which a stranger learns nothing."""
USED_UP: Final = "this join line is for one machine, and another one has used it"
NEEDS_TLS: Final = "a join line for one machine needs TLS"
NO_ID: Final = "this join line is for one machine, and this one has no client id"
TOO_OLD: Final = (
    "this join line is for one machine, which gets a token of its own; this program is "
    "too old for that"
)
_SHOWN: Final = (USED_UP, NEEDS_TLS, NO_ID)
"""Reasons of an AUTH that are shown: others are words of anybody on the way."""


def refused_login(name: str, away: ProtGoAway) -> RemoteLinkError:
    """Make the error for a GO_AWAY that the client ``name`` has got.

    It is a hint: until the server is proved, anybody on the way may have said it.
    """
    cause, fix = away.reason, ""
    match away.code:
        case Code.AUTH:
            what = f"the server refused the login of {name!r}"
            if cause not in _SHOWN:
                cause = (
                    "it has no such name or another token for it, or something "
                    "between opens the TLS; it shows its join line when it starts"
                )
            fix = "tunnel join JOIN-LINE"
        case Code.ONCE:
            what = f"the join line of {name!r} works for one machine"
            cause = "that gets a token of its own, which this program does not keep"
            fix = "run `tunnel up` with the line first"
        case Code.VERSION:
            spoken = f"{PROTOCOL_VERSION} of the protocol"
            what = f"the server speaks other versions than {spoken}"
            cause = f"it says: {cause}; the older of the two has to be updated"
        case Code.CALM:
            what = f"the server asks to wait {away.retry_after_s} s"
            usual = "too many links or failed logins came from this address"
            cause = cause or usual
        case Code.DUPLICATE:
            what = "another client that answers has this client id"
            cause = "its state folder was copied from another machine, or to one"
        case code:
            what = f"the server ended the link: {CODES[code].meaning}"
    error = RemoteLinkError(away.code, what, cause, fix)
    error.retry_after_s = away.retry_after_s
    return error
