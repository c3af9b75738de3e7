"""What has changed, passed on to whoever listens on this node."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tunnel.net.notify import Notify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.center.cluster.directory import Change

MAX_WAITING: Final = 20_000
"""Changes that wait for one listener: above that it is told that it has missed some."""


class Listener:
    """Gives what has changed since the last time, all at once. For one task.

    Cancelled, it has lost nothing.
    """

    def __init__(self) -> None:
        self._waiting: list[Change] = []
        self._missed = False
        self._news = Notify()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> list[Change]:
        while not (self._missed or self._waiting):
            await self._news.wait()
        if self._missed:
            self._missed = False
            return []
        changes, self._waiting = self._waiting, []
        return changes

    def tell(self, changes: list[Change]) -> None:
        """Keep these until the listener asks; nothing: some may have been missed."""
        self._waiting += changes
        if not changes or len(self._waiting) > MAX_WAITING:
            self._missed = True
            self._waiting.clear()
        self._news.ring()


class Feed:
    """Who listens on this node."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def tell(self, changes: list[Change]) -> None:
        """Tell everybody; an empty list says that some may have been missed."""
        for listener in self._listeners:
            listener.tell(changes)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Have one more that hears of all from now on."""
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
