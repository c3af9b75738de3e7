"""A large answer passes without its carrier, and no byte of it is lost or reordered."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from support.wires import TARGET, Offers, session_pair

from tunnel.addresses import Address
from tunnel.front.http.names import Destination, handle_visitor
from tunnel.front.http.server import Visit
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream

SIZE = 5_000_000
BODY = random.Random(1).randbytes(SIZE)
REQUEST = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE


async def read_answer(visitor: FastSocket, *, slow: bool) -> bytes:
    """Read what comes to the end of the body, or of the connection."""
    data = b""
    while len(data) < len(HEAD) + SIZE:
        if slow:
            await trio.sleep(0.001)
        piece = await visitor.receive_some(100_000)
        if not piece:
            break
        data += piece
    return data


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("cut", [0, 1_000_000])
async def test_it_is_whole_or_seen_to_be_cut(slow: bool, cut: int) -> None:
    offers = Offers()
    ours, theirs = socket.socketpair()
    entrance, visitor = FastSocket(ours), FastSocket(theirs)

    async with session_pair(serve_server=offers) as sessions, trio.open_nursery() as n:

        async def open_one(_: Address) -> VirtualStream:
            return await sessions.client.open(TARGET)

        visit = Visit(entrance, Address("203.0.113.9", 4711))
        n.start_soon(handle_visitor, visit, lambda host: Destination(host, open_one))
        await visitor.send_all(REQUEST)
        target: VirtualStream = await offers.taken.receive()
        for _ in range(1 if cut else 2):
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                asked += await target.receive_some()

            async def answer() -> None:
                await target.send_all(HEAD + BODY[: cut or SIZE])
                if cut:
                    await target.aclose()

            n.start_soon(answer)
            with trio.fail_after(30):
                try:
                    data = await read_answer(visitor, slow=slow)
                except trio.BrokenResourceError:
                    assert cut
                    break
            if cut:
                assert data == HEAD + BODY[:cut]
            else:
                assert data == HEAD + BODY
                await visitor.send_all(REQUEST)  # on the same connection
        n.cancel_scope.cancel()
    visitor.close()
    entrance.reset()  # whoever accepted it does
