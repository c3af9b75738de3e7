"""CenterClient: what a center-client offers, opens and accepts over its links.

``LinkKeeper`` keeps the link up, ``Publisher`` the mappings on it.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from tunnel.access.join import parse_join
from tunnel.addresses import EVERYWHERE, Address
from tunnel.center.drain import DRAIN_S, GOODBYE_S, drain
from tunnel.center.exit.tcp import exit_to, refuse, udp_exit_to
from tunnel.center.link_keeper import LinkKeeper
from tunnel.center.local_services import share_network
from tunnel.center.publisher import Publisher
from tunnel.errors import Code, LocalStreamError
from tunnel.link.bind import BoundPort
from tunnel.link.datagrams import DatagramStream
from tunnel.link.session import OPEN_DEADLINE_S
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    BindTarget,
    MappingEntry,
    MappingType,
    TcpTarget,
    Terms,
    UdpTarget,
)
from tunnel.proto.terms import DEFAULT_RESUME_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tunnel.access.join import JoinLine
    from tunnel.access.networks import Networks
    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import End
    from tunnel.center.events import Notice
    from tunnel.center.exit.tcp import Serve
    from tunnel.center.publisher import MappingListener
    from tunnel.link.upstream_proxy import UpstreamProxy
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.proxy_protocol import ProxyVersion
    from tunnel.proto.frames import Target


def _ignore(notice: Notice) -> None:
    """Stand in for a user who does not listen."""


def _random_id() -> bytes:
    return secrets.token_bytes(16)


class CenterClient:
    """The center-client's role. Everything below may be used once ``run`` has started.

    Args:
        join: where the server is, which user joins, and how the server is known.
        client_id: 16 bytes; the same again after a restart, so that the server knows
            whose ports are whose. Random when not given.
        tell: called with each ``Notice``; must not wait.
        give_up_s: end with the last error when the first link is not up by then; None
            means never.
        resume_s: how long connections wait for another link; the server may want
            less; 0 resets them with their link.
        via: a proxy on the way to the server.
        new_id: makes another client id when a client that answers has this one; by
            default a random one.
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
        terms = replace(
            Terms(),
            capabilities=CAN_MAP | CAN_UDP,
            client_id=client_id or _random_id(),
        )
        self.publisher = Publisher(join.host, tell)
        self._links = LinkKeeper(
            join,
            terms,
            self.publisher,
            tell=tell,
            give_up_s=give_up_s,
            resume_s=resume_s,
            via=via,
            new_id=new_id,
        )

    @property
    def client_id(self) -> bytes:
        """What names this client to its server, 16 bytes."""
        return self._links.terms.client_id

    @property
    def connections(self) -> int:
        """Virtual TCP connections that are alive."""
        return self._links.connections

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of virtual TCP connections so far: sent, received."""
        return self._links.traffic

    # Its life ------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a link up until ``stop``; started with the first link, or without any.

        Raises:
            TunnelError: before the first link was up: wrong token, pin or version; at
                any time: ``TAKEN_OVER``; or no link was had within ``give_up_s``.
        """
        await self._links.run(task_status)

    async def wait_over(self) -> None:
        """Wait until ``run`` has ended."""
        await self._links.over.wait()

    def stop(self) -> None:
        """End the session in good order: the server frees our ports at once."""
        self._links.stop()

    async def leave(self, within_s: float = GOODBYE_S) -> None:
        """Stop; ``run`` is over after ``within_s`` at the latest."""
        self._links.stop()
        with trio.move_on_after(within_s):
            await self._links.over.wait()
        self._links.give_up()

    async def drain(self, deadline_s: float = DRAIN_S) -> None:
        """Take nothing new, let what runs go on for at most ``deadline_s``, leave.

        Lost links are made again meanwhile. Returns at most ``GOODBYE_S`` later.
        """
        until = trio.current_time() + deadline_s
        if self._links.session is not None:
            await drain([self._links.session], until)
        await self.leave(until + GOODBYE_S - trio.current_time())

    # Mappings ------------------------------------------------------------------------

    async def publish(
        self, wanted: MappingEntry, serve: Serve, *, or_else: bool = False
    ) -> str:
        """Ask for a mapping, now and on every later link; see ``Publisher.publish``.

        Returns:
            Its name, for ``withdraw`` and in the notices about it.
        """
        return await self.publisher.publish(wanted, serve, or_else=or_else)

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
        return await self.publish(wanted, share_network(networks, users))

    async def be_exit(self, name: str, networks: Networks) -> str:
        """Let other clients of the server leave here, to these networks alone.

        At most one name; see ``publish`` for what is returned.
        """
        self.publisher.exit_networks = networks
        # An exit has no visitors of its own: their CREATE names the target.
        serve = partial(refuse, code=Code.NO_MAPPING)
        return await self.publish(MappingEntry(MappingType.EXIT, "", name), serve)

    async def publish_udp_target(
        self, remote: Address, target: Address, *, count: int = 1
    ) -> str:
        """Publish a UDP service that is reached from here; as ``publish_target``."""
        wanted = MappingEntry(MappingType.UDP, "", remote.host, remote.port, count)
        return await self.publish(wanted, udp_exit_to(target, count=count))

    def public(self, name: str) -> Address | None:
        """Return where a mapping is open, None while it is not."""
        return self.publisher.public(name)

    async def withdraw(self, name: str) -> None:
        """Give a mapping up, and wait until it is; cancelled, it still is."""
        await self.publisher.withdraw(name)

    async def listen(self, remote: int | str = 0) -> MappingListener:
        """Open a public TCP address; its visitors come out of the listener.

        Args:
            remote: port, or ``"HOST:PORT"``, at the server; 0 for any port. ``*`` is
                where its links come in, as a port alone is.

        Raises:
            LocalSessionError: the server refused; ``code`` says why.
        """
        where = Address.parse(str(remote), EVERYWHERE)
        host = "" if where.host == EVERYWHERE else where.host
        wanted = MappingEntry(MappingType.TCP, "", host, where.port)
        return await self.publisher.listen(wanted)

    # Opening -------------------------------------------------------------------------

    def open_now(
        self,
        target: Target,
        visitor: Address | None = None,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Begin to open at the server or an exit; see ``Session.open_now``.

        Raises:
            LocalStreamError: ``LINK_LOST`` while there is no session.
        """
        session = self._links.session
        if session is None or session.lost_at is not None:
            self._links.hurry()
        if session is None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link at the moment")
        return session.open_now(target, visitor, exit_name)

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
        with trio.move_on_at(until):
            await self._links.wait_for_session()
        session = self._links.session
        if session is None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link at the moment")
        return await session.open(
            target,
            deadline_s=max(until - trio.current_time(), 0),
            exit_name=exit_name,
        )

    async def associate(self, deadline_s: float = OPEN_DEADLINE_S) -> DatagramStream:
        """Open a UDP association: a port at the server that reaches any address.

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
            expected: the peer that connects; a host of zeros is anybody.
            deadline_s: for the port, not for the connection.

        Raises:
            StreamError: refused; ``code`` says why.
        """
        return BoundPort(await self.open(BindTarget(expected), deadline_s))


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
