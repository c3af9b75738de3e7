"""A connection of this machine in the place of a virtual TCP connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.center.exit.tcp import bound_address
from tunnel.errors import Code
from tunnel.net.descriptors import TARGETS
from tunnel.net.sockets import CHUNK_BYTES, FastSocket, tune_local

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.net.virtual_connection import LocalEnd


class DirectStream(FastSocket):
    """A connection of this machine in the place of a virtual TCP connection.

    So that what a front end serves here can also leave here. Owns the socket.
    """

    __slots__ = ("bound",)

    def __init__(self, sock: socket.socket) -> None:
        tune_local(sock)
        super().__init__(sock)
        self.bound = bound_address(sock)
        TARGETS.add(self, 0)

    async def receive_piece(self) -> bytes:
        """Wait for bytes; nothing at the end."""
        return await self.receive_some(CHUNK_BYTES)

    async def wait_room(self) -> int:
        """Say that a read's worth can be sent: how much, only the kernel knows."""
        return CHUNK_BYTES

    def carry(self, local: LocalEnd, idle_s: float, *, ready: bool = False) -> None:
        """Carry nothing: the caller has to read and write."""
        del local, idle_s, ready

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: the kernel tells only a task that reads or writes."""

    def close(self) -> None:
        """Close the socket without a checkpoint; it is no target any more."""
        TARGETS.left(self)
        super().close()

    def reset(self, code: Code = Code.RESET) -> None:
        """Close with a RST; there is no peer to be told the code."""
        del code
        TARGETS.left(self)
        super().reset()
