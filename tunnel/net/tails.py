"""The tails of connections that have ended, while who shall read them pauses.

A socket that is closed with bytes unsent is the kernel's alone. Linux asks its reader
for room until the time between two questions has grown to the longest that it may be,
and then throws the bytes away. For who was made to be asked often that is soon; so such
a socket is kept until its reader has everything, or has vanished.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Final

from tunnel.net.descriptors import DESCRIPTORS
from tunnel.platform.sockets import unsent_bytes

TAILS_PART: Final = 1 / 16
"""Of all descriptors, for tails: one more, and the oldest is left to the kernel."""
MOST_TAILS: Final = 1_024

TAILS: Final[dict[socket.socket, None]] = {}
"""In the order in which they came: our direction has ended, and nobody reads them."""
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def keep_tail(sock: socket.socket) -> None:
    """Take over a socket, and close it when its reader has everything.

    Args:
        sock: its close is a clean one; ended here. Closed at once if nothing is unsent.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    if not unsent_bytes(sock.fileno()):
        return sock.close()
    while len(TAILS) >= DESCRIPTORS.share(TAILS_PART, MOST_TAILS):
        let_go(next(iter(TAILS)))
    TAILS[sock] = None


def let_go(sock: socket.socket, *, reset: bool = False) -> None:
    """Close it: what is unsent is lost with ``reset``, and else left to the kernel."""
    del TAILS[sock]
    if reset:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
    sock.close()
