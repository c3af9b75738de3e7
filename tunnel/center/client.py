"""CenterClient: what a center-client offers, opens and accepts over its links."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from tunnel.access.join import parse_join
from tunnel.access.tls import file_pair
from tunnel.addresses import EVERYWHERE, Address
from tunnel.center.drain import GOODBYE_S
from tunnel.center.exit.tcp import exit_to, refuse
from tunnel.center.link_keeper import LinkKeeper
from tunnel.errors import Code, LocalStreamError
from tunnel.link.bind import BoundPort
from tunnel.link.datagrams import DatagramStream
from tunnel.net.virtual_connection import OPEN_DEADLINE_S
from tunnel.proto.frames import (
    BindTarget,
    MappingEntry,
    MappingType,
    TcpTarget,
    UdpTarget,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tunnel.access.networks import Networks
    from tunnel.addresses import End
    from tunnel.center.exit.tcp import Serve
    from tunnel.center.publisher import MappingListener
    from tunnel.link.link import Link
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.proxy_protocol import ProxyVersion
    from tunnel.proto.frames import Target


class CenterClient(LinkKeeper):
    """The center-client's role; see ``LinkKeeper`` for how it is made, runs and ends.

    Everything below may be used once ``run`` has started.
    """

    def retry(self) -> bool:
        """End the pause before the next attempt; False if there is none to end."""
        if self._link is not None or self._pause.cancel_called:
            return False
        self._pause.cancel()
        return True

    @property
    def link(self) -> Link | None:
        """The link that carries the session at the moment."""
        return self._link

    # Mappings ------------------------------------------------------------------------

    async def publish(
        self, wanted: MappingEntry, serve: Serve, *, or_else: bool = False
    ) -> str:
        """Ask for a mapping, now and on every later link; see ``Publisher.publish``."""
        return await self.publisher.publish(wanted, serve, or_else=or_else)

    async def publish_target(
        self,
        remote: Address,
        target: End,
        *,
        count: int = 1,
        proxy: ProxyVersion | None = None,
    ) -> str:
        """Publish a TCP service that is reached from here.

        Args:
            remote: public address; of several ports the first.
            target: of the first port; those of the others follow it.
            count: ports in a row, all or none.
            proxy: which PROXY header the target hears first.
        """
        wanted = MappingEntry(MappingType.TCP, "", remote.host, remote.port, count)
        serve = exit_to(target, count=count, proxy=proxy, public=self.public)
        return await self.publish(wanted, serve)

    async def be_exit(self, name: str, networks: Networks) -> str:
        """Let other clients of the server leave here, to these networks; one name."""
        self.publisher.exit_networks = networks
        # An exit has no visitors of its own: their CREATE names the target.
        serve = partial(refuse, code=Code.NO_MAPPING)
        return await self.publish(MappingEntry(MappingType.EXIT, "", name), serve)

    async def lead_nobody(self, name: str, *, out: bool) -> None:
        """Have the server lead visitors elsewhere; see ``Publisher.lead_nobody``."""
        await self.publisher.lead_nobody(name, out=out)

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
            LocalStreamError: also ``LINK_LOST``, while there is no session.
        """
        session = self.session
        if session is None or session.lost_at is not None:
            self.hurry()
        if session is None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link at the moment")
        return session.open_now(target, visitor, exit_name)

    def begin(
        self, target: Target, exit_name: str | None = None
    ) -> VirtualStream | None:
        """Do as ``open_now`` does; None while there is no link to wait for instead."""
        if self._link is None or self.session is None or self.session.ended:
            return None
        return self.session.open_now(target, exit_name=exit_name)

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
        if self._link is None or self.session is None or self.session.ended:
            with trio.move_on_at(until):  # costs as much as to open: not on each way
                await self.wait_for_session()
        if self.session is None:
            raise LocalStreamError(Code.LINK_LOST, "there is no link at the moment")
        left_s = max(until - trio.current_time(), 0)
        return await self.session.open(target, deadline_s=left_s, exit_name=exit_name)

    async def associate(self, deadline_s: float = OPEN_DEADLINE_S) -> DatagramStream:
        """Open a UDP association: a port at the server that reaches any address.

        Each datagram names its own address; names are resolved there. Raises as
        ``open``; ``UNSUPPORTED``: the server offers no UDP.
        """
        return DatagramStream(await self.open(UdpTarget(), deadline_s))

    async def bind(
        self, expected: Address, deadline_s: float = OPEN_DEADLINE_S
    ) -> BoundPort:
        """Open a port at the server that takes one connection; raises as ``open``.

        Args:
            expected: the peer that connects; a host of zeros is anybody.
            deadline_s: for the port, not for the connection.
        """
        return BoundPort(await self.open(BindTarget(expected), deadline_s))


@asynccontextmanager
async def connect(
    join: str,
    *,
    client_id: bytes | None = None,
    client_cert: tuple[str | Path, str | Path] | None = None,
) -> AsyncIterator[CenterClient]:
    """Run a center-client for as long as the block runs; enter when its link is up.

    Lost links are made again meanwhile. On leaving, also by an exception, the server is
    told and its ports are given back; cancelled, it goes without a word, and the server
    waits for it as for any lost link. A key that the server announces as its next is
    known for this run only.

    Args:
        join: the line that ``tunnel serve`` prints.
        client_id: 16 bytes, when restarts of the program should keep its ports.
        client_cert: PEM files of a client certificate and its key without a password,
            where the server wants one; read anew for each link.

    Raises:
        UsageError: the line cannot be read; or the certificate cannot be used, or has
            no use, as the line has no TLS.
        StateError: the files of the certificate cannot be read.
        LinkError: wrong token, pin or version. A server that cannot be reached is
            tried again for ever: put a deadline around it if you do not want that.
    """
    certificate = file_pair(client_cert)
    client = CenterClient(
        parse_join(join), client_id=client_id, certificate=certificate
    )
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
