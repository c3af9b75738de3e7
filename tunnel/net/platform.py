"""What one operating system can do and another cannot.

Each function here has one meaning everywhere. Where a system cannot tell or cannot do
it, its docstring says what happens instead.
"""

from __future__ import annotations

import socket
import sys

if sys.platform != "win32":
    import fcntl
    import termios
from typing import Final

_CLOSED: Final = 7  # of Linux's TCP states


def is_closed(sock: socket.socket) -> bool:
    """Say whether the kernel has closed a TCP connection; False where it cannot say."""
    if sys.platform != "linux":
        return False
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:  # not TCP
        return False
    return state[0] == _CLOSED


def unsent_bytes(sock: socket.socket) -> int:
    """Return how many bytes the other kernel has not acknowledged; 0 if not known."""
    if sys.platform == "win32":
        return 0
    # TIOCOUTQ has the number of SIOCOUTQ; the module knows only the former.
    return _queued_bytes(sock, termios.TIOCOUTQ)


def unread_bytes(sock: socket.socket) -> int:
    """Return how many bytes wait to be read; 0 if not known."""
    if sys.platform == "win32":
        return 0
    return _queued_bytes(sock, termios.FIONREAD)


if sys.platform != "win32":

    def _queued_bytes(sock: socket.socket, which: int) -> int:
        try:
            answer = fcntl.ioctl(sock, which, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(answer, sys.byteorder)
