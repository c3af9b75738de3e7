"""Keep one link to the center-server up: dial, prove, resume, back off.

A session outlives its links: a new link resumes it where both ends still know it, and
else begins another.
"""

from __future__ import annotations

import logging
import math
import secrets
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import short_id
from tunnel.access.pins import Pins
from tunnel.center.backoff import STEADY_S, WAITING_MOST_S, Backoff, is_final
from tunnel.center.departing import Carried, Departures, passed
from tunnel.center.drain import DRAIN_S, GOODBYE_S, drain
from tunnel.center.events import (
    ClientIdChanged,
    LinkDown,
    LinkResumed,
    LinkUp,
    SessionLost,
)
from tunnel.center.link_maker import Held, LinkMaker
from tunnel.center.own_token import OwnToken
from tunnel.center.publisher import Publisher
from tunnel.center.whereabouts import reach
from tunnel.errors import (
    Code,
    LinkError,
    LocalLinkError,
    LocalSessionError,
    RemoteLinkError,
    RemoteSessionError,
    SessionError,
    StateError,
    TunnelError,
    UsageError,
)
from tunnel.link.link import Link
from tunnel.link.session import Session
from tunnel.log import log_event
from tunnel.net.dead_peers import reset_the_dead
from tunnel.net.notify import Notify
from tunnel.proto.frames import CLIENT_CAN, Terms
from tunnel.proto.pools import Pools
from tunnel.proto.terms import DEFAULT_RESUME_S

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path as FilePath

    from tunnel.access.join import JoinLine
    from tunnel.center.events import Notice
    from tunnel.center.own_token import JoinKeeper
    from tunnel.link.transport import Transport
    from tunnel.link.upstream_proxy import UpstreamProxy
    from tunnel.proto.claims import HandshakeResult

ASKED_MOST_S: Final = 60.0
"""The longest pause that a server may ask for: before its proof it may be anybody."""
_NO_LOSS: Final = (Code.NORMAL, Code.LINK_LOST)
"""So end sessions whose server stops or was restarted: only connections are a loss."""

logger = logging.getLogger("tunnel.client")

_random_id: Final = partial(secrets.token_bytes, 16)


class LinkKeeper:
    """The links of a center-client, one after another, and the session over them.

    Args:
        join: where the server is, which user joins, and how the server is known.
        client_id: 16 bytes; the same after a restart, so that the server knows whose
            ports are whose. Random when not given.
        tell: called with each ``Notice``; must not wait.
        give_up_s: end with the last error when the first link is not up by then; None
            means never.
        resume_s: how long connections wait for another link; the server may want
            less; 0 resets them with their link.
        via: a proxy on the way to the server.
        new_id: makes another client id when a client that answers has this one.
        keeper: saves the join line, where that of ``join`` works for one machine.
        pins: by which the server is known; without them, those of this run only.
        certificate: a client certificate and its key, read anew for each link.
    """

    _of_node = False  # then only trouble is news

    def __init__(
        self,
        join: JoinLine,
        *,
        client_id: bytes | None = None,
        tell: Callable[[Notice], None] = lambda _notice: None,
        give_up_s: float | None = None,
        resume_s: int = DEFAULT_RESUME_S,
        via: UpstreamProxy | None = None,
        new_id: Callable[[], bytes] = _random_id,
        keeper: JoinKeeper | None = None,
        pins: Pins | None = None,
        certificate: tuple[FilePath, FilePath] | None = None,
    ) -> None:
        self.publisher = Publisher(join.host, tell)
        self._join = join
        self._tell = tell
        self._give_up_s = math.inf if give_up_s is None else give_up_s
        self._via = via
        self._new_id = new_id
        self._maker = LinkMaker(
            join,
            Terms(capabilities=CLIENT_CAN, client_id=client_id or _random_id()),
            OwnToken(join, keeper),
            pins or Pins(join.pin),
            resume_s,
            certificate,
            self._reach,
        )
        self.pools = Pools()
        self._held: Held | None = None
        self._link: Link | None = None
        self._greeted = Notify()
        self._stopping = trio.Event()
        self._over = trio.Event()
        self._was_up = False
        self._told_refusal = ""
        self._renewed = False
        self._traffic = (0, 0)
        self._departures = Departures(self._maker)
        self._departed = Backoff()
        self._away_at = math.inf
        """When the session is to go on elsewhere, for its server drains."""
        self._news = Notify()
        """Rings when that changes, and when a link is over."""
        self._attempts = trio.CancelScope()
        self._pause = trio.CancelScope()
        self._nursery: trio.Nursery
        self._task_status: trio.TaskStatus[None]

    @property
    def session(self) -> Session | None:
        """Its ``lost_at`` is set while it waits for another link."""
        return self._held.session if self._held is not None else None

    @property
    def client_id(self) -> bytes:
        """What names this client to its server, 16 bytes."""
        return self._maker.terms.client_id

    @property
    def connections(self) -> int:
        """Virtual TCP connections that are alive."""
        return sum(one.streams for one in self._sessions())

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of virtual TCP connections so far: sent, received."""
        own = () if self.session is None else (self.session,)
        sent, received = passed(own, self._traffic)
        more_sent, more_received = self._departures.traffic
        return sent + more_sent, received + more_received

    def _sessions(self) -> list[Session]:
        own = [] if self.session is None else [self.session]
        return [*own, *self._departures.sessions]

    # Its life ------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a link up until ``stop``; started with the first link, or without any.

        Raises:
            TunnelError: before the first link was up: wrong token, pin or version; at
                any time: ``TAKEN_OVER``, ``REVOKED``; no link within ``give_up_s``.
        """
        self._task_status = task_status
        failure: TunnelError | None = None
        try:
            async with trio.open_nursery() as self._nursery:
                looking = trio.CancelScope()
                self._nursery.start_soon(reset_the_dead, looking)
                with self._attempts:
                    failure = await self._keep_up()
                self.publisher.detach()
                if self.session is not None:
                    end = failure or LocalSessionError(Code.NORMAL, "stopped")
                    self.session.end(end)
                self._departures.cancel()
                looking.cancel()
        finally:
            self.publisher.detach()  # once more: this task may have been cancelled
            self._over.set()
        if failure is not None:
            raise failure
        if not self._was_up:
            task_status.started()

    async def wait_over(self) -> None:
        """Wait until ``run`` has ended."""
        await self._over.wait()

    async def wait_for_session(self) -> None:
        """Wait for a session that lives, with or without a link, or for ``stop``."""
        if self._link is None:
            self.hurry()
        while not self._stopping.is_set():
            if self.session is not None and self.session.ended is None:
                return
            await self._greeted.wait()

    def hurry(self) -> None:
        """Shorten a pause or a dial to ``WAITING_MOST_S``: a connection waits."""
        soon = trio.current_time() + WAITING_MOST_S
        self._maker.step.deadline = min(self._maker.step.deadline, soon)

    def stop(self) -> None:
        """End the session in good order: the server frees our ports at once."""
        self._stopping.set()
        self._departures.close()
        if self._link is not None:
            self._link.close(Code.NORMAL)
        else:
            self._attempts.cancel()

    async def leave(self, within_s: float = GOODBYE_S) -> None:
        """Stop; ``run`` is over after ``within_s`` at the latest."""
        self.stop()
        with trio.move_on_after(within_s):
            await self._over.wait()
        self._attempts.cancel()

    async def drain(self, deadline_s: float = DRAIN_S) -> None:
        """Take nothing new, let what runs go on for at most ``deadline_s``, leave.

        Lost links are made again meanwhile. Returns at most ``GOODBYE_S`` later.
        """
        until = trio.current_time() + deadline_s
        await drain(self._sessions(), until)
        await self.leave(until + GOODBYE_S - trio.current_time())

    # Making a link -------------------------------------------------------------------

    async def _keep_up(self) -> TunnelError | None:
        """Make links and carry them, until stopped or until a failure is final."""
        pauses = Backoff()
        give_up_at = trio.current_time() + self._give_up_s
        while not self._stopping.is_set():
            began = trio.current_time()
            try:
                link = await self._begin_link()
            except (LinkError, StateError, UsageError) as error:
                reason: TunnelError = error
                was_up, took_s = False, trio.current_time() - began
            else:
                began = trio.current_time()
                end = await self._carry(link)
                del link  # a pause may be long
                if end is None:
                    continue
                reason = end
                was_up, took_s = True, 0.0
                fault = isinstance(reason, SessionError) and reason.code != Code.NORMAL
                pauses.carried(trio.current_time() - began, failed=fault)
            give_up_at = math.inf if self._was_up else give_up_at
            if self._stopping.is_set():
                return None
            left_s = give_up_at - trio.current_time()
            if left_s <= 0 or is_final(reason, was_up=self._was_up):
                return reason
            if self._takes_another_id(reason):
                continue
            waiting = self.connections > 0
            asked_s = min(reason.retry_after_s, ASKED_MOST_S)
            if waiting and self._join.plain:  # anybody could have asked
                asked_s = 0
            wait_s = asked_s + pauses.next_s(waiting=waiting, took_s=took_s)
            self._say_down(reason, min(wait_s, left_s), was_up=was_up)
            with trio.move_on_after(min(wait_s, left_s)) as self._pause:
                if not reason.retry_after_s:  # else the server says how long it lasts
                    self._maker.step = self._pause
                await trio.sleep_forever()
        return None

    async def _begin_link(self) -> Link:
        """Make a link, and find the session that it carries; raises as ``make``."""
        if (held := self._held) is not None and held.session.ended is not None:
            self._forget_session(held.session.ended)
            held = None
        transport, result = await self._maker.make(
            held, waiting=self.connections > 0, known=self._was_up
        )
        try:
            self._told_refusal, self._renewed = "", False
            session = await self._session_for(result, held, transport)
            self._nursery.start_soon(self._greet, session, transport, result.resumed)
        except BaseException:
            await transport.aclose()
            raise
        return Link(session, transport, result.leftover)

    async def _reach(self, tls: ssl.SSLContext | None) -> Transport:
        """Connect to the server, or raise LinkError; without ``tls`` it is plain."""
        return await reach(self._join, self._via, tls, self._maker.path.mss)

    async def _session_for(
        self, result: HandshakeResult, held: Held | None, transport: Transport
    ) -> Session:
        """Return the session that the server carries over the new link."""
        if held is not None:
            if result.resumed:
                self._resume(held.session, result, transport)
                self._held = replace(held, hint=result.hint)
                return held.session
            why = "the server does not know the session any more"
            self._forget_session(LocalLinkError(Code.LINK_LOST, why))
        maker = self._maker
        session = Session(
            client=True,
            ours=maker.terms,
            theirs=result.peer_terms,
            serve_offer=self.publisher.serve_offer,
            pools=self.pools,
            resume_s=result.resume_s,
            replay_limit=result.replay_limit,
        )
        session.when_draining = self._sent_away
        await self._nursery.start(session.run)
        who = result.session_id, result.resume_secret, result.hint
        self._held, self._away_at = Held(session, *who), math.inf
        if self._was_up:  # at first nobody waits for an answer
            self.publisher.attach(session, self._nursery)
        return session

    def _resume(
        self, session: Session, result: HandshakeResult, transport: Transport
    ) -> None:
        """Go on with the session where the server stands.

        Raises LinkError when it ended meanwhile; the next attempt begins another.
        """
        if session.ended is not None or session.lost_at is None:
            raise LocalLinkError(Code.LINK_LOST, "the session ended meanwhile")
        after_s = trio.current_time() - session.lost_at
        try:
            repeated = session.resume(result.count)
        except RemoteSessionError as error:
            session.end(error)
            raise LocalLinkError(Code.LINK_LOST, str(error)) from error
        level = logging.DEBUG if self._of_node else logging.INFO
        log_event(logger, level,
            "peer.resumed" if self._of_node else "link.resumed", peer=transport.peer,
            after_s=round(after_s, 3), connections=session.streams,
            repeated_bytes=repeated)  # fmt: skip
        self._tell(LinkResumed(transport.peer, after_s, session.streams, repeated))

    # A link that is up ---------------------------------------------------------------

    async def _carry(self, link: Link) -> TunnelError | None:
        """Carry the session until the link ends; return the reason.

        None: it departs, on a task of its own, and another is to be begun.
        """
        session = link.session
        self._link = link
        began, self._maker.path.greeted = trio.current_time(), False
        if self._stopping.is_set():
            link.close(Code.NORMAL)
        carried, departs = Carried(link, self._news), False
        self._nursery.start_soon(carried.run)
        try:
            while not (carried.is_over or departs):
                departs = trio.current_time() >= self._away_at
                with trio.move_on_at(self._away_at):
                    await self._news.wait()
        finally:
            self._link = None
            if not (carried.is_over or departs):
                await carried.cut()
        lasted_s = trio.current_time() - began
        if departs and not carried.is_over:
            self._depart(carried)
            if lasted_s < STEADY_S:  # who sends all away is not asked all the time
                await trio.sleep(self._departed.next_s(waiting=True))
            else:
                self._departed.carried(lasted_s, failed=False)
            return None
        if (held := self._held) is not None:
            self._maker.path.link_lost(held.session_id, session.core, lasted_s)
        session.link_lost(carried.reason)
        if session.ended is not None:
            self._forget_session(carried.reason)
        return carried.reason

    def _sent_away(self, after_s: int) -> None:
        """Take that the session's server drains, and when another may be asked."""
        # Who got no hint knows of no other server.
        if self._held is not None and self._held.hint and not self._stopping.is_set():
            self._away_at = trio.current_time() + after_s
            self._news.ring()

    def _depart(self, carried: Carried) -> None:
        """Let the session run to its end where it is; publish in the next one."""
        held, self._held = self._held, None
        assert held is not None  # noqa: S101 - carried
        self.publisher.detach()
        log_event(logger, logging.DEBUG if self._of_node else logging.INFO,
            "session.departs", peer=carried.link.transport.peer,
            connections=held.session.streams)  # fmt: skip
        self._nursery.start_soon(self._departures.see_off, held, carried)

    async def _greet(
        self, session: Session, transport: Transport, resumed: bool
    ) -> None:
        """Measure the round trip of a new link, then ask for the mappings."""
        rtt_s = await session.ping(math.inf)  # a silent server ends the link
        if rtt_s is None:
            return
        self._maker.path.greeted = True
        if not (resumed and self._was_up):
            level = logging.DEBUG if self._of_node else logging.INFO
            log_event(logger, level,
                "peer.up" if self._of_node else "link.up", peer=transport.peer,
                tls=transport.encrypted, rtt_ms=round(rtt_s * 1000, 1))  # fmt: skip
            pinned = transport.encrypted and self._join.pin is not None
            self._tell(LinkUp(transport.peer, transport.encrypted, pinned, rtt_s))
        if self.session is not session:  # it has departed meanwhile
            return
        if session.ended is None:
            self.publisher.attach(session, self._nursery)
        await self.publisher.register(resumed=resumed)
        if not self._was_up:
            self._was_up = True
            self._task_status.started()
        self._greeted.ring()

    def _forget_session(self, reason: TunnelError) -> None:
        """Reset what was left of the session, which cannot go on."""
        session = self.session
        if session is None:
            return
        session.end(reason)
        self._traffic, self._held = passed((session,), self._traffic), None
        self.publisher.detach()
        if self._stopping.is_set():  # as its user wished
            return
        lost = session.lost_streams
        quiet = reason.code in _NO_LOSS and not lost
        calm = logging.DEBUG if self._of_node else logging.INFO
        log_event(logger, calm if quiet else logging.WARNING,
            "session.ended" if quiet else "session.lost", reason=str(reason),
            client=short_id(self.client_id), connections=lost)  # fmt: skip
        self._tell(SessionLost(reason, lost))

    # After a failure -----------------------------------------------------------------

    def _takes_another_id(self, reason: TunnelError) -> bool:
        """Take another client id if a client that answers has ours.

        Return whether to try it at once: the first time after a link that was made.
        """
        if reason.code is not Code.DUPLICATE:
            return False
        old, maker = self.client_id, self._maker
        maker.terms = replace(maker.terms, client_id=self._new_id())
        log_event(logger, logging.WARNING, "client.id_taken", client=short_id(old),
            now=short_id(self.client_id), reason=str(reason))  # fmt: skip
        self._tell(ClientIdChanged(self.client_id))
        first, self._renewed = not self._renewed, True
        return first

    def _say_down(self, reason: TunnelError, wait_s: float, *, was_up: bool) -> None:
        # A refusal is told once; that it goes on is no news.
        refused = str(reason) if isinstance(reason, RemoteLinkError) else ""
        news = refused not in ("", self._told_refusal)
        self._told_refusal = refused or self._told_refusal
        calm = logging.DEBUG if self._of_node else logging.INFO
        log_event(logger, logging.WARNING if news else calm,
            "peer.down" if self._of_node
            else "link.lost" if was_up else "link.not_made",
            reason=str(reason), cause=reason.cause or None,
            client=short_id(self.client_id) if news else None,
            retry_s=round(wait_s, 1), waiting=self.connections)  # fmt: skip
        self._tell(LinkDown(reason, wait_s, was_up, self.connections))
