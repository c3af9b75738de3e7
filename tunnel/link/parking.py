"""Parking: what is opened while a session has no link, counted for each target."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.frames import Target

MAX_PARKED: Final = 1_024
"""New visitors of one target that wait for a link; each at most its open deadline. A
site with 300 a second gets through the 3 s after which a client tries again."""


class Parking:
    """Connections that wait for a link, so that no target has too many of them."""

    def __init__(self) -> None:
        self._targets: dict[VirtualConn, Target] = {}
        self._counts: Counter[Target] = Counter()

    def is_full(self, target: Target) -> bool:
        """Say whether no other connection to ``target`` may wait."""
        return self._counts[target] >= MAX_PARKED

    def add(self, conn: VirtualConn, target: Target) -> None:
        """Count ``conn`` until ``forget``."""
        self._targets[conn] = target
        self._counts[target] += 1

    def forget(self, conn: VirtualConn) -> None:
        """Count ``conn`` no more: it is over, or never waited."""
        target = self._targets.pop(conn, None)
        if target is not None:
            self._counts[target] -= 1
            if not self._counts[target]:
                del self._counts[target]
