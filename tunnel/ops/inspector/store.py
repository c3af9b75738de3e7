"""The requests that were seen, within so many bytes: the oldest is forgotten."""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from tunnel.ops.inspector.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.addresses import Address

LIMIT_BYTES: Final = 67_108_864
"""Kept in all, where nothing else is said."""
MOVES_S: Final = 0.5
"""How often what only grows is said to have changed."""


class Store:
    """Records by number. Each change of one has a version, and nobody is waited for.

    Args:
        limit_bytes: of memory, the objects of Python too.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        self.version = 0
        self.began_at = round(time.time(), 3)
        """Seconds since 1970: numbers and versions are those of this store alone."""
        self.forgotten = 0
        self.first = 1
        """The number of the oldest that is kept, or of the next one."""
        self._last = 0
        self._kept: OrderedDict[int, Record] = OrderedDict()
        """In the order of their last change."""
        self._news: trio.Event | None = None

    def __iter__(self) -> Iterator[Record]:
        """Give all, the newest first; it may be changed meanwhile."""
        number = self._last
        while number >= self.first:
            if (record := self._kept.get(number)) is not None:
                yield record
            number -= 1

    def get(self, number: int) -> Record | None:
        """Return one; None if it is forgotten, or never was."""
        return self._kept.get(number)

    def add(
        self, entry: str, visitor: Address, head: bytes, replay_of: int | None = None
    ) -> Record:
        """Begin a record."""
        self._last += 1
        record = Record(self._last, entry, visitor, head, replay_of)
        self._kept[record.number] = record
        self.kept_bytes += record.cost
        self.touch(record)
        self._make_room()
        return record

    def grow(self, record: Record, size: int) -> None:
        """Note that a record takes so many bytes more."""
        if record.is_kept:
            record.cost += size
            self.kept_bytes += size
            if size > 0:
                self._make_room()

    def touch(self, record: Record) -> None:
        """Note that a record has changed."""
        if not record.is_kept:
            return
        self.version += 1
        record.version = self.version
        self._kept.move_to_end(record.number)
        if self._news is not None:
            self._news.set()
            self._news = None

    def moved(self, record: Record) -> None:
        """Note that a record has grown: a change, but not each time."""
        now = time.monotonic()
        if now - record.touched >= MOVES_S:
            record.touched = now
            self.touch(record)

    def changes(self, after: int, most: int) -> list[Record]:
        """Return what changed after a version, in that order; the first of these.

        After 0, which is before all, the last of these.
        """
        found: list[Record] = []
        for record in reversed(self._kept.values()):
            if record.version <= after:
                break
            found.append(record)
        found = list(islice(found, most)) if after <= 0 else found[-most:]
        return found[::-1]

    async def changed(self, after: int) -> None:
        """Return when something has changed after a version."""
        await trio.lowlevel.checkpoint()
        while self.version <= after:
            if self._news is None:
                self._news = trio.Event()
            await self._news.wait()

    def clear(self) -> None:
        """Forget all; what is under way is seen no more."""
        while self._kept:
            self._forget()
        self.first = self._last + 1
        self.version += 1
        if self._news is not None:
            self._news.set()
            self._news = None

    def _make_room(self) -> None:
        while self.kept_bytes > self.limit_bytes and self._kept:
            self._forget()

    def _forget(self) -> None:
        record = self._kept.pop(self.first)
        self.first += 1
        self.forgotten += 1
        self.kept_bytes -= record.cost
        record.is_kept = False
