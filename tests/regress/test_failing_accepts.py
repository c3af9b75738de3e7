"""Visitors who had gone before they were accepted stopped everybody else."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import trio

from tunnel.center.exit.bind import _expected_one
from tunnel.net.listen import PortListener, open_listener, serve

if TYPE_CHECKING:
    from tunnel.addresses import Address


class Aborting:
    """A socket whose first visitors have gone when they are accepted."""

    def __init__(self, listener: PortListener, number: int, times: int) -> None:
        self._plain = listener._plain
        self._number = number
        self.left = times

    def fileno(self) -> int:
        return self._plain.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if self.left:
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number))
        return self._plain.accept()


async def test_accepts_that_fail_leave_the_others_their_turns() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    aborting = Aborting(listener, errno.EPERM, 20_000)
    listener._plain = aborting  # type: ignore[assignment]

    async def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> None:
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, [listener], handle)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        left = aborting.left
        nursery.cancel_scope.cancel()
    assert left > 10_000


async def test_a_bind_outlives_a_visitor_who_hung_up() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    where = listener.socket.getsockname()
    aborting = Aborting(listener, errno.ECONNABORTED, 1)
    listener._plain = aborting  # type: ignore[assignment]
    with trio.fail_after(10), listener.socket, socket.create_connection(where):
        local, _peer = await _expected_one(listener, None, lambda _ip, _port: True)
        await local.aclose()
    assert aborting.left == 0
