"""The outgoing half of a session: what waits to be sent, and in which order it leaves.

Never changes a connection's state, but for what the user of a stream asks of it.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code
from tunnel.proto.datagrams import Outbox
from tunnel.proto.events import CreditGranted
from tunnel.proto.frames import (
    MAX_FRAME_BYTES,
    ProtGoAway,
    ProtPing,
    ProtReceived,
    ProtWindow,
)
from tunnel.proto.liveness import Liveness
from tunnel.proto.payloads import datagram_frame, encode
from tunnel.proto.pools import LEAST_BYTES, SHARE
from tunnel.proto.resend import ResendBuffer, acks_for
from tunnel.proto.scheduler import SendScheduler
from tunnel.proto.state import Signal, StreamState
from tunnel.proto.window import WindowTuner

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event
    from tunnel.proto.frames import Terms
    from tunnel.proto.pace import Outflow, Police
    from tunnel.proto.pools import Pools, Room
    from tunnel.proto.scheduler import Buffer, SendQueue
    from tunnel.proto.window import RecvWindow, SendWindow

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
"""Senders that may go on in one turn: they bring 2 MiB, eight times what it took."""
WINDOWS_A_TURN: Final = 128
"""Grants of one turn: twice what 64 busy readers ask for."""

_OPEN: Final = StreamState.OPEN
_OPENING: Final = StreamState.OPENING
_PEER_MAY_SEND: Final = (_OPEN, StreamState.LOCAL_FINISHED, StreamState.OFFERED)
"""The states in which a grant is of use."""


class ControlQueue:
    """CREATE, CLOSE and MAPPING frames that wait; they leave in front of all DATA."""

    __slots__ = ("_room", "frames", "size")

    def __init__(self, room: Room) -> None:
        self.frames: deque[bytes] = deque()
        """To be looked at only; it is the same object for ever."""
        self.size = 0
        self._room = room

    def push(self, frame: bytes) -> None:
        """Queue an encoded frame."""
        self.frames.append(frame)
        self.size += len(frame)
        self._room.free_bytes -= len(frame)

    def take(self, out: list[Buffer]) -> None:
        """Append a turn's share of the frames to ``out``."""
        taken = self.size
        if taken <= CONTROL_TURN_BYTES:
            out += self.frames
            self.frames.clear()
        else:
            taken = 0
            while taken < CONTROL_TURN_BYTES:
                frame = self.frames.popleft()
                taken += len(frame)
                out.append(frame)
        self.size -= taken
        self._room.free_bytes += taken

    def clear(self) -> None:
        """Drop everything."""
        self._room.free_bytes += self.size
        self.frames.clear()
        self.size = 0

    def is_too_long(self) -> bool:
        """Say whether more waits than a peer that reads its answers lets pile up.

        Or more than this session's share of what the process has room for.
        """
        return self.size > CONTROL_QUEUE_BYTES or not self._room.allows(self.size)


class Output:
    """What one end of a session has to send; the arguments are those of ``MuxCore``.

    Its 27 methods share one state: what connections put in, what a link takes out, and
    what a rate or a window lets go on in between.
    """

    def __init__(
        self, ours: Terms, theirs: Terms, now: float, pools: Pools, replay_limit: int
    ) -> None:
        idle_s = float(min(ours.idle_ping_s, theirs.idle_ping_s))
        self.ours = ours
        self.theirs = theirs
        self.pools = pools
        self.liveness = Liveness(now, idle_s, 2 * idle_s)
        self.conns: dict[int, VirtualConn] = {}
        """The connections by number; ``ConnTable`` alone changes it."""
        self.data_sent = 0
        """Payload bytes of DATA that were queued, all connections together."""
        self.control = ControlQueue(pools.control)
        self.lanes = SendScheduler(min(theirs.max_frame, MAX_FRAME_BYTES), pools.unsent)
        self.datagrams = Outbox(pools.datagrams_out)
        self.replay = ResendBuffer(replay_limit, pools.kept) if replay_limit else None
        self.acks = acks_for(replay_limit) if replay_limit else None
        self.outflow: Outflow | None = None
        """What the user's rate lets pass; None while there is none."""
        self.police: Police | None = None
        """The same for datagrams, which are dropped instead."""
        self.datagram_bytes = 0
        """Of all datagrams, both ways, that were not dropped at once."""
        self.notices: list[Event] = []
        """Events that no call has returned."""
        self._control_frames = self.control.frames
        self._pool = pools.held
        self._tuner = WindowTuner(ours.initial_window, pools.held)
        self._grants: dict[VirtualConn, None] = {}
        """Connections whose window is to be raised."""
        self._paused: dict[VirtualConn, None] = {}
        """Senders without room, as the session has more unsent than its share."""
        self._again: deque[bytes] = deque()
        """What a resume repeats."""
        self._link_control: list[bytes] = []
        self._pong = b""
        self._linked = True

    # From the user of a stream -----------------------------------------------------

    def send_room(self, conn: VirtualConn, least: int = 1) -> int:
        """Return how many bytes ``send_data`` takes; after 0, CreditGranted follows.

        Less than ``least`` is returned only when nothing is queued.
        """
        queued = conn.lane.size
        room = min(conn.send.room(), STREAM_QUEUE_BYTES - queued)
        if room >= least or (room > 0 and not queued):
            lanes = self.lanes
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
            conn.on_send(Signal.SEND_DATA)
        size = len(piece)
        conn.send.taken += size
        conn.asked = False
        self.data_sent += size
        self.lanes.push(conn.lane, piece)

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
        frame = datagram_frame(conn.sock_map, address, payload)
        size = len(payload)
        if (
            (conn.state is not _OPEN and conn.state is not _OPENING)
            or not self._linked
            or size > self.theirs.max_datagram
            or (self.police is not None and not self.police.lets_out(size))
        ):
            queue.dropped += 1
            return
        self.datagram_bytes += size
        queue.sent_bytes += size
        queue.push(frame, len(frame))
        if conn.state is _OPEN:
            self.datagrams.enlist(queue)

    def consumed(self, conn: VirtualConn, size: int) -> bool:
        """Count bytes that the application took; True when a grant became due."""
        self._pool.release(conn, size)
        conn.asked = True
        if conn.recv.consume(size) and conn.state in _PEER_MAY_SEND:
            self._grants[conn] = None
            return True
        return False

    def replace_windows(
        self, conn: VirtualConn, send: SendWindow, recv: RecvWindow
    ) -> None:
        """Have a connection go on with these windows, which begin where it stands.

        What its window had grown by is paid back, so ``recv`` gets its first size.
        """
        self._tuner.forget(conn.recv)
        recv.size = conn.recv.size
        self._grants.pop(conn, None)
        conn.send, conn.recv = send, recv

    def go_on(self, conn: VirtualConn, *, grant: bool) -> None:
        """Use what the windows were given by their owner: wake who waits for room."""
        if grant and conn.state in _PEER_MAY_SEND:
            self._grants[conn] = None
        self._wake_if_starved(conn.sock_map)

    def forget(self, conn: VirtualConn) -> None:
        """Grant no more, and drop the datagrams: the connection is over."""
        self._tuner.forget(conn.recv)
        self._grants.pop(conn, None)
        self._paused.pop(conn, None)
        if conn.datagrams is not None:
            self.datagrams.forget(conn.datagrams)

    # Of this link ------------------------------------------------------------------

    def ping(self, now: float, *, slept: bool = False) -> None:
        """Queue a PING; PingAnswered follows, and ``liveness`` has the round trip.

        After this machine ``slept``, the link is given up sooner without an answer.
        """
        self.liveness.asked(now, slept=slept)
        self._link_control.append(encode(ProtPing(bytes(8))))

    def pong(self, opaque: bytes) -> None:
        """Answer a PING; the newest answer answers all before it."""
        self._pong = encode(ProtPing(opaque, ack=True))

    def say_draining(self, retry_after_s: int) -> None:
        """Queue GO_AWAY(DRAINING)."""
        self._link_control.append(encode(ProtGoAway(Code.DRAINING, retry_after_s)))

    def go_away(self, code: Code, reason: str = "", retry_after_s: int = 0) -> None:
        """Queue GO_AWAY as the last frame: what was queued goes out no more."""
        self.clear()
        self._link_control.append(encode(ProtGoAway(code, retry_after_s, reason)))

    def begin_link(self, now: float) -> None:
        """Forget what belonged to the link before; repeat what is not confirmed."""
        self.datagrams.clear()
        self._linked = True
        self._tuner.begin_link()
        self._link_control.clear()
        self._pong = b""
        if self.replay is not None:
            self._again = deque(self.replay.rest())
        if self.acks is not None:
            self.acks.state(now)  # AUTH has said it

    def link_lost(self) -> None:
        """Throw datagrams away, those to come too, until ``begin_link``."""
        self._linked = False
        self.datagrams.clear()

    def clear(self) -> None:
        """Drop all that waits, and send nothing again."""
        self.lanes.clear()
        self._paused.clear()
        self.control.clear()
        self._grants.clear()
        self.datagrams.clear()
        self._again.clear()

    # To the link -------------------------------------------------------------------

    def has_output(self) -> bool:
        """Say whether ``data_to_send`` has anything."""
        # Asked before and after each turn: few calls on the beaten path.
        if (self.lanes.waiting or self._control_frames or self._grants) and not (
            self.replay is not None and self.replay.full()
        ):
            return True
        return bool(
            self._link_control
            or self._pong
            or self._again
            or (self.acks is not None and self.acks.due)
            or (self.datagrams.waiting and self._may_send_datagrams())
        )

    def flushed(self) -> bool:
        """Say whether nothing is left to send, and the peer has confirmed the rest."""
        if self.has_output() or self.lanes.parked:
            return False
        return self.replay is None or not self.replay.unconfirmed

    def data_to_send(self, budget: int, now: float) -> list[Buffer]:
        """Return the next frames, as pieces to be written in order.

        Frames of this link (PONG, RECEIVED, PING, GO_AWAY), datagrams, what a resume
        repeats, else control frames, grants, and about ``budget`` bytes of the virtual
        TCP connections in turn; of the session nothing while the replay is full. What
        is returned is gone from here: it must reach the link or the link is lost.
        """
        out = self._link_frames(now)
        datagrams = self.datagrams
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

    def take_notices(self) -> list[Event]:
        """Return the events that came from other calls than ``receive_data``."""
        notices, self.notices = self.notices, []
        return notices

    def _may_send_datagrams(self) -> bool:
        """A peer that has not read our CREATE|ACK must not see a datagram yet.

        The answer may be among what a resume repeats, or wait in a full replay.
        """
        return not self._again and not self._control_frames

    def _link_frames(self, now: float) -> list[Buffer]:
        """Return the frames that belong to this link and are never repeated."""
        out: list[Buffer] = []
        if self._pong:
            out.append(self._pong)
            self._pong = b""
        acks = self.acks
        if acks is not None and (acks.due or (self._grants and acks.worth())):
            out.append(encode(ProtReceived(acks.state(now))))
        if self._link_control:
            out += self._link_control
            self._link_control.clear()
        return out

    def _session_frames(self, budget: int, now: float) -> list[Buffer]:
        out: list[Buffer] = []
        if self._control_frames:
            self.control.take(out)
            if self._control_frames:
                return out  # nothing overtakes it
        if self._grants:
            self._raise_windows(out, now)
        if self.lanes.waiting:
            served: list[SendQueue] = []
            if self.outflow is None:
                self.lanes.take(budget, out, served)
            else:
                self.outflow.take(budget, out, served)
            for lane in served:
                self._wake_if_starved(lane.sock_map)
        if self._paused:
            self._wake_paused()
        return out

    def _raise_windows(self, out: list[Buffer], now: float) -> None:
        grants, rtt_s = self._grants, self.liveness.rtt_s
        for conn in tuple(islice(grants, WINDOWS_A_TURN)):
            del grants[conn]
            limit = self._tuner.grant(conn.recv, now, rtt_s)
            out.append(encode(ProtWindow(conn.sock_map, limit)))
        self.liveness.sooner = True
        if self._tuner.probe_due(now):
            self.ping(now)

    def _wake_paused(self) -> None:
        """Let some of those that were refused room ask again: there may be some.

        All, when so little is unsent that no other turn may follow.
        """
        lanes = self.lanes
        count = len(self._paused) if lanes.size <= LEAST_BYTES else PAUSED_A_TURN
        if not lanes.room.allows(lanes.size):
            return
        for conn in tuple(islice(self._paused, count)):
            del self._paused[conn]
            self._wake_if_starved(conn.sock_map)

    def _wake_if_starved(self, sock_map: int) -> None:
        conn = self.conns.get(sock_map)
        if (
            conn is not None
            and conn.starved
            # Woken for less, a writer would cut its next chunk in small pieces.
            and 2 * conn.lane.size <= STREAM_QUEUE_BYTES
            and conn.send.room() > 0
        ):
            conn.starved = False
            self.notices.append(CreditGranted(conn))

    # Upkeep ------------------------------------------------------------------------

    def next_wakeup(self) -> float:
        """Return the time at which ``on_time`` has something to do."""
        due_at = None if self.acks is None else self.acks.due_at
        return min(self._tuner.next_wakeup(), math.inf if due_at is None else due_at)

    def on_time(self, now: float) -> None:
        """Shrink idle windows; let what was received be stated."""
        self._tuner.on_time(now)
        if self.acks is not None:
            self.acks.on_time(now)
