"""Have the kernel ask silent peers for signs of life."""

from __future__ import annotations

import socket
from typing import Final

from tunnel.net.timeouts import TIMEOUTS
from tunnel.platform.sockets import KEEPALIVE_AFTER, KEEPALIVE_EVERY

ASKED_AFTER: Final = 0.4
"""Of ``dead_after_s``: the kernel asks who was silent for so long (60 s) …"""
ASKED_EVERY: Final = 0.1
"""… and again after this (15 s): seven times before it counts as dead. How often in
all is left to the kernel, for each option costs a connect 1 µs: Linux ends it by itself
after nine, Darwin after eight, which is all there is where no look is possible."""


def ask_when_silent(sock: socket.socket) -> None:
    """Have the kernel ask for signs of life; who is accepted from it, inherits that.

    Raises:
        OSError: not TCP.
    """
    dead_after_s = TIMEOUTS.get().dead_after_s
    if KEEPALIVE_AFTER:
        after_s = int(dead_after_s * ASKED_AFTER)
        sock.setsockopt(socket.IPPROTO_TCP, KEEPALIVE_AFTER, after_s)
    if KEEPALIVE_EVERY:
        every_s = int(dead_after_s * ASKED_EVERY) or 1
        sock.setsockopt(socket.IPPROTO_TCP, KEEPALIVE_EVERY, every_s)
    # At last: with it each of the others would start the kernel's clock anew.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
