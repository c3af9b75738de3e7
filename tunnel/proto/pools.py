"""What all sessions of a process hold together (protocol.md#credit, "Bounds").

Each has its bounds; those of thousands of sessions add up to more than a machine has.
So beside them stands one bound of the process for each kind of bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.proto.room import (
    CONTROL_LIMIT_BYTES,
    DATAGRAM_LIMIT_BYTES,
    KEPT_LIMIT_BYTES,
    UNSENT_LIMIT_BYTES,
    Room,
)
from tunnel.proto.window import HeldPool

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn


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
