"""Datagrams that wait, in bounded queues that drop the oldest (protocol.md#datagrams).

For both directions: what an association has to send, and what came and is not read.
A late datagram is worth less than a new one, so one that does not fit pushes the oldest
of its own association out, and that is counted.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from tunnel.proto.pools import DATAGRAM_LIMIT_BYTES, Room

ASSOCIATION_BYTES: Final = 262_144
"""What one association may have waiting, each way: four of the largest datagrams, or a
fifth of a second at 10 Mbit/s. More would only make all of them late."""
SESSION_BYTES: Final = 16_777_216
"""The same for all associations of a session: else 16,384 of them could hold 4 GiB."""
OBJECT_BYTES: Final = 128
"""What a datagram costs besides its bytes; without it empty ones would be free."""
DATAGRAM_TURN_BYTES: Final = 65_536
"""Datagrams that go in front of one turn of DATA: half as much as that, so that a flood
of them leaves the virtual TCP connections two thirds of the line."""

_T = TypeVar("_T")


class DatagramRoom:
    """What all queues of a session, in one direction, may hold together.

    Beside ``limit_bytes`` stands the bound of all sessions, that of the ``process``.
    """

    __slots__ = ("_limit", "_process", "held_bytes")

    def __init__(
        self, limit_bytes: int = SESSION_BYTES, process: Room | None = None
    ) -> None:
        self.held_bytes = 0
        self._limit = limit_bytes
        self._process = process or Room(DATAGRAM_LIMIT_BYTES)

    def fits(self, cost: int) -> bool:
        """Say whether so many bytes more may be held."""
        held = self.held_bytes + cost
        return held <= self._limit and self._process.allows(held)

    def take(self, cost: int) -> None:
        """Count bytes that are held from now on, or given back if it is negative."""
        self.held_bytes += cost
        self._process.free_bytes -= cost


class DatagramQueue(Generic[_T]):
    """The datagrams of one association in one direction, oldest first."""

    __slots__ = (
        "_items",
        "_limit",
        "_room",
        "dropped",
        "held_bytes",
        "received_bytes",
        "sent_bytes",
    )

    def __init__(
        self, room: DatagramRoom, limit_bytes: int = ASSOCIATION_BYTES
    ) -> None:
        # A list, for few wait mostly, and an empty deque is 600 bytes of an idle flow.
        self._items: list[tuple[_T, int]] = []
        self._room = room
        self._limit = limit_bytes
        self.held_bytes = 0
        self.dropped = 0
        """Datagrams that were thrown away, for want of room or of a link."""
        self.sent_bytes = 0
        """Of the datagrams of its association that were not dropped at once."""
        self.received_bytes = 0
        """Of those that came the other way."""

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: _T, size: int) -> None:
        """Put a datagram of ``size`` bytes in; older ones make room for it."""
        cost = size + OBJECT_BYTES
        while not self._fits(cost):
            self.dropped += 1
            if not self._items:
                return
            self.pop()
        self._items.append((item, cost))
        self.held_bytes += cost
        self._room.take(cost)

    def pop(self) -> _T:
        """Take the oldest out; there must be one."""
        item, cost = self._items.pop(0)
        self.held_bytes -= cost
        self._room.take(-cost)
        return item

    def clear(self) -> None:
        """Throw away what waits, and count it."""
        while self._items:
            self.pop()
            self.dropped += 1

    def _fits(self, cost: int) -> bool:
        return self.held_bytes + cost <= self._limit and self._room.fits(cost)


class Outbox:
    """The associations of a session that have datagrams to send, as encoded frames."""

    __slots__ = ("room", "waiting")

    def __init__(self, process: Room | None = None) -> None:
        self.room = DatagramRoom(process=process)
        """Shared by the queues that are enlisted."""
        self.waiting: dict[DatagramQueue[bytes], None] = {}
        """Queues with something to send, in turn; to be looked at only."""

    def enlist(self, queue: DatagramQueue[bytes]) -> None:
        """Put a queue into the round: its association is accepted."""
        if queue:
            self.waiting[queue] = None

    def take(self, budget: int = DATAGRAM_TURN_BYTES) -> list[bytes]:
        """Return about ``budget`` bytes of frames, one of each association in turn."""
        frames: list[bytes] = []
        waiting = self.waiting
        while waiting and budget > 0:
            queue = next(iter(waiting))
            del waiting[queue]
            if queue:
                frames.append(queue.pop())
                budget -= len(frames[-1])
            if queue:
                waiting[queue] = None
        return frames

    def forget(self, queue: DatagramQueue[bytes]) -> None:
        """Throw away what one association has waiting: it has ended."""
        queue.clear()
        self.waiting.pop(queue, None)

    def clear(self) -> None:
        """Throw away everything, and count it: there is no link."""
        for queue in self.waiting:
            queue.clear()
        self.waiting.clear()
