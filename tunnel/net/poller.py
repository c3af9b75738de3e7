"""One task that reads many sockets, each when it has bytes and they have room.

A task for each socket would cost a turn of trio's loop and an ``epoll_ctl`` for each
piece that comes, as much as everything else that is done with a small piece; and what
several sockets bring at once would go to the link in as many writes. Here one turn
reads all sockets that are readable, and the link is written to once behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import Code, LocalLinkError
from tunnel.platform.sockets import HAS_EPOLL, READABLE, open_epoll

if TYPE_CHECKING:
    from collections.abc import Callable

TURN_SOCKETS: Final = 64
"""Read in one turn: with two chunks each, at most 16 MiB between two checkpoints."""


class Poller:
    """Calls back when sockets become readable, for as long as they are.

    It has an epoll of its own, which trio waits for: so trio can wait for the same
    socket in the other direction. Where there is no epoll, it does nothing, and
    ``VirtualStream.carry`` asks nothing of it.

    Args:
        turn: is given the readable descriptors of a turn, with what epoll says of each,
            and calls ``call`` for each.

    Raises:
        LocalLinkError: ``LINK_LOST``: no descriptor is free.
    """

    def __init__(self, turn: Callable[[list[tuple[int, int]]], None]) -> None:
        try:
            self._epoll = open_epoll() if HAS_EPOLL else None
        except OSError as error:
            why = f"no descriptor for a session: {error.strerror}"
            raise LocalLinkError(Code.LINK_LOST, why) from error
        self._calls: dict[int, Callable[[], None]] = {}
        self._turn = turn
        self._scope = trio.CancelScope()

    def watch(self, number: int, call: Callable[[], None]) -> None:
        """Call ``call`` in each turn in which this descriptor is readable.

        It must neither wait nor raise. ``forget`` comes before the descriptor's close.
        """
        if self._epoll is not None:
            self._epoll.register(number, READABLE)
            self._calls[number] = call

    def forget(self, number: int) -> None:
        """Call no more for this descriptor, not even in this turn."""
        if self._calls.pop(number, None) is not None and self._epoll is not None:
            self._epoll.unregister(number)

    async def run(self) -> None:
        """Serve until ``close``."""
        with self._scope:
            # ``close`` may come before the first step, and between a wait and its turn.
            while (epoll := self._epoll) is not None:
                await trio.lowlevel.wait_readable(epoll.fileno())
                if self._epoll is not None:
                    self._turn(epoll.poll(0, TURN_SOCKETS))

    def call(self, number: int) -> None:
        """Call what watches this descriptor, unless it was forgotten meanwhile."""
        call = self._calls.get(number)
        if call is not None:
            call()

    def close(self) -> None:
        """Call nothing any more, and close the epoll; harmless when repeated."""
        self._scope.cancel()
        self._calls.clear()
        self._turn = lambda _ready: None  # or a cycle is left to the collector
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            trio.lowlevel.notify_closing(epoll.fileno())
            epoll.close()
