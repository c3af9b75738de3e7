"""The PROXY header at the start of a trusted proxy's connection.

It is looked at without being taken, until its end is known: then exactly its bytes are
read, and what follows reaches whoever serves the connection, TLS or not.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.net.proxy_protocol import MAX_HEADER_BYTES, read_proxy_header

if TYPE_CHECKING:
    from tunnel.net.sockets import FastSocket
    from tunnel.proto.frames import Address

FIRST_S: Final = 0.5
"""For a first byte. A proxy that sends the header sends it at once; behind another,
the visitor may wait for the server to speak first, and waits so long for nothing."""
HEADER_S: Final = 3.0
"""For the rest of a header that has begun."""


async def vouched_peer(stream: FastSocket, peer: Address) -> Address:
    """Give who the visitor is, as the header says; the peer if there is no header.

    Args:
        stream: of a trusted proxy; not read by anybody yet.
        peer: that proxy.

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
                # Else the bytes that are there would end each wait at once.
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
