"""How one node of several lives with its part of the rates of a user."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

from tunnel.access.use import Flow, asked_part, flow_part
from tunnel.proto.part import PartBucket, PartMeter

if TYPE_CHECKING:
    from tunnel.access.use import Use
    from tunnel.proto.limits import TokenBucket
    from tunnel.proto.pace import Meter

RECENT_S: Final = 1.0
"""What was used, or asked for, in so many seconds is what is wanted now."""
LEAST_LOOK_S: Final = 0.1
"""Who looks sooner again sees the same: of less time no rate can be told."""
STEPS: Final = 100
"""Bytes per second are told in steps of such a part of the rate: what hardly changes is
no news."""
NO_FLOW: Final = Flow()


class Parts:
    """A node's parts in the rates that a user has; None is no limit.

    It leaves alone what is not made to be a part. ``now`` is in seconds.
    """

    def __init__(
        self,
        up: Meter | None,
        down: Meter | None,
        opens: TokenBucket | None,
        datagrams: TokenBucket | None,
        now: float,
    ) -> None:
        parts: dict[str, _RatePart | _AskedPart] = {}
        for name, meter in (("up", up), ("down", down)):
            if isinstance(meter, PartMeter):
                parts[name] = _RatePart(meter, now)
        for name, bucket in (("opens", opens), ("datagrams", datagrams)):
            if isinstance(bucket, PartBucket):
                parts[name] = _AskedPart(bucket, now)
        self._parts = parts
        self._looked_at = now
        self._wanted: dict[str, Flow | int] = {}

    def look(self, now: float) -> None:
        """Note what is wanted here at the moment."""
        since = self._looked_at
        if now - since >= LEAST_LOOK_S:
            self._looked_at = now
            for name, part in self._parts.items():
                if part.look(since, now):
                    self._wanted[name] = part.wanted
                else:
                    self._wanted.pop(name, None)

    def wanted(self, use: Use) -> Use:
        """Return a use with what the last look has found."""
        # The table says what is of which type.
        return use._replace(**self._wanted) if self._wanted else use  # type: ignore[arg-type]

    def live_with(self, elsewhere: Use, connections: int, now: float) -> None:
        """Leave to the others what is theirs.

        Args:
            elsewhere: what they have, and want.
            connections: that the user has here.
            now: in seconds.
        """
        for name, part in self._parts.items():
            there = getattr(elsewhere, name)
            if isinstance(part, _RatePart):
                part.live_with(there, connections)
            else:
                part.live_with(there, now)


class _Recent:
    """A number that grows, as a rate of the last second."""

    def __init__(self, now: float) -> None:
        self._seen = deque([(now, 0.0)])

    def begin(self, now: float, number: float) -> None:
        """Forget how it has grown before."""
        self._seen.clear()
        self._seen.append((now, number))

    def rate(self, now: float, number: float) -> float:
        """Return by how much it has grown per second; it is ``number`` now."""
        seen = self._seen
        seen.append((now, number))
        while len(seen) > 2 and seen[1][0] <= now - RECENT_S:
            seen.popleft()
        since, before = seen[0]
        return (number - before) / (now - since)


class _RatePart:
    """A part of bytes per second."""

    def __init__(self, meter: PartMeter, now: float) -> None:
        self.wanted = NO_FLOW
        self._meter = meter
        self._passed = 0.0
        self._recent = _Recent(now)

    def look(self, since: float, now: float) -> bool:
        """Note what is wanted since the last look; say whether it is anything.

        A user who is there and does nothing costs next to nothing.
        """
        meter = self._meter
        if self.wanted is NO_FLOW:
            if meter.rests:
                return False
            self._recent.begin(since, self._passed)
        passed = meter.look()
        self._passed += passed.size
        if passed.waiting:
            # What it used while it wanted more says nothing of what is enough.
            self._recent.begin(now, self._passed)
            self.wanted = Flow(0, passed.waiting)
            return True
        rate = self._recent.rate(now, self._passed)
        step = max(meter.whole // STEPS, 1)
        enough = max(round(rate / step), 0) * step
        self.wanted = Flow(enough, 0) if enough else NO_FLOW
        return enough > 0

    def live_with(self, elsewhere: Flow, connections: int) -> None:
        meter = self._meter
        meter.set_part(flow_part(meter.whole, self.wanted, elsewhere, connections))


class _AskedPart:
    """A part of things per second that are let begin, or pass, or are not."""

    def __init__(self, bucket: PartBucket, now: float) -> None:
        self.wanted = 0
        self._bucket = bucket
        self._asked = 0.0
        self._recent = _Recent(now)

    def look(self, since: float, now: float) -> bool:
        """Do as ``_RatePart.look`` does."""
        asked = self._bucket.asked
        if not self.wanted:
            if asked == self._asked:
                return False
            self._recent.begin(since, self._asked)
        self._asked = asked
        self.wanted = math.ceil(self._recent.rate(now, asked))
        return self.wanted > 0

    def live_with(self, elsewhere: int, now: float) -> None:
        bucket = self._bucket
        bucket.set_part(asked_part(bucket.whole, self.wanted, elsewhere), now)
