"""Session: the core, and the virtual TCP connections that it fans the frames out to.

It knows no wire: a ``Link`` carries its bytes. It owns the tasks that serve what the
peer opens; whoever opens from this side owns the streams.
"""

from __future__ import annotations

import logging
from collections import Counter
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
from tunnel.link.virtual import REST_STEP_S, VirtualStream
from tunnel.log import log_event
from tunnel.net.in_order import InOrder, begun
from tunnel.net.notify import Notify
from tunnel.net.poller import Poller
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
from tunnel.proto.mappings import MAX_UNANSWERED_MAPPINGS
from tunnel.proto.mux import MuxCore
from tunnel.proto.pools import Pools
from tunnel.proto.state import StreamState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tunnel.errors import TunnelError
    from tunnel.link.virtual import Deliver
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event
    from tunnel.proto.frames import (
        Address,
        MappingAnswer,
        MappingEntry,
        MappingOp,
        ProtMapping,
        Target,
        Terms,
    )

    ServeOffer = Callable[[VirtualStream], Awaitable[None]]
    ServeMapping = Callable[[ProtMapping], Awaitable[list[MappingAnswer]]]

OPEN_DEADLINE_S: Final = 10.0
"""How long an opener waits for the real connect at the far end."""
ANSWER_DEADLINE_S: Final = 10.0
"""How long a client waits for the answer to its MAPPING."""
MAX_PARKED: Final = 1_024
"""New visitors of one target that wait for a link; each at most its open deadline. A
site with 300 a second gets through the 3 s after which a client tries again."""
END_GRACE_S: Final = 3.0
"""How long serving tasks may go on after the session ended, to reset their sockets."""

_OF_STREAMS: Final = (StreamFinished, StreamClosed, StreamOpened, CreditGranted)

logger = logging.getLogger("tunnel.session")


class Session:
    """What both ends share, whatever carries it.

    Args:
        client: whether this is the center-client's end.
        ours, theirs: what the two sides announced.
        serve_offer: called for each virtual TCP connection that the peer opens, in
            their order; it must not wait. What it gives is awaited in a task of its
            own: it accepts or resets the stream and serves it to its end.
        serve_mapping: answers a MAPPING, entry by entry; called one at a time.
        pools: what all sessions of the process hold.
        resume_s: how long it waits for another link; 0 ends it with its link.
        replay_limit: unconfirmed bytes that it keeps for another link.

    ``run`` must be running from before the first link until ``end``.
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
        pools = pools or Pools()
        self.core = MuxCore(
            client=client,
            ours=ours,
            theirs=theirs,
            now=trio.current_time(),
            pools=pools,
            notify=self._dispatch_notices,
            replay_limit=replay_limit if resume_s else 0,
        )
        self.resume_s = resume_s if replay_limit else 0.0
        self.lost_at: float | None = None
        """When its link was lost, while it waits for another."""
        self.resumes = 0
        self.repeated_bytes = 0
        self._parked: dict[VirtualConn, Target] = {}
        self._parked_at: Counter[Target] = Counter()
        self._link_changed = Notify()
        self.ended: TunnelError | None = None
        self.lost_streams = 0
        """Virtual TCP connections that its end has reset."""
        self.writer = Notify()
        """Where the link's writer waits for output."""
        self.push: Callable[[], bool] = nowhere
        """Writes one turn to the link, without a wait; True if the writer is needed."""
        self.poller = Poller(self._read_locals)
        self._gathering = False
        self._looked_at = trio.current_time()
        self.go_away: RemoteSessionError | None = None
        """What the peer's GO_AWAY said."""
        self._streams: dict[VirtualConn, VirtualStream] = {}
        self._unread: dict[VirtualConn, VirtualStream] = {}
        self._inbox_room = DatagramRoom(process=pools.datagrams_in)
        self._deliveries: dict[VirtualConn, Deliver] = {}
        self._offers: InOrder[VirtualStream, Awaitable[None]] = InOrder()
        self._serve_offer = serve_offer
        self._serve_mapping = serve_mapping
        self._ask, self._asked = trio.open_memory_channel["ProtMapping"](
            MAX_UNANSWERED_MAPPINGS
        )
        self._answer, self._answers = trio.open_memory_channel["list[MappingAnswer]"](
            MAX_UNANSWERED_MAPPINGS
        )
        self._asking = trio.Lock()
        self._unwanted_answers = 0
        self._pinging = Notify()
        self._idle = Notify()
        self._nursery: trio.Nursery | None = None
        self._over = trio.Event()
        self._gone = trio.Event()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Host the serving tasks until the session has ended and they have too.

        Cancelled, it resets every stream.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._serve_mapping is not None:
                    nursery.start_soon(self._answer_mappings, self._serve_mapping)
                nursery.start_soon(self._watch_time)
                nursery.start_soon(self.poller.run)
                task_status.started()
                await self._over.wait()
                self.poller.close()
                nursery.cancel_scope.deadline = trio.current_time() + END_GRACE_S
        finally:
            self._nursery = None
            self.end(LocalLinkError(Code.LINK_LOST, "the session was given up"))
            self.poller.close()
            self._gone.set()
            self.let_go()

    def let_go(self) -> None:
        """Forget who is told and who serves, once nobody needs it any more.

        They know this session, which knows them: cycles, which only the collector would
        free, and each session that ended would hold its memory until then.
        """
        if self._gone.is_set() and self.push is nowhere:
            self.core.let_go()
            self._serve_offer, self._serve_mapping = _refuse, None

    # Its links ---------------------------------------------------------------------

    def link_lost(self, reason: TunnelError) -> None:
        """Take the end of its link: wait for another, or end if the reason is final.

        While it waits, its streams do too: nothing is reset.
        """
        final = isinstance(reason, SessionError) and (
            CODES[reason.code].ends == "session"
        )
        if final or not self.resume_s:
            self.end(reason)
        if self.ended is None:
            self.core.link_lost()
            self.lost_at = trio.current_time()
            self.go_away = None
            self._pinging.ring()
            self._link_changed.ring()

    def resume(self, count: int) -> int:
        """Go on over another link, which has not begun to read or write.

        Args:
            count: session bytes that the peer states to have.

        Returns:
            How many bytes are sent again.

        Raises:
            RemoteSessionError: the count cannot be.
        """
        repeated = self.core.resume(count, trio.current_time())
        self._looked_at = trio.current_time()
        self.lost_at = None
        self.resumes += 1
        self.repeated_bytes += repeated
        self._parked.clear()
        self._parked_at.clear()
        self._link_changed.ring()
        return repeated

    async def _watch_time(self) -> None:
        """Without a link there is no clock task: keep its limits while it waits."""
        while self.ended is None:
            if self.lost_at is None:
                await self._link_changed.wait()
                continue
            now, until = trio.current_time(), self.lost_at + self.resume_s
            next_open = self.core.expire(now)
            if now >= until:
                self.end(
                    LocalLinkError(
                        Code.LINK_LOST, f"no other link within {self.resume_s:.0f} s"
                    )
                )
                return
            with trio.move_on_at(min(until, next_open or until)):
                await self._link_changed.wait()

    @property
    def kept_bytes(self) -> int:
        """Unconfirmed bytes that are kept for another link."""
        return self.core.replay.unconfirmed if self.core.replay else 0

    # For its user ------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """Virtual TCP connections that are alive."""
        return len(self._streams)

    def open_now(
        self,
        target: Target,
        visitor: Address | None = None,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Begin to open; the stream can be used at once and breaks if it is refused.

        ``exit_name`` is the client of the server at which to leave (protocol.md#exits).

        Raises:
            LocalStreamError: a limit, a drain, the session's end, or a host that
                cannot be sent.
        """
        if self.ended is not None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link") from self.ended
        if self.lost_at is not None and self._parked_at[target] >= MAX_PARKED:
            raise LocalStreamError(Code.RESOURCE, "too many wait for the link")
        conn = self.core.open(target, trio.current_time(), visitor, exit_name)
        if self.lost_at is not None:
            self._parked[conn] = target
            self._parked_at[target] += 1
            self._link_changed.ring()  # its deadline may be the next
        stream = VirtualStream(self, conn)
        self._streams[conn] = stream
        self.wake_soon()
        return stream

    def deliver_to(self, conn: VirtualConn, deliver: Deliver) -> DatagramRoom:
        """See ``Carrier``."""
        if conn in self._streams:  # else it is over: nothing comes
            self._deliveries[conn] = deliver
        return self._inbox_room

    async def open(
        self,
        target: Target,
        visitor: Address | None = None,
        deadline_s: float = OPEN_DEADLINE_S,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Open, and wait until the far end has really connected.

        Cancelled, it gives the number back.

        Raises:
            StreamError: refused; ``code`` says why. ``TIMEOUT`` after ``deadline_s``.
        """
        stream = self.open_now(target, visitor, exit_name)
        try:
            with trio.fail_after(deadline_s):
                await stream.wait_open()
        except trio.TooSlowError:
            stream.reset(Code.RESET)
            raise LocalStreamError(
                Code.TIMEOUT, f"{target}: no answer within {deadline_s:.0f} s"
            ) from None
        except BaseException:
            stream.reset(Code.RESET)
            raise
        return stream

    async def ask_mapping(
        self, op: MappingOp, entries: list[MappingEntry]
    ) -> list[MappingAnswer]:
        """Register, withdraw or replace names; give an answer for each.

        Raises:
            TunnelError: the session ended before the answer, or sent none in time.
        """
        async with self._asking:
            if self.ended is not None:
                raise self.ended.again()
            self.core.ask_mapping(op, entries)
            self.wake()
            try:
                with trio.fail_after(ANSWER_DEADLINE_S):
                    return await self._answers.receive()
            except trio.EndOfChannel:
                lost = LocalLinkError(Code.LINK_LOST, "the link is gone")
                raise (self.ended or lost).again() from None
            except trio.TooSlowError:
                self._unwanted_answers += 1
                raise LocalLinkError(Code.SILENT, "no answer to MAPPING") from None
            except trio.Cancelled:
                self._unwanted_answers += 1
                raise

    async def ping(self, timeout_s: float) -> float | None:
        """Ask whether the peer is there; the round trip in seconds, None if silent."""
        if self.ended is not None or self.lost_at is not None:
            return None
        began = trio.current_time()
        self.core.ping(began)
        self.wake()
        with trio.move_on_after(timeout_s):
            await self._pinging.wait()
            if self.ended is None and self.lost_at is None:
                return trio.current_time() - began
        return None

    def wake(self) -> None:
        """Have what there is to send sent, by its link if there is one.

        The first word goes out at once; what else is said in this turn of the scheduler
        goes together, by the writer's task.
        """
        if self.writer.waiting and not self._gathering:
            self.writer.ring()
            self.push()

    def wake_soon(self) -> None:
        """Do the same in the next turn: what follows at once may go with it."""
        self.writer.ring()

    def _read_locals(self, ready: list[tuple[int, int]]) -> None:
        self._gathering = True
        try:
            for number, _events in ready:
                self.poller.call(number)
        finally:
            self._gathering = False
        self.flush()

    def flush(self) -> None:
        """Have sent what a whole turn of somebody's had to say."""
        if self.writer.waiting and self.core.has_output() and self.push():
            self.writer.ring()

    def forget(self, conn: VirtualConn) -> None:
        """Dispatch nothing more to this connection's stream: it is closed."""
        self._streams.pop(conn, None)
        self._unread.pop(conn, None)
        if conn in self._parked:
            target = self._parked.pop(conn)
            self._parked_at[target] -= 1
            if not self._parked_at[target]:
                del self._parked_at[target]
        self._deliveries.pop(conn, None)
        self._idle.ring()

    async def wait_idle(self) -> None:
        """Wait until no virtual TCP connection is alive.

        UDP associations are not waited for: they end only by silence.
        """
        while any(conn.datagrams is None for conn in self._streams):
            await self._idle.wait()

    async def wait_ended(self) -> None:
        """Wait until the session has ended."""
        await self._over.wait()

    async def wait_gone(self) -> None:
        """Wait until ``run`` has returned: the session has ended and its tasks too."""
        await self._gone.wait()

    def end(self, error: TunnelError, *, flush: bool = False) -> None:
        """Reset every stream with the error's code; the first call counts.

        What was received stays to be read by the streams' users. With ``flush``, what
        streams that were closed before have left to send stays to be sent.
        """
        if self.ended is not None:
            return
        self.ended = error
        code = error.code if "C" in CODES[error.code].frames else Code.LINK_LOST
        if code is Code.NORMAL:
            code = Code.LINK_LOST
        streams, self._streams = self._streams, {}
        self.lost_streams = len(streams)
        for conn, stream in streams.items():
            self.core.close(conn, code)
            stream.closed(code, str(error))
        self._deliveries.clear()
        if not flush:
            self.core.end()
        self._answer.close()
        self._ask.close()
        self._pinging.ring()
        self._idle.ring()
        self._link_changed.ring()
        self._over.set()
        self.wake()

    # For its link ------------------------------------------------------------------

    def dispatch(self, events: Iterable[Event]) -> None:
        """Hand each event to the stream or the task that it is for; never waits.

        What they have to say to it waits for ``flush``, or whatever the caller does.
        """
        self._gathering, gathering = True, self._gathering
        try:
            self._dispatch(events)
        finally:
            self._gathering = gathering

    def _dispatch(self, events: Iterable[Event]) -> None:
        streams = self._streams
        for event in events:
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

    def look_for_rest(self, now: float) -> None:
        """Tell streams, now and then, that time has passed: called while linked."""
        step_s = now - self._looked_at
        if step_s >= REST_STEP_S:
            self._looked_at = now
            for stream in tuple(self._streams.values()):
                stream.rested(step_s)

    def _dispatch_notices(self) -> None:
        self.dispatch(self.core.take_notices())
        # There is a CLOSE to send. Not by ``wake``: the core may be in another call.
        self.writer.ring()

    def _dispatch_rare(self, event: Event) -> None:
        match event:
            case StreamOffered():
                self._on_offer(event)
            case MappingAsked(mapping):
                if self.ended is None:
                    self._ask.send_nowait(mapping)
            case MappingAnswered(answers):
                self._on_answers(answers)
            case LinkClosing(away):
                why = away.reason or CODES[away.code].meaning
                self.go_away = RemoteSessionError(
                    away.code, f"the peer ended the link: {why}"
                )
                self.go_away.retry_after_s = away.retry_after_s
            case PeerDraining():
                log_event(logger, logging.INFO, "link.peer_draining")
            case PingAnswered():
                self._pinging.ring()
            case _:  # pragma: no cover - taken above
                pass

    def _on_offer(self, event: StreamOffered) -> None:
        if self.ended is not None:
            self.core.close(event.conn, Code.DRAINING)
            self.core.released(event.conn)
            return
        if event.conn.state is StreamState.CLOSING:
            # Its own first bytes were too many: it was evicted before this event.
            self.core.released(event.conn)
            return
        stream = VirtualStream(self, event.conn, event.create)
        self._streams[event.conn] = stream
        if self._nursery is not None:
            self._offers.add(stream)
            self._nursery.start_soon(self._serve, event.conn, stream)

    def _begin_to_serve(self, stream: VirtualStream) -> Awaitable[None]:
        return begun(self._serve_offer, stream)

    def _on_answers(self, answers: list[MappingAnswer]) -> None:
        if self._unwanted_answers:
            self._unwanted_answers -= 1
        elif self.ended is None:
            self._answer.send_nowait(answers)

    def _dispatch_stream(
        self, event: StreamOpened | StreamFinished | StreamClosed | CreditGranted
    ) -> None:
        stream = self._streams.get(event.conn) or self._unread.get(event.conn)
        if stream is None:
            return
        match event:
            # In the order of how often they come.
            case CreditGranted():
                stream.woken()
            case StreamFinished():
                stream.finished()
            case StreamOpened(_, bound):
                stream.opened(bound)
            case StreamClosed(conn, code, reason, local):
                self.forget(conn)
                if stream.unread_bytes and not local:
                    # Closed by the peer, but it holds memory until it is read.
                    self._unread[conn] = stream
                stream.closed(code, reason, local=local)

    async def _serve(self, conn: VirtualConn, stream: VirtualStream) -> None:
        """Supervise one served stream: its failure is its own."""
        try:
            await self._offers.take(stream, self._begin_to_serve)
        except Exception as error:
            log_event(logger, logging.ERROR, "stream.failed", exc_info=error,
                sock_map=conn.sock_map)  # fmt: skip
            stream.reset(Code.INTERNAL)
        finally:
            stream.reset(Code.RESET)
            self.core.released(conn)

    async def _answer_mappings(self, serve: ServeMapping) -> None:
        async for mapping in self._asked:
            answers = await serve(mapping)
            if self.ended is None:
                self.core.answer_mapping(answers)
                self.wake()


async def _refuse(stream: VirtualStream) -> None:
    """Serve what comes after the end."""
    stream.reset(Code.LINK_LOST)


def nowhere() -> bool:
    """Stand in for a link: nobody writes."""
    return False
