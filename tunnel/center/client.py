"""CenterClient: keeps a link to the center-server alive, and what runs over it.

Registers its mappings on every link, serves what visitors open, opens what programs
here ask for, and dials again for ever.
"""

from __future__ import annotations

import hmac
import logging
import math
import random
import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.security import client_tls_context, parse_join, pin_of, short_id
from tunnel.center import backoff
from tunnel.center.backoff import Backoff
from tunnel.center.client_proxy import serve_client_proxy
from tunnel.center.drain import DRAIN_S, GOODBYE_S
from tunnel.center.events import (
    ClientIdChanged,
    LinkDown,
    LinkResumed,
    LinkUp,
    SessionLost,
)
from tunnel.center.exit.tcp import exit_to, refuse, serve_exit, udp_exit_to
from tunnel.center.path_mtu import Path
from tunnel.center.publisher import Publisher
from tunnel.errors import (
    Code,
    LinkError,
    LocalLinkError,
    LocalSessionError,
    LocalStreamError,
    RemoteLinkError,
    RemoteSessionError,
    SessionError,
    TlsError,
    TunnelError,
    ViaError,
)
from tunnel.link.bind import BoundPort
from tunnel.link.datagrams import DatagramStream
from tunnel.link.link import Link
from tunnel.link.session import OPEN_DEADLINE_S, Session
from tunnel.link.start import prove
from tunnel.link.transport import DIAL_S, PlainTransport, TlsTransport, dial
from tunnel.link.upstream_proxy import UpstreamProxy, dial_through
from tunnel.log import log_event
from tunnel.net.dead_peers import reset_the_dead
from tunnel.net.notify import Notify
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    Address,
    BindTarget,
    MappingEntry,
    MappingType,
    NameTarget,
    TcpTarget,
    Terms,
    UdpTarget,
)
from tunnel.proto.handshake import (
    ClientHandshake,
    ResumeState,
)
from tunnel.proto.pools import Pools
from tunnel.proto.proofs import PLAIN_BINDING
from tunnel.proto.terms import DEFAULT_RESUME_S

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tunnel.access.networks import Networks
    from tunnel.access.security import JoinLine
    from tunnel.center.events import Notice
    from tunnel.center.publisher import MappingListener, Serve
    from tunnel.front.proxy_users import ProxyUsers
    from tunnel.link.transport import Transport
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.proxy_protocol import ProxyVersion
    from tunnel.proto.frames import End, Target
    from tunnel.proto.handshake import HandshakeResult

HANDSHAKE_S: Final = 10.0
"""From the first byte to the server's proof."""
ASKED_MOST_S: Final = 60.0
"""For how long a server may send us away: before its proof it may be anybody."""
_FINAL_CODES: Final = (Code.AUTH, Code.VERSION)

logger = logging.getLogger("tunnel.client")


def _ignore(notice: Notice) -> None:
    """Stand in for a user who does not listen."""


def _random_id() -> bytes:
    return secrets.token_bytes(16)


class CenterClient:
    """The center-client's role. Everything below may be used once ``run`` has started.

    Args:
        join: where the server is, who we are, and how the server is known.
        client_id: 16 bytes; the same again after a restart, so that the server knows
            whose ports are whose. Random when not given.
        tell: called with each ``Notice``; must not wait.
        give_up_s: end with the last error when the first link is not up by then; None
            means never.
        resume_s: how long connections wait for another link; the server may want
            less; 0 resets them with their link.
        via: a proxy on the way to the server.
        new_id: gives another client id when a client that answers has ours; by default
            a random one.
    """

    def __init__(
        self,
        join: JoinLine,
        *,
        client_id: bytes | None = None,
        tell: Callable[[Notice], None] = _ignore,
        give_up_s: float | None = None,
        resume_s: int = DEFAULT_RESUME_S,
        via: UpstreamProxy | None = None,
        new_id: Callable[[], bytes] = _random_id,
    ) -> None:
        self._join = join
        self._via = via
        self._terms = replace(
            Terms(),
            capabilities=CAN_MAP | CAN_UDP,
            client_id=client_id or _random_id(),
        )
        self._new_id = new_id
        self._tell = tell
        self._pools = Pools()
        self._give_up_s = give_up_s
        self._resume_s = resume_s
        self.publisher = Publisher(join.host, tell)
        self._exit_networks: Networks | None = None
        self._session: Session | None = None
        self._link: Link | None = None
        self._changed = Notify()
        self._stopping = trio.Event()
        self._over = trio.Event()
        self._was_up = False
        self._told_refusal = ""
        self._renewed = False
        self._link_no = 0
        self._session_id = self._secret = b""
        self._traffic = (0, 0)
        self._path = Path()
        self._attempts = trio.CancelScope()
        self._step = trio.CancelScope()
        """What stands between now and a link: a pause, a dial."""

    @property
    def client_id(self) -> bytes:
        """What names this client to its server, 16 bytes."""
        return self._terms.client_id

    @property
    def connections(self) -> int:
        """Virtual TCP connections that are alive."""
        return self._session.streams if self._session else 0

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of virtual TCP connections so far: sent, received."""
        if self._session is None:
            return self._traffic
        core = self._session.core
        return self._traffic[0] + core.data_sent, self._traffic[1] + core.data_received

    # The link ------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a link up until ``stop``; started with the first link, or without any.

        Raises:
            TunnelError: before the first link was up: wrong token, pin or version; at
                any time: ``TAKEN_OVER``; or no link was had within ``give_up_s``.
        """
        failure: TunnelError | None = None
        try:
            async with trio.open_nursery() as nursery:
                looking = trio.CancelScope()
                nursery.start_soon(reset_the_dead, looking)
                with self._attempts:
                    failure = await self._keep_up(nursery, task_status)
                self.publisher.detach()
                if self._session is not None:
                    end = failure or LocalSessionError(Code.NORMAL, "stopped")
                    self._session.end(end)
                looking.cancel()
        finally:
            self.publisher.detach()  # once more: we may have been cancelled
            self._over.set()
        if failure is not None:
            raise failure
        if not self._was_up:
            task_status.started()

    async def _keep_up(
        self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]
    ) -> TunnelError | None:
        """Make links and carry them, until stopped or until a failure is final."""
        pauses = Backoff(random.random)
        give_up_at = math.inf
        if self._give_up_s is not None:
            give_up_at = trio.current_time() + self._give_up_s
        while not self._stopping.is_set():
            was_up = False
            began = trio.current_time()
            try:
                link = await self._make_link(nursery, task_status)
            except LinkError as error:
                reason: TunnelError = error
                took_s = trio.current_time() - began
            else:
                was_up = True
                up_at = trio.current_time()
                reason = await self._carry(link)
                took_s = 0.0
                pauses.carried(trio.current_time() - up_at, failed=_is_failure(reason))
            if self._was_up:
                give_up_at = math.inf
            if self._stopping.is_set():
                return None
            left_s = give_up_at - trio.current_time()
            if left_s <= 0 or self._is_final(reason):
                return reason
            if self._takes_another_id(reason):
                continue
            wait_s = self._pause_s(pauses, reason, took_s)
            self._say_down(reason, min(wait_s, left_s), was_up=was_up)
            with trio.move_on_after(min(wait_s, left_s)) as scope:
                if not reason.retry_after_s:  # that is for the server to say
                    self._step = scope
                await trio.sleep_forever()
        return None

    def _pause_s(self, pauses: Backoff, reason: TunnelError, took_s: float) -> float:
        """Give the pause before the next attempt; the server may ask for more."""
        waiting = self.connections > 0
        asked_s = min(reason.retry_after_s, ASKED_MOST_S)
        if waiting and self._join.plain:
            asked_s = 0  # anybody on the way could have said it
        return asked_s + pauses.next_s(waiting=waiting, took_s=took_s)

    def _say_down(self, reason: TunnelError, wait_s: float, *, was_up: bool) -> None:
        # A refusal is told once; that it goes on is no news.
        refused = isinstance(reason, RemoteLinkError) and str(reason)
        news = bool(refused) and refused != self._told_refusal
        self._told_refusal = refused or self._told_refusal
        log_event(logger, logging.WARNING if news else logging.INFO,
            "link.lost" if was_up else "link.not_made",
            reason=str(reason), cause=reason.cause or None,
            client=short_id(self.client_id) if news else None,
            retry_s=round(wait_s, 1), waiting=self.connections)  # fmt: skip
        self._tell(LinkDown(reason, wait_s, was_up, self.connections))

    def _takes_another_id(self, reason: TunnelError) -> bool:
        """Take an id of our own when somebody else lives under ours; at once, once."""
        if reason.code is not Code.DUPLICATE:
            return False
        old = self.client_id
        self._terms = replace(self._terms, client_id=self._new_id())
        log_event(logger, logging.WARNING, "client.id_taken", client=short_id(old),
            now=short_id(self.client_id), reason=str(reason))  # fmt: skip
        self._tell(ClientIdChanged(self.client_id))
        first, self._renewed = not self._renewed, True
        return first

    def _hurry(self) -> None:
        """Have a pause or a dial not last long: a connection begins to wait for it."""
        soon = trio.current_time() + backoff.WAITING_MOST_S
        self._step.deadline = min(self._step.deadline, soon)

    def _is_final(self, reason: TunnelError) -> bool:
        """A captive portal must not end what has worked before."""
        if reason.code is Code.TAKEN_OVER:
            return True
        return not self._was_up and (
            reason.code in _FINAL_CODES or isinstance(reason, TlsError | ViaError)
        )

    async def _make_link(
        self,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None],
    ) -> Link:
        """Dial, prove, and find the session that the new link carries.

        Raises:
            LinkError: it never came to be.
        """
        old = self._session
        if old is not None and old.ended is not None:
            self._forget_session(old, old.ended)
            old = None
        waiting = self.connections > 0
        transport = await self._reach(backoff.WAITING_MOST_S if waiting else DIAL_S)
        step_s = backoff.WAITING_MOST_S if waiting else HANDSHAKE_S
        try:
            with trio.fail_after(HANDSHAKE_S):
                with trio.fail_after(step_s):
                    binding = await self._secure(transport)
                with trio.fail_after(step_s):
                    result = await prove(transport, self._handshake(binding, old))
            self._told_refusal, self._renewed = "", False
            if result.resumed and old is not None:
                self._resume(old, result, transport)
                session = old
            else:
                if old is not None:
                    reason = LocalLinkError(
                        Code.LINK_LOST, "the server does not know the session any more"
                    )
                    self._forget_session(old, reason)
                session = await self._new_session(nursery, result)
            nursery.start_soon(
                partial(
                    self._greet,
                    session,
                    transport,
                    nursery,
                    task_status,
                    resumed=result.resumed,
                )
            )
        except trio.TooSlowError:
            self._path.handshake_silent()
            await transport.aclose()
            raise LocalLinkError(
                Code.SILENT, f"no answer from {transport.peer} within {step_s:.0f} s"
            ) from None
        except BaseException:
            await transport.aclose()
            raise
        return Link(session, transport, result.leftover)

    def _handshake(self, binding: bytes, old: Session | None) -> ClientHandshake:
        self._link_no += 1
        resume = None
        if old is not None:
            resume = ResumeState(self._session_id, old.core.received, self._secret)
        return ClientHandshake(
            self._join.name,
            self._join.token.reveal(),
            self._terms,
            secrets.token_bytes(32),
            binding,
            link_no=self._link_no,
            resume=resume,
            resume_s=self._resume_s,
        )

    async def _new_session(
        self, nursery: trio.Nursery, result: HandshakeResult
    ) -> Session:
        session = Session(
            client=True,
            ours=self._terms,
            theirs=result.peer_terms,
            serve_offer=self._serve_offer,
            pools=self._pools,
            resume_s=result.resume_s,
            replay_limit=result.replay_limit,
        )
        self._session_id, self._secret = result.session_id, result.resume_secret
        await nursery.start(session.run)
        self._session = session
        if self._was_up:  # at first there is nobody who waits for an answer
            self.publisher.attach(session, nursery)
        return session

    def _resume(
        self, session: Session, result: HandshakeResult, transport: Transport
    ) -> None:
        """Go on with the session where the server stands.

        Raises:
            LocalLinkError: it ended meanwhile; the next attempt begins another.
        """
        if session.ended is not None or session.lost_at is None:
            raise LocalLinkError(Code.LINK_LOST, "the session ended meanwhile")
        after_s = trio.current_time() - session.lost_at
        try:
            repeated = session.resume(result.count)
        except RemoteSessionError as error:
            session.end(error)
            raise LocalLinkError(Code.LINK_LOST, str(error)) from error
        log_event(logger, logging.INFO, "link.resumed", peer=transport.peer,
            after_s=round(after_s, 3), connections=session.streams,
            repeated_bytes=repeated)  # fmt: skip
        self._tell(LinkResumed(transport.peer, after_s, session.streams, repeated))

    def _forget_session(self, session: Session, reason: TunnelError) -> None:
        """Reset what was left of a session that cannot go on."""
        session.end(reason)
        self._traffic = self.traffic
        self._session = None
        self.publisher.detach()
        if self._stopping.is_set():  # as its user wished
            return
        log_event(logger, logging.WARNING, "session.lost", reason=str(reason),
            client=short_id(self.client_id),
            connections=session.lost_streams)  # fmt: skip
        self._tell(SessionLost(reason, session.lost_streams))

    async def _carry(self, link: Link) -> TunnelError:
        """Carry the session until the link ends; give the reason."""
        session = link.session
        self._link = link
        self._path.link_up(trio.current_time())
        if self._stopping.is_set():
            link.close(Code.NORMAL)
        try:
            reason = await link.run()
        finally:
            self._link = None
        self._path.link_lost(self._session_id, session.core, trio.current_time())
        session.link_lost(reason)
        if session.ended is not None:
            self._forget_session(session, reason)
        return reason

    async def _reach(self, limit_s: float) -> Transport:
        join = self._join
        where = str(Address(join.host, join.port))
        with trio.move_on_after(limit_s) as self._step:
            if self._via is None:
                stream = await dial(join.host, join.port, self._path.mss)
            else:
                stream = await dial_through(self._via, join.host, join.port)
        if self._step.cancelled_caught:
            why = "no answer in time, and connections wait"
            raise LocalLinkError(Code.LINK_LOST, f"cannot reach {where}: {why}")
        if join.plain:
            return PlainTransport(stream, where)
        return TlsTransport(
            stream,
            self._tls,
            server_side=False,
            host_name=join.host,
            peer=where,
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """One for all links: the authorities of a system take 10 ms to load."""
        return client_tls_context(self._join.pin)

    async def _secure(self, transport: Transport) -> bytes:
        """Make the wire secure, and check the server's key before a byte is said."""
        if not isinstance(transport, TlsTransport):
            return PLAIN_BINDING
        await transport.handshake()
        certificate = transport.peer_certificate()
        pin = self._join.pin
        if pin is None:
            return _digest(certificate)
        offered = pin_of(certificate)
        if not hmac.compare_digest(offered, pin):
            raise TlsError(
                Code.AUTH,
                f"the key of {transport.peer} is not the pinned one; nothing was sent",
                f"pinned SHA256:{pin}, offered SHA256:{offered}: the server was set up "
                "anew, or somebody stands between you and it",
                "compare with the fingerprint that `tunnel serve` prints, then join "
                "with its line",
            )
        return _digest(certificate)

    async def _greet(
        self,
        session: Session,
        transport: Transport,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None],
        *,
        resumed: bool,
    ) -> None:
        """Use a new link first for the round trip and the mappings."""
        rtt_s = await session.ping(math.inf)  # a silent server ends the link
        if rtt_s is None:
            return
        self._path.greeted()
        if not (resumed and self._was_up):
            log_event(logger, logging.INFO, "link.up", peer=transport.peer,
                tls=transport.encrypted, rtt_ms=round(rtt_s * 1000, 1))  # fmt: skip
            pinned = transport.encrypted and self._join.pin is not None
            self._tell(LinkUp(transport.peer, transport.encrypted, pinned, rtt_s))
        if session.ended is None:
            self.publisher.attach(session, nursery)
        await self.publisher.register(resumed=resumed)
        if not self._was_up:
            self._was_up = True
            task_status.started()
        self._changed.ring()

    async def wait_over(self) -> None:
        """Wait until ``run`` has ended."""
        await self._over.wait()

    def stop(self) -> None:
        """End the session in good order: the server frees our ports at once."""
        self._stopping.set()
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
        session = self._session
        if session is not None:
            session.core.drain()
            session.wake()
            with trio.move_on_at(until):
                await session.wait_idle()
        await self.leave(until + GOODBYE_S - trio.current_time())

    # Mappings ------------------------------------------------------------------------

    async def publish(self, wanted: MappingEntry, serve: Serve) -> str:
        """See ``Publisher.publish``."""
        return await self.publisher.publish(wanted, serve)

    async def publish_target(
        self,
        remote: Address,
        target: End,
        *,
        count: int = 1,
        proxy: ProxyVersion | None = None,
    ) -> str:
        """Publish a TCP service that is reached from here; see ``publish``.

        Args:
            remote: public address; of several ports the first.
            target: of the first port; those of the others follow it.
            count: ports in a row, all or none.
            proxy: which PROXY header the target hears first.
        """
        wanted = MappingEntry(MappingType.TCP, "", remote.host, remote.port, count)
        end = TcpTarget(target) if isinstance(target, Address) else target
        serve = exit_to(end, count=count, proxy=proxy, public=self.public)
        return await self.publish(wanted, serve)

    async def publish_inward(
        self, remote: Address, networks: Networks, users: ProxyUsers | None
    ) -> str:
        """Publish a proxy whose visitors leave in the network of this machine."""
        wanted = MappingEntry(MappingType.TCP, "", remote.host, remote.port)
        serve = partial(serve_client_proxy, networks=networks, users=users)
        return await self.publish(wanted, serve)

    async def be_exit(self, name: str, networks: Networks) -> str:
        """Let other clients of the server leave here, to these networks alone.

        At most one name; see ``publish`` for what is returned.
        """
        self._exit_networks = networks
        return await self.publish(MappingEntry(MappingType.EXIT, "", name), _refuse)

    async def publish_udp_target(
        self, remote: Address, target: Address, *, count: int = 1
    ) -> str:
        """Publish a UDP service that is reached from here; as ``publish_target``."""
        wanted = MappingEntry(MappingType.UDP, "", remote.host, remote.port, count)
        return await self.publish(wanted, udp_exit_to(target, count=count))

    def public(self, name: str) -> Address | None:
        """See ``Publisher.public``."""
        return self.publisher.public(name)

    async def withdraw(self, name: str) -> None:
        """See ``Publisher.withdraw``."""
        await self.publisher.withdraw(name)

    async def listen(self, remote: int | str = 0) -> MappingListener:
        """Open a public TCP address; its visitors come out of the listener.

        Args:
            remote: port, or ``"HOST:PORT"``, at the server; 0 for any port.

        Raises:
            LocalSessionError: the server refused; ``code`` says why.
        """
        where = (
            Address("", remote) if isinstance(remote, int) else Address.parse(remote)
        )
        return await self.publisher.listen(
            MappingEntry(MappingType.TCP, "", where.host, where.port)
        )

    def _serve_offer(self, stream: VirtualStream) -> Awaitable[None]:
        """Serve a visitor. Only names that we registered: nobody may reach around."""
        match stream.create.target if stream.create else None:
            case (NameTarget() | UdpTarget()) as target:
                return self.publisher.serve(stream, target)
            case TcpTarget() as target if self._exit_networks is not None:
                return serve_exit(stream, target, self._exit_networks.allow)
            case TcpTarget():
                return refuse(stream, Code.NOT_ALLOWED, "this client is no exit")
            case _:
                return refuse(stream, Code.UNSUPPORTED)

    # Opening -------------------------------------------------------------------------

    def open_now(
        self,
        target: Target,
        visitor: Address | None = None,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Begin to open at the server or an exit; see ``Session.open_now``.

        Raises:
            LocalStreamError: ``LINK_LOST`` while there is no link.
        """
        if self._link is None:
            self._hurry()
        if self._session is None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link at the moment")
        return self._session.open_now(target, visitor, exit_name)

    async def open(
        self,
        target: Target | str,
        deadline_s: float = OPEN_DEADLINE_S,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Connect to a target from the server; wait for the link if there is none.

        Args:
            target: or ``"HOST:PORT"``; names are resolved at the server.
            deadline_s: for all of it.
            exit_name: the client of the server at which to leave instead.

        Raises:
            StreamError: refused; ``code`` says why.
        """
        if isinstance(target, str):
            target = TcpTarget(Address.parse(target))
        until = trio.current_time() + deadline_s
        if self._link is None:
            self._hurry()
        with trio.move_on_at(until):
            while not self._has_session() and not self._stopping.is_set():
                await self._changed.wait()
        if self._session is None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link at the moment")
        return await self._session.open(
            target,
            deadline_s=max(until - trio.current_time(), 0),
            exit_name=exit_name,
        )

    async def associate(self, deadline_s: float = OPEN_DEADLINE_S) -> DatagramStream:
        """Open a UDP association: a port at the server that may talk to anybody.

        Each datagram names its own address, and names are resolved at the server.

        Raises:
            StreamError: refused; ``UNSUPPORTED``: the server offers no UDP.
        """
        return DatagramStream(await self.open(UdpTarget(), deadline_s))

    async def bind(
        self, expected: Address, deadline_s: float = OPEN_DEADLINE_S
    ) -> BoundPort:
        """Open a port at the server that takes one connection.

        Args:
            expected: from whom; a host of zeros is anybody.
            deadline_s: for the port, not for who comes.

        Raises:
            StreamError: refused; ``code`` says why.
        """
        return BoundPort(await self.open(BindTarget(expected), deadline_s))

    def _has_session(self) -> bool:
        """Say whether what is opened now can come to be, with or without a link."""
        return self._session is not None and self._session.ended is None


@asynccontextmanager
async def connect(
    join: str, *, client_id: bytes | None = None
) -> AsyncIterator[CenterClient]:
    """Run a center-client for as long as the block runs; enter when its link is up.

    Lost links are made again meanwhile. On leaving, also by an exception, the server is
    told and its ports are given back; cancelled, it goes without a word, and the server
    waits for it as for any lost link.

    Args:
        join: the line that ``tunnel serve`` prints.
        client_id: 16 bytes, when restarts of the program should keep its ports.

    Raises:
        UsageError: the line cannot be read.
        LinkError: wrong token, pin or version. A server that cannot be reached is
            tried again for ever: put a deadline around it if you do not want that.
    """
    client = CenterClient(parse_join(join), client_id=client_id)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            try:
                yield client
            finally:
                client.stop()
                # An exception of the block must not cut the goodbye short.
                with trio.move_on_after(GOODBYE_S, shield=True):
                    await client.wait_over()
    except BaseExceptionGroup as group:
        # One fault, in the block or in the link, should look as if there were no
        # nursery: whose it is, the caller cannot know.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def _is_failure(reason: TunnelError) -> bool:
    """Say whether a session was ended by a fault of either side, not by its wire."""
    return isinstance(reason, SessionError) and reason.code is not Code.NORMAL


async def _refuse(stream: VirtualStream) -> None:
    """An exit has no visitors of its own: CREATE names the target, not the mapping."""
    await trio.lowlevel.checkpoint()
    stream.reset(Code.NO_MAPPING)


def _digest(certificate: bytes) -> bytes:
    return sha256(certificate).digest()
