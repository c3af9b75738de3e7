"""A center-server and center-clients in one run, over real loopback sockets."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

import trio

from tunnel.access.identity import load_or_make_identity
from tunnel.access.join import JoinLine, Secret, make_token
from tunnel.access.rules import ALL, parse_rights
from tunnel.access.users import User
from tunnel.addresses import Address
from tunnel.center.client import CenterClient
from tunnel.center.names import NameOptions
from tunnel.center.server import CenterServer, ServerOptions
from tunnel.errors import TunnelError
from tunnel.link.transport import PlainTransport, dial, prove
from tunnel.net.given import Given
from tunnel.proto.frames import Terms
from tunnel.proto.handshake import ClientHandshake
from tunnel.proto.proofs import (
    PLAIN_BINDING,
    verifier_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tunnel.access.months import Months
    from tunnel.access.networks import Network
    from tunnel.center.events import Notice

LOOPBACK = "127.0.0.1"
WAIT_S = 20.0
GET = b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"

_N = TypeVar("_N")


class JoinChanges(TypedDict, total=False):
    """What a client may have otherwise than the server's own join line says."""

    name: str
    token: Secret
    port: int
    pin: str | None
    plain: bool


class Notices:
    """Keeps what a client tells, and waits for the next of a kind."""

    def __init__(self) -> None:
        self.all: list[Notice] = []
        self._more = trio.Event()

    def __call__(self, notice: Notice) -> None:
        self.all.append(notice)
        self._more.set()
        self._more = trio.Event()

    def of(self, kind: type[_N]) -> list[_N]:
        return [notice for notice in self.all if isinstance(notice, kind)]

    async def next(self, kind: type[_N], number: int = 1) -> _N:
        """Wait for notice ``number`` of a kind."""
        with trio.fail_after(WAIT_S):
            while len(self.of(kind)) < number:
                await self._more.wait()
        return self.of(kind)[number - 1]


@dataclass
class Center:
    """A running center-server."""

    server: CenterServer
    address: Address
    join: JoinLine

    def client(
        self,
        client_id: bytes | None = None,
        **changes: Unpack[JoinChanges],
    ) -> tuple[CenterClient, Notices]:
        notices = Notices()
        join = replace(self.join, **changes)
        return CenterClient(join, client_id=client_id, tell=notices), notices

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something that nobody announces; at most 20 s."""
        with trio.fail_after(WAIT_S):
            while not true():  # noqa: ASYNC110  # there is no event for it
                await trio.sleep(0.005)


def user(token: Secret, name: str = "default", *may: str, owner: bool = True) -> User:
    """Make a user; one that is told rights, or is no owner, has only those."""
    rights = ALL if owner and not may else parse_rights(may)
    return User(name, verifier_of(name, token.reveal()), rights)


@asynccontextmanager
async def center(
    state: Path | None = None,
    *,
    port: int = 0,
    token: Secret | None = None,
    ports: range | None = None,
    others: tuple[User, ...] = (),
    resume_s: int = 120,
    names: NameOptions | None = None,
    trusted: tuple[Network, ...] = (),
    months: Months | None = None,
    given: Given | None = None,
) -> AsyncIterator[Center]:
    """Run a center-server for the block; plain without a state folder."""
    token = token or make_token()
    identity = load_or_make_identity(state)[0] if state else None
    users = {"default": user(token)} | {other.name: other for other in others}
    server = CenterServer(
        users,
        identity,
        ServerOptions(
            Address(LOOPBACK, port),
            free_ports() if ports is None else ports,
            plain=identity is None,
            resume_s=resume_s,
            names=names or NameOptions(),
            trusted_proxies=trusted,
            given=given or Given(),
        ),
        months,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(server.run)
            join = JoinLine(
                "default",
                token,
                address.host,
                address.port,
                identity.pin if identity else None,
                identity is None,
            )
            yield Center(server, address, join)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(client: CenterClient) -> AsyncIterator[None]:
    """Run a client for the block; enter when its link is up."""
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield
        client.stop()


async def failure_of(client: CenterClient) -> TunnelError:
    """Run a client that ends with an error."""
    with trio.fail_after(20):
        try:
            await client.run()
        except TunnelError as error:
            return error
    raise AssertionError("it ended in peace")


def free_ports() -> range:
    """Return one port that was free a moment ago: other tests run beside this one."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        port = one.getsockname()[1]
    return range(port, port + 1)


def port_of(ports: range) -> Address:
    return Address(LOOPBACK, ports[0])


@asynccontextmanager
async def target(
    serve: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[Address]:
    """Run a TCP service for the block."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, serve, 0, host=LOOPBACK)
        )
        yield Address(*listeners[0].socket.getsockname())
        nursery.cancel_scope.cancel()


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    """Send back what comes; the end too."""
    try:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()
    except trio.BrokenResourceError:
        pass
    await stream.aclose()


async def ask(where: Address, question: bytes = b"hello") -> bytes:
    """Send, end, and read the whole answer; a reset raises."""
    stream = await trio.open_tcp_stream(where.host, where.port)
    async with stream:
        await stream.send_all(question)
        await stream.send_eof()
        answer = b""
        async for data in stream:
            answer += data
        return answer


async def page(stream: trio.SocketStream) -> None:
    """Answer one request as a web service does."""
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await stream.aclose()


async def status(at: Address | None, host: str) -> int:
    """Return the status that a visitor of a host name gets there."""
    assert at is not None
    return int((await ask(at, GET % host.encode())).split()[1])


async def raw_login(
    where: Center, client_id: bytes, token: Secret | None = None, name: str = "default"
) -> PlainTransport:
    """Log in by hand on a plain link; the wire is the test's from then on."""
    stream = await dial(where.address.host, where.address.port)
    transport = PlainTransport(stream)
    terms = replace(Terms(), client_id=client_id)
    secret = (token or where.join.token).reveal()
    try:
        await prove(
            transport,
            ClientHandshake(name, secret, terms, bytes(32), PLAIN_BINDING, resume_s=0),
        )
    except BaseException:
        await transport.aclose()
        raise
    return transport
