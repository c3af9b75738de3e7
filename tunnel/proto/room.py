"""Bytes of one kind that all sessions of a process hold together.

A session may have a quarter of what is still free: one that stalls alone gets a fifth
of the whole; the more stall, the less each gets, and who moves always finds room.
Knows numbers only.
"""

from __future__ import annotations

from typing import Final

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


class Room:
    """Bytes of one kind, of all sessions of a process.

    Who takes and gives back changes ``free_bytes``, at each piece.
    """

    __slots__ = ("free_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.free_bytes = limit_bytes

    @property
    def taken_bytes(self) -> int:
        """What all have together."""
        return self.limit_bytes - self.free_bytes

    def allows(self, size: int) -> bool:
        """Say whether a session may have ``size`` bytes, those that it has included."""
        return size <= LEAST_BYTES or SHARE * size <= self.free_bytes
