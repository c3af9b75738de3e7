"""A part of a user's rate: the rest of it is at the other nodes of a cluster.

It is what ``proto.pace`` and ``proto.limits`` do, at a part of the rate that changes a
few times a second, and it notes what the other nodes have to know to find theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.proto.limits import TokenBucket
from tunnel.proto.pace import DEBT_S, Meter

if TYPE_CHECKING:
    from collections.abc import Callable

WASTED: Final = 0.1
"""A meter of which more passes by unused has enough: what waits in it is a peak."""


class Passed(NamedTuple):
    """What has passed through a meter since it was looked at before."""

    size: float
    """Bytes; what is given back is taken off."""
    waiting: int
    """Connections that waited at once, at most; 0 where all had enough."""


class PartMeter(Meter):
    """A ``Meter`` that fills with a part of its rate; the arguments are the same."""

    def __init__(
        self, rate: int, clock: Callable[[], float], wanted: Callable[[], None]
    ) -> None:
        self.whole = rate
        """Bytes per second of all nodes together."""
        self._part = 1.0
        self._offered = 0.0
        self._wasted = 0.0
        self._waited = 0
        self._had: float = 0
        super().__init__(rate, clock, wanted)
        self._had = self.spare

    @property
    def overdrawn(self) -> bool:
        """As of a ``Meter``; a debt is held against all of the rate."""
        # Else one that was small becomes large when the part becomes small.
        return super().overdrawn and self.spare < -self.whole * DEBT_S

    @property
    def rests(self) -> bool:
        """Whether nothing has passed since the last look."""
        if self.waiting or self._offered:  # it may have been filled up since
            return False
        return self.spare == self._had

    def set_rate(self, rate: int) -> None:
        """Let so many bytes per second pass from now on, of which this is a part."""
        self.whole = rate
        self._fill()
        before = self.spare
        super().set_rate(self._rate_here())
        self._wasted += before - self.spare

    def set_part(self, part: float) -> None:
        """Fill with this part of the rate, above 0 and at most 1; debts stay."""
        if part != self._part:
            self._part = part
            self._fill()
            self.rate = self._rate_here()
            self._set_burst()
            self._fill()

    def tick(self) -> None:
        """Deal what is there to the shares that wait."""
        waits = sum(share.weight for share in self.waiting)
        self._waited = max(self._waited, waits)
        super().tick()

    def look(self) -> Passed:
        """Return what has passed since the last look."""
        self._fill()
        size = self._had + self._offered - self._wasted - self.spare
        has_enough = self._wasted > self._offered * WASTED
        passed = Passed(size, 0 if has_enough else self._waited)
        self._had = self.spare
        self._offered = self._wasted = 0.0
        self._waited = 0
        return passed

    def _rate_here(self) -> int:
        return max(int(self.whole * self._part), 1)

    def _fill(self) -> None:
        before, filled_at = self.spare, self._filled_at
        super()._fill()
        offered = (self._filled_at - filled_at) * self.rate
        self._offered += offered
        self._wasted += before + offered - self.spare


class PartBucket(TokenBucket):
    """A ``TokenBucket`` of ``per_s`` in all that fills with a part of it."""

    __slots__ = ("asked", "whole")

    def __init__(self, per_s: int, now: float) -> None:
        super().__init__(per_s, per_s, now)
        self.whole = per_s
        self.asked = 0.0
        """What was asked for, passed or not, since the bucket is there."""

    def set_part(self, part: float, now: float) -> None:
        """Fill with this part of the rate, above 0 and at most 1, from now on."""
        if part * self.whole == self.per_s:
            return
        self.allow(now, 0)
        self.per_s = self.whole * part
        # Below 1 nothing could ever pass.
        self.burst = max(self.per_s, 1.0)
        self.left = min(self.left, self.burst)

    def allow(self, now: float, cost: float = 1.0) -> bool:
        """Take ``cost`` from the bucket; False, and no effect, when it is not there."""
        self.asked += cost
        return super().allow(now, cost)
