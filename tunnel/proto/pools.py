"""What all sessions of a process hold together (protocol.md#credit, "Bounds").

Each has its bounds; those of thousands of sessions add up to more than a machine has.
So beside them stands one bound of the process for each kind of bytes, and a session may
have a quarter of what is still free under it. One that stalls alone gets a fifth of the
whole; the more stall, the less each gets, and for who moves there is always room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.proto.window import HeldPool

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn

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


class Pools:
    """Everything that the sessions of a process share; each session is given it."""

    def __init__(
        self,
        held: HeldPool[VirtualConn] | None = None,
        unsent_bytes: int = UNSENT_LIMIT_BYTES,
        kept_bytes: int = KEPT_LIMIT_BYTES,
    ) -> None:
        self.held: HeldPool[VirtualConn] = HeldPool() if held is None else held
        """Received, and not taken by a reader."""
        self.unsent = Room(unsent_bytes)
        self.kept = Room(kept_bytes)
        self.control = Room(CONTROL_LIMIT_BYTES)
        self.datagrams_out = Room(DATAGRAM_LIMIT_BYTES)
        self.datagrams_in = Room(DATAGRAM_LIMIT_BYTES)
