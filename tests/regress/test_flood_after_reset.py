"""A reset made the relay read a flooding local side at full speed for a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tunnel.errors import Code, RemoteStreamError
from tunnel.link.relay import relay

if TYPE_CHECKING:
    from collections.abc import Callable


class ResetAfterOneByte:
    """A virtual TCP connection that gives one byte, takes a chunk, and is reset."""

    bound = None

    def __init__(self) -> None:
        self._given = False
        self._taken = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._given:
            self._given = True
            return b"x"
        await self._taken.wait()
        raise trio.BrokenResourceError from RemoteStreamError(Code.RESET, "reset")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._taken.set()
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        await self.send_all(data)

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        pass

    def reset(self, code: Code) -> None:
        pass


async def test_who_floods_is_not_read_at_full_speed_after_a_reset() -> None:
    sent = 0

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal sent
        try:
            while True:
                await stream.send_all(bytes(65_536))
                sent += 65_536
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = listener.socket.getsockname()
        nursery.start_soon(trio.serve_listeners, flood, [listener])
        local = await trio.open_tcp_stream(*address)
        result = await relay(local, ResetAfterOneByte())
        nursery.cancel_scope.cancel()
    assert result.code is Code.RESET
    # A hundred reads in the second of grace, and what two kernels hold.
    assert sent < 32_000_000
