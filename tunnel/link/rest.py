"""When to look which connections rest: as often as the shortest limit in force needs.

Nothing is noted while bytes pass: a look compares how many have. Without a limit there
is none.
"""

from __future__ import annotations

import math
from typing import Final

REST_PART: Final = 10
"""So many looks in each limit: an end comes at most two steps late, a fifth."""
MOST_STEP_S: Final = 36.0
"""For long limits: nobody waits for an end that exact."""
LEAST_STEP_S: Final = 0.5
"""For limits of a few seconds: ten thousand connections cost a look 5 ms."""
ROUNDING_S: Final = 0.001
"""Of the sum of many steps, which is to meet the limit, and not to miss it by a bit."""


class Rest:
    """When the connections of one session are looked at.

    Args:
        now: a look is due a step later.
        shortest_s: the shortest time for which one may rest; ``inf``: no look is due.
    """

    __slots__ = ("_looked_at", "_step_s", "next_at", "shortest_s")

    def __init__(self, now: float, shortest_s: float) -> None:
        self._looked_at = now
        self.next_at = math.inf
        """When the next look is due."""
        self.follow(shortest_s)

    def follow(self, shortest_s: float) -> None:
        """Look as often as this limit needs, which is shorter than the others."""
        self.shortest_s = shortest_s
        self._step_s = step_s(shortest_s)
        self.next_at = self._looked_at + self._step_s

    def start(self, now: float) -> None:
        """Begin anew: time that has passed does not count."""
        self._looked_at = now
        self.next_at = now + self._step_s

    def take_step(self, now: float) -> float:
        """Return how much time has passed since the last look; 0 if none is due."""
        if now < self.next_at:
            return 0.0
        step_s = now - self._looked_at
        self.start(now)
        return step_s


def step_s(limit_s: float) -> float:
    """Return how often to look for one limit: a part of it, so that a look meets it."""
    if limit_s == math.inf:
        return math.inf
    return max(LEAST_STEP_S, limit_s / max(REST_PART, math.ceil(limit_s / MOST_STEP_S)))
