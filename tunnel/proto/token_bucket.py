"""A token bucket: how much of something a peer may do in a while."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Lets ``per_s`` things pass each second, and ``burst`` at once.

    Times are seconds on the caller's clock.
    """

    per_s: float
    burst: float
    filled_at: float
    left: float = -1.0

    def __post_init__(self) -> None:
        self.left = self.burst

    def allow(self, now: float, cost: float = 1.0) -> bool:
        """Take ``cost`` from the bucket if it is there."""
        refill = (now - self.filled_at) * self.per_s
        self.left = min(self.burst, self.left + refill)
        self.filled_at = now
        if self.left < cost:
            return False
        self.left -= cost
        return True
