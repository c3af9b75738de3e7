"""MuxCore: any number of virtual TCP connections over whatever carries its bytes.

Sans-IO: bytes and the time go in, events and bytes come out. It can outlive the wire
under it: ``resume`` begins a link, and what belongs to the session stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, LocalLinkError
from tunnel.proto.fields import illegal
from tunnel.proto.frames import MAX_SOCK_MAP
from tunnel.proto.input import Input
from tunnel.proto.limits import OPEN_DEADLINE_S, OwnOpens
from tunnel.proto.liveness import Due
from tunnel.proto.mappings import MappingExchange
from tunnel.proto.output import Output
from tunnel.proto.pace import Outflow
from tunnel.proto.pools import Pools
from tunnel.proto.table import ConnTable, nobody

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.frames import Terms
    from tunnel.proto.pace import Meter, Police


class MuxCore:
    """One end of a session; the facade over its parts.

    A driver, which owns the clock and the wire, calls it so:

    1. Make the core when the handshake of the first link is done (``handshake``).
    2. Give all bytes of the link to ``receive_data``, and act on each event in order.
       While ``has_input`` says so, let others run and call ``receive_more``.
    3. While ``has_output`` says so, write what ``data_to_send`` returns, and then act
       on ``take_notices``. Ask again after each command, each event and each write.
    4. Call ``on_time`` at ``next_wakeup``. Ask for the next time after that, and
       whenever ``liveness.sooner`` is set.
    5. When the link is lost, call ``link_lost``, then ``expire`` at the time that it
       returns itself. After the handshake of the next link call ``resume`` with the
       peer's count (``can_resume`` says whether it can be), or give up with ``end``.
    6. When ``receive_data`` or ``resume`` raises RemoteSessionError, the session is
       over: call ``go_away`` with its code, write what is left, ``end`` and ``let_go``.
       To stop in peace, ``drain``, wait for no ``conns`` and ``flushed``, then go away.

    Commands may stand between any two of these: ``open``, or ``accept`` for a
    StreamOffered; ``send_room``, ``send_data``, ``send_datagram``, ``finish``;
    ``consumed`` for the bytes that were read; ``close`` in the end, and ``released``
    when the task that served an offer has ended; ``ask_mapping``, ``answer_mapping``,
    ``ping``; ``pace`` with the meters of the user's rate.

    No method waits, reads a clock or fails half-way: a method either raises without an
    effect or has its whole effect.

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
        notify: Callable[[], None] = nobody,
        top: int = MAX_SOCK_MAP,
        replay_limit: int = 0,
        open_deadline_s: float = OPEN_DEADLINE_S,
    ) -> None:
        self.theirs = theirs
        self._retry_after_s = 0
        self.pools = pools = pools or Pools()
        self._output = output = Output(ours, theirs, now, pools, replay_limit)
        self._own_opens = OwnOpens(
            client=client, top=top, theirs=theirs, deadline_s=open_deadline_s, now=now
        )
        self._table = table = ConnTable(output, self._own_opens, now, notify)
        mappings = MappingExchange(output.control, client=client)
        self._input = taken = Input(table, mappings, now)
        self.liveness: Final = output.liveness
        self.replay: Final = output.replay
        """What was sent and is not confirmed; None when no other link may follow."""
        self.lanes: Final = output.lanes
        """What waits for its turn; to be looked at only."""
        # Bound, not wrapped: these are called for every frame and every piece.
        self.open: Final = table.open
        self.accept: Final = table.accept
        self.close: Final = table.close
        self.released: Final = table.released
        self.expire: Final = table.expire
        self.send_room: Final = output.send_room
        self.send_data: Final = output.send_data
        self.send_datagram: Final = output.send_datagram
        self.finish: Final = table.finish
        self.consumed: Final = output.consumed
        self.replace_windows: Final = output.replace_windows
        self.go_on: Final = output.go_on
        self.ping: Final = output.ping
        self.go_away: Final = output.go_away
        self.has_output: Final = output.has_output
        self.flushed: Final = output.flushed
        self.data_to_send: Final = output.data_to_send
        self.take_notices: Final = output.take_notices
        self.ask_mapping: Final = mappings.ask
        self.answer_mapping: Final = mappings.answer
        self.receive_data: Final = taken.receive_data
        self.receive_more: Final = taken.receive_more
        self.has_input: Final = taken.has_input
        self.drop_input: Final = taken.drop_input

    # What it counts ----------------------------------------------------------------

    def opened_here(self, conn: VirtualConn) -> bool:
        """Say whether this side opened a connection."""
        return self._own_opens.is_ours(conn.sock_map)

    @property
    def conns(self) -> int:
        """Virtual TCP connections whose number is not free."""
        return len(self._output.conns)

    @property
    def offered(self) -> int:
        """Connections that the peer opened and whose task has not ended."""
        return self._table.peer_opens.served

    @property
    def data_sent(self) -> int:
        """Payload bytes of DATA that were queued, all connections together."""
        return self._output.data_sent

    @property
    def data_received(self) -> int:
        """Payload bytes of DATA that arrived, all connections together."""
        return self._input.data_received

    @property
    def passed(self) -> int:
        """Payload bytes both ways, of DATA and of datagrams."""
        output = self._output
        return output.data_sent + self._input.data_received + output.datagram_bytes

    @property
    def received(self) -> int:
        """Session bytes that were taken, over all links: what a resume states."""
        return self._input.received

    def pace(
        self, meter: Meter | None, police: Police | None, wake: Callable[[], object]
    ) -> None:
        """Send DATA no faster than ``meter`` lets; None: as fast as the link takes it.

        ``wake`` is called when the meter lets some go on. ``police`` is asked about
        each datagram, both ways.
        """
        output = self._output
        output.police = police
        before = output.outflow
        if (before and before.meter) is not meter:
            output.outflow = Outflow(meter, output.lanes, wake) if meter else None
            if before is not None:
                before.end()

    # Links -------------------------------------------------------------------------

    def can_resume(self, count: int) -> bool:
        """Say whether a peer that has ``count`` of our bytes can go on from there."""
        return self.replay is not None and self.replay.allows(count)

    def resume(self, count: int, now: float) -> int:
        """Begin another link: send again what the peer has not, before anything new.

        ``count`` session bytes are what the peer states to have. Returns how many go
        out again.

        Raises:
            RemoteSessionError: ``PROTOCOL``: the count cannot be.
        """
        if self.replay is None or not self.replay.confirm(count):
            raise illegal(f"the peer cannot have received {count} bytes")
        self._input.begin_link()
        self._output.begin_link(now)
        self.liveness.begin_link(now)
        if self._table.draining:
            self._output.say_draining(self._retry_after_s)
        return self.replay.unconfirmed

    def link_lost(self) -> None:
        """Throw datagrams away, those to come too, until ``resume``."""
        self._input.drop_input()
        self._output.link_lost()

    # Upkeep ------------------------------------------------------------------------

    def next_wakeup(self) -> float:
        """Return the time at which ``on_time`` must be called."""
        self.liveness.sooner = False
        soonest = min(self.liveness.next_wakeup(), self._output.next_wakeup())
        next_open = self._own_opens.next_deadline()
        return soonest if next_open is None else min(soonest, next_open)

    def on_time(self, now: float) -> None:
        """Do what the time asks for: put a PING, state what was received.

        Raises:
            LocalLinkError: ``SILENT``: the link is lost.
        """
        self.expire(now)
        self._output.on_time(now)
        due = self.liveness.due(now)
        if due is Due.LOST:
            silent_s = now - self.liveness.heard_at
            raise LocalLinkError(Code.SILENT, f"nothing was heard for {silent_s:.0f} s")
        if due is Due.PING:
            self.ping(now)

    # The end -----------------------------------------------------------------------

    def drain(self, retry_after_s: int = 0, *, still_opens: bool = False) -> None:
        """Say that this side is about to stop: it refuses what is new from now on.

        Args:
            retry_after_s: when a client may look for another session, elsewhere.
            still_opens: this side goes on to open, until its peer is elsewhere.
        """
        if not self._table.draining:
            self._table.draining, self._table.still_opens = True, still_opens
            self._retry_after_s = retry_after_s
            self._output.say_draining(retry_after_s)

    def end(self) -> list[VirtualConn]:
        """Forget everything; return the connections that were alive until now."""
        self._input.drop_input()
        conns = self._table.end()
        self._output.clear()
        if self.replay is not None:
            self.replay.clear()
        return conns

    def let_go(self) -> None:
        """Tell nobody any more, and receive nothing: after ``end``.

        Else cycles through this object are left, which only the collector would free.
        """
        self._table.let_go()
        self._input.let_go()
