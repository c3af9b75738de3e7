"""The virtual TCP connections of a session, from CREATE to the second CLOSE.

Every method either raises without an effect or has its whole effect; each change of a
state is a step of ``state.TRANSITIONS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.errors import Code, LocalStreamError
from tunnel.proto.conn import VirtualConn
from tunnel.proto.datagrams import DatagramQueue
from tunnel.proto.events import StreamClosed
from tunnel.proto.fields import illegal
from tunnel.proto.frames import CAN_UDP, ProtAccept, ProtCreate, UdpTarget
from tunnel.proto.limits import PeerOpens
from tunnel.proto.payloads import close_frame, encode
from tunnel.proto.state import Signal, StreamState, step

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.addresses import Address
    from tunnel.proto.frames import SockMap, Target
    from tunnel.proto.limits import OwnOpens
    from tunnel.proto.output import Output


class ConnTable:
    """The connections by number, and the counts of what either side may open."""

    def __init__(
        self,
        output: Output,
        own_opens: OwnOpens,
        now: float,
        notify: Callable[[], None],
    ) -> None:
        self.output = output
        self.own_opens = own_opens
        self.peer_opens = PeerOpens(output.ours, now)
        self.draining = False
        self.still_opens = False
        """This side drains, and opens what the peer cannot be asked for elsewhere."""
        self.peer_draining = False
        self._conns = output.conns
        self._pool = output.pools.held
        self._notify = notify
        capabilities = output.ours.capabilities & output.theirs.capabilities
        self._can_udp = bool(capabilities & CAN_UDP)
        self._give_up: Callable[[VirtualConn], None] = self.evict

    # Opened here -------------------------------------------------------------------

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
        if isinstance(target, UdpTarget) and not self._can_udp:
            raise LocalStreamError(Code.UNSUPPORTED, "the peer offers no UDP")
        if self.peer_draining or (self.draining and not self.still_opens):
            raise LocalStreamError(Code.DRAINING, "no new connections while draining")
        sock_map = self.own_opens.next_number(self._conns, target, now)
        frame = encode(ProtCreate(sock_map, target, visitor, exit=exit_name))
        conn = self._new_conn(sock_map, target)
        conn.on_send(Signal.SEND_CREATE)
        self.own_opens.opened(conn, target, now)
        self.output.liveness.sooner = True
        self.output.control.push(frame)
        return conn

    def expire(self, now: float) -> float | None:
        """Close opens that were not answered in time; return the next deadline."""
        for conn in self.own_opens.expired(now):
            self.close(conn, Code.RESET)
            self.output.notices.append(
                StreamClosed(conn, Code.TIMEOUT, "no answer to CREATE", local=True)
            )
            self._notify()
        return self.own_opens.next_deadline()

    # Opened by the peer ------------------------------------------------------------

    def take_create(self, frame: ProtCreate, now: float) -> VirtualConn | None:
        """Take a CREATE of the peer; None when it is refused at once.

        Raises:
            RemoteSessionError: ``PROTOCOL``: the number is not free; ``CALM``.
        """
        sock_map = frame.sock_map
        if self.own_opens.is_ours(sock_map) or sock_map in self._conns:
            raise illegal(f"CREATE on sock_map {sock_map}, which is not free")
        self.peer_opens.check(len(self._conns) - self.own_opens.open, now)
        conn = self._new_conn(sock_map, frame.target)
        conn.on_recv(Signal.RECV_CREATE)
        if self.draining:
            self.close(conn, Code.DRAINING)
        elif conn.datagrams is not None and not self._can_udp:
            self.close(conn, Code.UNSUPPORTED)
        elif not self.peer_opens.may_serve(now):
            self.close(conn, Code.RESOURCE, "too many connections at once")
        else:
            conn.offered = True
            self.peer_opens.served += 1
            return conn
        return None

    def accept(self, conn: VirtualConn, bound: Address | None = None) -> None:
        """Answer an offer: the target is connected.

        Raises:
            LocalStreamError: the peer has closed it meanwhile, or it was answered.
        """
        conn.on_send(Signal.SEND_ACCEPT)
        self.output.control.push(encode(ProtAccept(conn.sock_map, bound)))

    def released(self, conn: VirtualConn) -> None:
        """Count the end of the task that served an offer: its descriptor is closed."""
        self._pool.forget(conn)
        if conn.offered:
            conn.offered = False
            self.peer_opens.served -= 1

    # The end -----------------------------------------------------------------------

    def finish(self, conn: VirtualConn) -> None:
        """Queue FIN: no more bytes this way.

        Raises:
            LocalStreamError: a second time, or when the connection is over.
        """
        conn.on_send(Signal.SEND_FINISH)
        self.output.lanes.end(conn.lane)

    def close(
        self, conn: VirtualConn, code: Code = Code.NORMAL, reason: str = ""
    ) -> None:
        """Queue CLOSE: we neither send nor read any more. Harmless when it is over.

        ``NORMAL`` and ``RESET`` go behind the bytes that are queued; every other code
        drops those and goes at once (protocol.md#close).
        """
        output = self.output
        self._pool.forget(conn)
        output.forget(conn)
        after = step(conn.state, Signal.SEND_CLOSE)
        if after is None:
            return
        conn.state = after
        self.own_opens.answered(conn)
        frame = close_frame(conn.sock_map, code, reason)
        if code in (Code.NORMAL, Code.RESET) and not conn.lane.idle():
            output.lanes.end(conn.lane, frame)
        else:
            output.lanes.purge(conn.lane)
            output.control.push(frame)

    def take_close(self, conn: VirtualConn) -> bool:
        """Take a CLOSE of the peer: the number is free. False if we had closed it."""
        conn.on_recv(Signal.RECV_CLOSE)
        output = self.output
        output.forget(conn)
        was_open = conn.state is StreamState.CLOSED_BY_PEER
        if was_open:
            self.own_opens.answered(conn)
            conn.on_send(Signal.SEND_CLOSE)
        if was_open or conn.lane.close:
            # The answer goes at once, without what is queued.
            output.lanes.purge(conn.lane)
            output.control.push(close_frame(conn.sock_map))
        del self._conns[conn.sock_map]
        if self.own_opens.is_ours(conn.sock_map):
            self.own_opens.open -= 1
        return was_open

    def evict(self, conn: VirtualConn) -> None:
        """Reset the longest-stalled reader's connection: memory is short."""
        self.close(conn, Code.RESOURCE, "its reader stalled and memory is short")
        self.output.notices.append(
            StreamClosed(conn, Code.RESOURCE, "its reader stalled", local=True)
        )
        self._notify()

    def end(self) -> list[VirtualConn]:
        """Forget every connection; return those that were alive until now."""
        conns = list(self._conns.values())
        for conn in conns:
            # No frame ends them: their session does.
            conn.state = StreamState.IDLE
            self.output.lanes.purge(conn.lane)
            # The pool outlives us; not every one of these has a user to release it.
            self._pool.forget(conn)
            self.output.forget(conn)
        self._conns.clear()
        self.own_opens.clear()
        return conns

    def let_go(self) -> None:
        """Tell nobody any more."""
        self._notify = self._give_up = nobody

    def _new_conn(self, sock_map: SockMap, target: Target) -> VirtualConn:
        output = self.output
        if isinstance(target, UdpTarget):
            # No credit for ever: DATA on it is more than was granted.
            conn = VirtualConn(sock_map, 0, 0, self._give_up)
            conn.datagrams = DatagramQueue(output.datagrams.room)
        else:
            windows = output.theirs.initial_window, output.ours.initial_window
            conn = VirtualConn(sock_map, *windows, self._give_up)
        self._conns[sock_map] = conn
        return conn


def nobody(*_: object) -> None:
    """Stand in for what need not be called: a driver, or ``evict`` after the end."""
