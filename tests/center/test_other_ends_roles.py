"""Ranges, unix sockets, PROXY headers, inward proxies and exits between both roles."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Unpack

import pytest
import trio
from python_socks import ProxyError
from python_socks.async_.trio import Proxy
from support.center import LOOPBACK, Center, ask, center, echo, target, user

from tunnel.access.join import make_token
from tunnel.access.networks import Networks
from tunnel.access.proxy_users import ProxyUsers
from tunnel.addresses import Address, UnixPath
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.local_services import share_network
from tunnel.errors import Code, StreamError
from tunnel.net.listen import open_listener, open_unix_listener
from tunnel.net.proxy_protocol import ProxyVersion
from tunnel.proto.frames import MappingEntry, MappingType, TcpTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.center import JoinChanges, Notices

    from tunnel.center.client import CenterClient

FREE = Address("", 0)
PORT = MappingEntry(MappingType.TCP, "")
NOWHERE = Networks.parse(["192.0.2.0/24"])
HERE = Networks.parse(["127.0.0.0/8"])


@asynccontextmanager
async def up(
    where: Center, **changes: Unpack[JoinChanges]
) -> AsyncIterator[CenterClient]:
    """Run one more client for the block."""
    client, notices = where.client(**changes)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        client.heard = notices  # type: ignore[attr-defined]
        yield client
        client.stop()


def heard(client: CenterClient) -> Notices:
    notices: Notices = client.heard  # type: ignore[attr-defined]
    return notices


def free_row(count: int) -> range:
    """Ports in a row that nobody has, outside of those that callers get."""
    choice = random.SystemRandom()
    while True:
        first = choice.randrange(10_000, 32_000 - count)
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server((LOOPBACK, port)))
            return range(first, first + count)


@asynccontextmanager
async def row(count: int) -> AsyncIterator[int]:
    """Services on ports in a row, each of which says its place; gives the first."""
    ports = free_row(count)
    async with trio.open_nursery() as nursery:
        listeners = [(await open_listener(LOOPBACK, port))[0] for port in ports]
        for at, listener in enumerate(listeners):

            async def say(stream: trio.SocketStream, at: int) -> None:
                async with stream:
                    await stream.send_all(b"%d" % at)

            nursery.start_soon(trio.serve_listeners, partial(say, at=at), [listener])
        yield ports[0]
        nursery.cancel_scope.cancel()


# Ranges ------------------------------------------------------------------------------


async def test_the_visitor_of_each_port_reaches_the_target_of_its_place() -> None:
    async with (
        center(ports=free_row(100)) as where,
        up(where) as client,
        row(5) as first,
    ):
        await client.publish_target(FREE, Address(LOOPBACK, first), count=5)
        ready = await heard(client).next(MappingReady)
        for at in range(5):
            public = Address(LOOPBACK, ready.public.port + at)
            assert await ask(public, b"") == b"%d" % at


async def test_a_range_is_given_whole_or_not_at_all() -> None:
    row_ = free_row(10)
    async with center(ports=row_) as where, up(where) as client:
        with socket.create_server((LOOPBACK, row_[5])):
            target_ = Address(LOOPBACK, 1)
            await client.publish_target(FREE, target_, count=5)
            assert (await heard(client).next(MappingReady)).public.port == row_[0]
            await client.publish_target(FREE, target_, count=5)
            refused = await heard(client).next(MappingRefused)
            assert refused.answer.code is Code.TAKEN
        for port in (row_[6], row_[9]):  # nothing of it stayed open
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream(LOOPBACK, port)


@pytest.mark.parametrize(("port", "count"), [(65_530, 10), (1, 1_001), (1, 0)])
async def test_a_range_that_cannot_be_is_refused(port: int, count: int) -> None:
    async with center() as where, up(where) as client:
        remote = Address(LOOPBACK, port)
        await client.publish_target(remote, Address(LOOPBACK, 1), count=count)
        refused = await heard(client).next(MappingRefused)
        assert refused.answer.code is Code.UNSUPPORTED


async def test_a_range_goes_with_its_owner_and_can_be_had_again() -> None:
    row_ = free_row(5)
    async with center(ports=row_) as where:
        for _ in range(2):
            async with up(where) as client:
                await client.publish_target(FREE, Address(LOOPBACK, 1), count=5)
                ready = await heard(client).next(MappingReady)
                assert ready.public.port == row_[0]
            await where.until(lambda: len(where.server.mappings) == 0)


# PROXY -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ProxyVersion)
async def test_a_target_hears_of_its_visitor_first(version: ProxyVersion) -> None:
    async with (
        center(ports=free_row(10)) as where,
        up(where) as client,
        target(echo) as service,
    ):
        await client.publish_target(FREE, service, proxy=version)
        public = (await heard(client).next(MappingReady)).public
        stream = await trio.open_tcp_stream(LOOPBACK, public.port)
        async with stream:
            port = stream.socket.getsockname()[1]
            await stream.send_all(b"hello")
            await stream.send_eof()
            answer = b"".join([bytes(piece) async for piece in stream])
    if version is ProxyVersion.V1:
        text = f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {public.port}\r\nhello"
        assert answer == text.encode()
    else:
        addresses = socket.inet_aton(LOOPBACK) * 2
        ports = port.to_bytes(2, "big") + public.port.to_bytes(2, "big")
        assert answer[12:] == b"\x21\x11\x00\x0c" + addresses + ports + b"hello"


# Unix --------------------------------------------------------------------------------


async def test_unix_sockets_are_targets_at_both_sides(tmp_path: Path) -> None:
    path = UnixPath(str(tmp_path / "echo.sock"))
    async with center(ports=free_row(10)) as where, up(where) as client:
        async with trio.open_nursery() as nursery:
            listener = open_unix_listener(path)
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            await client.publish_target(FREE, path)
            public = (await heard(client).next(MappingReady)).public
            assert await ask(public, b"there") == b"there"
            stream = await client.open(path)
            await stream.send_all(b"back")
            await stream.send_eof()
            assert await stream.receive_some() == b"back"
            assert await stream.receive_some() == b""
            await stream.aclose()
            nursery.cancel_scope.cancel()
        with pytest.raises(StreamError) as caught:
            await client.open(path)
        assert caught.value.code is Code.REFUSED


async def test_a_unix_socket_of_the_server_takes_the_owners_right(
    tmp_path: Path,
) -> None:
    path = UnixPath(str(tmp_path / "echo.sock"))
    token = make_token()
    other = user(token, "anna", owner=False)
    async with (
        center(others=(other,)) as where,
        open_unix_listener(path),
        up(where, name="anna", token=token) as anna,
    ):
        with pytest.raises(StreamError) as caught:
            await anna.open(path)
    assert caught.value.code is Code.NOT_ALLOWED


# Inward proxies ----------------------------------------------------------------------


async def through(public: Address, where: Address, user: str = "") -> bytes:
    proxy = Proxy.from_url(f"socks5://{user}{LOOPBACK}:{public.port}")
    stream = trio.SocketStream(await proxy.connect(where.host, where.port))
    async with stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        return b"".join([bytes(piece) async for piece in stream])


async def test_a_proxy_leads_into_the_network_of_the_client() -> None:
    async with (
        center(ports=free_row(10)) as where,
        up(where) as client,
        target(echo) as service,
    ):
        await client.publish(PORT, share_network(HERE, None))
        public = (await heard(client).next(MappingReady)).public
        assert await through(public, service) == b"hello"


async def test_a_proxy_leads_to_the_allowed_networks_alone() -> None:
    async with (
        center(ports=free_row(10)) as where,
        up(where) as client,
        target(echo) as service,
    ):
        await client.publish(PORT, share_network(Networks(), None))
        public = (await heard(client).next(MappingReady)).public
        with pytest.raises(ProxyError, match="not allowed"):
            await through(public, service)


async def test_a_proxy_with_users_serves_nobody_else() -> None:
    users = ProxyUsers({"me": "secret"})
    async with (
        center(ports=free_row(10)) as where,
        up(where) as client,
        target(echo) as service,
    ):
        await client.publish(PORT, share_network(HERE, users))
        public = (await heard(client).next(MappingReady)).public
        assert await through(public, service, "me:secret@") == b"hello"
        for wrong in ("", "me:wrong@"):
            with pytest.raises(ProxyError, match="uthentication"):
                await through(public, service, wrong)


# Exits -------------------------------------------------------------------------------


async def asked(client: CenterClient, where: Address, name: str) -> bytes:
    stream = await client.open(TcpTarget(where), exit_name=name)
    await stream.send_all(b"hello")
    await stream.send_eof()
    answer = b"".join([bytes(piece) async for piece in stream])
    await stream.aclose()
    return answer


async def refusal(client: CenterClient, where: Address, name: str) -> Code:
    with pytest.raises(StreamError) as caught:
        await client.open(TcpTarget(where), exit_name=name)
    return caught.value.code


async def test_a_connection_leaves_at_another_client() -> None:
    async with center() as where, up(where) as home, up(where) as away:
        async with target(echo) as service:
            await home.be_exit("home", HERE)
            await heard(home).next(MappingReady)
            assert await asked(away, service, "home") == b"hello"
            gone = service
        assert await refusal(away, gone, "home") is Code.REFUSED


async def test_an_exit_leads_to_its_own_networks_alone() -> None:
    async with (
        center() as where,
        up(where) as home,
        up(where) as away,
        target(echo) as service,
    ):
        await home.be_exit("home", NOWHERE)
        await heard(home).next(MappingReady)
        assert await refusal(away, service, "home") is Code.NOT_ALLOWED


async def test_nobody_leaves_at_a_client_that_did_not_offer_it() -> None:
    async with center() as where, up(where) as home, up(where) as away:
        assert await refusal(away, Address(LOOPBACK, 1), "home") is Code.NO_MAPPING
        # Not even when the server asks for it.
        (member, _) = where.server.clients
        stream = member.session.open_now(TcpTarget(Address(LOOPBACK, 1)))
        with pytest.raises(StreamError) as caught:
            await stream.wait_open()
        assert caught.value.code is Code.NOT_ALLOWED
        stream.reset(Code.RESET)
        del home


async def test_leaving_at_an_exit_and_being_one_take_a_right() -> None:
    token = make_token()
    other = user(token, "anna", owner=False)
    async with center(others=(other,)) as where, up(where) as home:
        await home.be_exit("home", HERE)
        await heard(home).next(MappingReady)
        async with up(where, name="anna", token=token) as anna:
            code = await refusal(anna, Address(LOOPBACK, 1), "home")
            assert code is Code.NOT_ALLOWED
            await anna.be_exit("annas", HERE)
            refused = await heard(anna).next(MappingRefused)
            assert refused.answer.code is Code.NOT_ALLOWED


async def test_the_name_of_an_exit_belongs_to_one_client() -> None:
    async with center() as where, up(where) as home, up(where) as away:
        await home.be_exit("home", HERE)
        await heard(home).next(MappingReady)
        await away.be_exit("home", HERE)
        refused = await heard(away).next(MappingRefused)
        assert refused.answer.code is Code.TAKEN
