"""What MuxCore reports: things that have happened, named by past participles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.errors import Code
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.frames import MappingAnswer, ProtCreate, ProtGoAway, ProtMapping


@dataclass(slots=True)
class StreamOffered:
    """The peer asks for a virtual TCP connection: accept or refuse it."""

    conn: VirtualConn
    create: ProtCreate


@dataclass(slots=True)
class StreamOpened:
    """The peer has connected the target of a CREATE of ours."""

    conn: VirtualConn
    bound: Address | None


@dataclass(slots=True)
class DataReceived:
    """Bytes, in order; to be answered by ``MuxCore.consumed`` when they are taken.

    The pieces may be views into what ``receive_data`` was given: whoever keeps them
    (``payload`` does) copies them before that buffer is used again.
    """

    conn: VirtualConn
    pieces: list[bytes | memoryview]
    size: int = field(default=0, compare=False)
    """Bytes of all of them."""

    @property
    def payload(self) -> bytes:
        """All of them, copied into one."""
        return b"".join(self.pieces)


@dataclass(slots=True)
class DatagramReceived:
    """A datagram of an accepted UDP association; nothing has to be answered."""

    conn: VirtualConn
    address: Address
    payload: bytes


@dataclass(slots=True)
class StreamFinished:
    """The peer sends no more bytes; ours may go on."""

    conn: VirtualConn


@dataclass(slots=True)
class StreamClosed:
    """The end, from the peer or by ``evict``; no event follows for this connection.

    ``NORMAL``: all bytes are delivered, the peer reads no more. Anything else is a
    refusal or a reset; ``local`` when this side decided it.
    """

    conn: VirtualConn
    code: Code
    reason: str
    local: bool = False


@dataclass(slots=True)
class CreditGranted:
    """``MuxCore.send_room`` was 0 when last asked and is not any more."""

    conn: VirtualConn


@dataclass(slots=True)
class MappingAsked:
    """The peer wants public names: answer each entry, in order."""

    mapping: ProtMapping


@dataclass(slots=True)
class MappingAnswered:
    """The answer to our oldest unanswered MAPPING."""

    answers: list[MappingAnswer]


@dataclass(slots=True)
class PeerDraining:
    """The peer is about to stop: what runs goes on, nothing new."""

    retry_after_s: int = 0
    """When there may be a session elsewhere."""


@dataclass(slots=True)
class LinkClosing:
    """The peer said GO_AWAY; ``CODES`` says whether the session can go on."""

    go_away: ProtGoAway


@dataclass(slots=True)
class PingAnswered:
    """An answer to a PING arrived; it answers all earlier ones."""


Event = (
    StreamOffered
    | StreamOpened
    | DataReceived
    | DatagramReceived
    | StreamFinished
    | StreamClosed
    | CreditGranted
    | MappingAsked
    | MappingAnswered
    | PeerDraining
    | LinkClosing
    | PingAnswered
)
