"""Session: the core, and the streams that its events are for.

It knows no wire: a ``Link`` carries its bytes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import (
    CODES,
    Code,
    LocalLinkError,
    LocalStreamError,
    RemoteSessionError,
    SessionError,
)
from tunnel.link.mapping_rpc import MappingRpc
from tunnel.link.output import Output
from tunnel.link.rest import Rest
from tunnel.link.session_state import ALIVE, State
from tunnel.link.tally import Tallies, has_left
from tunnel.link.virtual import VirtualStream
from tunnel.log import log_event
from tunnel.net.in_order import InOrder, begun
from tunnel.net.notify import Notify
from tunnel.net.poller import Poller
from tunnel.net.timeouts import TIMEOUTS
from tunnel.net.virtual_connection import OPEN_DEADLINE_S
from tunnel.proto.datagrams import DatagramRoom
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
from tunnel.proto.mux import MuxCore
from tunnel.proto.pools import Pools
from tunnel.proto.state import StreamState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from tunnel.addresses import Address
    from tunnel.errors import TunnelError
    from tunnel.link.mapping_rpc import ServeMapping
    from tunnel.link.virtual import Deliver
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event
    from tunnel.proto.frames import Target, Terms
    from tunnel.proto.pace import Inflow

    ServeOffer = Callable[[VirtualStream], Awaitable[None]]

END_GRACE_S: Final = 3.0
"""How long serving tasks may go on after the session ended, to reset their sockets."""

logger = logging.getLogger("tunnel.session")


_unheard: Final = bool  # takes a number and does nothing
_OF_STREAMS: Final = (CreditGranted, StreamFinished, StreamOpened, StreamClosed)


class Session:
    """What both ends share, whatever carries it.

    ``run`` must be running from before the first link until ``end``. It owns the tasks
    that serve what the peer opens; a stream opened from this side is the caller's.

    Args:
        client: whether this is the center-client's end.
        ours, theirs: what the two sides announced.
        serve_offer: called for each stream that the peer opens, in the peer's order; it
            must not wait. What it returns accepts or resets the stream and ends it,
            awaited in a task of its own.
        serve_mapping: answers a MAPPING, entry by entry; called one at a time.
        pools: what all sessions of the process hold.
        resume_s: how long it waits for another link; 0 ends it with its link.
        replay_limit: unconfirmed bytes that it keeps for another link.
    """

    def __init__(
        self,
        *,
        client: bool,
        ours: Terms,
        theirs: Terms,
        serve_offer: ServeOffer,
        serve_mapping: ServeMapping | None = None,
        pools: Pools | None = None,
        resume_s: float = 0.0,
        replay_limit: int = 0,
    ) -> None:
        pools, now = pools or Pools(), trio.current_time()
        self.core = MuxCore(
            client=client,
            ours=ours,
            theirs=theirs,
            now=now,
            pools=pools,
            notify=self._dispatch_notices,
            replay_limit=replay_limit if resume_s else 0,
        )
        self.output = Output(self.core)
        self.poller = Poller(self._read_locals)
        self._state = State.LINKED
        self._changed = Notify()
        """The state, or when to look next at what waits for a link."""
        self.ended: TunnelError | None = None
        """Why it ended, once it has."""
        self.lost_streams = 0
        """Virtual TCP connections that its end has reset."""
        self.resume_s = resume_s if replay_limit else 0.0
        self.lost_at: float | None = None
        """When its link was lost, while it waits for another."""
        self.began_at = now
        self.resumes = 0
        """How often it went on over another link."""
        self.rest = Rest(now, TIMEOUTS.get().idle_s)
        """When ``look_for_rest`` has something to do."""
        self.go_away: RemoteSessionError | None = None
        """What the peer's GO_AWAY said."""
        self._streams: dict[VirtualConn, VirtualStream] = {}
        self._unread: dict[VirtualConn, VirtualStream] = {}
        """Closed by the peer, but holding memory until they are read."""
        self._inbox_room = DatagramRoom(process=pools.datagrams_in)
        self._deliveries: dict[VirtualConn, Deliver] = {}
        self.when_draining: Callable[[int], object] = _unheard
        """Called when the peer drains: after so many seconds another may be asked."""
        self.tallies = Tallies(opened=not client)
        """Of the entries whose visitors it carries."""
        self.inflow: Inflow | None = None
        """What the rate of its user lets in: see ``UserSession``."""
        self._nursery: trio.Nursery | None = None
        self._serve_offer = serve_offer
        self._begun: InOrder[VirtualStream, Awaitable[None]] = InOrder()
        self._serve_mapping = serve_mapping
        self._mappings = MappingRpc(self.core, self.output)
        self.ask_mapping: Final = self._mappings.ask
        self._pinging = Notify()
        self._idle = Notify()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Host the serving tasks until all has ended; cancelled, reset every stream."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._serve_mapping is not None:
                    nursery.start_soon(self._mappings.serve, self._serve_mapping)
                nursery.start_soon(self._watch_time)
                nursery.start_soon(self.poller.run)
                task_status.started()
                await self.wait_ended()
                self.poller.close()
                nursery.cancel_scope.deadline = trio.current_time() + END_GRACE_S
        finally:
            self._nursery = None
            self.end(LocalLinkError(Code.LINK_LOST, "the session was given up"))
            self.poller.close()
            self._state = State.GONE
            self._changed.ring()
            self.let_go()

    def let_go(self) -> None:
        """Forget callbacks, once the session is gone and no link runs.

        Their owners refer to this session: cycles, which only the collector frees.
        """
        if self._state is State.GONE and self.output.transport is None:
            self.core.let_go()
            self._serve_offer, self.when_draining = _refuse, _unheard
            self._serve_mapping = None

    # Its links ---------------------------------------------------------------------

    def link_lost(self, reason: TunnelError) -> None:
        """Wait for another link, as its streams then do, or end for a final reason."""
        ends = CODES[reason.code].ends if isinstance(reason, SessionError) else ""
        if ends == "session" or not self.resume_s:
            self.end(reason)
        if self._state in ALIVE:
            self._state = State.WAITING
            self.core.link_lost()
            self.lost_at = trio.current_time()
            self.go_away = None
            self._pinging.ring()
            self._changed.ring()

    def resume(self, count: int) -> int:
        """Go on over another link, which has not begun to read or write.

        Returns:
            How many bytes are sent again behind the ``count`` that the peer has.

        Raises:
            RemoteSessionError: the count is impossible.
        """
        now = trio.current_time()
        repeated = self.core.resume(count, now)
        self.rest.start(now)
        self.resumes += 1
        if self._state is State.WAITING:
            self._state = State.LINKED
        self.lost_at = None
        self._changed.ring()
        return repeated

    async def _watch_time(self) -> None:
        """Keep the limits in time while there is no link, and so no clock task."""
        while self._state in ALIVE:
            if self.lost_at is None:
                await self._changed.wait()
                continue
            now, until = trio.current_time(), self.lost_at + self.resume_s
            next_open = self.core.expire(now)
            if now >= until:
                why = f"no other link within {self.resume_s:.0f} s"
                return self.end(LocalLinkError(Code.LINK_LOST, why))
            with trio.move_on_at(min(until, next_open or until)):
                await self._changed.wait()

    @property
    def kept_bytes(self) -> int:
        """Unconfirmed bytes that are kept for another link."""
        return self.core.replay.unconfirmed if self.core.replay else 0

    # For its user ------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """Virtual TCP connections that are alive."""
        return len(self._streams)

    async def open(
        self,
        target: Target,
        visitor: Address | None = None,
        deadline_s: float = OPEN_DEADLINE_S,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Open, and wait until the far end has really connected.

        Cancelled, it resets the stream.

        Raises:
            StreamError: refused; ``code`` says why. ``TIMEOUT`` after ``deadline_s``.
        """
        stream = self.open_now(target, visitor, exit_name)
        try:
            with trio.CancelScope(deadline=trio.current_time() + deadline_s):
                await stream.wait_open()
                return stream
            why = f"{target}: no answer within {deadline_s:.0f} s"
            raise LocalStreamError(Code.TIMEOUT, why)
        except BaseException:
            stream.reset(Code.RESET)
            raise

    def open_now(
        self,
        target: Target,
        visitor: Address | None = None,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Begin to open; the stream can be used at once and breaks if it is refused.

        ``exit_name`` is the client of the server at which to leave (protocol.md#exits).

        Raises:
            LocalStreamError: a limit, a drain, the end, or a host that cannot be sent.
        """
        if self.ended is not None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link") from self.ended
        conn = self.core.open(target, trio.current_time(), visitor, exit_name)
        if self.lost_at is not None:
            self._changed.ring()  # its deadline may be the next
        stream = VirtualStream(self, conn, visitor=visitor)
        stream.tally = self.tallies.of(target, opened=True)
        self._streams[conn] = stream
        self.output.wake_soon()
        return stream

    async def ping(self, timeout_s: float) -> float | None:
        """Return the round trip to the peer in seconds; None if it is silent."""
        if self._state is not State.LINKED:
            return None
        began = trio.current_time()
        self.core.ping(began)
        self.output.wake()
        with trio.move_on_after(timeout_s):
            await self._pinging.wait()
            if self._state is State.LINKED:
                return trio.current_time() - began
        return None

    async def wait_idle(self, but: Collection[VirtualStream] = ()) -> None:
        """Wait until only UDP, which ends by silence, and ``but`` are alive."""
        while any(
            one.conn.datagrams is None and one not in but
            for one in self._streams.values()
        ):
            await self._idle.wait()

    async def wait_ended(self) -> None:
        """Wait until the session has ended."""
        while self._state in ALIVE:
            await self._changed.wait()

    async def wait_gone(self) -> None:
        """Wait until ``run`` has returned: the session has ended and its tasks too."""
        while self._state is not State.GONE:
            await self._changed.wait()

    def end(self, error: TunnelError, *, flush: bool = False) -> None:
        """Reset every stream with the error's code; only the first call counts.

        What was received can still be read. With ``flush``, what streams that were
        closed before have left to send is still sent.
        """
        if self._state not in ALIVE:
            return
        self._state = State.ENDED
        self.ended = error
        code = error.code
        if code is Code.NORMAL or "C" not in CODES[code].frames:
            code = Code.LINK_LOST
        streams, self._streams = self._streams, {}
        self.lost_streams = len(streams)
        for conn, stream in streams.items():
            self.core.close(conn, code)
            stream.closed(code, str(error))
            has_left(stream)
        self._deliveries.clear()
        if not flush:
            self.core.end()
        self._mappings.close(error)
        self._pinging.ring()
        self._idle.ring()
        self._changed.ring()
        self.output.wake()

    def deliver_to(self, conn: VirtualConn, deliver: Deliver) -> DatagramRoom:
        """Call ``deliver`` with an association's datagrams; return where they count."""
        if conn in self._streams:  # else it is over: nothing comes
            self._deliveries[conn] = deliver
        return self._inbox_room

    def forget(self, conn: VirtualConn) -> None:
        """Dispatch nothing more to this connection's stream: it is closed here."""
        has_left(self._streams.pop(conn, None))
        self._unread.pop(conn, None)
        self._deliveries.pop(conn, None)
        self._idle.ring()

    def _read_locals(self, ready: list[tuple[int, int]]) -> None:
        output = self.output
        output.gathering = True
        try:
            for number, _events in ready:
                self.poller.call(number)
        finally:
            output.gathering = False
        if self.core.has_output():
            output.flush()

    # Events of the core --------------------------------------------------------------

    def dispatch(self, events: list[Event], *, paced: bool = False) -> None:
        """Hand each event to the stream or the task that it is for; never waits.

        What the streams send meanwhile is gathered: the caller flushes the output.
        ``paced``: they have waited as long as the rate of the user wants it.
        """
        if self.inflow is not None and not paced:
            events = self.inflow.admit(events)
        output, streams = self.output, self._streams
        gathering, output.gathering = output.gathering, True
        try:
            for event in events:
                # In the order of how often they come.
                if type(event) is DataReceived:
                    stream = streams.get(event.conn)
                    if stream is not None:
                        stream.deliver(event.pieces, event.size)
                elif type(event) is DatagramReceived:
                    deliver = self._deliveries.get(event.conn)
                    if deliver is not None:
                        deliver(event.address, event.payload)
                elif isinstance(event, _OF_STREAMS):
                    self._dispatch_stream(event)
                else:
                    self._dispatch_rare(event)
        finally:
            output.gathering = gathering

    def _dispatch_notices(self) -> None:
        """Take events that no call returned; the core may be in another call."""
        self.dispatch(self.core.take_notices())
        self.output.wake_soon()

    def _dispatch_rare(self, event: Event) -> None:
        match event:
            case StreamOffered():
                self._on_offer(event)
            case MappingAsked(mapping):
                self._mappings.asked(mapping)
            case MappingAnswered(answers):
                self._mappings.answered(answers)
            case LinkClosing(away):
                why = away.reason or CODES[away.code].meaning
                why = f"the peer ended the link: {why}"
                self.go_away = RemoteSessionError(away.code, why)
                self.go_away.retry_after_s = away.retry_after_s
            case PeerDraining(retry_after_s):
                log_event(logger, logging.INFO, "link.peer_draining")
                self.when_draining(retry_after_s)
            case PingAnswered():
                self._pinging.ring()
            case _:  # pragma: no cover - taken above
                pass

    def _dispatch_stream(
        self, event: CreditGranted | StreamFinished | StreamOpened | StreamClosed
    ) -> None:
        stream = self._streams.get(event.conn) or self._unread.get(event.conn)
        if stream is None:
            return
        match event:
            case CreditGranted():
                stream.woken()
            case StreamFinished():
                stream.finished()
            case StreamOpened(_, bound):
                stream.opened(bound)
            case StreamClosed(conn, code, reason, local):
                Session.forget(self, conn)  # it is not closed here yet
                if stream.unread_bytes and not local:
                    self._unread[conn] = stream
                stream.closed(code, reason, local=local)

    def _on_offer(self, event: StreamOffered) -> None:
        if self._state not in ALIVE:
            self.core.close(event.conn, Code.DRAINING)
            self.core.released(event.conn)
        elif event.conn.state is StreamState.CLOSING:
            # Its own first bytes were too many: it was evicted before this event.
            self.core.released(event.conn)
        else:
            stream = VirtualStream(self, event.conn, event.create)
            stream.tally = self.tallies.of(event.create.target, opened=False)
            self._streams[event.conn] = stream
            if self._nursery is not None:
                self._begun.add(stream)
                self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: VirtualStream) -> None:
        """Serve one stream to its end: its failure ends nothing else."""
        try:
            await self._begun.take(stream, lambda one: begun(self._serve_offer, one))
        except Exception as error:
            log_event(logger, logging.ERROR, "stream.failed", exc_info=error,
                sock_map=stream.conn.sock_map)  # fmt: skip
            stream.reset(Code.INTERNAL)
        finally:
            stream.reset(Code.RESET)
            self.core.released(stream.conn)

    def look_for_rest(self, now: float) -> None:
        """Tell the streams how much time has passed, if a look is due.

        Called while there is a link.
        """
        step_s = self.rest.take_step(now)
        if step_s:
            for stream in tuple(self._streams.values()):
                stream.rested(step_s)


async def _refuse(stream: VirtualStream) -> None:
    """Serve what comes after the end."""
    stream.reset(Code.LINK_LOST)
