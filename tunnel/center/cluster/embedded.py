"""The directory of a node that has the store in its own process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tunnel.center.cluster.feed import Feed

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from tunnel.center.cluster.directory import Change, Claim
    from tunnel.center.cluster.store import Store


class EmbeddedDirectory:
    """A ``Directory`` over a ``Store``. A call that is cancelled has done nothing.

    Args:
        store: shared with the other nodes.
        name: this node's, another after each start.
        address: where its peers reach it; empty on one machine.
        connect: see ``Directory.connect``; None: nodes are dialled.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        address: str = "",
        connect: Callable[[str], socket.socket] | None = None,
    ) -> None:
        self.name = name
        self._store = store
        self._address = address
        self._connect = connect
        self._feed = Feed()

    @property
    def nodes(self) -> Mapping[str, str]:
        """The nodes that live, this one among them: name and address."""
        return {self.name: self._address} | self._store.nodes

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be a node of the store until cancelled; what it had goes with it."""
        self._store.enter(self.name, self._address, self._feed.tell)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._store.leave(self.name)

    async def look_up(self, keys: Iterable[str]) -> dict[str, Claim]:
        """Return the claims on these keys, as they are now."""
        await self._ask()
        return self._store.look_up(keys)

    async def claim(
        self,
        member: str,
        says: Mapping[str, bytes],
        seen: Mapping[str, int],
        without: Iterable[str] = (),
    ) -> dict[str, Claim]:
        """Do as ``Directory.claim`` says."""
        await self._ask()
        return self._store.claim(member, says, seen, without)

    async def release(self, member: str, keys: Iterable[str]) -> None:
        """Take a member out of these claims; harmless where it is in none."""
        await self._ask()
        self._store.release(member, keys)

    async def remember(self, key: str, value: bytes) -> None:
        """Keep something small that outlives its node; may be lost."""
        await self._ask()
        self._store.remember(key, value)

    async def recall(self, key: str) -> bytes:
        """Return what was remembered last; empty if nothing is."""
        await self._ask()
        return self._store.recall(key)

    async def tell(self, key: str, value: bytes) -> None:
        """Say something to all nodes."""
        await self._ask()
        self._store.tell(self.name, key, value)

    async def connect(self, node: str) -> socket.socket | None:
        """Return a socket whose other end a node of this machine serves."""
        await trio.lowlevel.checkpoint()
        return None if self._connect is None else self._connect(node)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[list[Change]]]:
        """Hear of every change from now on, in order, those of this node included."""
        with self._feed.listen() as listener:
            yield listener

    async def _ask(self) -> None:
        """Do before each call what a test may want to watch."""
        await trio.lowlevel.checkpoint()
