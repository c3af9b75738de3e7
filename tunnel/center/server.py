"""CenterServer: accepts links, owns the public ports, is the exit of its clients.

Each wire has one task, from its first byte to its last. A client that has proved itself
becomes a ``ClientSession`` for as long as its session lives.
"""

from __future__ import annotations

import logging
import secrets
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import short_id
from tunnel.access.tls import server_tls_context
from tunnel.access.users import Users
from tunnel.access.visitors import VISITORS, Visitors
from tunnel.center.accounts import Accounts
from tunnel.center.admission import Admission
from tunnel.center.book import until_closed
from tunnel.center.client_session import ClientSession, result_of
from tunnel.center.cluster.service import NODE_ACCOUNTS, NodeService
from tunnel.center.drain import DRAIN_S, GOODBYE_S, drain, send_away
from tunnel.center.endpoints import EndpointType, port_types
from tunnel.center.guests import Guests
from tunnel.center.link_starts import LinkStarts
from tunnel.center.listening import Entrances, Listening, open_places, take_places
from tunnel.center.mappings import MappingTable
from tunnel.center.membership import Membership
from tunnel.center.names import NamePorts
from tunnel.center.nodes import is_node
from tunnel.center.once import may_begin
from tunnel.center.options import ServerOptions
from tunnel.center.sessions import NO_CLIENT_ID, Sessions
from tunnel.center.trial import answer_mapping
from tunnel.center.user_changes import UserChanges
from tunnel.center.who import WHO
from tunnel.center.wire import Wire, pass_on
from tunnel.errors import Code, LocalLinkError
from tunnel.link.link import Link
from tunnel.link.transport import answer
from tunnel.log import log_event
from tunnel.net.dead_peers import reset_the_dead
from tunnel.net.listen import serve
from tunnel.net.sockets import FastSocket
from tunnel.proto.frames import SERVER_CAN, MappingType, Terms
from tunnel.proto.pools import Pools

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from tunnel.access.identity import Identity
    from tunnel.access.months import Months
    from tunnel.access.users import User
    from tunnel.addresses import Address
    from tunnel.center.cluster.cluster import Cluster
    from tunnel.front.http.sni import Links
    from tunnel.link.transport import Transport
    from tunnel.proto.claims import AuthClaim
    from tunnel.proto.handshake import ServerHandshake

LAST_S: Final = 1.0
"""How long visitors may take to end who are led nowhere: their answer is written, or
they have asked for nothing."""
MAX_WIRES: Final = 16_384
"""Links and strangers at once; each is a descriptor and a task. Sixteen fleets. Those
that come in where visitors do are bounded by the gate, and by what users may have."""

__all__ = ["CenterServer", "ServerOptions"]

logger = logging.getLogger("tunnel.server")


class CenterServer:
    """The center-server's role. Only plain links do without an ``identity``.

    ``months`` are the bytes of this month, kept over restarts where they say so.
    ``cluster`` makes it one of several that act as one; ``hint`` is what its clients
    are told (protocol.md#hint) if it may ``join`` one.
    """

    def __init__(
        self,
        users: Mapping[str, User],
        identity: Identity | None,
        options: ServerOptions | None = None,
        months: Months | None = None,
        cluster: Cluster | None = None,
        hint: bytes = b"",
    ) -> None:
        self.options = options = (options or ServerOptions()).placed()
        self._users = users = Users(users)
        self.terms = Terms(capabilities=SERVER_CAN)
        types = port_types(options.listen.host, options.ports)
        types[MappingType.EXIT] = EndpointType(MappingType.EXIT)
        self.mappings = MappingTable(types, users)
        self.names = NamePorts(options.names, self.mappings)
        links = partial(serve, max_visitors=MAX_WIRES, links=True)
        self.entrances = Entrances(partial(links, handle=self._serve_socket))
        self._visitors = Visitors(options.trusted_proxies, options.max_per_address)
        self._identity = identity
        self._starts = LinkStarts(users, identity, options.next_identity, hint)
        self._tls = self._tls_of(options)
        self.pools = Pools()
        self.accounts = Accounts(users, options.limits, months)
        self._sessions = Sessions()
        self._admission = Admission(
            self._users, self._sessions, self.accounts, self._forget
        )
        ends = self._admission.ends
        self._service = NodeService(self._sessions.find, self._serve_wire, ends)
        self._user_guests = Guests(self._sessions, self.accounts, users.get, None)
        self._node_guests = Guests(
            Sessions(), NODE_ACCOUNTS, self._starts.node, self._service.serve
        )
        self.user_changes = UserChanges(
            users, self._sessions, self._forget, self.mappings.review,
            self.accounts.of, self.accounts.rename,
        )  # fmt: skip
        self._leaving: list[Link] = []
        """Links whose clients have heard a goodbye, or are about to."""
        self._running = trio.CancelScope()
        self._nursery: trio.Nursery
        self.membership = Membership(
            self._starts, self._admission, self.mappings, self.names, self._service
        )
        """Whether it is one of several servers."""
        if cluster is not None and cluster.shares_limits:
            self.accounts.share(self._sessions, self.mappings)
        if cluster is not None:
            self.membership.begin(cluster)

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
                self.membership.nursery = self._nursery
                if self.membership.cluster is not None:
                    await self._nursery.start(self.membership.run)
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
        places = self._places(options)
        opened = await open_places(places, options.given)
        # From here on nothing fails, and nothing waits: nobody sees a half of it.
        self.options, self._tls = options, tls
        self._context.run(take_places, opened)
        options.given.keep([where for where in places.values() if where is not None])
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
        return self._serve_socket if options.shares_https else None

    def _tls_of(self, options: ServerOptions) -> ssl.SSLContext | None:
        if self._identity is not None:
            return server_tls_context(self._identity, options.client_ca)
        if not options.plain or options.client_ca is not None:
            raise LocalLinkError(Code.INTERNAL, "a TLS server needs an identity")
        return None

    @property
    def listening(self) -> list[Listening]:
        """What links, and visitors by name, come in at."""
        return [*self.entrances, self.names.web, self.names.tls]

    async def drain(self, deadline_s: float = DRAIN_S) -> None:
        """Take nothing new, let what runs go on for at most ``deadline_s``, stop.

        Sessions still find another link meanwhile. Returns at most ``GOODBYE_S`` later.
        """
        until = trio.current_time() + deadline_s
        self._admission.draining = self.names.leaves = True
        if self.membership.cluster is not None and self.membership.cluster.has_others:
            moved = partial(until_closed, self.mappings)
            await send_away(self._sessions, until, moved, self._say_goodbye)
            await self._let_visitors_leave(self.membership.cluster, until)
        else:
            await drain((client.session for client in self._sessions), until)
        await self.stop(until + GOODBYE_S - trio.current_time())

    async def _let_visitors_leave(self, cluster: Cluster, until: float) -> None:
        """Take no more visitors by name, and let those that are in hear the rest."""
        doors = self.names.web, self.names.tls
        for one in doors:
            one.leave()
        with trio.move_on_at(until):
            await cluster.peers.wait_idle()
            with trio.move_on_after(LAST_S):
                for one in doors:
                    await one.wait_left()

    def _say_goodbye(self, client: ClientSession) -> None:
        if client.link is not None:
            self._leaving.append(client.link)
        self._forget(client)
        client.dismiss(Code.NORMAL, "the server stops")

    async def stop(self, within_s: float = GOODBYE_S) -> None:
        """Say goodbye to every client, give all time to hear it, and end ``run``."""
        links = self._leaving
        for client in self._sessions:
            self._say_goodbye(client)
        with trio.move_on_after(within_s):
            for link in links:
                await link.gone.wait()
        self._running.cancel()

    # One wire ------------------------------------------------------------------------

    async def _serve_socket(
        self,
        stream: trio.abc.HalfCloseableStream,
        peer: Address,
        heard: bytes = b"",
    ) -> None:
        """Take a socket from its first byte to its last; owns the stream."""
        if isinstance(stream, FastSocket):  # all are
            await self._serve_wire(Wire(stream, peer, self._tls, heard))

    async def serve_node(
        self, stream: trio.abc.HalfCloseableStream, peer: Address
    ) -> None:
        """Take a socket of this machine, on which only other nodes are heard."""
        if isinstance(stream, FastSocket):  # all are
            await self._serve_wire(Wire(stream, peer, None, of_nodes=True))

    async def _serve_wire(self, wire: Wire) -> None:
        """Take a wire from its first byte to its last; owns it."""
        host = wire.peer.host
        try:
            proved = await self._starts.prove(wire, self.terms, self.options)
            if proved is not None:
                self._starts.gate.succeeded(host, trio.current_time())
                account = self._guests(proved[2].name).accounts.named(proved[2].name)
                account.links += 1
                try:
                    await self._serve_link(*proved)
                finally:
                    account.links -= 1
                    self._starts.gate.ended(host, trio.current_time())
            elif wire.onward is not None and self.membership.cluster is not None:
                links = self.membership.cluster.peers.links
                links.add(wire.onward)
                try:
                    await pass_on(wire, wire.onward)
                finally:
                    links.discard(wire.onward)
        finally:
            await wire.aclose()

    def _guests(self, name: str) -> Guests:
        return self._node_guests if is_node(name) else self._user_guests

    # One link, of a client that has proved itself -------------------------------------

    async def _serve_link(
        self, transport: Transport, handshake: ServerHandshake, claim: AuthClaim
    ) -> None:
        """Carry a session over this link: the one that is claimed, or another."""
        guests = self._guests(claim.name)
        user = guests.user(claim.name)
        if user is not None and user.once is not None:
            changes = self.user_changes
            if not await may_begin(changes, user, claim, handshake, transport):
                return await answer(transport, handshake)
        client = guests.sessions.claimed(claim, transport)
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
        self._guests(claim.name).sessions.has_link(client)
        client.link = Link(session, transport, result_of(handshake).leftover)
        for call in tuple(client.when_found):
            call()
        level = logging.DEBUG if client.is_node else logging.INFO
        log_event(logger, level,
            "peer.resumed" if client.is_node else "link.resumed",
            **client.who,
            after_s=round(after_s, 3),
            connections=session.streams, repeated_bytes=repeated)  # fmt: skip

    async def _new_client(
        self, transport: Transport, handshake: ServerHandshake, claim: AuthClaim
    ) -> ClientSession | None:
        """Begin a session; None, with a refusal queued, when there is no room."""
        session_id = secrets.token_bytes(16)
        no_room = await self._admission.refusal(claim, session_id)
        if no_room is not None:
            code, reason, after_s = no_room
            handshake.refuse(code, reason, retry_after_s=after_s)
            log_event(logger, logging.WARNING, "session.refused", peer=transport.peer,
                user=claim.name, client=short_id(claim.client_id), code=code.name,
                reason=reason)  # fmt: skip
            return None
        guests = self._guests(claim.name)
        user = guests.user(claim.name)
        assert user is not None  # noqa: S101 - else it would be refused
        handshake.accept(session_id, 0, resumed=False)
        client = ClientSession(
            user,
            claim,
            result_of(handshake),
            transport,
            terms=self.terms,
            pools=self.pools,
            accounts=guests.accounts,
            host=self.options.listen.host,
            apply_mapping=partial(answer_mapping, self.mappings),
            owners=self.mappings,
            forget=self._forget,
            serve=guests.serve,
        )
        # Before the first wait: two links of one client must see each other.
        guests.sessions.add(client)
        await self._nursery.start(client.run)
        level = logging.DEBUG if client.is_node else logging.INFO
        log_event(logger, level,
            "peer.up" if client.is_node else "link.up",
            **client.who,
            tls=transport.encrypted, agent=claim.peer_terms.agent)  # fmt: skip
        return client

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
            self._guests(client.user_name).sessions.waits(client)
        for call in tuple(client.when_lost):
            call()
        level = logging.DEBUG if client.is_node else logging.INFO
        log_event(logger, level,
            "peer.down" if client.is_node else "link.down",
            **client.who,
            code=reason.code.name, reason=str(reason),
            connections=streams, waiting=not client.gone)  # fmt: skip

    def _forget(self, client: ClientSession) -> None:
        """Close what belongs to a session that has ended or is about to."""
        self._guests(client.user_name).sessions.remove(client)
        self.mappings.drop(client)
        if self.membership.cluster is not None and client.client_id != NO_CLIENT_ID:
            who = client.user_name, client.client_id, client.session_id
            self.membership.cluster.client_left(*who)
