"""A client that left while a visitor was flooding took the whole server down."""

from __future__ import annotations

import socket

import pytest
import trio
from support.center import LOOPBACK, center

import tunnel


def free_port() -> range:
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        port = one.getsockname()[1]
    return range(port, port + 1)


async def flood(stream: trio.SocketStream) -> None:
    try:
        while True:
            await stream.send_all(bytes(300_000))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@pytest.mark.parametrize("_again", range(6))
async def test_a_client_may_leave_while_its_visitor_still_writes(_again: int) -> None:
    async with center(ports=free_port()) as where, trio.open_nursery() as nursery:
        async with tunnel.connect(where.join.render()) as session:
            listener = await session.listen()
            public = listener.public
            visitor = await trio.open_tcp_stream(public.host, public.port)
            stream = await listener.accept()
            await stream.send_all(b"413")
            await stream.aclose()
            await trio.sleep(0.05)
            nursery.start_soon(flood, visitor)
            await trio.sleep(0.1)
        await trio.sleep(0.1)
        async with tunnel.connect(where.join.render()):  # the server still lives
            pass
        nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(visitor)
