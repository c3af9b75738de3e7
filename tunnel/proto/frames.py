"""The ProtFrame family: what the two ends say to one another (protocol.md#frames)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final, NewType

from tunnel.addresses import Address, UnixPath
from tunnel.errors import Code

if TYPE_CHECKING:
    from tunnel.proto.rules import Rules

SockMap = NewType("SockMap", int)
"""The number of a virtual TCP connection, 24 bits; 0 is the link or the session."""

PROTOCOL_VERSION: Final = 1
HEADER_BYTES: Final = 8
MAX_SOCK_MAP: Final = (1 << 24) - 1
MAX_FRAME_BYTES: Final = 65_528
"""Default and largest DATA payload: with its header it fills four TLS records."""
MAX_MAPPING_ENTRIES: Final = 100
"""Entries of one MAPPING that are looked at: the rest is refused with RESOURCE."""
MAX_MAPPING_COUNT: Final = 1_000
"""Entries of one MAPPING: all answers, a hundred of them with words, fit one frame."""
CLIENT_ID_BYTES: Final = 16
SESSION_ID_BYTES: Final = 16
MIN_FRAME_BYTES: Final = 16_376
"""The smallest max_frame that may be announced: one TLS record with the header."""


class ProtKind(IntEnum):
    """The fourth byte of a header: what the frame is about."""

    DATA = 0x00
    CREATE = 0x01
    CLOSE = 0x02
    MAPPING = 0x03
    TOKEN = 0x04
    HELLO = 0x05
    AUTH = 0x06
    PING = 0x07
    WINDOW = 0x08
    GO_AWAY = 0x09
    DATAGRAM = 0x0A
    RECEIVED = 0x0B


class ProtFlag(IntFlag):
    """Flags that have a meaning; every other bit is sent as 0 and ignored."""

    NONE = 0x00
    ACK = 0x01
    FIN = 0x10


CAN_MAP: Final = 0x1
"""Capability: mappings."""
CAN_UDP: Final = 0x2
"""Capability: UDP associations."""
CAN_RULE: Final = 0x4
"""Capability: the rules of an entry, which a server enforces."""
CAN_OWN: Final = 0x8
"""Capability: a token of a machine's own in the place of one that works once."""
CAN_CHANGE_PIN: Final = 0x10
"""Capability: a client keeps the pin that its server announces as the next."""

CAN_TRY: Final = 0x20
"""Capability: a server says what it would answer, and measures throughput."""

CLIENT_CAN: Final = CAN_MAP | CAN_UDP | CAN_RULE | CAN_OWN | CAN_CHANGE_PIN
SERVER_CAN: Final = CAN_MAP | CAN_UDP | CAN_RULE | CAN_OWN | CAN_TRY
"""What this program's two roles say that they can."""

FIRST_LINK_EXTENSION: Final = 0x80
FIRST_SESSION_EXTENSION: Final = 0xC0


class CreateType(IntEnum):
    """First byte of a CREATE: what is to be opened."""

    TCP = 0
    NAME = 1
    UDP = 2
    UNIX = 3
    BIND = 4
    THROUGHPUT = 5
    SESSION = 6
    LINK = 7
    ASK = 8


@dataclass(frozen=True, slots=True)
class TcpTarget:
    """A TCP connection from the exit to an address; names are resolved there."""

    address: Address

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class NameTarget:
    """A mapping the receiver registered; ``index`` is the place in a port range."""

    name: str
    index: int = 0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class UdpTarget:
    """A UDP association: no address, for each datagram has its own.

    With a ``name`` it is one of a mapping that the receiver registered, and what the
    datagrams' addresses say means nothing; ``index`` as in ``NameTarget``.
    """

    name: str = ""
    index: int = 0

    def __str__(self) -> str:
        return f"udp {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class BindTarget:
    """A port at the exit that takes one connection, from ``expected`` (BIND).

    An unspecified host (``0.0.0.0``, ``::``) expects anybody who may be reached.
    """

    expected: Address

    def __str__(self) -> str:
        return f"from {self.expected}"


@dataclass(frozen=True, slots=True)
class ThroughputTarget:
    """The server itself, to measure how much passes (protocol.md#throughput).

    ``upload`` says that the opener sends; ``most_ms`` and ``most_bytes`` end it.
    """

    upload: bool
    most_ms: int
    most_bytes: int

    def __str__(self) -> str:
        return f"throughput {'up' if self.upload else 'down'}"


@dataclass(frozen=True, slots=True)
class SessionTarget:
    """What a client of the receiver is to open; between servers (protocol.md#peers)."""

    session_id: bytes
    """16 bytes: the client's session."""
    target: NameTarget | TcpTarget

    def __str__(self) -> str:
        return str(self.target)


@dataclass(frozen=True, slots=True)
class LinkTarget:
    """The bytes of a client's link that came to another server (protocol.md#peers).

    ``encrypted`` says whether they came out of TLS, which ended there; ``users`` for
    whom the client's certificate is, where one was asked for.
    """

    encrypted: bool
    users: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "a link"


@dataclass(frozen=True, slots=True)
class AskTarget:
    """A question to a server by another (protocol.md#peers)."""

    def __str__(self) -> str:
        return "a question"


@dataclass(frozen=True, slots=True)
class OtherTarget:
    """A form of CREATE that this program does not serve: refused with UNSUPPORTED."""

    type: int
    body: bytes = b""

    def __str__(self) -> str:
        return f"type {self.type}"


Target = (
    TcpTarget
    | NameTarget
    | UdpTarget
    | UnixPath
    | BindTarget
    | ThroughputTarget
    | SessionTarget
    | LinkTarget
    | AskTarget
    | OtherTarget
)


@dataclass(slots=True)
class ProtData:
    """Bytes of a virtual TCP connection; ``fin`` marks the last of this direction."""

    sock_map: SockMap
    payload: bytes | memoryview
    fin: bool = False


@dataclass(slots=True)
class ProtCreate:
    """Open a virtual TCP connection to ``target``.

    ``visitor`` is who came to the public port, ``deadline_ms`` how long the opener
    waits, ``host_name`` what TLS or HTTP named, ``exit`` at which client to leave.
    """

    sock_map: SockMap
    target: Target
    visitor: Address | None = None
    deadline_ms: int | None = None
    host_name: str | None = None
    exit: str | None = None

    def leads_to(self, mapping: str) -> bool:
        """Say whether it is of a visitor of this mapping."""
        target = self.target
        return isinstance(target, NameTarget | UdpTarget) and target.name == mapping


@dataclass(slots=True)
class ProtAccept:
    """CREATE with ACK: the target is connected; ``bound`` is the exit's own address."""

    sock_map: SockMap
    bound: Address | None = None


@dataclass(slots=True)
class ProtClose:
    """The last frame of its sender for this number."""

    sock_map: SockMap
    code: Code = Code.NORMAL
    reason: str = ""


class MappingOp(IntEnum):
    """What a MAPPING does with its entries."""

    ADD = 1
    REMOVE = 2
    REPLACE = 3
    TRY = 4


class MappingType(IntEnum):
    """What kind of public name an entry asks for."""

    TCP = 1
    HTTP = 2
    HTTPS = 3
    UDP = 4
    SOCKS = 5
    EXIT = 6


@dataclass(frozen=True, slots=True)
class MappingEntry:
    """One public name: who visits it is carried to ``NameTarget(name)`` at the client.

    Host ``""`` means the address that the server's links come in on, port 0 one of the
    server's choice; ``count`` ports in a row belong to the entry. Of an EXIT, host is
    the name under which others may leave at this client (protocol.md#exits).
    """

    type: int
    name: str
    host: str = ""
    port: int = 0
    count: int = 1
    rules: Rules | None = None
    """What the server asks of visitors; sent only to who says ``CAN_RULE``."""


@dataclass(slots=True)
class ProtMapping:
    """Register, withdraw or replace public names (center-client to center-server)."""

    op: MappingOp
    entries: list[MappingEntry] = field(default_factory=list)
    too_many: int = 0
    """Entries behind these that were well-formed and are not kept."""
    client_id: bytes = b""
    """Of a TRY: the client in whose place it is asked, 16 bytes."""


@dataclass(frozen=True, slots=True)
class MappingAnswer:
    """What became of one entry: ``NORMAL`` and where it listens, or why not."""

    code: Code
    host: str = ""
    port: int = 0
    reason: str = ""


BY_TLS: Final = "https"
"""The reason in the answer for a web service whose visitors are to come by TLS."""


@dataclass(slots=True)
class ProtMappingAnswer:
    """MAPPING with ACK: one answer for each entry, in the order of the question."""

    answers: list[MappingAnswer] = field(default_factory=list)


@dataclass(slots=True)
class ProtHello:
    """The first frame of each side (protocol.md#hello); the server's has ``ack``."""

    ack: bool
    min_version: int
    max_version: int
    nonce: bytes
    tlvs: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class ProtAuth:
    """The client's name and proof, and the session that it wants to go on with."""

    name: str
    link_no: int
    session_id: bytes = b""
    count: int = 0
    resume_proof: bytes = b""
    tlvs: dict[int, bytes] = field(default_factory=dict)
    proof: bytes = bytes(32)


@dataclass(slots=True)
class ProtAuthAnswer:
    """The server's proof, and the session that this link carries from now on."""

    session_id: bytes
    count: int
    resumed: bool
    tlvs: dict[int, bytes] = field(default_factory=dict)
    proof: bytes = bytes(32)


@dataclass(slots=True)
class ProtPing:
    """Eight opaque bytes, echoed with ``ack``."""

    opaque: bytes
    ack: bool = False


@dataclass(slots=True)
class ProtWindow:
    """The absolute offset up to which the receiver of this frame may send."""

    sock_map: SockMap
    limit: int


@dataclass(slots=True)
class ProtGoAway:
    """Why the link or the session ends; ``CODES`` says which of the two."""

    code: Code
    retry_after_s: int = 0
    reason: str = ""


@dataclass(slots=True)
class ProtDatagram:
    """One datagram of a UDP association."""

    sock_map: SockMap
    address: Address
    payload: bytes


@dataclass(slots=True)
class ProtReceived:
    """How many session bytes its sender has taken so far."""

    count: int


@dataclass(slots=True)
class ProtExtension:
    """A kind from 0x80 on that this program does not know: counted, then skipped."""

    kind: int
    sock_map: SockMap
    size: int


ProtFrame = (
    ProtData
    | ProtWindow
    | ProtClose
    | ProtCreate
    | ProtAccept
    | ProtMapping
    | ProtMappingAnswer
    | ProtHello
    | ProtAuth
    | ProtAuthAnswer
    | ProtPing
    | ProtGoAway
    | ProtDatagram
    | ProtReceived
    | ProtExtension
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What one side promises in its HELLO for the whole session (protocol.md#hello)."""

    max_frame: int = MAX_FRAME_BYTES
    initial_window: int = 262_144
    max_streams: int = 16_384
    opens_per_s: int = 10_000
    capabilities: int = 1
    max_datagram: int = 65_535
    idle_ping_s: int = 10
    agent: str = "tunnel"
    client_id: bytes = bytes(CLIENT_ID_BYTES)
