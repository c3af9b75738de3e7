"""A reset made the relay read a flooding local side at full speed for a second."""

from __future__ import annotations

import trio
from support.virtuals import ScriptedVirtual

from tunnel.errors import Code
from tunnel.net.relay import relay


class ResetAtTheFirstChunk(ScriptedVirtual):
    """A virtual TCP connection that gives one byte, takes a chunk, and is reset."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self.sent:
            self.say.send_nowait(Code.RESET)
        await super().send_all(data)


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
        virtual = ResetAtTheFirstChunk()
        virtual.say.send_nowait(b"x")
        result = await relay(local, virtual)
        nursery.cancel_scope.cancel()
    assert result.code is Code.RESET
    # A hundred reads in the second of grace, and what two kernels hold.
    assert sent < 32_000_000
