"""Credit for the two directions of a virtual TCP connection (protocol.md#credit).

A sender may not put a byte on the link before the receiver has promised room for it;
that is the whole reason why one slow reader cannot stop the others. Offsets are
absolute: a grant that arrives twice changes nothing.

A window divided by the round trip is the ceiling of a virtual TCP connection. So a
window grows while its reader empties half of it in less than two round trips, as long
as the session and the process can pay for it, and goes back to its first size when
its reader was slow for a while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.proto.pools import HeldPool

MAX_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""1.3 Gbit/s at 100 ms."""
GROWS_TO: Final = 2
"""Times its size, at once."""
GROWS_FAR_TO: Final = 4
"""The same where a round trip is long: a gigabit at 100 ms has its window after three
of them, instead of six. On a short one it is a queue that would grow."""
FAR_S: Final = 0.01
"""A round trip that is long."""
GRANT_BYTES: Final = 2 * 1024 * 1024
"""A grant is due when it gives so much, however large the window. What is consumed and
not granted cannot be on its way: half of the largest window would be a third of a
gigabit at 100 ms."""
SESSION_GROWTH_BYTES: Final = 64 * 1024 * 1024
"""What the windows of one session may have grown by, together."""
MIN_ROUND_TRIP_S: Final = 0.001
"""On a shorter line it is the programs that decide how long a grant takes."""
PROBE_S: Final = 2.0
"""How often the round trip is measured while a window might grow."""
IDLE_S: Final = 10.0
"""A window of which no half was emptied for this long has its first size again."""


@dataclass(slots=True)
class SendWindow:
    """How far we may send, and how far we have promised to ourselves to send.

    To use some of its ``room``, raise ``taken``, at each piece.
    """

    limit: int
    taken: int = 0

    def room(self) -> int:
        """Bytes that may still be queued."""
        return self.limit - self.taken

    def raise_to(self, limit: int) -> bool:
        """Take a grant; False when it is no higher than what is known."""
        if limit <= self.limit:
            return False
        self.limit = limit
        return True


@dataclass(slots=True, eq=False)
class RecvWindow:
    """What we have promised to store, and how much of it is used.

    ``consumed`` moves when the *application* has taken bytes, not when they arrive;
    granting on arrival would promise the same memory twice.
    """

    size: int
    limit: int
    received: int = 0
    """What arrived: raised by bytes that have been found to fit."""
    consumed: int = 0
    measured: int = 0
    """What ``consumed`` was when half a window had been emptied last."""
    measured_at: float = -math.inf
    """When that was found, at a grant."""

    def fits(self, size: int) -> bool:
        """Say whether the peer may send ``size`` bytes more."""
        return self.received + size <= self.limit

    def consume(self, size: int) -> bool:
        """Count bytes that the application took; True when a grant is due.

        A grant is due when it gives half a window at once, or ``GRANT_BYTES``: fewer
        would cost a frame for little, a whole window would let the sender run dry.
        """
        self.consumed += size
        more = self.consumed + self.size - self.limit
        return 2 * more >= self.size or more >= GRANT_BYTES

    def grant(self) -> int:
        """Raise the promise to what may be promised now, and return the new limit."""
        self.limit = max(self.limit, self.consumed + self.size)
        return self.limit


class WindowTuner:
    """How much each connection of a session may be granted now.

    ``initial`` is the size that each window begins with.
    """

    def __init__(self, initial: int, pool: HeldPool) -> None:
        self._initial = initial
        self._pool = pool
        self._grown_bytes = 0
        # In the order of ``measured_at``: the first has been idle for longest.
        self._grown: dict[RecvWindow, None] = {}
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

    def grant(self, window: RecvWindow, now: float, rtt_s: float | None) -> int:
        """Choose the size of a window, and return its new limit.

        ``rtt_s`` is the link's round trip, None when it is not known.
        """
        if 2 * (window.consumed - window.measured) >= window.size:
            took_s = now - window.measured_at
            window.measured, window.measured_at = window.consumed, now
            if rtt_s is not None and took_s < 2 * max(rtt_s, MIN_ROUND_TRIP_S):
                self._grow(window, GROWS_TO if rtt_s < FAR_S else GROWS_FAR_TO)
            if window in self._grown:
                del self._grown[window]
                self._grown[window] = None
        return window.grant()

    def _grow(self, window: RecvWindow, times: int) -> None:
        pool = self._pool
        more = min(
            min(times * window.size, MAX_WINDOW_BYTES) - window.size,
            SESSION_GROWTH_BYTES - self._grown_bytes,
            pool.growth_limit_bytes - pool.grown_bytes,
        )
        if (
            more > 0
            # The application has taken most of what came, and memory is not scarce.
            and 2 * (window.received - window.consumed) <= window.size
            and 4 * pool.held_bytes <= pool.limit_bytes
        ):
            self._grown_bytes += more
            pool.grown_bytes += more
            window.size += more
            self._grown[window] = None

    def next_wakeup(self) -> float:
        """Return the time at which ``on_time`` has something to do."""
        return next((window.measured_at + IDLE_S for window in self._grown), math.inf)

    def on_time(self, now: float) -> None:
        """Shrink idle windows to their first size."""
        while self.next_wakeup() <= now:
            self.forget(next(iter(self._grown)))

    def forget(self, window: RecvWindow) -> None:
        """Take back what a window has grown by: it is idle, or it has ended."""
        if window not in self._grown:
            return
        del self._grown[window]
        more = window.size - self._initial
        window.size = self._initial
        self._grown_bytes -= more
        self._pool.grown_bytes -= more
