"""BoundPort: a port at the far end that takes one connection (protocol.md#bind)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tunnel.addresses import NOWHERE, Address, read_address
from tunnel.errors import Code, LocalStreamError, StreamError

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream


class BoundPort:
    """Listens at the exit from the moment it is made; the owner closes it.

    Args:
        stream: opened for a ``BindTarget``, and accepted.
    """

    def __init__(self, stream: VirtualStream) -> None:
        self.address = stream.bound or NOWHERE
        """Where the exit listens: what the peer is told."""
        self._stream = stream
        self._taken = False

    async def accept(self) -> tuple[VirtualStream, Address]:
        """Wait for the peer; return its stream and where it comes from. Once.

        The caller closes the stream. Cancelled, the port is given up.

        Raises:
            StreamError: no peer can come any more; ``TIMEOUT`` when none has.
        """
        try:
            peer = await self._read_address()
        except trio.BrokenResourceError as error:
            if isinstance(error.__cause__, StreamError):
                raise error.__cause__.again() from None
            raise
        except BaseException:
            self._stream.reset(Code.RESET)
            raise
        self._taken = True
        return self._stream, peer

    async def aclose(self) -> None:
        """Stop listening; a stream that was accepted lives on."""
        if not self._taken:
            self._stream.reset(Code.RESET)
        await trio.lowlevel.checkpoint()

    async def _read_address(self) -> Address:
        """Read the address in front of the peer's bytes, and no byte more."""
        form = await self._read(1)
        if form not in (b"\1", b"\4"):
            raise LocalStreamError(Code.GENERAL, f"a peer with address form {form[0]}")
        rest = await self._read(6 if form == b"\1" else 18)
        host, port, _ = read_address(form + rest, 0)
        return Address(str(host), port)

    async def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = await self._stream.receive_some(size - len(found))
            if not piece:
                raise LocalStreamError(Code.GENERAL, "the exit ended without a peer")
            found += piece
        return found
