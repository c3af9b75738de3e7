"""How often each key was wrong lately: a few times at once, then one every few seconds.

This module only counts. Callers decide what is wrong, and what follows. Times are
seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

_ROUNDING_S: Final = 1e-6

_Key = TypeVar("_Key")


class Failures(Generic[_Key]):
    """Failures of each key, forgiven one by one.

    Args:
        burst: failures allowed at once.
        most: keys remembered; with more, the one that failed first is forgotten.
        refill_s: the time after which one more failure is forgiven.
    """

    def __init__(self, burst: int, most: int, refill_s: float) -> None:
        self._burst = burst
        self._most = most
        self._refill_s = refill_s
        # In the order of the last failure, so that the first is the oldest.
        self._forgiven_at: dict[_Key, float] = {}

    def wait_s(self, key: _Key, now: float) -> float:
        """Return for how long another failure would be one too many, in seconds."""
        spent_s = self._forgiven_at.get(key, now) - now
        wait_s = spent_s - (self._burst - 1) * self._refill_s
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def failed(self, key: _Key, now: float) -> None:
        """Count a failure; one far beyond the burst adds nothing to the wait."""
        forgiven_at = max(self._forgiven_at.pop(key, now), now) + self._refill_s
        latest = now + (self._burst + 1) * self._refill_s
        self._forgiven_at[key] = min(forgiven_at, latest)
        if len(self._forgiven_at) > self._most:
            del self._forgiven_at[next(iter(self._forgiven_at))]
