"""CenterServer: accepts links, owns the public ports, is the exit of what comes in.

One task per wire, from its first byte to its last; a client that has proved itself
becomes a ``ClientSession`` for as long as its session lives.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.gate import MAX_UNPROVEN, Gate
from tunnel.access.security import server_tls_context, short_id
from tunnel.access.visitors import VISITORS, Visitors
from tunnel.addresses import EVERYWHERE
from tunnel.center.client_session import ClientSession
from tunnel.center.drain import DRAIN_S, GOODBYE_S
from tunnel.center.endpoints import Exits, TcpPorts, UdpPorts, exit_key
from tunnel.center.exit.chained import serve_chained
from tunnel.center.exit.tcp import refuse
from tunnel.center.mappings import SILENT_OWNER_S, MappingTable
from tunnel.center.names import NameOptions, NamePorts
from tunnel.center.sessions import MAX_SESSIONS, MAX_WAITING_SESSIONS, Sessions
from tunnel.errors import (
    Code,
    LinkError,
    LocalLinkError,
    StreamError,
    TunnelError,
)
from tunnel.link.link import Link
from tunnel.link.start import answer, hear
from tunnel.link.transport import PlainTransport, TlsTransport, tune_link
from tunnel.log import log_event
from tunnel.net.dead_peers import reset_the_dead
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.net.listen import open_listener, serve
from tunnel.net.sockets import FastSocket
from tunnel.proto.calm import Calm, refusal
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    Address,
    MappingType,
    TcpTarget,
    Terms,
)
from tunnel.proto.handshake import (
    ServerHandshake,
)
from tunnel.proto.pools import Pools
from tunnel.proto.proofs import (
    PLAIN_BINDING,
    verifier_of,
)
from tunnel.proto.terms import DEFAULT_RESUME_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from tunnel.access.networks import Network
    from tunnel.access.security import Identity
    from tunnel.access.users import User
    from tunnel.link.transport import Transport
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.listen import PortListener
    from tunnel.proto.frames import ProtCreate
    from tunnel.proto.handshake import AuthClaim
    from tunnel.proto.proofs import Verifier

FIRST_BYTE_S: Final = 5.0
HANDSHAKE_S: Final = 10.0
"""Whoever needs longer is not a slow client but none."""
FAILURE_DELAY_S: Final = 1.0
"""How long a wrong proof waits for its answer; a newcomer may have its place."""
UNPROVEN_SHARE: Final = 1 / 16
"""Of the process's descriptors, for links that are not proved: with 1,024 they are 64,
and what is kept back for links is more."""
MAX_WIRES: Final = 16_384
"""Links and strangers at once; each is a descriptor and a task. Sixteen fleets."""
RETRY_AFTER_S: Final = 5
"""After how long a client for which there is no session may ask again."""

logger = logging.getLogger("tunnel.server")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a center-server is set up."""

    listen: Address = field(default_factory=lambda: Address(EVERYWHERE, 7443))
    ports: range = range(20_000, 21_000)
    """From which mappings that name no port get one."""
    plain: bool = False
    """Links without TLS: for loopback, or where both ends are told so."""
    resume_s: int = DEFAULT_RESUME_S
    """How long a session waits for another link; 0 ends it with its link."""
    names: NameOptions = field(default_factory=NameOptions)
    """Where host names are served."""
    max_sessions: int = MAX_SESSIONS
    """Of one user at once."""
    max_waiting_sessions: int = MAX_WAITING_SESSIONS
    """Of one user, without a link."""
    max_per_address: int | None = None
    """Visitors of one address at once; None for a quarter of the descriptors."""
    trusted_proxies: tuple[Network, ...] = ()
    """Whom to believe about who a visitor, or a client, is."""


class CenterServer:
    """The center-server's role.

    Args:
        users: who may come in, by name.
        identity: the server's key and certificate; None only on plain links.
        options: where it listens and what it offers.
    """

    def __init__(
        self,
        users: Mapping[str, User],
        identity: Identity | None,
        options: ServerOptions | None = None,
    ) -> None:
        self.options = options or ServerOptions()
        self.terms = replace(Terms(), capabilities=CAN_MAP | CAN_UDP)
        self.pools = Pools()
        where = self.options.listen.host, self.options.ports
        self.mappings = MappingTable(
            {
                MappingType.TCP: TcpPorts(*where),
                MappingType.UDP: UdpPorts(*where),
                MappingType.EXIT: Exits(),
            }
        )
        self.names = NamePorts(self.options.names)
        self._users = users
        self._identity = identity
        self._tls = None if identity is None else server_tls_context(identity)
        if self._tls is None and not self.options.plain:
            raise LocalLinkError(Code.INTERNAL, "a TLS server needs an identity")
        # Unknown names are checked against this one: same work, same answer.
        self._nobody = verifier_of("nobody", secrets.token_bytes(32))
        self._gate = Gate(DESCRIPTORS.share(UNPROVEN_SHARE, MAX_UNPROVEN))
        self._sessions = Sessions(
            self.options.max_sessions, self.options.max_waiting_sessions
        )
        self._listeners: list[PortListener] = []
        self._stopped = trio.Event()
        self._draining = False
        self._nursery: trio.Nursery

    @property
    def connections(self) -> int:
        """Virtual TCP connections of all clients."""
        return sum(member.session.streams for member in self._sessions)

    @property
    def members(self) -> tuple[ClientSession, ...]:
        """The clients whose sessions live."""
        return tuple(self._sessions)

    async def run(
        self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until ``stop``; started, with the address, when it listens.

        Raises:
            AddressError: an address cannot be listened on.
            UsageError: the certificate for host names cannot be used.
        """
        options = self.options
        VISITORS.set(Visitors(options.trusted_proxies, options.max_per_address))
        listen = self.options.listen
        self._listeners = await open_listener(listen.host, listen.port)
        try:
            self.mappings.offer(await self.names.open())
        except BaseException:
            for listener in self._listeners:
                listener.socket.close()
            raise
        port = self._listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery

            async def until_stopped() -> None:
                await self._stopped.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_stopped)
            nursery.start_soon(reset_the_dead, trio.CancelScope())
            nursery.start_soon(self.names.serve, self.mappings)
            address = Address(listen.host, port)
            task_status.started(address)
            log_event(logger, logging.INFO, "server.listening", address=str(address),
                tls=self._tls is not None)  # fmt: skip
            await serve(
                self._listeners, self._serve_wire, max_visitors=MAX_WIRES, links=True
            )

    def serve_chained(
        self, user: User, stream: VirtualStream, create: ProtCreate
    ) -> Awaitable[None]:
        """Lead an opener to the client that it wants to leave at.

        Opened before this returns: openers keep their order.
        """
        name = create.exit or ""
        owner = self.mappings.owner(exit_key(name))
        if not isinstance(create.target, TcpTarget):
            why = "an exit at a client takes TCP addresses"
            return refuse(stream, Code.UNSUPPORTED, why)
        if not user.may_leave_at(name):
            why = f"{user.name} may not leave at {name}"
            return refuse(stream, Code.NOT_ALLOWED, why)
        if owner is None:
            why = f"no client is the exit {name}"
            return refuse(stream, Code.NO_MAPPING, why)
        try:
            onward = owner.open_now(create.target)
        except StreamError as error:
            return refuse(stream, error.code, error.what)
        return serve_chained(stream, onward)

    async def drain(self, deadline_s: float = DRAIN_S) -> None:
        """Take nothing new, let what runs go on for at most ``deadline_s``, stop.

        Sessions still find another link meanwhile. Returns at most ``GOODBYE_S`` later.
        """
        until = trio.current_time() + deadline_s
        self._draining = True
        for member in self._sessions:
            member.session.core.drain()
            member.session.wake()
        with trio.move_on_at(until):
            for member in self._sessions:
                await member.session.wait_idle()
        await self.stop(until + GOODBYE_S - trio.current_time())

    async def stop(self, within_s: float = GOODBYE_S) -> None:
        """Say goodbye to every client, give all time to hear it, and end ``run``."""
        links = [member.link for member in self.members if member.link is not None]
        for member in self.members:
            member.dismiss(Code.NORMAL, "the server stops")
        with trio.move_on_after(within_s):
            for link in links:
                await link.gone.wait()
        self._stopped.set()

    # One wire ----------------------------------------------------------------------

    async def _serve_wire(
        self, stream: trio.abc.HalfCloseableStream, peer: Address
    ) -> None:
        """Take a wire from its first byte to its last; owns the stream."""
        if not isinstance(stream, FastSocket):  # pragma: no cover - all are
            return
        tune_link(stream)
        try:
            proved = await self._prove(stream, peer)
            if proved is not None:
                self._gate.succeeded(peer.host, trio.current_time())
                try:
                    await self._serve_member(*proved)
                finally:
                    self._gate.ended(peer.host, trio.current_time())
        finally:
            await trio.aclose_forcefully(stream)

    async def _prove(
        self, stream: FastSocket, peer: Address
    ) -> tuple[Transport, ServerHandshake, AuthClaim] | None:
        """Hear who it is; None, after the answer, if it does not prove that."""
        transport: Transport | None = None
        handshake: ServerHandshake | None = None
        with trio.CancelScope() as scope:
            place = self._gate.enter(peer.host, trio.current_time(), scope.cancel)
            try:
                with trio.fail_after(HANDSHAKE_S):
                    with trio.fail_after(FIRST_BYTE_S):
                        await trio.lowlevel.wait_readable(stream.socket)
                    place.heard = True
                    # Not before: who is silent costs no TLS and no buffers.
                    transport = self._transport(stream, str(peer))
                    handshake = await self._begin(transport)
                    return transport, handshake, await hear(transport, handshake)
            except (TunnelError, trio.TooSlowError) as error:
                await self._refuse(transport, handshake, peer, error)
            finally:
                place.leave()
        if scope.cancelled_caught:
            log_event(logger, logging.INFO, "link.turned_away", peer=str(peer),
                reason="a newcomer needs its place")  # fmt: skip
        return None

    def _transport(self, stream: FastSocket, peer: str) -> Transport:
        if self._tls is None:
            return PlainTransport(stream, peer)
        return TlsTransport(stream, self._tls, server_side=True, peer=peer)

    async def _begin(self, transport: Transport) -> ServerHandshake:
        binding = PLAIN_BINDING
        if isinstance(transport, TlsTransport):
            await transport.handshake()
        if self._identity is not None and self._tls is not None:
            binding = self._identity.certificate_sha256
        return ServerHandshake(
            self.terms,
            secrets.token_bytes(32),
            binding,
            self._verifier,
            self._nobody,
            resume_s=self.options.resume_s,
        )

    def _verifier(self, name: str) -> Verifier | None:
        user = self._users.get(name)
        return user.verifier if user else None

    async def _refuse(
        self,
        transport: Transport | None,
        handshake: ServerHandshake | None,
        peer: Address,
        error: TunnelError | trio.TooSlowError,
    ) -> None:
        """Answer, log one line, close. Who guesses waits; an honest fault does not."""
        if isinstance(error, TunnelError):
            code, reason = error.code.name, str(error)
        else:
            code, reason = "SILENT", "it took too long"
        log_event(logger, logging.INFO, "link.refused", peer=str(peer), code=code,
            reason=reason)  # fmt: skip
        if isinstance(error, LinkError) and error.code is Code.AUTH and handshake:
            away_s = self._gate.failed(
                peer.host, handshake.claimed_name, trio.current_time()
            )
            if away_s:
                handshake.refuse(*refusal(Calm.FAILED_LOGINS), ceil(away_s))
            await trio.sleep(FAILURE_DELAY_S)
        if transport is not None and handshake is not None:
            with trio.move_on_after(FAILURE_DELAY_S):
                await answer(transport, handshake)
                await transport.send_eof()
                # Closed with bytes unread, the kernel would destroy the answer.
                while await transport.receive_some():
                    pass

    async def _serve_member(
        self, transport: Transport, handshake: ServerHandshake, claim: AuthClaim
    ) -> None:
        """Carry a session of a client that has proved itself, over this link."""
        member = self._claimed_session(claim, encrypted=transport.encrypted)
        if member is not None and claim.link_no <= member.link_no:
            handshake.refuse(Code.STALE, "a newer link is known")
        elif member is not None:
            self._resume(member, transport, handshake, claim)
        else:
            member = await self._new_member(transport, handshake, claim)
        link = member.link if member is not None else None
        await answer(transport, handshake)
        if member is not None and link is not None and link.transport is transport:
            await self._carry(member, link)

    def _claimed_session(
        self, claim: AuthClaim, *, encrypted: bool
    ) -> ClientSession | None:
        """Find the session that the client wants to go on with, if it is its own."""
        member = self._sessions.find(claim.session_id)
        if (
            member is None
            or member.gone
            or member.user.name != claim.name
            or member.encrypted != encrypted
            or not claim.proves(member.secret)
        ):
            # Unknown, expired or foreign: nobody learns which.
            if claim.session_id:
                log_event(logger, logging.WARNING, "session.unknown", user=claim.name,
                    client=short_id(claim.client_id))  # fmt: skip
            return None
        if claim.link_no > member.link_no and (
            not member.session.core.can_resume(claim.count)
        ):
            why = f"a resume cannot begin at {claim.count}"
            member.dismiss(Code.PROTOCOL, why)
            return None
        return member

    def _resume(
        self,
        member: ClientSession,
        transport: Transport,
        handshake: ServerHandshake,
        claim: AuthClaim,
    ) -> None:
        """Stop the old link, fix the count, switch: one step, without an await."""
        session = member.session
        if member.link is not None:
            member.link.abandon(
                LocalLinkError(Code.SUPERSEDED, "a newer link took over")
            )
        now = trio.current_time()
        after_s = now - (now if session.lost_at is None else session.lost_at)
        member.link_no = claim.link_no
        handshake.accept(claim.session_id, session.core.received, resumed=True)
        repeated = session.resume(claim.count)
        self._sessions.has_link(member)
        member.link = Link(session, transport, _leftover(handshake))
        log_event(logger, logging.INFO, "link.resumed", peer=transport.peer,
            user=member.user.name, after_s=round(after_s, 3),
            connections=session.streams, repeated_bytes=repeated)  # fmt: skip

    async def _new_member(
        self, transport: Transport, handshake: ServerHandshake, claim: AuthClaim
    ) -> ClientSession | None:
        """Begin a session; None, with a refusal queued, when there is no room."""
        user = self._users[claim.name]
        refusal = await self._refusal(claim)
        if refusal is not None:
            code, reason = refusal
            after_s = 0 if code is Code.DUPLICATE else RETRY_AFTER_S
            handshake.refuse(code, reason, retry_after_s=after_s)
            log_event(logger, logging.WARNING, "session.refused", peer=transport.peer,
                user=user.name, client=short_id(claim.client_id), code=code.name,
                reason=reason)  # fmt: skip
            return None
        handshake.accept(secrets.token_bytes(16), 0, resumed=False)
        assert handshake.result is not None  # noqa: S101 - accept has set it
        member = ClientSession(
            self, user, claim, handshake.result, encrypted=transport.encrypted
        )
        # Before the first wait: two links of one client must see each other.
        self._sessions.add(member)
        member.link = Link(member.session, transport, _leftover(handshake))
        await self._nursery.start(member.run)
        log_event(logger, logging.INFO, "link.up", peer=transport.peer, user=user.name,
            tls=transport.encrypted, agent=claim.peer_terms.agent)  # fmt: skip
        return member

    async def _refusal(self, claim: AuthClaim) -> tuple[Code, str] | None:
        """Say why a client gets no session; None, when there is room for it."""
        if self._draining:
            return Code.DRAINING, "the server is about to stop"
        if not await self._succeeds(claim):
            return Code.DUPLICATE, "another client that answers has this client id"
        if not self._sessions.make_room(claim.name):
            most = self.options.max_sessions
            return refusal(Calm.SESSIONS, f"{claim.name} has {most} sessions")
        return None

    async def _succeeds(self, claim: AuthClaim) -> bool:
        """End the older session of a client that was restarted; False if it is there.

        A state folder that was copied makes two clients of one, which would take over
        from one another for ever.
        """
        while older := self._sessions.of_client(claim.name, claim.client_id):
            link = older.link
            if link is not None:
                if await older.answers(SILENT_OWNER_S):
                    return False
                if older.link not in (None, link):
                    continue  # it has found another meanwhile
            self.forget(older)
            older.dismiss(Code.TAKEN_OVER, "the same client came back")
        return True

    async def _carry(self, member: ClientSession, link: Link) -> None:
        """Carry the member's session over ``link`` to the link's end."""
        try:
            reason = await link.run()
        except BaseException:
            member.session.end(LocalLinkError(Code.LINK_LOST, "the server stops"))
            raise
        if member.link is not link:
            return
        member.link = None
        streams = member.session.streams
        member.session.link_lost(reason)
        if not member.gone:
            self._sessions.waits(member)
        log_event(logger, logging.INFO, "link.down", peer=link.transport.peer,
            user=member.user.name, code=reason.code.name, reason=str(reason),
            connections=streams, waiting=not member.gone)  # fmt: skip

    def forget(self, member: ClientSession) -> None:
        """Close what belongs to a session that has ended or is about to."""
        self._sessions.remove(member)
        self.mappings.drop(member)


def _leftover(handshake: ServerHandshake) -> bytes:
    """Give what came behind the handshake; there is none before its end."""
    return handshake.result.leftover if handshake.result else b""
