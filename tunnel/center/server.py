"""CenterServer: accepts links, owns the public ports, is the exit of its clients.

Each wire has one task, from its first byte to its last. A client that has proved itself
becomes a ``ClientSession`` for as long as its session lives.
"""

from __future__ import annotations

import logging
import secrets
from contextvars import copy_context
from functools import partial
from math import ceil
from time import time
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.gate import MAX_UNPROVEN, Gate
from tunnel.access.identity import short_id
from tunnel.access.tls import server_tls_context
from tunnel.access.users import Users
from tunnel.access.visitors import VISITORS, Visitors
from tunnel.center.accounts import Accounts
from tunnel.center.client_session import ClientSession, result_of
from tunnel.center.drain import DRAIN_S, GOODBYE_S, drain
from tunnel.center.endpoints import EndpointType, port_types
from tunnel.center.link_starts import LinkStarts
from tunnel.center.listening import Entrances, Listening, open_places, take_places
from tunnel.center.mappings import SILENT_OWNER_S, MappingTable
from tunnel.center.names import NamePorts
from tunnel.center.once import may_begin
from tunnel.center.options import ServerOptions
from tunnel.center.second_lock import check_certificate
from tunnel.center.sessions import Sessions
from tunnel.center.trial import answer_mapping
from tunnel.center.user_changes import UserChanges
from tunnel.center.who import WHO
from tunnel.errors import Code, LinkError, LocalLinkError, TunnelError
from tunnel.link.link import Link
from tunnel.link.transport import PlainTransport, TlsTransport, answer, hear, tune_link
from tunnel.log import log_event
from tunnel.net.dead_peers import reset_the_dead
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.net.listen import serve
from tunnel.net.sockets import FastSocket
from tunnel.proto.calm import Calm, refusal
from tunnel.proto.frames import SERVER_CAN, MappingType, Terms
from tunnel.proto.pools import Pools

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from tunnel.access.identity import Identity
    from tunnel.access.months import Months
    from tunnel.access.users import User
    from tunnel.addresses import Address
    from tunnel.front.http.sni import Links
    from tunnel.link.transport import Transport
    from tunnel.proto.handshake import AuthClaim, ServerHandshake

FIRST_BYTE_S: Final = 5.0
HANDSHAKE_S: Final = 10.0
"""From the first byte to the client's proof: even a slow client needs less."""
FAILURE_DELAY_S: Final = 1.0
"""How long a wrong proof waits for its answer; a newcomer may take its place."""
UNPROVEN_SHARE: Final = 1 / 16
"""Of the process's descriptors, for links that are not proved: with 1,024 they are 64,
and what is kept back for links is more."""
MAX_WIRES: Final = 16_384
"""Links and strangers at once; each is a descriptor and a task. Sixteen fleets. Those
that come in where visitors do are bounded by the gate, and by what users may have."""
RETRY_AFTER_S: Final = 5
"""The pause that a client is told to make when there is no session for it."""

_OF_THE_CLIENT: Final = (Code.DUPLICATE, Code.REVOKED)
"""Refusals that no waiting helps against."""

__all__ = ["CenterServer", "ServerOptions"]

logger = logging.getLogger("tunnel.server")


class CenterServer:
    """The center-server's role. Only plain links do without an ``identity``.

    ``months`` are the bytes of this month, kept over restarts where they say so.
    """

    def __init__(
        self,
        users: Mapping[str, User],
        identity: Identity | None,
        options: ServerOptions | None = None,
        months: Months | None = None,
    ) -> None:
        self.options = options = (options or ServerOptions()).placed()
        self._users = users = Users(users)
        self.terms = Terms(capabilities=SERVER_CAN)
        types = port_types(options.listen.host, options.ports)
        types[MappingType.EXIT] = EndpointType(MappingType.EXIT)
        self.mappings = MappingTable(types, users)
        self.names = NamePorts(options.names, self.mappings)
        links = partial(serve, max_visitors=MAX_WIRES, links=True)
        self.entrances = Entrances(partial(links, handle=self._serve_wire))
        self._visitors = Visitors(options.trusted_proxies, options.max_per_address)
        self._identity = identity
        self._starts = LinkStarts(self._users, identity, options.next_identity)
        self._tls = self._tls_of(options)
        self.pools = Pools()
        self._gate = Gate(DESCRIPTORS.share(UNPROVEN_SHARE, MAX_UNPROVEN))
        self.accounts = Accounts(users, options.limits, months)
        self._sessions = Sessions()
        self.user_changes = UserChanges(
            users, self._sessions, self._forget, self.mappings.review, self.accounts.of
        )
        self._draining = False
        self._running = trio.CancelScope()
        self._nursery: trio.Nursery

    @property
    def clients(self) -> tuple[ClientSession, ...]:
        """The clients whose sessions live."""
        return tuple(self._sessions)

    @property
    def address(self) -> Address:
        """Where links come in: the first of ``addresses``."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[Address]:
        """Where links come in, with their real ports, as they were asked for."""
        options, alone = self.options, iter(self.entrances.addresses)
        shared = options.names.https if self.names.doors.links else None
        return [one if one == shared else next(alone, one) for one in options.listens]

    @property
    def connections(self) -> int:
        """Virtual TCP connections of all clients."""
        return sum(client.session.streams for client in self._sessions)

    async def run(
        self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until ``stop``; started, with the address, when it listens.

        Raises:
            AddressError: an address cannot be listened on.
            UsageError: the certificate for host names cannot be used.
        """
        options = self.options
        VISITORS.set(self._visitors)
        ending = self.names.ending(options.names)
        take_places(await open_places(self._places(options), options.given))
        self.entrances.take()
        self.names.take(options.names, ending)
        self.mappings.offer(self.names.types())
        self.names.doors.links = self._links_among(options)
        with self._running:
            async with trio.open_nursery() as self._nursery:
                # A change may come from a task that knows nothing of this server.
                self._context = copy_context()
                self._nursery.start_soon(reset_the_dead, trio.CancelScope())
                self._nursery.start_soon(self.accounts.run)
                self._nursery.start_soon(self.names.serve)
                self.entrances.run(self._nursery)
                task_status.started(self.address)
                for where in self.addresses:
                    log_event(logger, logging.INFO, "server.listening",
                        address=str(where), tls=self._tls is not None)  # fmt: skip
                await trio.sleep_forever()

    async def change(self, options: ServerOptions) -> Address:
        """Have other options from now on; return where links come in.

        What they leave as it is, is not touched, and no connection ends. Whoever has
        something public that is somewhere else now resumes, and so hears of it. What
        needs another identity stays.

        Raises:
            AddressError, UsageError: as ``run``. Nothing has changed.
        """
        old, tls, ending = self.options, self._tls, self.names.ending(options.names)
        options = options.instead_of(old)
        if options.client_ca or old.client_ca:
            tls = self._tls_of(options)
        opened = await open_places(self._places(options), options.given)
        # From here on nothing fails, and nothing waits: nobody sees a half of it.
        self.options, self._tls = options, tls
        self._context.run(take_places, opened)
        self._context.run(self.entrances.take)
        self._context.run(self.names.take, options.names, ending)
        self.names.doors.links = self._links_among(options)
        if self._visitors.change(options.trusted_proxies, options.max_per_address):
            self.accounts.forget_visitors()
        self.accounts.change_defaults(options.limits)
        types = port_types(options.listen.host, options.ports) | self.names.types()
        for client in self.mappings.offer(types):
            client.ask_again()
        return self.address

    def _places(self, options: ServerOptions) -> dict[Listening, Address | None]:
        alone = self.entrances.places(options.listens_alone)
        return alone | self.names.places(options.names)

    def _links_among(self, options: ServerOptions) -> Links | None:
        """Return what serves links that come in at the HTTPS port, if they may."""
        return self._serve_wire if options.shares_https else None

    def _tls_of(self, options: ServerOptions) -> ssl.SSLContext | None:
        if self._identity is not None:
            return server_tls_context(self._identity, options.client_ca)
        if not options.plain or options.client_ca is not None:
            raise LocalLinkError(Code.INTERNAL, "a TLS server needs an identity")
        return None

    async def drain(self, deadline_s: float = DRAIN_S) -> None:
        """Take nothing new, let what runs go on for at most ``deadline_s``, stop.

        Sessions still find another link meanwhile. Returns at most ``GOODBYE_S`` later.
        """
        until = trio.current_time() + deadline_s
        self._draining = True
        await drain((client.session for client in self._sessions), until)
        await self.stop(until + GOODBYE_S - trio.current_time())

    async def stop(self, within_s: float = GOODBYE_S) -> None:
        """Say goodbye to every client, give all time to hear it, and end ``run``."""
        links = [client.link for client in self._sessions if client.link is not None]
        for client in self._sessions:
            client.dismiss(Code.NORMAL, "the server stops")
        with trio.move_on_after(within_s):
            for link in links:
                await link.gone.wait()
        self._running.cancel()

    # One wire ------------------------------------------------------------------------

    async def _serve_wire(
        self,
        stream: trio.abc.HalfCloseableStream,
        peer: Address,
        heard: bytes = b"",
    ) -> None:
        """Take a wire from its first byte to its last; owns the stream."""
        if not isinstance(stream, FastSocket):  # pragma: no cover - all are
            return
        tune_link(stream)
        try:
            proved = await self._prove(stream, peer, heard)
            if proved is not None:
                self._gate.succeeded(peer.host, trio.current_time())
                account = self.accounts.named(proved[2].name)
                account.links += 1
                try:
                    await self._serve_link(*proved)
                finally:
                    account.links -= 1
                    self._gate.ended(peer.host, trio.current_time())
        finally:
            await trio.aclose_forcefully(stream)

    async def _prove(
        self, stream: FastSocket, peer: Address, heard: bytes
    ) -> tuple[Transport, ServerHandshake, AuthClaim] | None:
        """Hear who the client is; without a proof, answer it and return None."""
        transport: Transport | None = None
        handshake: ServerHandshake | None = None
        with trio.CancelScope() as scope:
            place = self._gate.enter(peer.host, trio.current_time(), scope.cancel)
            try:
                with trio.fail_after(HANDSHAKE_S):
                    if not heard:
                        with trio.fail_after(FIRST_BYTE_S):
                            await trio.lowlevel.wait_readable(stream.socket)
                    place.heard = True
                    # Not before: a silent peer costs no TLS and no buffers.
                    if self._tls is None:
                        transport = PlainTransport(stream, str(peer))
                    else:
                        transport = TlsTransport(
                            stream,
                            self._tls,
                            server_side=True,
                            peer=str(peer),
                            heard=heard,
                        )
                        await transport.handshake()
                    handshake = self._starts.begin(self.terms, self.options.resume_s)
                    claim = await hear(transport, handshake)
                    if self.options.client_ca is not None:
                        check_certificate(transport, handshake, claim.name)
                    return transport, handshake, claim
            except (TunnelError, trio.TooSlowError) as error:
                await self._refuse(transport, handshake, peer, error)
            finally:
                self._gate.leave(place)
        if scope.cancelled_caught:
            log_event(logger, logging.INFO, "link.turned_away", peer=str(peer),
                reason="a newcomer needs its place")  # fmt: skip
        return None

    async def _refuse(
        self,
        transport: Transport | None,
        handshake: ServerHandshake | None,
        peer: Address,
        error: TunnelError | trio.TooSlowError,
    ) -> None:
        """Answer and log one line; a wrong proof waits, an honest fault does not."""
        if isinstance(error, trio.TooSlowError):
            error = LocalLinkError(Code.SILENT, "it took too long")
        claimed = handshake.claimed_name if handshake is not None else None
        log_event(logger, logging.INFO, "link.refused", peer=str(peer),
            code=error.code.name, claimed=claimed or None,
            reason=str(error))  # fmt: skip
        if isinstance(error, LinkError) and error.code is Code.AUTH and handshake:
            away_s = self._gate.failed(
                peer.host, handshake.claimed_name, trio.current_time()
            )
            if away_s:
                handshake.refuse(*refusal(Calm.FAILED_LOGINS), ceil(away_s))
            await trio.sleep(FAILURE_DELAY_S)
        if transport is not None and (handshake or error.code is Code.AUTH):
            with trio.move_on_after(FAILURE_DELAY_S):
                if handshake is not None:  # else TLS has said its own word
                    await answer(transport, handshake)
                await transport.send_eof()
                await transport.discard()

    # One link, of a client that has proved itself -------------------------------------

    async def _serve_link(
        self, transport: Transport, handshake: ServerHandshake, claim: AuthClaim
    ) -> None:
        """Carry a session over this link: the one that is claimed, or another."""
        user = self._users.get(claim.name)
        if user is not None and user.once is not None:
            changes = self.user_changes
            if not await may_begin(changes, user, claim, handshake, transport):
                return await answer(transport, handshake)
        client = self._sessions.claimed(claim, transport)
        if client is None:
            client = await self._new_client(transport, handshake, claim)
        elif claim.link_no > client.link_no:
            self._resume(client, transport, handshake, claim)
        else:
            handshake.refuse(Code.STALE, "a newer link is known")
            client = None
        link = client.link if client is not None else None  # now: it may change
        await answer(transport, handshake)
        if client is not None and link is not None:
            if self._starts.next_pin:
                client.was_told_next_pin(claim)
            await self._carry(client, link)

    def _resume(
        self,
        client: ClientSession,
        transport: Transport,
        handshake: ServerHandshake,
        claim: AuthClaim,
    ) -> None:
        """Stop the old link, fix the count, switch: one step, without an await."""
        session = client.session
        client.lose_link(Code.SUPERSEDED, "a newer link took over")
        now = trio.current_time()
        after_s = now - (now if session.lost_at is None else session.lost_at)
        client.link_no, client.peer = claim.link_no, transport.peer
        handshake.accept(claim.session_id, session.core.received, resumed=True)
        repeated = session.resume(claim.count)
        self._sessions.has_link(client)
        client.link = Link(session, transport, result_of(handshake).leftover)
        log_event(logger, logging.INFO, "link.resumed", **client.who,
            after_s=round(after_s, 3),
            connections=session.streams, repeated_bytes=repeated)  # fmt: skip

    async def _new_client(
        self, transport: Transport, handshake: ServerHandshake, claim: AuthClaim
    ) -> ClientSession | None:
        """Begin a session; None, with a refusal queued, when there is no room."""
        no_room = await self._refusal(claim)
        if no_room is not None:
            code, reason = no_room
            after_s = 0 if code in _OF_THE_CLIENT else RETRY_AFTER_S
            handshake.refuse(code, reason, retry_after_s=after_s)
            log_event(logger, logging.WARNING, "session.refused", peer=transport.peer,
                user=claim.name, client=short_id(claim.client_id), code=code.name,
                reason=reason)  # fmt: skip
            return None
        user = self._users[claim.name]
        handshake.accept(secrets.token_bytes(16), 0, resumed=False)
        client = ClientSession(
            user,
            claim,
            result_of(handshake),
            transport,
            terms=self.terms,
            pools=self.pools,
            accounts=self.accounts,
            host=self.options.listen.host,
            apply_mapping=partial(answer_mapping, self.mappings),
            owner=self.mappings.owner,
            forget=self._forget,
        )
        # Before the first wait: two links of one client must see each other.
        self._sessions.add(client)
        await self._nursery.start(client.run)
        log_event(logger, logging.INFO, "link.up", **client.who,
            tls=transport.encrypted, agent=claim.peer_terms.agent)  # fmt: skip
        return client

    async def _refusal(self, claim: AuthClaim) -> tuple[Code, str] | None:
        """Say why a client gets no session; None when there is room for it."""
        if self._draining:
            return Code.DRAINING, "the server is about to stop"
        if not await self._succeeds(claim):
            return Code.DUPLICATE, "another client that answers has this client id"
        user = self._users.get(claim.name)
        if user is None or claim.verifier not in user.verifiers:  # since its proof
            return Code.REVOKED, f"the user {claim.name} was revoked"
        if user.is_over(time()):  # who has been told so is not ended again
            return Code.REVOKED, f"the time of the user {claim.name} is over"
        account = self.accounts.of(user)
        if why := account.refuses_link():
            return refusal(Calm.LINKS, why)
        most = account.limits.sessions
        if not self._sessions.make_room(claim.name, most):
            return refusal(Calm.SESSIONS, f"{claim.name} has {most}")
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
            self._forget(older)
            older.dismiss(Code.TAKEN_OVER, "the same client came back")
        return True

    async def _carry(self, client: ClientSession, link: Link) -> None:
        """Carry the client's session over ``link`` to the link's end."""
        WHO.set(client.who)
        try:
            reason = await link.run()
        except BaseException:
            client.session.end(LocalLinkError(Code.LINK_LOST, "the server stops"))
            raise
        if client.link is not link:
            return
        client.link = None
        streams = client.session.streams
        client.session.link_lost(reason)
        if not client.gone:
            self._sessions.waits(client)
        for call in tuple(client.when_lost):
            call()
        log_event(logger, logging.INFO, "link.down", **client.who,
            code=reason.code.name, reason=str(reason),
            connections=streams, waiting=not client.gone)  # fmt: skip

    def _forget(self, client: ClientSession) -> None:
        """Close what belongs to a session that has ended or is about to."""
        self._sessions.remove(client)
        self.mappings.drop(client)
