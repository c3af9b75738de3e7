"""MuxCore: any number of virtual TCP connections over whatever carries its bytes.

Sans-IO: bytes and the time go in, events and bytes come out. It can outlive the wire
under it: ``resume`` begins a link, and what belongs to the session stays.

It never waits, never reads a clock, and never fails half-way: a method either raises
without an effect or has its whole effect. Only ``receive_data`` can meet a peer's
fault, and then raises ``RemoteSessionError``: the session is over.

Map: commands for the session's user · output · input, one method a kind · upkeep.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalStreamError,
    RemoteSessionError,
)
from tunnel.proto.calm import Calm, calm
from tunnel.proto.codec import FrameDecoder, close_frame, encode
from tunnel.proto.conn import VirtualConn
from tunnel.proto.datagrams import Outbox
from tunnel.proto.events import (
    CreditGranted,
    DatagramReceived,
    DataReceived,
    LinkClosing,
    MappingAnswered,
    MappingAsked,
    PeerDraining,
    PingAnswered,
    StreamClosed,
    StreamFinished,
    StreamOffered,
    StreamOpened,
)
from tunnel.proto.frames import (
    CAN_UDP,
    MAX_FRAME_BYTES,
    MAX_SOCK_MAP,
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
    SockMap,
    UdpTarget,
)
from tunnel.proto.liveness import Due, Liveness
from tunnel.proto.opens import OPEN_DEADLINE_S, OwnOpens, PeerOpens
from tunnel.proto.pools import Pools
from tunnel.proto.resend import ResendBuffer, acks_for
from tunnel.proto.room import LEAST_BYTES, SHARE
from tunnel.proto.scheduler import SendScheduler
from tunnel.proto.state import Signal, StreamState, step
from tunnel.proto.token_bucket import TokenBucket
from tunnel.proto.window_tuner import WindowTuner
from tunnel.proto.work import TURN_WORK, work_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunnel.proto.events import Event
    from tunnel.proto.frames import (
        Address,
        MappingAnswer,
        MappingEntry,
        MappingOp,
        ProtFrame,
        Target,
        Terms,
    )
    from tunnel.proto.scheduler import Buffer, SendQueue

STREAM_QUEUE_BYTES: Final = 262_144
"""Unsent bytes of one virtual TCP connection: two chunks, one on its way, one ready."""
CONTROL_QUEUE_BYTES: Final = 4_194_304
"""Control frames that may wait when more arrives: 4,096 CREATEs with long names and
every live connection's CLOSE fit. More piles up only where a peer asks and does not
read the answers."""
CONTROL_TURN_BYTES: Final = 16_384
"""Control frames of one turn: two thousand of the smallest, a third of a millisecond
to write, and as long to find the border of a frame in what is unconfirmed."""
PAUSED_A_TURN: Final = 16
"""Who may read again in one turn: they bring 2 MiB, eight times what it took away."""
WINDOWS_A_TURN: Final = 128
"""Grants of one turn: twice what 64 busy readers ask for."""
MAX_UNANSWERED_MAPPINGS: Final = 16
"""MAPPINGs of the peer that wait for our answer; one at a time is sane."""
NUISANCE_PER_S: Final = 100.0
"""Frames that do nothing (PING, a grant that grants nothing, an unknown extension):
ten times what a lively peer sends."""
NUISANCE_BURST: Final = 1_000.0

_ACK: Final = int(ProtFlag.ACK)
_FIN: Final = int(ProtFlag.FIN)
_OPEN: Final = StreamState.OPEN
_CLOSING: Final = StreamState.CLOSING
_REMOTE_DONE: Final = (
    StreamState.REMOTE_FINISHED,
    StreamState.FINISHED,
    StreamState.OFFERED_FINISHED,
    StreamState.CLOSING,
    StreamState.IDLE,
)


def _nothing() -> None:
    """Stand in for a shell that need not hear of notices."""


class MuxCore:
    """One end of a session.

    Args:
        client: whether this is the center-client's end (it opens odd numbers).
        ours: what this side announced; binds the peer.
        theirs: what the peer announced; binds this side.
        now: the time, in seconds on any clock that does not jump; the same clock in
            every later call.
        pools: shared by all sessions of a process; bounds what they hold.
        notify: called when ``take_notices`` has something that no call returned, for
            example because another session's bytes made this one give up a reader.
        top: the highest number; smaller in tests, to see numbers wrap.
        replay_limit: unconfirmed bytes to keep for another link; 0 when the session
            ends with its link.
        open_deadline_s: how long a CREATE may wait for its answer.
    """

    def __init__(
        self,
        *,
        client: bool,
        ours: Terms,
        theirs: Terms,
        now: float,
        pools: Pools | None = None,
        notify: Callable[[], None] = _nothing,
        top: int = MAX_SOCK_MAP,
        replay_limit: int = 0,
        open_deadline_s: float = OPEN_DEADLINE_S,
    ) -> None:
        self.is_client = client
        self.ours = ours
        self.theirs = theirs
        self.draining = False
        self.peer_draining = False
        self.data_sent = 0
        """Payload bytes of DATA that were queued, all connections together."""
        self.data_received = 0
        self._conns: dict[int, VirtualConn] = {}
        self._pools = pools = pools or Pools()
        self._pool = pools.held
        self._growth: WindowTuner[VirtualConn] = WindowTuner(
            ours.initial_window, self._pool.growth
        )
        self._notify = notify
        self._own_opens: OwnOpens[VirtualConn] = OwnOpens(
            client=client, top=top, theirs=theirs, deadline_s=open_deadline_s, now=now
        )
        self._peer_opens = PeerOpens(ours, now)
        self._lanes = SendScheduler(
            min(theirs.max_frame, MAX_FRAME_BYTES), pools.unsent
        )
        self._paused: dict[VirtualConn, None] = {}
        """Who gets no room while the session has more unsent than its share."""
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._datagrams = Outbox(pools.datagrams_out)
        self._linked = True
        self._windows: dict[VirtualConn, None] = {}
        self._notices: list[Event] = []
        self._mappings_to_answer = 0
        self._mappings_asked = 0
        self._nuisance = TokenBucket(NUISANCE_PER_S, NUISANCE_BURST, now)
        self.replay = ResendBuffer(replay_limit, pools.kept) if replay_limit else None
        self._receipts = acks_for(replay_limit) if replay_limit else None
        self._again: deque[bytes] = deque()
        self._decoder = FrameDecoder(ours.max_frame, self._admit)
        self._input: Iterator[ProtFrame] | None = None
        """What came and was more than a turn's work."""
        self.sooner = False
        """``next_wakeup`` may be sooner than it was when it was asked for last."""
        self._begin_link(now)

    # Links -------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """Session bytes that were taken, over all links: what a resume states."""
        return self._decoder.session_bytes

    def can_resume(self, count: int) -> bool:
        """Say whether a peer that has ``count`` of our bytes can go on from there."""
        return self.replay is not None and self.replay.allows(count)

    def resume(self, count: int, now: float) -> int:
        """Begin another link: send again what the peer has not, before anything new.

        Args:
            count: session bytes that the peer states to have.
            now: the time.

        Returns:
            How many bytes go out again.

        Raises:
            RemoteSessionError: ``PROTOCOL``: the count cannot be.
        """
        if self.replay is None or not self.replay.confirm(count):
            raise RemoteSessionError(
                Code.PROTOCOL, f"the peer cannot have received {count} bytes"
            )
        self._input = None
        taken = self._decoder.session_bytes
        self._decoder = FrameDecoder(self.ours.max_frame, self._admit)
        self._decoder.session_bytes = taken
        self._again = deque(self.replay.rest())
        if self._receipts is not None:
            self._receipts.state(taken, now)  # AUTH has said it
        self._begin_link(now)
        return self.replay.unconfirmed

    def link_lost(self) -> None:
        """Throw datagrams away, those to come too, until ``resume``."""
        self._linked = False
        self._input = None
        self._datagrams.clear()

    def _begin_link(self, now: float) -> None:
        """Forget what belonged to the link before."""
        self._datagrams.clear()
        self._linked = True
        self._growth.begin_link()
        idle_s = float(min(self.ours.idle_ping_s, self.theirs.idle_ping_s))
        self.liveness = Liveness(now, idle_s, 2 * idle_s)
        self._link_control: deque[bytes] = deque()
        self._pong = b""
        if self.draining:
            self._say_draining()

    # Commands ----------------------------------------------------------------------

    @property
    def conns(self) -> int:
        """Virtual TCP connections whose number is not free."""
        return len(self._conns)

    @property
    def _both_can_udp(self) -> bool:
        return bool(self.ours.capabilities & self.theirs.capabilities & CAN_UDP)

    @property
    def offered(self) -> int:
        """Connections that the peer opened and whose task has not ended."""
        return self._peer_opens.served

    def open(
        self,
        target: Target,
        now: float,
        visitor: Address | None = None,
        exit_name: str | None = None,
    ) -> VirtualConn:
        """Queue a CREATE; DATA may follow at once within the initial window.

        Raises:
            LocalStreamError: ``DRAINING``, ``RESOURCE`` (a limit),
                ``ADDRESS_UNSUPPORTED`` (a host that cannot be written), or
                ``UNSUPPORTED`` (a UDP association that the peer does not offer).
        """
        if isinstance(target, UdpTarget) and not self._both_can_udp:
            raise LocalStreamError(Code.UNSUPPORTED, "the peer offers no UDP")
        if self.draining or self.peer_draining:
            raise LocalStreamError(Code.DRAINING, "no new connections while draining")
        sock_map = self._own_opens.next_number(self._conns, target, now)
        frame = encode(ProtCreate(sock_map, target, visitor, exit=exit_name))
        conn = self._new_conn(sock_map, target)
        conn.state = StreamState.OPENING
        self._own_opens.opened(conn, target, now)
        self.sooner = True
        self._push_control(frame)
        return conn

    def accept(self, conn: VirtualConn, bound: Address | None = None) -> None:
        """Answer an offer: the target is connected.

        Raises:
            LocalStreamError: the peer has closed it meanwhile, or it was answered.
        """
        self._send(conn, Signal.SEND_ACCEPT)
        self._push_control(encode(ProtAccept(conn.sock_map, bound)))

    def send_room(self, conn: VirtualConn, least: int = 1) -> int:
        """Give how many bytes ``send_data`` takes; after 0, CreditGranted follows.

        Less than ``least`` is given only when nothing is queued.
        """
        queued = conn.lane.size
        room = min(conn.send.room(), STREAM_QUEUE_BYTES - queued)
        if room >= least or (room > 0 and not queued):
            lanes = self._lanes
            if lanes.size <= LEAST_BYTES or (
                SHARE * lanes.size <= lanes.room.free_bytes
            ):
                return room
            self._paused[conn] = None
        conn.starved = True
        return 0

    def send_data(self, conn: VirtualConn, piece: Buffer) -> None:
        """Queue bytes, at most ``send_room`` of them; kept by reference.

        Raises:
            LocalStreamError: after ``finish``, or when the connection is over.
        """
        # The table is asked only off the beaten path: OPEN stays OPEN.
        if conn.state is not _OPEN:
            self._send(conn, Signal.SEND_DATA)
        conn.send.take(len(piece))
        self.data_sent += len(piece)
        self._lanes.push(conn.lane, piece)

    def send_datagram(
        self, conn: VirtualConn, address: Address, payload: bytes
    ) -> None:
        """Queue a datagram of a UDP association, or drop one: see ``datagrams``.

        It leaves when the peer has accepted the association, in front of all DATA.
        Dropped and counted are the oldest that wait too many, what is larger than the
        peer takes, everything while there is no link or after the end.

        Raises:
            LocalStreamError: ``ADDRESS_UNSUPPORTED``: a host that cannot be written.
        """
        queue = conn.datagrams
        assert queue is not None  # noqa: S101 - of a UDP association, says the caller
        frame = encode(ProtDatagram(conn.sock_map, address, payload))
        if (
            conn.state not in (_OPEN, StreamState.OPENING)
            or not self._linked
            or len(payload) > self.theirs.max_datagram
        ):
            queue.dropped += 1
            return
        queue.push(frame, len(frame))
        if conn.state is _OPEN:
            self._datagrams.enlist(queue)

    def finish(self, conn: VirtualConn) -> None:
        """Queue FIN: no more bytes this way.

        Raises:
            LocalStreamError: a second time, or when the connection is over.
        """
        self._send(conn, Signal.SEND_FINISH)
        self._lanes.finish(conn.lane)

    def close(
        self, conn: VirtualConn, code: Code = Code.NORMAL, reason: str = ""
    ) -> None:
        """Queue CLOSE: we neither send nor read any more. Harmless when it is over.

        ``NORMAL`` and ``RESET`` go behind the bytes that are queued; every other code
        drops those and goes at once (protocol.md#close).
        """
        self._pool.forget(conn)
        self._growth.forget(conn)
        self._windows.pop(conn, None)
        self._paused.pop(conn, None)
        if conn.datagrams is not None:
            self._datagrams.forget(conn.datagrams)
        if step(conn.state, Signal.SEND_CLOSE) is None:
            return
        self._own_opens.answered(conn)
        conn.state = _CLOSING
        frame = close_frame(conn.sock_map, code, reason)
        if code in (Code.NORMAL, Code.RESET) and not conn.lane.idle():
            self._lanes.close(conn.lane, frame)
        else:
            self._lanes.purge(conn.lane)
            self._push_control(frame)

    def consumed(self, conn: VirtualConn, size: int) -> bool:
        """Count bytes that the application took; True when a grant became due."""
        self._pool.release(conn, size)
        if conn.recv.consume(size) and conn.state not in _REMOTE_DONE:
            self._windows[conn] = None
            return True
        return False

    def released(self, conn: VirtualConn) -> None:
        """Count the end of the task that served an offer: its descriptor is closed."""
        self._pool.forget(conn)
        if conn.offered:
            conn.offered = False
            self._peer_opens.served -= 1

    def ask_mapping(self, op: MappingOp, entries: list[MappingEntry]) -> None:
        """Queue a MAPPING; MappingAnswered follows, in the order of the questions."""
        self._mappings_asked += 1
        self._push_control(encode(ProtMapping(op, entries)))

    def answer_mapping(self, answers: list[MappingAnswer]) -> None:
        """Answer the oldest MappingAsked, entry by entry."""
        self._mappings_to_answer -= 1
        self._push_control(encode(ProtMappingAnswer(answers)))

    def ping(self, now: float, *, slept: bool = False) -> None:
        """Queue a PING; PingAnswered follows, and ``liveness`` has the round trip.

        After this machine ``slept``, the link is given up sooner without an answer.
        """
        if slept:
            self.liveness.suspect(now)
        else:
            self.liveness.asked(now)
        self._link_control.append(encode(ProtPing(bytes(8))))

    def drain(self) -> None:
        """Say that this side is about to stop: it refuses what is new from now on."""
        if not self.draining:
            self.draining = True
            self._say_draining()

    def _say_draining(self) -> None:
        self._link_control.append(encode(ProtGoAway(Code.DRAINING)))

    def go_away(self, code: Code, reason: str = "", retry_after_s: int = 0) -> None:
        """Queue GO_AWAY as the last frame: what was queued goes out no more."""
        self._drop_output()
        self._link_control.append(encode(ProtGoAway(code, retry_after_s, reason)))

    # Output ------------------------------------------------------------------------

    def has_output(self) -> bool:
        """Say whether ``data_to_send`` has anything."""
        # Asked before and behind each turn: few calls on the beaten path.
        if (self._lanes.waiting or self._control or self._windows) and not (
            self.replay is not None and self.replay.full()
        ):
            return True
        return bool(
            self._link_control
            or self._pong
            or self._again
            or (self._receipts is not None and self._receipts.due)
            or (self._datagrams.waiting and self._may_send_datagrams())
        )

    def flushed(self) -> bool:
        """Say whether nothing is left to send, and the peer has confirmed the rest."""
        if self.has_output():
            return False
        return self.replay is None or not self.replay.unconfirmed

    def data_to_send(self, budget: int, now: float) -> list[Buffer]:
        """Give the next frames, as pieces to be written in order.

        All control frames, then some datagrams, then about ``budget`` bytes of the
        virtual TCP connections in turn; first of all what a resume repeats, and of the
        session nothing while the replay is full. What is given is gone from here: it
        must reach the link or the link is lost.
        """
        out = self._link_frames(now)
        datagrams = self._datagrams
        in_front = bool(datagrams.waiting) and self._may_send_datagrams()
        if in_front:
            out += datagrams.take()
        if self._again:
            out.append(self._again.popleft())
        elif self.replay is None:
            out += self._session_frames(budget, now)
        elif not self.replay.full() and (frames := self._session_frames(budget, now)):
            # Joined here and not by the transport: what is kept is what is written.
            chunk = b"".join(frames)
            self.replay.record(chunk)
            out.append(chunk)
        if datagrams.waiting and not in_front and self._may_send_datagrams():
            # Control stood in their way; it may do so in every turn.
            out += datagrams.take()
        return out

    def _may_send_datagrams(self) -> bool:
        """A peer that has not read our CREATE|ACK must not see a datagram yet.

        The answer may be among what a resume repeats, or wait in a full replay.
        """
        return not self._again and not self._control

    def _link_frames(self, now: float) -> list[Buffer]:
        """Give the frames that belong to this link and are never repeated."""
        out: list[Buffer] = []
        if self._pong:
            out.append(self._pong)
            self._pong = b""
        receipts = self._receipts
        if receipts is not None and (
            receipts.due or (self._windows and receipts.worth(self.received))
        ):
            receipts.state(self.received, now)
            out.append(encode(ProtReceived(self.received)))
        if self._link_control:
            out += self._link_control
            self._link_control.clear()
        return out

    def _session_frames(self, budget: int, now: float) -> list[Buffer]:
        out: list[Buffer] = []
        if self._control:
            self._take_control(out)
            if self._control:
                return out  # nothing overtakes it
        if self._windows:
            self._raise_windows(out, now)
        if self._lanes.waiting:
            served: list[SendQueue] = []
            self._lanes.take(budget, out, served)
            for lane in served:
                self._wake_if_starved(lane.sock_map)
        if self._paused:
            self._wake_paused()
        return out

    def _take_control(self, out: list[Buffer]) -> None:
        control = self._control
        if self._control_bytes <= CONTROL_TURN_BYTES:
            out += control
            control.clear()
            self._count_control(-self._control_bytes)
            return
        size = 0
        while size < CONTROL_TURN_BYTES:
            frame = control.popleft()
            size += len(frame)
            out.append(frame)
        self._count_control(-size)

    def _raise_windows(self, out: list[Buffer], now: float) -> None:
        rtt_s, scarce = self.liveness.rtt_s, self._pool.is_scarce()
        windows = self._windows
        for conn in tuple(islice(windows, WINDOWS_A_TURN)):
            del windows[conn]
            self._growth.before_grant(conn, now, rtt_s, scarce=scarce)
            out.append(encode(ProtWindow(conn.sock_map, conn.recv.grant())))
        self.sooner = True
        if self._growth.probe_due(now):
            self.ping(now)

    def take_notices(self) -> list[Event]:
        """Give the events that came from other calls than ``receive_data``."""
        notices, self._notices = self._notices, []
        return notices

    # Input -------------------------------------------------------------------------

    def receive_data(
        self, data: bytes | bytearray | memoryview, now: float
    ) -> list[Event]:
        """Take bytes from the link, split in any way; give what they mean, in order.

        A turn's work of them, that is: while ``has_input`` says so, ``receive_more``
        gives the rest, and ``data`` must not change.

        Raises:
            RemoteSessionError: the peer broke a rule; its code is the answer to it.
        """
        if self.liveness.heard(now):
            self.sooner = True
        return self._take_frames(self._decoder.feed(data), now)

    def has_input(self) -> bool:
        """Say whether what ``receive_data`` was given has not all been taken."""
        return self._input is not None

    def drop_input(self) -> None:
        """Take nothing more of what came: its link is over."""
        self._input = None

    def receive_more(self, now: float) -> list[Event]:
        """Take the next turn's work of what came; see ``receive_data``."""
        frames, self._input = self._input, None
        return self._take_frames(frames or iter(()), now)

    def _take_frames(self, frames: Iterator[ProtFrame], now: float) -> list[Event]:
        events: list[Event] = []
        brought: dict[VirtualConn, DataReceived] = {}
        work = 0
        for frame in frames:
            # In the order of how often they come on a busy link.
            if type(frame) is ProtData:
                self._on_data(frame, events, brought)
                work += 1
            else:
                self._on_control(frame, events, now)
                work += work_of(frame)
            if work >= TURN_WORK:
                self._input = frames
                break
        if self._receipts is not None and self._receipts.took(
            self._decoder.session_bytes, now
        ):
            self.sooner = True
        if self._control_bytes and not self._may_owe():
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
            self._check_mapping(ack=bool(flag & _ACK))
        elif kind == ProtKind.DATAGRAM:
            self._association(sock_map)

    def _association(self, sock_map: int) -> VirtualConn:
        """Give the UDP association that a DATAGRAM is for, or refuse the frame."""
        conn = self._known(sock_map, "DATAGRAM")
        if conn.datagrams is None or conn.state not in (_OPEN, _CLOSING):
            raise _broken("DATAGRAM", conn.state)
        return conn

    def _on_datagram(
        self, frame: ProtDatagram, events: list[Event], now: float
    ) -> None:
        conn = self._association(frame.sock_map)
        if len(frame.payload) > self.ours.max_datagram:
            self._count_nuisance(now, Calm.DATAGRAM)
        elif conn.state is _OPEN:
            events.append(DatagramReceived(conn, frame.address, frame.payload))

    def _check_data(self, conn: VirtualConn, length: int, *, fin: bool) -> None:
        if conn.state is not _OPEN:
            signal = Signal.RECV_FINISH if fin else Signal.RECV_DATA
            if step(conn.state, signal) is None:
                raise _broken("DATA", conn.state)
        if not conn.recv.fits(length):
            raise RemoteSessionError(Code.FLOW, "the peer sent more than was granted")

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
        conn.recv.charge(size)
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
            self._on_finish(conn, events)

    def _on_finish(self, conn: VirtualConn, events: list[Event]) -> None:
        if conn.datagrams is not None:
            raise _broken("FIN on a UDP association", conn.state)
        self._recv(conn, Signal.RECV_FINISH)
        if conn.state is not _CLOSING:
            events.append(StreamFinished(conn))

    def _on_control(  # noqa: C901, PLR0912 - one flat case per kind
        self, frame: ProtFrame, events: list[Event], now: float
    ) -> None:
        match frame:
            case ProtWindow():
                self._on_window(frame, events, now)
            case ProtDatagram():
                self._on_datagram(frame, events, now)
            case ProtClose():
                self._on_close(frame, events)
            case ProtCreate():
                self._on_create(frame, events, now)
            case ProtAccept(sock_map, bound):
                conn = self._known(sock_map, "CREATE|ACK")
                self._recv(conn, Signal.RECV_ACCEPT)
                if conn.state is not _CLOSING:
                    self._own_opens.answered(conn)
                    if conn.datagrams is not None:
                        self._datagrams.enlist(conn.datagrams)
                    events.append(StreamOpened(conn, bound))
            case ProtPing(opaque, ack):
                self._count_nuisance(now, Calm.PING)
                if ack:
                    self.liveness.answered(now)
                    events.append(PingAnswered())
                else:
                    # State, not a queue: the newest answer answers all before it.
                    self._pong = encode(ProtPing(opaque, ack=True))
            case ProtMapping():
                self._check_mapping(ack=False)
                self._mappings_to_answer += 1
                events.append(MappingAsked(frame))
            case ProtMappingAnswer(answers):
                self._check_mapping(ack=True)
                self._mappings_asked -= 1
                events.append(MappingAnswered(answers))
            case ProtGoAway(code):
                if code is not Code.DRAINING:
                    events.append(LinkClosing(frame))
                elif self.peer_draining:
                    self._count_nuisance(now, Calm.DRAINING)
                else:
                    self.peer_draining = True
                    events.append(PeerDraining())
            case ProtReceived(count):
                self._on_received(count, now)
            case ProtExtension():
                self._count_nuisance(now, Calm.EXTENSION)
            case _:
                raise RemoteSessionError(
                    Code.PROTOCOL, f"{type(frame).__name__} is out of place"
                )

    def _on_received(self, count: int, now: float) -> None:
        if self.replay is None:
            raise RemoteSessionError(Code.PROTOCOL, "RECEIVED without resumption")
        if count <= self.replay.confirmed:
            self._count_nuisance(now, Calm.RECEIVED)
        if not self.replay.confirm(count):
            raise RemoteSessionError(
                Code.PROTOCOL, f"the peer cannot have received {count} bytes"
            )

    def _on_window(self, frame: ProtWindow, events: list[Event], now: float) -> None:
        conn = self._known(frame.sock_map, "WINDOW")
        self._recv(conn, Signal.RECV_WINDOW)
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

    def _on_create(self, frame: ProtCreate, events: list[Event], now: float) -> None:
        sock_map = frame.sock_map
        if self._own_opens.is_ours(sock_map) or sock_map in self._conns:
            raise RemoteSessionError(
                Code.PROTOCOL, f"CREATE on sock_map {sock_map}, which is not free"
            )
        self._peer_opens.check(len(self._conns) - self._own_opens.open, now)
        conn = self._new_conn(sock_map, frame.target)
        conn.state = StreamState.OFFERED
        if self.draining:
            self.close(conn, Code.DRAINING)
        elif conn.datagrams is not None and not self._both_can_udp:
            self.close(conn, Code.UNSUPPORTED)
        elif not self._peer_opens.may_serve(now):
            self.close(conn, Code.RESOURCE, "too many connections at once")
        else:
            conn.offered = True
            self._peer_opens.served += 1
            events.append(StreamOffered(conn, frame))

    def _on_close(self, frame: ProtClose, events: list[Event]) -> None:
        conn = self._known(frame.sock_map, "CLOSE")
        was = conn.state
        self._recv(conn, Signal.RECV_CLOSE)
        if conn.datagrams is not None:
            self._datagrams.forget(conn.datagrams)
        if was is not _CLOSING:
            self._own_opens.answered(conn)
            events.append(StreamClosed(conn, frame.code, frame.reason))
            conn.state = StreamState.IDLE
        if was is not _CLOSING or conn.lane.close:
            # The answer goes at once, without what is queued.
            self._lanes.purge(conn.lane)
            self._push_control(close_frame(conn.sock_map))
        self._windows.pop(conn, None)
        self._paused.pop(conn, None)
        self._growth.forget(conn)
        del self._conns[conn.sock_map]
        if self._own_opens.is_ours(conn.sock_map):
            self._own_opens.open -= 1

    # Upkeep ------------------------------------------------------------------------

    def next_wakeup(self) -> float:
        """Give the time at which ``on_time`` must be called."""
        self.sooner = False
        times = [self.liveness.next_wakeup(), self._growth.next_wakeup()]
        if self._receipts is not None and self._receipts.due_at is not None:
            times.append(self._receipts.due_at)
        if (next_open := self._own_opens.next_deadline()) is not None:
            times.append(next_open)
        return min(times)

    def on_time(self, now: float) -> None:
        """Do what the time asks for: put a PING, state what was received.

        Raises:
            LocalLinkError: ``SILENT``: the link is lost.
        """
        self.expire(now)
        self._growth.on_time(now)
        if self._receipts is not None:
            self._receipts.on_time(now)
        match self.liveness.due(now):
            case Due.LOST:
                silent_s = now - self.liveness.heard_at
                raise LocalLinkError(
                    Code.SILENT, f"nothing was heard for {silent_s:.0f} s"
                )
            case Due.PING:
                self.ping(now)
            case Due.NOTHING:
                pass

    def expire(self, now: float) -> float | None:
        """Give up opens that were not answered in time; give the next one's time."""
        for conn in self._own_opens.expired(now):
            self.close(conn, Code.RESET)
            self._notices.append(
                StreamClosed(conn, Code.TIMEOUT, "no answer to CREATE", local=True)
            )
            self._notify()
        return self._own_opens.next_deadline()

    def end(self) -> list[VirtualConn]:
        """Forget everything; give the connections that were alive until now."""
        conns = list(self._conns.values())
        for conn in conns:
            conn.state = StreamState.IDLE
            self._lanes.purge(conn.lane)
            # The pool outlives us; not every one of these has a user to release it.
            self._pool.forget(conn)
            self._growth.forget(conn)
            if conn.datagrams is not None:
                self._datagrams.forget(conn.datagrams)
        self._conns.clear()
        self._drop_output()
        if self.replay is not None:
            self.replay.clear()
        self._own_opens.clear()
        self._input = None
        return conns

    def let_go(self) -> None:
        """Tell nobody any more, and receive nothing: after ``end``.

        What is told and what decides know this object, which knows them.
        """
        self._notify = _nothing
        self._decoder.let_go()

    def evict(self, conn: VirtualConn) -> None:
        """Reset the longest-stalled reader's connection: memory is short."""
        self.close(conn, Code.RESOURCE, "its reader stalled and memory is short")
        self._notices.append(
            StreamClosed(conn, Code.RESOURCE, "its reader stalled", local=True)
        )
        self._notify()

    def _drop_output(self) -> None:
        self._lanes.clear()
        self._paused.clear()
        self._control.clear()
        self._count_control(-self._control_bytes)
        self._windows.clear()
        self._datagrams.clear()
        self._again.clear()

    def _new_conn(self, sock_map: SockMap, target: Target) -> VirtualConn:
        if isinstance(target, UdpTarget):
            # No credit for ever: DATA on it is more than was granted.
            conn = VirtualConn(self, sock_map, 0, 0)
            conn.datagrams = self._datagrams.new_queue()
        else:
            conn = VirtualConn(
                self, sock_map, self.theirs.initial_window, self.ours.initial_window
            )
        self._conns[sock_map] = conn
        return conn

    def _known(self, sock_map: int, what: str) -> VirtualConn:
        conn = self._conns.get(sock_map)
        if conn is None:
            raise RemoteSessionError(
                Code.PROTOCOL, f"{what} on sock_map {sock_map}, which is not open"
            )
        return conn

    def _send(self, conn: VirtualConn, signal: Signal) -> None:
        after = step(conn.state, signal)
        if after is None:
            raise LocalStreamError(
                Code.INTERNAL, f"cannot {signal.value} in {conn.state.name}"
            )
        conn.state = after

    def _recv(self, conn: VirtualConn, signal: Signal) -> None:
        after = step(conn.state, signal)
        if after is None:
            raise _broken(signal.value, conn.state)
        conn.state = after

    def _check_mapping(self, *, ack: bool) -> None:
        """Only the client asks for names, only the server answers, one for each."""
        if ack != self.is_client or (ack and not self._mappings_asked):
            raise RemoteSessionError(Code.PROTOCOL, "MAPPING is out of place")
        if not ack and self._mappings_to_answer >= MAX_UNANSWERED_MAPPINGS:
            raise calm(Calm.MAPPINGS)

    def _count_nuisance(self, now: float, what: Calm) -> None:
        if not self._nuisance.allow(now):
            raise calm(what)

    def _push_control(self, frame: bytes) -> None:
        self._control.append(frame)
        self._count_control(len(frame))

    def _count_control(self, size: int) -> None:
        self._control_bytes += size
        self._pools.control.free_bytes -= size

    def _may_owe(self) -> bool:
        """Say whether so much control may wait for a peer that does not read it."""
        owed = self._control_bytes
        return owed <= CONTROL_QUEUE_BYTES and self._pools.control.allows(owed)

    def _wake_paused(self) -> None:
        """Let some of those that were refused room ask again: there may be some.

        All, when so little is unsent that no other turn may follow.
        """
        lanes = self._lanes
        count = len(self._paused) if lanes.size <= LEAST_BYTES else PAUSED_A_TURN
        if not lanes.room.allows(lanes.size):
            return
        for conn in tuple(islice(self._paused, count)):
            del self._paused[conn]
            self._wake_if_starved(conn.sock_map)

    def _wake_if_starved(self, sock_map: int) -> None:
        conn = self._conns.get(sock_map)
        if (
            conn is not None
            and conn.starved
            # Woken for less, a writer would cut its next chunk in small pieces.
            and 2 * conn.lane.size <= STREAM_QUEUE_BYTES
            and conn.send.room() > 0
        ):
            conn.starved = False
            self._notices.append(CreditGranted(conn))


def _broken(what: str, state: StreamState) -> RemoteSessionError:
    return RemoteSessionError(Code.PROTOCOL, f"{what} in state {state.name}")
