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
    """A row of the table in protocol.md#codes, behind number and name."""

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
    meaning: str


class Code(IntEnum):
    """Reasons on the wire, in CLOSE, GO_AWAY and the answers to MAPPING."""

    info: CodeInfo

    def __new__(cls, number: int, *row: str | int | Exit) -> Self:
        """Make a member of its number, and keep the rest of its row."""
        code = int.__new__(cls, number)
        code._value_ = number
        code.info = CodeInfo._make(row)
        return code

    # fmt: off
    # The fields of a row are those of CodeInfo.
    NORMAL = (0x00, "CGM", "session", False, 0, 200, Exit.OK, "info",
        "a clean end")
    PROTOCOL = (0x01, "G", "session", False, 1, 502, Exit.INTERNAL, "warning",
        "the peer broke a rule of this text")
    INTERNAL = (0x02, "CGM", "session", False, 1, 502, Exit.INTERNAL, "error",
        "a fault of the sender's own")
    FLOW = (0x03, "G", "session", False, 1, 502, Exit.INTERNAL, "warning",
        "more bytes than were granted")
    AUTH = (0x04, "G", "session", False, 1, 502, Exit.AUTH, "warning",
        "unknown name or wrong proof")
    VERSION = (0x05, "G", "session", False, 1, 502, Exit.VERSION, "warning",
        "no common version, or an unknown mandatory field")
    CALM = (0x06, "G", "session", False, 1, 503, Exit.INTERNAL, "warning",
        "too much of something that costs the receiver")
    SUPERSEDED = (0x07, "G", "link", False, 1, 502, Exit.NOT_REACHED, "info",
        "a newer link of the same session took over")
    DRAINING = (0x08, "CGM", "-", True, 1, 503, Exit.INTERNAL, "info",
        "about to stop: running streams go on, no new ones")
    TAKEN_OVER = (0x09, "GM", "session", False, 1, 502, Exit.ADDRESS_TAKEN, "warning",
        "another client took over what this one had; final")
    SILENT = (0x0A, "G", "link", False, 1, 504, Exit.NOT_REACHED, "warning",
        "nothing was heard within the limit")
    REVOKED = (0x0B, "G", "session", False, 2, 403, Exit.AUTH, "warning",
        "the user's right to be here was withdrawn")
    STALE = (0x0C, "G", "link", False, 1, 502, Exit.NOT_REACHED, "info",
        "link_no is not higher than one already seen")
    DUPLICATE = (0x0D, "G", "session", False, 1, 502, Exit.ADDRESS_TAKEN, "warning",
        "another client that answers has this client id; come with another")
    ONCE = (0x0E, "G", "session", False, 1, 502, Exit.AUTH, "info",
        "this token works for one machine; come with a token of its own")
    GENERAL = (0x10, "CM", "stream", False, 1, 502, Exit.INTERNAL, "info",
        "any other failure at the exit")
    NOT_ALLOWED = (0x11, "CM", "stream", True, 2, 403, Exit.AUTH, "info",
        "the rules of the exit or of the server forbid it")
    NET_UNREACHABLE = (0x12, "C", "stream", True, 3, 502, Exit.NOT_REACHED, "info",
        "no route to the target's network")
    HOST_UNREACHABLE = (0x13, "C", "stream", True, 4, 502, Exit.NOT_REACHED, "info",
        "no route to the target, or no address of its name")
    REFUSED = (0x14, "C", "stream", True, 5, 502, Exit.NOT_REACHED, "info",
        "the target refused the connection")
    TIMEOUT = (0x15, "C", "stream", True, 6, 504, Exit.NOT_REACHED, "info",
        "the target did not answer in time")
    UNSUPPORTED = (0x16, "CM", "stream", True, 7, 501, Exit.CONFIGURATION, "info",
        "this kind of CREATE or MAPPING is not offered")
    ADDRESS_UNSUPPORTED = (0x17, "CM", "stream", True, 8, 400, Exit.INTERNAL, "info",
        "this form of address cannot be used")
    RESOURCE = (0x18, "CM", "stream", True, 1, 503, Exit.INTERNAL, "warning",
        "a limit was reached")
    NO_MAPPING = (0x19, "CM", "stream", True, 4, 404, Exit.NOT_REACHED, "info",
        "no such name is registered")
    LINK_LOST = (0x1A, "C", "stream", False, 1, 502, Exit.NOT_REACHED, "warning",
        "the link broke and was not resumed")
    TAKEN = (0x1B, "M", "-", True, 1, 502, Exit.ADDRESS_TAKEN, "warning",
        "the public port or name belongs to somebody else")
    RESET = (0x1C, "C", "stream", False, 1, 502, Exit.INTERNAL, "info",
        "the TCP peer reset its connection, or the program gave it up")
    IDLE = (0x1D, "C", "stream", False, 1, 504, Exit.INTERNAL, "info",
        "no byte either way for too long")
    # fmt: on


CODES: Final[Mapping[Code, CodeInfo]] = {code: code.info for code in Code}


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
    _status: Exit | None = None
    """Set where the code does not say with what a command ends."""

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
        return self.code.info.exit_status if self._status is None else self._status

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.name}, {self.what!r})"


class StreamError(TunnelError):
    """One virtual TCP connection failed or was refused; the link is well."""


class LocalStreamError(StreamError):
    """This side ended, refused or misused the virtual TCP connection."""


class LimitError(LocalStreamError):
    """A limit of the user whose service or program it is does not let it be opened.

    ``of_address``: the visitor's address has its share of that service.
    """

    of_address = False

    def __init__(self, what: str) -> None:
        super().__init__(Code.RESOURCE, what)


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

    _status: Exit | None = Exit.USAGE

    def __init__(self, what: str, cause: str = "", fix: str = "") -> None:
        super().__init__(Code.GENERAL, what, cause, fix)


class StateError(TunnelError):
    """A file that this program keeps is missing, damaged or open to others."""

    _status: Exit | None = Exit.CONFIGURATION

    def __init__(self, what: str, cause: str = "", fix: str = "") -> None:
        super().__init__(Code.INTERNAL, what, cause, fix)


class ConfigError(StateError):
    """A configuration file is wrong; ``faults`` are all that is wrong with it.

    Each fault is one line, ``FILE:LINE: what is wrong; what was meant``.
    """

    def __init__(self, faults: list[str]) -> None:
        count = len(faults)
        more = f"; and {count - 1} more" if count > 1 else ""
        super().__init__(f"{faults[0]}{more}")
        self.faults = faults


class TlsError(LocalLinkError):
    """The peer is not who it should be, or does not speak TLS as it should."""

    _status: Exit | None = Exit.TLS


class ViaError(LocalLinkError):
    """The proxy on the way to the server does not take our user: no use in retrying."""


class AddressError(TunnelError):
    """A local address cannot be listened on.

    ``status`` is that of a command that needed it: unless somebody has the address, it
    is itself wrong, or this user may not have it.
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
