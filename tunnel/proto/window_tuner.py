"""Windows that find the size of the line (protocol.md#credit).

A window divided by the round trip is the ceiling of a virtual TCP connection. So a
window doubles while its reader empties half of it in less than two round trips, as long
as the session and the process can pay for it, and goes back to its first size when
nothing was granted for a while.

Knows numbers and times; it grants nothing and measures nothing itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from tunnel.proto.window import RecvWindow

MAX_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""1.3 Gbit/s at 100 ms."""
SESSION_GROWTH_BYTES: Final = 64 * 1024 * 1024
"""What the windows of one session may have grown by, together."""
PROCESS_GROWTH_BYTES: Final = 256 * 1024 * 1024
"""What the windows of one process may have grown by: four greedy sessions."""
MIN_ROUND_TRIP_S: Final = 0.001
"""On a shorter line it is the programs that decide how long a grant takes."""
PROBE_S: Final = 2.0
"""How often the round trip is measured while a window might grow."""
IDLE_S: Final = 10.0
"""Without a grant for this long, a window has its first size again."""


@dataclass(slots=True)
class Budget:
    """Bytes that may be promised, and how many are."""

    limit: int = PROCESS_GROWTH_BYTES
    taken: int = 0

    def take(self, size: int) -> bool:
        """Promise ``size`` bytes; False, and no effect, when that is too much."""
        if self.taken + size > self.limit:
            return False
        self.taken += size
        return True

    def give_back(self, size: int) -> None:
        """Take a promise of ``size`` bytes back."""
        self.taken -= size


class Tunable(Protocol):
    """A virtual TCP connection, as far as its window goes."""

    recv: RecvWindow
    granted_at: float


_Conn = TypeVar("_Conn", bound=Tunable)


class WindowTuner(Generic[_Conn]):
    """The windows of one session that are larger than they began.

    Args:
        initial: the size that each begins with.
        process: shared by all sessions.
    """

    def __init__(self, initial: int, process: Budget) -> None:
        self._initial = initial
        self._process = process
        self._session = Budget(SESSION_GROWTH_BYTES)
        # In the order of the last grant: the first has been idle for longest.
        self._grown: dict[_Conn, None] = {}
        self._probed_at = -math.inf

    def begin_link(self) -> None:
        """Forget what was measured on another wire."""
        self._probed_at = -math.inf

    def probe_due(self, now: float) -> bool:
        """Say, at a grant, whether to measure the round trip; counts as measured."""
        if now - self._probed_at < PROBE_S:
            return False
        self._probed_at = now
        return True

    def before_grant(
        self, conn: _Conn, now: float, rtt_s: float | None, *, scarce: bool
    ) -> None:
        """Choose the size of a window that is about to be granted.

        Args:
            conn: whose reader has emptied half of it since the last grant.
            now: the time.
            rtt_s: the link's round trip, None when it is not known.
            scarce: memory is: nothing grows.
        """
        took_s, conn.granted_at = now - conn.granted_at, now
        patience_s = 2 * max(rtt_s or 0.0, MIN_ROUND_TRIP_S)
        if rtt_s is not None and took_s < patience_s and not scarce:
            self._grow(conn)
        if conn in self._grown:
            del self._grown[conn]
            self._grown[conn] = None

    def _grow(self, conn: _Conn) -> None:
        window = conn.recv
        more = min(window.size, MAX_WINDOW_BYTES - window.size)
        if more <= 0 or not window.keeps_up() or not self._session.take(more):
            return
        if not self._process.take(more):
            self._session.give_back(more)
            return
        window.size += more
        self._grown[conn] = None

    def next_wakeup(self) -> float:
        """Give the time at which ``on_time`` has something to do."""
        return next((conn.granted_at + IDLE_S for conn in self._grown), math.inf)

    def on_time(self, now: float) -> None:
        """Give idle windows their first size again."""
        while self.next_wakeup() <= now:
            self.forget(next(iter(self._grown)))

    def forget(self, conn: _Conn) -> None:
        """Take back what ``conn`` has grown by: it is idle, or it has ended."""
        if conn not in self._grown:
            return
        del self._grown[conn]
        more = conn.recv.size - self._initial
        conn.recv.size = self._initial
        self._session.give_back(more)
        self._process.give_back(more)
