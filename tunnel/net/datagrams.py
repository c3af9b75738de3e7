"""UDP sockets: many datagrams are read in a turn, and no write waits.

A wait for each datagram costs more than the datagram: two turns of trio's loop and two
``epoll_ctl``. What the kernel has no room for at once is lost, as UDP may lose it.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DATAGRAM_BYTES: Final = 65_535
"""More than UDP can carry: nothing is ever cut short."""
TURN_DATAGRAMS: Final = 32
"""Read from one socket in one turn, which takes about 0.3 ms."""
TURN_BYTES: Final = 65_536
"""The same in bytes: what one turn of the link takes. More would push out, in a queue
of 256 KiB, what was read just before."""
ROOM_BYTES: Final = 4 * 1024 * 1024
"""Asked of the kernel each way: a burst of a thousand datagrams waits there while other
tasks have their turn, or the network does. The kernel may give less."""

Source = tuple[str, int]
"""Where a datagram came from, as ``sendto`` takes it; more may follow for IPv6."""


class DatagramSocket(socket.socket):
    """A UDP socket that does not block, and tells trio when it is closed."""

    __slots__ = ()

    @classmethod
    def of(cls, sock: socket.socket) -> DatagramSocket:
        """Take a socket over."""
        made = cls(sock.family, sock.type, sock.proto, sock.detach())
        made.setblocking(False)
        return made

    def close(self) -> None:
        """Close it: ``when_readable`` ends; harmless when repeated."""
        if self.fileno() >= 0:
            trio.lowlevel.notify_closing(self)
        super().close()


def make_room(sock: socket.socket) -> None:
    """Ask the kernel for room, each way."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM_BYTES)


async def when_readable(sock: DatagramSocket, turn: Callable[[], None]) -> None:
    """Call ``turn`` whenever there is something to read, until ``sock`` is closed."""
    while sock.fileno() >= 0:
        try:
            await trio.lowlevel.wait_readable(sock)
        except trio.ClosedResourceError:
            return
        turn()


def read_turn(
    sock: DatagramSocket,
    take: Callable[[bytes, Source], None],
    failed: Callable[[], None] | None = None,
) -> None:
    """Give ``take`` what has come, at most a turn of it.

    ``failed`` is called for what an earlier datagram met: nobody listens there.
    """
    receive, room = sock.recvfrom, TURN_BYTES
    for _ in range(TURN_DATAGRAMS):
        try:
            payload, source = receive(MAX_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError:
            if sock.fileno() < 0:
                return  # ``take`` has closed it
            if failed is not None:
                failed()
            continue
        take(payload, source)
        room -= len(payload)
        if room <= 0:
            return
