"""What can go wrong, in one table: code, name, meaning, and what each answer becomes.

Every exception of the package carries the ``code`` that goes on the wire, so raising
is answering. ``Local...`` means that this side (its user, its limits, its network) is
the reason, ``Remote...`` that the peer is: a peer's bytes can raise nothing but a
``Remote...`` error (protocol.md#codes).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Code(IntEnum):
    """Reasons on the wire, in CLOSE, GO_AWAY and the answers to MAPPING."""

    NORMAL = 0x00
    PROTOCOL = 0x01
    INTERNAL = 0x02
    FLOW = 0x03
    AUTH = 0x04
    VERSION = 0x05
    CALM = 0x06
    SUPERSEDED = 0x07
    DRAINING = 0x08
    TAKEN_OVER = 0x09
    SILENT = 0x0A
    REVOKED = 0x0B
    STALE = 0x0C
    DUPLICATE = 0x0D
    GENERAL = 0x10
    NOT_ALLOWED = 0x11
    NET_UNREACHABLE = 0x12
    HOST_UNREACHABLE = 0x13
    REFUSED = 0x14
    TIMEOUT = 0x15
    UNSUPPORTED = 0x16
    ADDRESS_UNSUPPORTED = 0x17
    RESOURCE = 0x18
    NO_MAPPING = 0x19
    LINK_LOST = 0x1A
    TAKEN = 0x1B
    RESET = 0x1C
    IDLE = 0x1D


class Exit(IntEnum):
    """Exit statuses of the commands."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIGURATION = 3
    NOT_REACHED = 4
    TLS = 5
    AUTH = 6
    ADDRESS_TAKEN = 7
    VERSION = 8
    CHECK_FAILED = 9
    NOT_RUNNING = 10
    INTERRUPTED = 130


class CodeInfo(NamedTuple):
    """One row of the table in protocol.md#codes."""

    meaning: str
    frames: str
    """Where it may stand: C = CLOSE, G = GO_AWAY, M = an entry of a MAPPING answer."""
    ends: str
    """``stream``, ``link`` (the session may resume), ``session`` or ``-`` (nothing)."""
    retry_safe: bool
    """Nothing was done at the far end: opening again repeats no effect."""
    socks5: int
    """REP of RFC 1928 §6."""
    http: int
    """Status of the answer to CONNECT."""
    exit_status: Exit
    log_level: str


def _row(
    meaning: str,
    frames: str,
    ends: str,
    retry_safe: bool,
    socks5: int,
    http: int,
    exit_status: Exit = Exit.INTERNAL,
    log_level: str = "info",
) -> CodeInfo:
    return CodeInfo(
        meaning, frames, ends, retry_safe, socks5, http, exit_status, log_level
    )


_WARN: Final = "warning"
_OUT: Final = Exit.NOT_REACHED

CODES: Final[Mapping[Code, CodeInfo]] = {
    Code.NORMAL: _row("a clean end", "CGM", "session", False, 0, 200, Exit.OK),
    Code.PROTOCOL: _row(
        "the peer broke a rule of this text", "G", "session", False, 1, 502,
        Exit.INTERNAL, _WARN,
    ),
    Code.INTERNAL: _row(
        "a fault of the sender's own", "CGM", "session", False, 1, 502,
        Exit.INTERNAL, "error",
    ),
    Code.FLOW: _row(
        "more bytes than were granted", "G", "session", False, 1, 502,
        Exit.INTERNAL, _WARN,
    ),
    Code.AUTH: _row(
        "unknown name or wrong proof", "G", "session", False, 1, 502,
        Exit.AUTH, _WARN,
    ),
    Code.VERSION: _row(
        "no common version, or an unknown mandatory field", "G", "session", False, 1,
        502, Exit.VERSION, _WARN,
    ),
    Code.CALM: _row(
        "too much of something that costs the receiver", "G", "session", False, 1, 503,
        Exit.INTERNAL, _WARN,
    ),
    Code.SUPERSEDED: _row(
        "a newer link of the same session took over", "G", "link", False, 1, 502, _OUT
    ),
    Code.DRAINING: _row(
        "about to stop: running streams go on, no new ones", "CGM", "-", True, 1, 503
    ),
    Code.TAKEN_OVER: _row(
        "another client took over what this one had; final", "GM", "session", False, 1,
        502,
        Exit.ADDRESS_TAKEN, _WARN,
    ),
    Code.SILENT: _row(
        "nothing was heard within the limit", "G", "link", False, 1, 504, _OUT, _WARN
    ),
    Code.REVOKED: _row(
        "the user's right to be here was withdrawn", "G", "session", False, 2, 403,
        Exit.AUTH, _WARN,
    ),
    Code.STALE: _row(
        "link_no is not higher than one already seen", "G", "link", False, 1, 502, _OUT
    ),
    Code.DUPLICATE: _row(
        "another client that answers has this client id; come with another", "G",
        "session", False, 1, 502, Exit.ADDRESS_TAKEN, _WARN,
    ),
    Code.GENERAL: _row("any other failure at the exit", "CM", "stream", False, 1, 502),
    Code.NOT_ALLOWED: _row(
        "the rules of the exit or of the server forbid it", "CM", "stream", True, 2,
        403, Exit.AUTH,
    ),
    Code.NET_UNREACHABLE: _row(
        "no route to the target's network", "C", "stream", True, 3, 502, _OUT
    ),
    Code.HOST_UNREACHABLE: _row(
        "no route to the target, or no address of its name", "C", "stream", True, 4,
        502, _OUT,
    ),
    Code.REFUSED: _row(
        "the target refused the connection", "C", "stream", True, 5, 502, _OUT
    ),
    Code.TIMEOUT: _row(
        "the target did not answer in time", "C", "stream", True, 6, 504, _OUT
    ),
    Code.UNSUPPORTED: _row(
        "this kind of CREATE or MAPPING is not offered", "CM", "stream", True, 7, 501,
        Exit.CONFIGURATION,
    ),
    Code.ADDRESS_UNSUPPORTED: _row(
        "this form of address cannot be used", "CM", "stream", True, 8, 400
    ),
    Code.RESOURCE: _row(
        "a limit was reached", "CM", "stream", True, 1, 503, Exit.INTERNAL, _WARN
    ),
    Code.NO_MAPPING: _row(
        "no such name is registered", "CM", "stream", True, 4, 404, _OUT
    ),
    Code.LINK_LOST: _row(
        "the link broke and was not resumed", "C", "stream", False, 1, 502, _OUT, _WARN
    ),
    Code.TAKEN: _row(
        "the public port or name belongs to somebody else", "M", "-", True, 1, 502,
        Exit.ADDRESS_TAKEN, _WARN,
    ),
    Code.RESET: _row(
        "the TCP peer reset its connection, or the program gave it up", "C", "stream",
        False, 1, 502,
    ),
    Code.IDLE: _row("no byte either way for too long", "C", "stream", False, 1, 504),
}  # fmt: skip


class TunnelError(Exception):
    """The root of everything this package raises on purpose.

    Args:
        code: the wire code; ``CODES[code]`` says what it becomes elsewhere.
        what: what failed, with the real value, in one line.
        cause: why, when that is known.
        fix: something that can be typed or pasted, when there is such a thing.
    """

    retry_after_s = 0
    """For how long the peer's GO_AWAY asked to stay away."""

    def __init__(self, code: Code, what: str, cause: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.cause = cause
        self.fix = fix

    def again(self) -> Self:
        """Return the same error to be raised, where this one is kept.

        Raised itself, it would hold in its traceback the frames, and so the objects,
        that hold it: a cycle, which only the collector frees.
        """
        error = type(self).__new__(type(self), *self.args)
        error.__dict__.update(self.__dict__)
        return error

    @property
    def exit_status(self) -> Exit:
        """With what a command ends that cannot go on after this."""
        return CODES[self.code].exit_status

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.name}, {self.what!r})"


class StreamError(TunnelError):
    """One virtual TCP connection failed or was refused; the link is well."""


class LocalStreamError(StreamError):
    """This side ended, refused or misused the virtual TCP connection."""


class RemoteStreamError(StreamError):
    """The peer's CLOSE said so, or the link under it is gone."""


class LinkError(TunnelError):
    """One link ended or never came to be; its session may outlive it."""


class LocalLinkError(LinkError):
    """The network, a limit or a setting of this side ended the link."""


class RemoteLinkError(LinkError):
    """The peer said or did something that ends the link."""


class SessionError(TunnelError):
    """The session is over: every virtual TCP connection in it is reset."""


class LocalSessionError(SessionError):
    """This side ended the session."""


class RemoteSessionError(SessionError):
    """The peer ended the session, or broke a rule in a way that ends it."""


class UsageError(TunnelError):
    """A value that a person gave cannot be used; nothing was started."""

    def __init__(self, what: str, cause: str = "", fix: str = "") -> None:
        super().__init__(Code.GENERAL, what, cause, fix)

    @property
    def exit_status(self) -> Exit:
        """Always 2."""
        return Exit.USAGE


class StateError(TunnelError):
    """A file that this program keeps is missing, damaged or open to others."""

    def __init__(self, what: str, cause: str = "", fix: str = "") -> None:
        super().__init__(Code.INTERNAL, what, cause, fix)

    @property
    def exit_status(self) -> Exit:
        """Always 3."""
        return Exit.CONFIGURATION


class TlsError(LocalLinkError):
    """The peer is not who it should be, or does not speak TLS as it should."""

    @property
    def exit_status(self) -> Exit:
        """Always 5."""
        return Exit.TLS


class ViaError(LocalLinkError):
    """The proxy on the way to the server does not take our user: no use in retrying."""


class AddressError(TunnelError):
    """A local address cannot be listened on.

    Args:
        what: see ``TunnelError``, as ``cause`` and ``fix``.
        cause: see there.
        fix: see there.
        status: with what a command ends that needed it: unless somebody has it, the
            address itself is wrong, or this user may not have it.
    """

    def __init__(
        self,
        what: str,
        cause: str = "",
        fix: str = "",
        status: Exit = Exit.CONFIGURATION,
    ) -> None:
        code = Code.NOT_ALLOWED if status is Exit.AUTH else Code.TAKEN
        super().__init__(code, what, cause, fix)
        self._status = status

    @property
    def exit_status(self) -> Exit:
        """As it was given."""
        return self._status
