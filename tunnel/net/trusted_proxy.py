"""The PROXY header at the start of a trusted proxy's connection.

The header is peeked at until its end is known. Then exactly its bytes are read: what
follows is left for the code that serves the connection, TLS or not.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.net.proxy_protocol import MAX_HEADER_BYTES, read_proxy_header

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.net.sockets import FastSocket

FIRST_S: Final = 0.5
"""How long a first byte may take. A proxy that sends the header does so at once. Behind
one that sends none, a visitor whose server speaks first waits so long for nothing."""
HEADER_S: Final = 3.0
"""How long the rest of a header may take."""


async def vouched_peer(stream: FastSocket, peer: Address) -> Address:
    """Return the visitor that the header names; the peer if there is no header.

    Args:
        stream: a trusted proxy's; nothing was read from it yet.
        peer: the address of that proxy.

    Raises:
        ValueError: the header is broken, never ends, or the proxy has left within it.
    """
    sock = stream.socket
    seen = 0
    try:
        with trio.move_on_after(FIRST_S) as patience:
            while True:
                await trio.lowlevel.wait_readable(sock)
                data = sock.recv(MAX_HEADER_BYTES, socket.MSG_PEEK)
                header = read_proxy_header(data)
                if header is not None:
                    if header.size:
                        sock.recv(header.size)
                    return header.visitor or peer
                if len(data) == seen:
                    break
                if not seen:
                    patience.deadline += HEADER_S
                seen = len(data)
                # Without it the bytes that are there would end each wait at once.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
    except OSError as error:
        raise ValueError(error.strerror) from error
    finally:
        if seen:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    if seen:
        raise ValueError("it ended within its header, or took too long for it")
    return peer
