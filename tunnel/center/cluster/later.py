"""What a node tells the directory soon, and waits for nothing: what it has no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.directory import DirectoryAwayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tunnel.center.cluster.directory import Directory

LEFT: Final = "left"
MOST_LEFT: Final = 10_000
"""Names of which a node says so: the one that was left longest ago is forgotten."""
PAUSE_S: Final = 1.0
"""After a directory that does not answer."""


def is_left(member: str) -> bool:
    """Say whether a member says only that clients of its node have left the name."""
    return member.endswith(f"/{LEFT}")


class Later:
    """What is to be told, in this order: who left, what to remember, what is released.

    Args:
        directory: is told.
        is_below: whether somebody is below the domain of a key again.
    """

    def __init__(self, directory: Directory, is_below: Callable[[str], bool]) -> None:
        self._directory = directory
        self._is_below = is_below
        self._me = f"{directory.name}/{LEFT}"
        self._left: dict[str, None] = {}
        """Keys whose client was here and has left."""
        self._leaving: dict[str, None] = {}
        """Those of them of which nobody was told."""
        self._memories: dict[str, bytes] = {}
        self._releases: dict[str, set[str]] = {}
        self._has_news = trio.Event()

    def leave(self, keys: Iterable[str]) -> None:
        """Tell that these keys have no client here any more.

        Their visitors hear then that it is not connected, and not that there is none.
        """
        for key in keys:
            self._left.pop(key, None)
            self._left[key] = self._leaving[key] = None
        while len(self._left) > MOST_LEFT:
            oldest = next(iter(self._left))
            del self._left[oldest]
            self._leaving.pop(oldest, None)
            self.release(self._me, (oldest,))
        self._has_news.set()

    def release(self, member: str, keys: Iterable[str]) -> None:
        """Take a member out of claims."""
        self._releases.setdefault(member, set()).update(keys)
        self._has_news.set()

    def remember(self, key: str, value: bytes) -> None:
        """Have something small outlive this node."""
        self._memories[key] = value
        self._has_news.set()

    def recall(self, key: str) -> Awaitable[bytes]:
        """Return what some node had remembered; empty for nothing.

        Awaited, it raises DirectoryAwayError.
        """
        return self._directory.recall(key)

    async def run(self) -> None:
        """Tell it, until cancelled."""
        while True:
            await self._has_news.wait()
            self._has_news = trio.Event()
            while self._leaving or self._memories or self._releases:
                try:
                    await self._tell_who_left()
                    await self._tell_memories()
                    await self._tell_a_release()
                except DirectoryAwayError:
                    await trio.sleep(PAUSE_S)

    async def _tell_who_left(self) -> None:
        if keys := tuple(self._leaving):
            await self._directory.claim(self._me, dict.fromkeys(keys, b""), {})
            for key in keys:
                self._leaving.pop(key, None)

    async def _tell_memories(self) -> None:
        for key, value in tuple(self._memories.items()):
            await self._directory.remember(key, value)
            if self._memories.get(key) is value:
                del self._memories[key]

    async def _tell_a_release(self) -> None:
        if not self._releases:
            return
        member = next(iter(self._releases))
        keys = self._releases.pop(member)
        # Meanwhile there may be something again.
        keys = {key for key in keys if not self._is_below(key)}
        if member == self._me:
            keys -= self._left.keys()
        try:
            await self._directory.release(member, keys)
        except DirectoryAwayError:
            self._releases.setdefault(member, set()).update(keys)
            raise
