"""A proxy into this client's network: its visitors come through a mapping.

The dialogue of the proxy runs here, at the client: the server carries bytes, and sees
neither the password nor what is asked for beyond what passes.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunnel.access.target import connect
from tunnel.center.exit import bound_address
from tunnel.errors import Code, LocalStreamError
from tunnel.front.proxy import handle_app
from tunnel.front.wayout import WayOut
from tunnel.link.sockets import quick
from tunnel.proto.frames import TcpTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from tunnel.access.networks import Networks
    from tunnel.front.users import ProxyUsers
    from tunnel.link.relay import ResettableStream
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Target

_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


async def serve_inward(
    stream: VirtualStream, networks: Networks, users: ProxyUsers | None
) -> None:
    """Serve one visitor of the proxy to its end; owns the stream.

    Args:
        stream: of a visitor whom nobody has answered.
        networks: where the visitor may be led.
        users: who may; None only where nobody but the server's own programs comes.
    """

    async def open_target(target: Target) -> ResettableStream:
        if not isinstance(target, TcpTarget):
            raise LocalStreamError(Code.UNSUPPORTED, f"{target} is not offered")
        return Dialled(await connect(target.address, allow=networks.allow))

    stream.accept()
    await handle_app(stream, WayOut(open_target), users=users)


class Dialled:
    """A TCP connection of this machine in the place of a virtual one.

    Args:
        stream: connected; closed with this.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.bound = bound_address(stream)
        self._stream = stream
        self._bytes = quick(stream)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See ``trio.SocketStream``; the same for what follows."""
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Return when the kernel has taken the data."""
        await self._stream.send_all(data)

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        """Do the same; no checkpoint when the kernel takes it at once."""
        await self._bytes.send_all(data)

    async def send_eof(self) -> None:
        """End our direction."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """End both directions."""
        await self._stream.aclose()

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: the kernel tells only who reads or writes."""

    def reset(self, code: Code) -> None:
        """Close with a RST."""
        del code
        with suppress(OSError):
            self._stream.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE
            )
        self._stream.socket.close()
