"""Several center-servers that act as one, in one run, and a balancer in front."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import trio
from support.center import LOOPBACK, Center, Notices, free_ports, user
from support.watched_directory import WatchedDirectory

from tunnel.access.identity import load_or_make_identity
from tunnel.access.join import JoinLine, make_token
from tunnel.addresses import Address
from tunnel.center.client import CenterClient
from tunnel.center.cluster.cluster import Cluster
from tunnel.center.cluster.directory import Change
from tunnel.center.cluster.secret import ClusterSecret
from tunnel.center.cluster.store import Store
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.names import NameOptions
from tunnel.center.server import CenterServer, ServerOptions
from tunnel.errors import Code
from tunnel.net.sockets import FastSocket
from tunnel.ops.entries import Published, Service
from tunnel.proto.frames import MappingEntry, MappingType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tunnel.access.users import User
    from tunnel.proto.rules import Rules

SECRET = ClusterSecret(b"what the nodes of a test share, 32+")

SERVE: dict[str, Callable[[socket.socket], None]] = {}
"""Serves a link of another node, by the node's name."""


class Direct(WatchedDirectory):
    """A directory that leads to its nodes without an address, and can miss changes."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name, "")
        self._told, self._news = trio.open_memory_channel[list[Change]](10_000)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[trio.MemoryReceiveChannel[list[Change]]]:
        self._store.enter(self.name, "", self._told.send_nowait)
        try:
            yield self._news
        finally:
            self._store.leave(self.name)

    async def connect(self, node: str) -> socket.socket | None:
        await trio.lowlevel.checkpoint()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        SERVE[node](theirs)
        return ours


@dataclass
class Node(Center):
    """A node that runs."""

    directory: Direct = field(kw_only=True)
    cluster: Cluster = field(kw_only=True)
    scope: trio.CancelScope = field(kw_only=True)

    @property
    def web(self) -> Address:
        at = self.server.names.http
        assert at is not None
        return at


class Balancer:
    """Leads each link to the node that the test wants, and can cut them."""

    def __init__(self, to: Address) -> None:
        self.to = to
        self.address = Address(LOOPBACK, 0)
        self.came = 0
        self._links: set[trio.CancelScope] = set()

    def cut(self) -> None:
        """Break every link, as a network does."""
        for scope in tuple(self._links):
            scope.cancel()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.came += 1
        try:
            onward = await trio.open_tcp_stream(self.to.host, self.to.port)
        except OSError:  # it is to lead nowhere
            return await stream.aclose()
        with trio.CancelScope() as scope:
            self._links.add(scope)
            try:
                async with stream, onward, trio.open_nursery() as nursery:
                    nursery.start_soon(_carry, stream, onward)
                    await _carry(onward, stream)
            finally:
                self._links.discard(scope)


async def _carry(one: trio.SocketStream, other: trio.SocketStream) -> None:
    try:
        async for data in one:
            await other.send_all(data)
        await other.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@dataclass
class Nodes:
    """Nodes with one directory, and a balancer for their links."""

    all: list[Node]
    store: Store
    balancer: Balancer

    def __getitem__(self, at: int) -> Node:
        return self.all[at]

    def client(
        self, at: int, client_id: bytes | None = None
    ) -> tuple[CenterClient, Notices]:
        """Make a client of one node, whose links come there and nowhere else."""
        return self[at].client(client_id)

    def wandering(self, client_id: bytes | None = None) -> tuple[CenterClient, Notices]:
        """Make a client whose links come where the balancer leads."""
        notices = Notices()
        where = self.balancer.address
        join = replace(self[0].join, host=where.host, port=where.port)
        return CenterClient(join, client_id=client_id, tell=notices), notices


@asynccontextmanager
async def nodes(
    folder: Path,
    count: int = 2,
    *,
    tls: bool = True,
    names: NameOptions | None = None,
    others: tuple[User, ...] = (),
    resume_s: int = 120,
    ports: bool = False,
) -> AsyncIterator[Nodes]:
    """Run nodes for the block; their identity is in ``folder``."""
    token, store = make_token(), Store()
    identity = load_or_make_identity(folder / "state")[0] if tls else None
    pin = identity.pin if identity else None
    names = names or NameOptions(http=Address(LOOPBACK, 0), domain="t.test")
    users = {"default": user(token)} | {other.name: other for other in others}
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            running: list[Node] = []
            for number in range(count):
                directory = Direct(store, f"n{number}.1")
                cluster = Cluster(directory, SECRET, pin, ports=ports)
                options = ServerOptions(
                    Address(LOOPBACK, 0),
                    free_ports(),
                    plain=not tls,
                    resume_s=resume_s,
                    names=names,
                )
                server = CenterServer(users, identity, options, cluster=cluster)
                scope = trio.CancelScope()
                at = await nursery.start(_run, server, directory.name, scope)
                join = JoinLine("default", token, at.host, at.port, pin, not tls)
                running.append(
                    Node(
                        server,
                        at,
                        join,
                        directory=directory,
                        cluster=cluster,
                        scope=scope,
                    )
                )
            balancer = Balancer(running[0].address)
            listeners = await nursery.start(
                partial(trio.serve_tcp, balancer.serve, 0, host=LOOPBACK)
            )
            balancer.address = Address(*listeners[0].socket.getsockname())
            yield Nodes(running, store, balancer)
            nursery.cancel_scope.cancel()


async def _run(
    server: CenterServer,
    name: str,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[Address],
) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            SERVE[name] = lambda sock: nursery.start_soon(
                server.serve_node, FastSocket(sock), Address("local", 0)
            )
            task_status.started(await nursery.start(server.run))


# What their clients publish -----------------------------------------------------------


def web(name: str, at: Address, rules: Rules | None = None) -> Published:
    wanted = MappingEntry(MappingType.HTTP, "", name, rules=rules)
    return Published("http", wanted, Service(at), scheme="http")


@asynccontextmanager
async def published(
    client: CenterClient,
    notices: Notices,
    name: str,
    at: Address,
    rules: Rules | None = None,
) -> AsyncIterator[Code]:
    """Publish a web service for the block; give the answer's code."""
    async with trio.open_nursery() as nursery:
        await web(name, at, rules).start(client)
        await nursery.start(client.run)
        refused, ready = notices.of(MappingRefused), notices.of(MappingReady)
        assert refused or ready
        yield refused[0].answer.code if refused else Code.NORMAL
        client.stop()


async def page(stream: trio.SocketStream) -> None:
    """Answer each request with its path."""
    with trio.move_on_after(20):
        try:
            while said := await stream.receive_some():
                path = said.split(b" ")[1]
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path)
                await stream.send_all(head + path)
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
