"""The incoming half of a session: bytes from the link become events, in order.

One read brings up to 256 KiB: four frames of bulk, or thirty thousand of a byte, or
eight thousand connections to open. The others of the process wait for the turn to end,
so a turn ends when its work is done and not when the bytes are (protocol.md#fairness).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.calm import Calm, calm
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.events import (
    CreditGranted,
    DatagramReceived,
    DataReceived,
    LinkClosing,
    PeerDraining,
    PingAnswered,
    StreamClosed,
    StreamFinished,
    StreamOffered,
    StreamOpened,
)
from tunnel.proto.fields import illegal
from tunnel.proto.frames import (
    ProtAccept,
    ProtClose,
    ProtCreate,
    ProtData,
    ProtDatagram,
    ProtExtension,
    ProtFlag,
    ProtGoAway,
    ProtKind,
    ProtMapping,
    ProtMappingAnswer,
    ProtPing,
    ProtReceived,
    ProtWindow,
)
from tunnel.proto.limits import TokenBucket
from tunnel.proto.output import STREAM_QUEUE_BYTES
from tunnel.proto.state import Signal, StreamState, step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event
    from tunnel.proto.frames import ProtFrame
    from tunnel.proto.mappings import MappingExchange
    from tunnel.proto.table import ConnTable

NUISANCE_PER_S: Final = 100.0
"""Frames that do nothing (PING, a grant that grants nothing, an unknown extension):
ten times what a lively peer sends."""
NUISANCE_BURST: Final = 1_000.0
TURN_WORK: Final = 96
"""Units of one turn, about 0.3 ms: the small frames of 64 busy connections fit, and
a turn of the scheduler, 20 µs, costs a flood a few percent and nobody else anything."""
CREATE_WORK: Final = 40
"""A task, a dial and an answer follow: a hundred times a small DATA, spread over the
next turns."""
DATAGRAM_WORK: Final = 4
"""An address to take apart, an order of flows, a system call."""
CLOSE_WORK: Final = 8
"""A socket to close and a task to end, or a task to begin the relay."""

_WORK: Final[dict[type, int]] = {
    ProtCreate: CREATE_WORK,
    ProtAccept: CLOSE_WORK,
    ProtClose: CLOSE_WORK,
}

_ACK: Final = int(ProtFlag.ACK)
_FIN: Final = int(ProtFlag.FIN)
_OPEN: Final = StreamState.OPEN
_CLOSING: Final = StreamState.CLOSING


class Input:
    """What comes from the peer of a session."""

    def __init__(self, table: ConnTable, mappings: MappingExchange, now: float) -> None:
        self.data_received = 0
        """Payload bytes of DATA that arrived, all connections together."""
        self._table = table
        self._mappings = mappings
        self._output = output = table.output
        self._ours = output.ours
        self._conns = output.conns
        self._control = output.control
        self._acks = output.acks
        self._pool = output.pools.held
        self._liveness = output.liveness
        self._nuisance = TokenBucket(NUISANCE_PER_S, NUISANCE_BURST, now)
        self._decoder = FrameDecoder(output.ours.max_frame, self._admit)
        self._rest: Iterator[ProtFrame] | None = None
        """What arrived and was more than a turn's work."""

    @property
    def received(self) -> int:
        """Session bytes that were taken, over all links: what a resume states."""
        return self._decoder.session_bytes

    def begin_link(self) -> None:
        """Drop what the old link did not bring whole; count on."""
        self._rest = None
        taken = self._decoder.session_bytes
        self._decoder = FrameDecoder(self._ours.max_frame, self._admit)
        self._decoder.session_bytes = taken

    def receive_data(
        self, data: bytes | bytearray | memoryview, now: float
    ) -> list[Event]:
        """Take bytes from the link, split in any way; return what they mean, in order.

        A turn's work of them, that is: while ``has_input`` says so, ``receive_more``
        returns the rest, and ``data`` must not change.

        Raises:
            RemoteSessionError: the peer broke a rule; its code is the answer to it.
        """
        self._liveness.heard(now)
        return self._take_frames(self._decoder.feed(data), now)

    def has_input(self) -> bool:
        """Say whether what ``receive_data`` was given has not all been taken."""
        return self._rest is not None

    def drop_input(self) -> None:
        """Take nothing more of what came: its link is over."""
        self._rest = None

    def receive_more(self, now: float) -> list[Event]:
        """Take the next turn's work of what came; see ``receive_data``."""
        frames, self._rest = self._rest, None
        return self._take_frames(frames or iter(()), now)

    def let_go(self) -> None:
        """Receive nothing any more."""
        self._decoder.let_go()

    def _take_frames(self, frames: Iterator[ProtFrame], now: float) -> list[Event]:
        events: list[Event] = []
        brought: dict[VirtualConn, DataReceived] = {}
        work = 0
        for frame in frames:
            # In the order of how often they come on a busy link.
            if type(frame) is ProtData:
                self._on_data(frame, events, brought)
                work += 1
            elif type(frame) is ProtDatagram:
                self._on_datagram(frame, events, now)
                work += DATAGRAM_WORK
            else:
                self._on_control(frame, events, now)
                work += _work_of(frame)
            if work >= TURN_WORK:
                self._rest = frames
                break
        if self._acks is not None and self._acks.took(self._decoder.session_bytes, now):
            self._liveness.sooner = True
        if self._control.size and self._control.is_too_long():
            raise calm(Calm.UNREAD)
        for conn, event in brought.items():
            if conn.state is not _CLOSING:  # given up for another, just now
                self._pool.hold(conn, event.size)
        return events

    def _admit(self, kind: int, flag: int, sock_map: int, length: int) -> None:
        """Refuse by its header a frame that would be refused when it is complete."""
        if kind == ProtKind.DATA:
            conn = self._known(sock_map, "DATA")
            self._check_data(conn, length, fin=bool(flag & _FIN))
        elif kind == ProtKind.MAPPING:
            self._mappings.check(ack=bool(flag & _ACK))
        elif kind == ProtKind.DATAGRAM:
            self._association(sock_map)

    def _known(self, sock_map: int, what: str) -> VirtualConn:
        conn = self._conns.get(sock_map)
        if conn is None:
            raise illegal(f"{what} on sock_map {sock_map}, which is not open")
        return conn

    # DATA --------------------------------------------------------------------------

    def _on_data(
        self,
        frame: ProtData,
        events: list[Event],
        brought: dict[VirtualConn, DataReceived],
    ) -> None:
        """Take a frame; what one call brings for a connection is one event."""
        conn = self._known(frame.sock_map, "DATA")
        size = len(frame.payload)
        self._check_data(conn, size, fin=frame.fin)
        conn.recv.received += size
        self.data_received += size
        if conn.state is _CLOSING:
            return
        if not size:
            pass
        elif (event := brought.get(conn)) is not None:
            event.pieces.append(frame.payload)
            event.size += size
        else:
            brought[conn] = event = DataReceived(conn, [frame.payload], size)
            events.append(event)
        if frame.fin:
            if conn.datagrams is not None:
                raise conn.broken("FIN on a UDP association")
            conn.on_recv(Signal.RECV_FINISH)
            events.append(StreamFinished(conn))

    def _check_data(self, conn: VirtualConn, length: int, *, fin: bool) -> None:
        if conn.state is not _OPEN:
            signal = Signal.RECV_FINISH if fin else Signal.RECV_DATA
            if step(conn.state, signal) is None:
                raise conn.broken("DATA")
        if not conn.recv.fits(length):
            raise RemoteSessionError(Code.FLOW, "the peer sent more than was granted")

    # Every other kind --------------------------------------------------------------

    def _on_control(  # noqa: C901, PLR0912 - one flat case per kind
        self, frame: ProtFrame, events: list[Event], now: float
    ) -> None:
        match frame:
            case ProtWindow():
                self._on_window(frame, events, now)
            case ProtClose(sock_map, code, reason):
                conn = self._known(sock_map, "CLOSE")
                if self._table.take_close(conn):
                    events.append(StreamClosed(conn, code, reason))
            case ProtCreate():
                offered = self._table.take_create(frame, now)
                if offered is not None:
                    events.append(StreamOffered(offered, frame))
            case ProtAccept(sock_map, bound):
                conn = self._known(sock_map, "CREATE|ACK")
                conn.on_recv(Signal.RECV_ACCEPT)
                if conn.state is not _CLOSING:
                    self._table.own_opens.answered(conn)
                    if conn.datagrams is not None:
                        self._output.datagrams.enlist(conn.datagrams)
                    events.append(StreamOpened(conn, bound))
            case ProtPing(opaque, ack):
                self._count_nuisance(now, Calm.PING)
                if ack:
                    self._liveness.answered(now)
                    events.append(PingAnswered())
                else:
                    self._output.pong(opaque)
            case ProtMapping() | ProtMappingAnswer():
                events.append(self._mappings.take(frame))
            case ProtGoAway(code, retry_after_s):
                if code is not Code.DRAINING:
                    events.append(LinkClosing(frame))
                elif self._table.peer_draining:
                    self._count_nuisance(now, Calm.DRAINING)
                else:
                    self._table.peer_draining = True
                    events.append(PeerDraining(retry_after_s))
            case ProtReceived(count):
                self._on_received(count, now)
            case ProtExtension():
                self._count_nuisance(now, Calm.EXTENSION)
            case _:
                raise illegal(f"{type(frame).__name__} is out of place")

    def _on_window(self, frame: ProtWindow, events: list[Event], now: float) -> None:
        conn = self._known(frame.sock_map, "WINDOW")
        conn.on_recv(Signal.RECV_WINDOW)
        if conn.datagrams is not None or not conn.send.raise_to(frame.limit):
            self._count_nuisance(now, Calm.WINDOW)
        elif (
            conn.starved
            # A full lane wakes it when it has been served: till then there is no room.
            and conn.lane.size < STREAM_QUEUE_BYTES
            and conn.state is not _CLOSING
        ):
            conn.starved = False
            events.append(CreditGranted(conn))

    def _on_datagram(
        self, frame: ProtDatagram, events: list[Event], now: float
    ) -> None:
        conn, size = self._conns.get(frame.sock_map), len(frame.payload)
        if conn is None or conn.datagrams is None or conn.state is not _OPEN:
            conn = self._association(frame.sock_map)  # or it is refused
        if size > self._ours.max_datagram:
            self._count_nuisance(now, Calm.DATAGRAM)
        elif conn.state is _OPEN and conn.datagrams is not None:
            output = self._output
            if output.police is not None and not output.police.lets_in(size):
                return
            output.datagram_bytes += size
            conn.datagrams.received_bytes += size
            events.append(DatagramReceived(conn, frame.address, frame.payload))

    def _association(self, sock_map: int) -> VirtualConn:
        """Return the UDP association that a DATAGRAM is for, or refuse the frame."""
        conn = self._known(sock_map, "DATAGRAM")
        if conn.datagrams is None or conn.state not in (_OPEN, _CLOSING):
            raise conn.broken("DATAGRAM")
        return conn

    def _on_received(self, count: int, now: float) -> None:
        replay = self._output.replay
        if replay is None:
            raise illegal("RECEIVED without resumption")
        if count <= replay.confirmed:
            self._count_nuisance(now, Calm.RECEIVED)
        if not replay.confirm(count):
            raise illegal(f"the peer cannot have received {count} bytes")

    def _count_nuisance(self, now: float, what: Calm) -> None:
        if not self._nuisance.allow(now):
            raise calm(what)


def _work_of(frame: ProtFrame) -> int:
    """Return the units of work of any frame but DATA and DATAGRAM."""
    if isinstance(frame, ProtMapping):
        return 2 + 4 * (len(frame.entries) + frame.too_many)
    if isinstance(frame, ProtMappingAnswer):
        return 2 + 4 * len(frame.answers)
    return _WORK.get(type(frame), 2)
