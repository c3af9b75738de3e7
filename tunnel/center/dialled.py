"""A connection of this machine in the place of a virtual one.

So that what is served here, by a front end, can also leave here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.center.exit import bound_address
from tunnel.link.relay import reset_now
from tunnel.link.sockets import CHUNK_BYTES, QuickSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from tunnel.errors import Code
    from tunnel.link.virtual import Local


class Dialled:
    """A socket with the words of a virtual TCP connection.

    Args:
        stream: connected; closed with this.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.bound = bound_address(stream)
        self._stream = stream
        self._bytes = QuickSocket(stream)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See ``trio.SocketStream``; the same for what follows."""
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Return when the kernel has taken the data."""
        await self._stream.send_all(data)

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        """Do the same; no checkpoint when the kernel takes it at once."""
        await self._bytes.send_all(data)

    def finish(self) -> None:
        """End our direction."""
        self._bytes.finish()

    def carry(self, local: Local, idle_s: float, *, ready: bool = False) -> None:
        """Say no: nobody carries for this one."""
        del local, idle_s, ready

    async def aclose(self) -> None:
        """End both directions."""
        await self._stream.aclose()

    async def receive_piece(self) -> bytes | bytearray:
        """Wait for bytes."""
        return await self._bytes.receive_some(CHUNK_BYTES)

    def close(self) -> None:
        """End both directions without a checkpoint."""
        self._stream.socket.close()

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: the kernel tells only who reads or writes."""

    def reset(self, code: Code) -> None:
        """Close with a RST."""
        del code
        reset_now(self._stream)
