"""A connection of this machine in the place of a virtual one.

So that what is served here, by a front end, can also leave here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.center.exit.tcp import bound_address
from tunnel.net.descriptors import TARGETS
from tunnel.net.sockets import CHUNK_BYTES, FastSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.errors import Code
    from tunnel.net.virtual_connection import LocalEnd


class DirectStream:
    """A socket with the words of a virtual TCP connection.

    Args:
        sock: connected; closed with this.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._local = FastSocket.dialled(sock)
        self.bound = bound_address(self._local)
        TARGETS.dialled(self._local)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See ``FastSocket``; the same for what follows."""
        return await self._local.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Return when the kernel has taken the data."""
        await self._local.send_all(data)

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        """Do the same; no checkpoint when the kernel takes it at once."""
        await self._local.put(data)

    def finish(self) -> None:
        """End our direction."""
        self._local.finish()

    def carry(self, local: LocalEnd, idle_s: float, *, ready: bool = False) -> None:
        """Say no: nobody carries for this one."""
        del local, idle_s, ready

    async def aclose(self) -> None:
        """End both directions."""
        TARGETS.left(self._local)
        await self._local.aclose()

    async def receive_piece(self) -> bytes | bytearray:
        """Wait for bytes."""
        return await self._local.receive_some(CHUNK_BYTES)

    def close(self) -> None:
        """End both directions without a checkpoint."""
        TARGETS.left(self._local)
        self._local.close()

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: the kernel tells only who reads or writes."""

    def reset(self, code: Code) -> None:
        """Close with a RST."""
        del code
        TARGETS.left(self._local)
        self._local.reset()
