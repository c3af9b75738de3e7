"""Credit for the two directions of a virtual TCP connection (protocol.md#credit).

A sender may not put a byte on the link before the receiver has promised room for it;
that is the whole reason why one slow reader cannot stop the others. Offsets are
absolute: a grant that arrives twice changes nothing.

This module knows numbers only. It never sees bytes, frames or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from tunnel.proto.window_tuner import Budget

HELD_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""What one process holds at most for readers that do not read (protocol.md#limits)."""


@dataclass(slots=True)
class SendWindow:
    """How far we may send, and how far we have promised to ourselves to send."""

    limit: int
    taken: int = 0

    def room(self) -> int:
        """Bytes that may still be queued."""
        return self.limit - self.taken

    def take(self, size: int) -> None:
        """Use ``size`` bytes of the room; the caller has asked for the room before."""
        self.taken += size

    def raise_to(self, limit: int) -> bool:
        """Take a grant; False when it is no higher than what is known."""
        if limit <= self.limit:
            return False
        self.limit = limit
        return True


@dataclass(slots=True)
class RecvWindow:
    """What we have promised to store, and how much of it is used.

    ``consumed`` moves when the *application* has taken bytes, not when they arrive;
    granting on arrival would promise the same memory twice.
    """

    size: int
    limit: int
    received: int = 0
    consumed: int = 0

    def fits(self, size: int) -> bool:
        """Say whether the peer may send ``size`` bytes more."""
        return self.received + size <= self.limit

    def charge(self, size: int) -> None:
        """Count bytes that arrived; the caller has asked ``fits``."""
        self.received += size

    def consume(self, size: int) -> bool:
        """Count bytes that the application took; True when a grant is due.

        A grant is due when it gives half a window at once: fewer would cost a frame
        for little, a whole window would let the sender run dry.
        """
        self.consumed += size
        return 2 * (self.consumed + self.size - self.limit) >= self.size

    def keeps_up(self) -> bool:
        """Say whether the application has taken most of what came."""
        return 2 * (self.received - self.consumed) <= self.size

    def grant(self) -> int:
        """Raise the promise to what may be promised now, and give the new limit."""
        self.limit = max(self.limit, self.consumed + self.size)
        return self.limit


class Evictable(Protocol):
    """A virtual TCP connection that can be given up to save memory."""

    held_bytes: int

    def evict(self) -> None:
        """Reset it with RESOURCE and forget what it holds."""


_Held = TypeVar("_Held", bound=Evictable)


class HeldPool(Generic[_Held]):
    """Bytes that all sessions of a process hold for readers, under one bound.

    Windows alone do not bound a process: ten thousand stalled readers may each hold
    theirs. Above the bound the reader that has taken nothing for longest is given up.
    """

    def __init__(self, limit_bytes: int = HELD_LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.growth = Budget()
        """What windows have grown by."""
        self.held_bytes = 0
        # Insertion order is the order of last progress: the first is the most stalled.
        self._holders: dict[_Held, None] = {}

    def is_scarce(self) -> bool:
        """Say whether so much is held that no window should grow."""
        return 4 * self.held_bytes > self.limit_bytes

    def hold(self, holder: _Held, size: int) -> None:
        """Count bytes that arrived for ``holder``; may evict it or another."""
        if not holder.held_bytes:
            self._holders[holder] = None
        holder.held_bytes += size
        self.held_bytes += size
        while self.held_bytes > self.limit_bytes:
            victim = next(iter(self._holders))
            self.forget(victim)
            victim.evict()

    def release(self, holder: _Held, size: int) -> None:
        """Count bytes that ``holder``'s reader took: it is the least stalled now."""
        if holder not in self._holders:
            return
        del self._holders[holder]
        size = min(size, holder.held_bytes)
        holder.held_bytes -= size
        self.held_bytes -= size
        if holder.held_bytes:
            self._holders[holder] = None

    def forget(self, holder: _Held) -> None:
        """Take out all that is held for ``holder``: it has ended."""
        self.held_bytes -= holder.held_bytes
        holder.held_bytes = 0
        self._holders.pop(holder, None)
