"""Descriptors between two processes, on sockets that wait: Unix."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOT_HERE: Final = "this operating system passes no descriptors"


def send_descriptors(
    sock: socket.socket, data: bytes, descriptors: Sequence[int]
) -> int:
    """Send bytes with descriptors beside the first; return how many bytes were taken.

    The descriptors stay open here. Raises OSError, on Windows always.
    """
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    else:
        return socket.send_fds(sock, [data], descriptors)


def receive_descriptors(
    sock: socket.socket, most: int, most_descriptors: int
) -> tuple[bytes, list[int]]:
    """Return bytes and the descriptors that came beside them, which children have not.

    Raises OSError, on Windows always.
    """
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    else:
        data, came, _flags, _from = socket.recv_fds(sock, most, most_descriptors)
        for number in came:
            os.set_inheritable(number, False)
        return data, list(came)
