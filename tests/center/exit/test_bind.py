"""BIND: a port at the server that takes one connection."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.center import LOOPBACK, center, user

from tunnel.access.join import make_token
from tunnel.addresses import Address
from tunnel.center import client_session
from tunnel.center.exit import bind as exit_bind
from tunnel.errors import Code, RemoteStreamError
from tunnel.net import bind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.center import Center

    from tunnel.center.client import CenterClient

ANYBODY = Address("0.0.0.0", 0)


@asynccontextmanager
async def bench() -> AsyncIterator[tuple[Center, CenterClient]]:
    async with center() as where:
        client, _ = where.client()
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            yield where, client
            client.stop()


async def call(where: Address, source: str = LOOPBACK) -> trio.SocketStream:
    return await trio.open_tcp_stream(where.host, where.port, local_address=source)


async def hear(where: Address) -> bytes | bytearray:
    async with await call(where) as stream:
        return await stream.receive_some()


@pytest.mark.parametrize("expected", [ANYBODY, Address(LOOPBACK, 20)])
async def test_the_peer_is_told_and_then_joined(expected: Address) -> None:
    async with bench() as (where, client):
        port = await client.bind(expected)
        assert port.address.host == LOOPBACK
        async with await call(port.address) as peer:
            await peer.send_all(b"220 ready")
            stream, who = await port.accept()
            await port.aclose()
            assert who == Address(*peer.socket.getsockname())
            async with stream:
                assert await stream.receive_some() == b"220 ready"
                await stream.send_all(b"QUIT")
                await stream.send_eof()
                assert await peer.receive_some() == b"QUIT"
                assert await peer.receive_some() == b""
                await peer.send_eof()
                assert await stream.receive_some() == b""
        await where.until(lambda: where.server.connections == 0)


async def test_only_the_expected_one_gets_in() -> None:
    async with bench() as (_, client):
        port = await client.bind(Address("127.0.0.2", 0))
        # The kernel may tell it as early as from connect.
        with pytest.raises((trio.BrokenResourceError, OSError)):
            await hear(port.address)
        async with await call(port.address, "127.0.0.2"):
            stream, who = await port.accept()
            assert who.host == "127.0.0.2"
            await stream.aclose()


async def test_nobody_listens_any_more_when_the_peer_has_come() -> None:
    async with bench() as (_, client):
        port = await client.bind(ANYBODY)
        async with await call(port.address):
            stream, _ = await port.accept()
            with pytest.raises(OSError, match="connect"):
                await call(port.address)
            await stream.aclose()


async def test_a_port_that_is_given_up_is_closed() -> None:
    async with bench() as (where, client):
        port = await client.bind(ANYBODY)
        await port.aclose()
        await where.until(lambda: where.server.connections == 0)
        with pytest.raises(OSError, match="connect"):
            await call(port.address)


async def test_waiting_ends_with_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_bind.WAIT_S == 120
    real = exit_bind.serve_bind

    async def impatient(*args: object, **more: object) -> None:
        await real(*args, **more, wait_s=0.05)  # type: ignore[arg-type]

    monkeypatch.setattr(client_session, "serve_bind", impatient)
    async with bench() as (_, client):
        port = await client.bind(ANYBODY)
        with pytest.raises(RemoteStreamError) as caught:
            await port.accept()
        assert caught.value.code is Code.TIMEOUT


def test_a_port_on_all_addresses_is_shown_with_one_that_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert exit_bind._reachable("127.0.0.1") == "127.0.0.1"
    monkeypatch.setattr(bind, "own_address_to", lambda far: f"own way to {far}")
    assert exit_bind._reachable("0.0.0.0") == "own way to 192.0.2.1"
    assert exit_bind._reachable("::") == "own way to 2001:db8::1"

    def no_way(_far: str) -> str:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(bind, "own_address_to", no_way)
    assert exit_bind._reachable("0.0.0.0") == "0.0.0.0"


async def test_a_user_without_rights_gets_no_port() -> None:
    token = make_token()
    async with center(others=(user(token, "guest", owner=False),)) as where:
        client, _ = where.client(name="guest", token=token)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            for expected in (ANYBODY, Address(LOOPBACK, 20)):
                with pytest.raises(RemoteStreamError) as caught:
                    await client.bind(expected)
                assert caught.value.code is Code.NOT_ALLOWED
            client.stop()
