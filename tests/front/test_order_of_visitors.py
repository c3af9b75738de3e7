"""Visitors are begun with in the order in which they came, whatever task runs first."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tunnel.access.visitors import VISITORS, Visitors
from tunnel.net.listen import open_listener, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tunnel.addresses import Address

COUNT: Final = 8
ROUNDS: Final = 10


class Begun:
    """Whom the front end has begun to serve, by port."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.all = trio.Event()

    def __call__(
        self, stream: trio.abc.HalfCloseableStream, peer: Address
    ) -> Awaitable[None]:
        self.ports.append(peer.port)
        if len(self.ports) == COUNT:
            self.all.set()
        return stream.aclose()


async def order_of_a_round(*, vouched: bool) -> list[int]:
    """Have visitors 1, 2, … come while nobody accepts; give the order of serving."""
    (listener,) = await open_listener("127.0.0.1", 0)
    where = listener.socket.getsockname()
    begun = Begun()
    with ExitStack() as stack:
        numbers = {}
        for number in range(1, COUNT + 1):
            visitor = stack.enter_context(socket.create_connection(where))
            numbers[number if vouched else visitor.getsockname()[1]] = number
            if vouched:
                header = f"PROXY TCP4 192.0.2.9 192.0.2.1 {number} 80\r\n"
                visitor.sendall(header.encode())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [listener], begun)
            with trio.fail_after(10):
                await begun.all.wait()
            nursery.cancel_scope.cancel()
    return [numbers[port] for port in begun.ports]


@pytest.mark.parametrize("vouched", [False, True])
async def test_visitors_are_begun_with_in_the_order_in_which_they_came(
    vouched: bool,
) -> None:
    if vouched:  # its context ends with the test
        VISITORS.set(Visitors([ip_network("127.0.0.0/8")]))
    for _ in range(ROUNDS):
        assert await order_of_a_round(vouched=vouched) == list(range(1, COUNT + 1))


async def test_what_fails_while_it_begins_ends_that_visitor_alone() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    came = []

    def fail(stream: trio.abc.HalfCloseableStream, peer: Address) -> Awaitable[None]:
        came.append(peer)
        if len(came) == 1:
            raise RuntimeError("a fault of ours")
        return stream.aclose()

    async with trio.open_nursery() as nursery:
        where = listener.socket.getsockname()
        nursery.start_soon(serve, [listener], fail)
        with trio.fail_after(10):
            # Connected before anybody is served: no reset meets the connect.
            connected = trio.socket.from_stdlib_socket(socket.create_connection(where))
            async with trio.SocketStream(connected) as first:
                with pytest.raises(trio.BrokenResourceError):
                    await first.receive_some()
            async with await trio.open_tcp_stream(*where) as second:
                assert await second.receive_some() == b""
        nursery.cancel_scope.cancel()
