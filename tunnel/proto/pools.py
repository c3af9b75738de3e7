"""What all sessions of a process hold together (protocol.md#credit, "Bounds").

Each session has its bounds; those of thousands of sessions add up to more than a
machine has. So beside them stands one bound of the process for each kind of bytes. A
session may have a quarter of what is still free: one that stalls alone gets a fifth of
the whole; the more stall, the less each gets, and one that moves always finds room.
"""

from __future__ import annotations

from typing import Final, Protocol

UNSENT_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""What was read from local sockets and waits for links: a stalled client's visitors get
13 MB, which a gigabit carries in a tenth of a second."""
KEPT_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""What links have and have not confirmed: all of what 12 sessions may keep."""
CONTROL_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""Control frames that wait: all of what 12 sessions may have."""
DATAGRAM_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""Datagrams that wait, each way: they only get late."""
SHARE: Final = 4
"""A session may have a quarter of what is free."""
LEAST_BYTES: Final = 65_536
"""What a session may have however little is free: it would not move else. A thousand of
them are another 64 MB."""
HELD_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""What one process holds at most for readers that do not read (protocol.md#limits)."""
PROCESS_GROWTH_BYTES: Final = 256 * 1024 * 1024
"""What the windows of one process may have grown by: four greedy sessions."""


class Room:
    """Bytes of one kind, of all sessions of a process.

    To take bytes or give them back, change ``free_bytes``, at each piece.
    """

    __slots__ = ("free_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.free_bytes = limit_bytes

    @property
    def taken_bytes(self) -> int:
        """Bytes that all sessions have together."""
        return self.limit_bytes - self.free_bytes

    def allows(self, size: int) -> bool:
        """Say whether a session may have ``size`` bytes, those that it has included."""
        return size <= LEAST_BYTES or SHARE * size <= self.free_bytes


class Evictable(Protocol):
    """A virtual TCP connection that can be given up to save memory."""

    held_bytes: int

    def evict(self) -> None:
        """Reset it with RESOURCE and forget what it holds."""


class HeldPool:
    """Bytes that all sessions of a process hold for readers, under one bound.

    Windows alone do not bound a process: ten thousand stalled readers may each hold
    theirs. Above the bound the reader that has taken nothing for longest is given up.
    """

    def __init__(
        self,
        limit_bytes: int = HELD_LIMIT_BYTES,
        growth_limit_bytes: int = PROCESS_GROWTH_BYTES,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.growth_limit_bytes = growth_limit_bytes
        self.grown_bytes = 0
        """What all windows together have grown by."""
        self.held_bytes = 0
        # Insertion order is the order of last progress: the first is the most stalled.
        self._holders: dict[Evictable, None] = {}

    def hold(self, holder: Evictable, size: int) -> None:
        """Count bytes that arrived for ``holder``; may evict it or another."""
        if not holder.held_bytes:
            self._holders[holder] = None
        holder.held_bytes += size
        self.held_bytes += size
        while self.held_bytes > self.limit_bytes:
            victim = next(iter(self._holders))
            self.forget(victim)
            victim.evict()

    def release(self, holder: Evictable, size: int) -> None:
        """Count bytes that ``holder``'s reader took: it is the least stalled now."""
        if holder not in self._holders:
            return
        del self._holders[holder]
        size = min(size, holder.held_bytes)
        holder.held_bytes -= size
        self.held_bytes -= size
        if holder.held_bytes:
            self._holders[holder] = None

    def forget(self, holder: Evictable) -> None:
        """Take out all that is held for ``holder``: it has ended."""
        self.held_bytes -= holder.held_bytes
        holder.held_bytes = 0
        self._holders.pop(holder, None)


class Pools:
    """Everything that the sessions of a process share; each session is given it."""

    def __init__(
        self,
        held: HeldPool | None = None,
        unsent_bytes: int = UNSENT_LIMIT_BYTES,
        kept_bytes: int = KEPT_LIMIT_BYTES,
    ) -> None:
        self.held = held or HeldPool()
        """Received, and not taken by a reader."""
        self.unsent = Room(unsent_bytes)
        self.kept = Room(kept_bytes)
        self.control = Room(CONTROL_LIMIT_BYTES)
        self.datagrams_out = Room(DATAGRAM_LIMIT_BYTES)
        self.datagrams_in = Room(DATAGRAM_LIMIT_BYTES)
