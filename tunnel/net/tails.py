"""The tails of connections that have ended, while their readers pause.

A socket that is closed with bytes unsent is the kernel's alone. Linux asks its reader
for room until the time between two questions has grown to the longest that it may be,
and then throws the bytes away. Where the kernel was told to ask often, that is soon; so
such a socket is kept until its reader has everything, or has vanished.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Final

from tunnel.platform.sockets import unsent_bytes

TAILS_PART: Final = 1 / 16
"""Of all descriptors, for tails: one more, and the oldest is left to the kernel."""
MOST_TAILS: Final = 1_024

_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Tails:
    """Sockets whose sending direction has ended, and which nobody reads here."""

    def __init__(self) -> None:
        self.kept: dict[socket.socket, None] = {}
        """In the order in which they came."""
        self.most = MOST_TAILS
        """So many are kept; set by whoever looks at them."""

    def keep(self, sock: socket.socket) -> None:
        """Take over a socket, and close it when its reader has everything.

        Args:
            sock: its close is a clean one, and its sending direction ends here. It is
                closed at once if nothing is unsent.
        """
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        if not unsent_bytes(sock.fileno()):
            return sock.close()
        while len(self.kept) >= self.most:
            self.let_go(next(iter(self.kept)))
        self.kept[sock] = None

    def let_go(self, sock: socket.socket, *, reset: bool = False) -> None:
        """Close one; what is unsent is lost with ``reset``, or else the kernel's."""
        del self.kept[sock]
        if reset:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        sock.close()


TAILS: Final = Tails()
"""Of this process."""
