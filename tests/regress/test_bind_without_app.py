"""An app that left during a BIND left its port open at the exit, for two minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from support.far import open_nothing

from tunnel.addresses import Address
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import handle_app

if TYPE_CHECKING:
    from tunnel.net.virtual_connection import ResettableStream


class Bound:
    """A port at the exit, to which nobody comes."""

    address = Address("192.0.2.1", 258)
    closed = False

    async def accept(self) -> tuple[ResettableStream, Address]:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_a_port_is_closed_with_the_app_that_asked_for_it() -> None:
    for version, reply_bytes in ((b"\5\1\0\5\2\0\1", 12), (b"\4\2\0\0", 8)):
        bound = Bound()
        app, ours = trio.testing.memory_stream_pair()

        async def bind(expected: Address, bound: Bound = bound) -> Bound:
            await trio.lowlevel.checkpoint()
            return bound

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle_app, ours, Dialer(open_nothing, bind))
                await app.send_all(version + b"\x7f\0\0\1\0\0")
                heard = b""
                while len(heard) < reply_bytes:
                    heard += await app.receive_some()
                await app.aclose()
        assert bound.closed
