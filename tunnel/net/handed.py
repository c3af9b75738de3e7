"""Connections that another process has accepted, as a listener gives them."""

from __future__ import annotations

from collections import deque

import trio

from tunnel.net.notify import Notify
from tunnel.net.sockets import FastSocket


class Handed(trio.abc.Listener[FastSocket]):
    """Connections that another process of this server has accepted, and hands over."""

    def __init__(self) -> None:
        self._came: deque[FastSocket] = deque()
        self._news = Notify()
        self._closed = False

    def give(self, stream: FastSocket) -> None:
        """Have one accepted next; it is reset where nothing is accepted any more."""
        if self._closed:
            stream.reset()
            return
        self._came.append(stream)
        self._news.ring()

    async def accept(self) -> FastSocket:
        """Return the next one; ClosedResourceError: there will be none."""
        while not self._came:
            if self._closed:
                raise trio.ClosedResourceError
            await self._news.wait()
        return self._came.popleft()

    def finish(self) -> None:
        """Take none any more; who has come is accepted still. Without a checkpoint."""
        self._closed = True
        self._news.ring()

    def close(self) -> None:
        """Take none any more, without a checkpoint."""
        self._closed = True
        while self._came:
            self._came.popleft().reset()
        self._news.ring()

    async def aclose(self) -> None:
        """Take none any more."""
        self.close()
        await trio.lowlevel.checkpoint()
