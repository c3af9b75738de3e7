"""Which clients of other nodes have no link at the moment, as those have told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


WAITS: Final = "waits"
"""What is told of a client that has lost its link."""
FOUND: Final = "found"
"""What is told of one that has another."""


class Waiting:
    """The clients of other nodes that have no link, as those have told."""

    def __init__(self) -> None:
        self._lost_at: dict[bytes, float] = {}
        self._watching: dict[bytes, dict[Callable[[], None], None]] = {}

    def lost_at(self, session_id: bytes) -> float | None:
        """Return since when a client has no link; None: it has one."""
        return self._lost_at.get(session_id)

    def watch(self, session_id: bytes, call: Callable[[], None]) -> None:
        """Have ``call`` called when a client has lost its link."""
        self._watching.setdefault(session_id, {})[call] = None

    def forget(self, session_id: bytes, call: Callable[[], None]) -> None:
        """Call it no more; harmless a second time."""
        watching = self._watching.get(session_id, {})
        watching.pop(call, None)
        if not watching:
            self._watching.pop(session_id, None)
            self._lost_at.pop(session_id, None)

    def heard(self, session_id: bytes, *, waits: bool) -> None:
        """Take what a node tells of a client of its own."""
        if not waits:
            self._lost_at.pop(session_id, None)
        elif session_id in self._watching:
            self._lost_at.setdefault(session_id, trio.current_time())
            for call in tuple(self._watching[session_id]):
                call()
