"""What a user has at the moment, all sessions together, held against its limits.

It is asked before something begins and told when it has ended: the task is over and the
descriptor is closed. It decides and counts; what passes through it is timed by
``proto.pace``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from tunnel.access.limits import Limits
from tunnel.access.parts import Parts
from tunnel.access.use import MAX_ADDRESSES, NOTHING, Use, less
from tunnel.access.visitors import VISITORS, Visitors, address_key
from tunnel.errors import LimitError
from tunnel.log import log_event
from tunnel.proto.limits import TokenBucket
from tunnel.proto.pace import Meter, Police
from tunnel.proto.part import PartBucket, PartMeter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.access.use import Held

SAY_EVERY_S: Final = 10.0
"""What is refused to one user is one line in the log so often, with a count."""
MONTH_STEP: Final = 1024 * 1024
"""In which bytes of the month are told to other nodes where the user has no limit."""

LOG: Final = logging.getLogger("tunnel.limits")


class Account:
    """One user's counts, buckets and limits.

    Args:
        name: of the user, for the log and for the reasons that its clients read.
        limits: may be changed with ``limit``.
        clock: the time in seconds; it does not jump.
        wanted: called when something waits for a rate; ``tick`` is due soon then.
        shared: whether the user may have more at other nodes, which ``have_elsewhere``
            says: then there is a part of each rate here.
    """

    def __init__(
        self,
        name: str,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        wanted: Callable[[], None] = lambda: None,
        *,
        shared: bool = False,
    ) -> None:
        self.name = name
        self.connections = 0
        """Virtual TCP connections and UDP associations at once."""
        self.links = 0
        """Links at once."""
        self.month_bytes = 0
        """Bytes of this month, as far as they have been counted."""
        self.sent_bytes = 0
        """Bytes of virtual TCP connections that were sent to the user's machines, as
        far as they have been counted."""
        self.received_bytes = 0
        """Those that were received from them."""
        self.opened = 0
        """Virtual TCP connections and UDP associations since the account is there."""
        self.up: Meter | None = None
        """The rate of what the user's machines send; None: no limit."""
        self.down: Meter | None = None
        """The rate of what they are sent."""
        self.police: Police | None = None
        """Drops datagrams above a rate; None: no limit."""
        self.elsewhere = NOTHING
        """What the user has at other nodes."""
        self._there = NOTHING.visitors
        self._month = ""
        self._clock = clock
        self._wanted = wanted
        self._shared = shared
        self._opens: TokenBucket | None = None
        self._visitors: Visitors | None = None
        self._refused = 0
        self._say_at = 0.0
        self.limits = self.here = Limits()
        self.limit(limits or self.limits)

    def limit(self, limits: Limits) -> None:
        """Let these limits hold from now on.

        What is above one already stays; sessions have to be told of the meters.
        """
        self.limits = self.here = limits
        """``here`` is what of them is left for this node: all, if it is alone."""
        now = self._clock()
        self._opens = self._bucket(limits.opens, now)
        self.up = self._meter(self.up, limits.up)
        self.down = self._meter(self.down, limits.down)
        datagrams = self._bucket(limits.datagrams, now)
        self.police = None
        if datagrams or self.up or self.down:
            self.police = Police(datagrams, self.up, self.down, self._clock)
        self._parts = Parts(self.up, self.down, self._opens, datagrams, now)
        if self.elsewhere is not NOTHING:
            self._settle(now)

    def _meter(self, meter: Meter | None, rate: int | None) -> Meter | None:
        if rate is None:
            return None
        if meter is None:
            make = PartMeter if self._shared else Meter
            return make(rate, self._clock, self._wanted)
        meter.set_rate(rate)
        return meter

    def _bucket(self, per_s: int | None, now: float) -> TokenBucket | None:
        if per_s is None:
            return None
        if self._shared:
            return PartBucket(per_s, now)
        return TokenBucket(per_s, per_s, now)

    # Other nodes -------------------------------------------------------------------

    def use(self, held: Held, month: str) -> Use:
        """Return what the user has here; what it wants is looked at for it.

        Args:
            held: what is counted elsewhere in this process.
            month: the present one, in which ``month_bytes`` have passed.
        """
        limits, now = self.limits, self._clock()
        size, visitors = self.month_bytes, {}
        if limits.month is None:
            size -= size % MONTH_STEP
        if self._visitors is not None and limits.visitors is not None:
            visitors = self._visitors.most(MAX_ADDRESSES)
        self._parts.look(now)
        if self.elsewhere is not NOTHING:
            self._parts.live_with(self.elsewhere, self.connections, now)
        use = Use(
            self.links,
            *held,
            connections=0 if limits.connections is None else self.connections,
            month=month if size else "",
            month_bytes=size,
            visitors=visitors,
        )
        return self._parts.wanted(use)

    def have_elsewhere(self, use: Use, month: str) -> None:
        """Live with what the user has at other nodes, together; ``month``: at ours."""
        if use != self.elsewhere or month != self._month:
            # The same object, to be asked for quickly.
            self.elsewhere = NOTHING if use == NOTHING else use
            self._month = month
            self._settle(self._clock())

    def begin_month(self, month: str) -> None:
        """Count from 0 again: another month, of this name, has begun."""
        self.month_bytes = 0
        self._month = month
        if self.elsewhere is not NOTHING:
            self._settle(self._clock())

    def _settle(self, now: float) -> None:
        """Find what is left here of the limits: the one place that does."""
        elsewhere = self.elsewhere
        self.here = self.limits
        self._there = elsewhere.visitors
        if elsewhere is not NOTHING:
            self.here = less(self.limits, elsewhere, self._month)
        self._parts.live_with(elsewhere, self.connections, now)

    # Rates -------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether something waits for a rate."""
        up, down = self.up, self.down
        return bool((up and up.waiting) or (down and down.waiting))

    def tick(self) -> None:
        """Let pass what may pass by now."""
        for meter in (self.up, self.down):
            if meter is not None and meter.waiting:
                meter.tick()

    # Counts ------------------------------------------------------------------------

    @property
    def month_is_used_up(self) -> bool:
        """Whether no byte more is left for this month."""
        most = self.here.month
        return most is not None and self.month_bytes >= most

    def refuses_connection(self) -> str:
        """Say why nothing more may be opened now, as a reason for the peer; or "".

        Not refused, it counts among the opens of this second; the caller adds it to
        ``connections``.
        """
        limits, most = self.limits, self.here.connections
        why = ""
        if most is not None and self.connections >= most:
            why = f"{limits.connections} connections at once"
        elif self.month_is_used_up:
            why = "the bytes of this month"
        elif self._overdrawn(self.up) or self._overdrawn(self.down):
            why = "bytes per second"
        elif self._opens is not None and not self._opens.allow(self._clock()):
            why = f"{limits.opens} connections opened per second"
        return why and self.refused(why)

    def admit_visitor(self, host: str) -> bool:
        """Count a visitor of an address; False, and not counted, without a limit.

        Raises:
            LimitError: that address has its share.
        """
        most = self.limits.visitors
        if most is None:
            return False
        if self._visitors is None:
            self._visitors = Visitors(VISITORS.get().trusted)
        left = most
        if self._there:
            left -= self._there.get(address_key(host), 0)
        if not self._visitors.enter(host, left):
            error = LimitError(self.refused(f"{most} visitors of one address at once"))
            error.of_address = True
            raise error
        return True

    def visitor_left(self, host: str) -> None:
        """Count one less of those that ``admit_visitor`` has counted."""
        if self._visitors is not None:
            self._visitors.leave(host)

    def forget_visitors(self) -> None:
        """Count visitors from nothing: who is in is not counted any more."""
        self._visitors = None

    def refuses_link(self) -> str:
        """Say why the newest link, which is counted, is one too many; or "".

        It is asked for those that begin a session: the others each end an older one.
        """
        if self.links <= self.here.links:
            return ""
        return self.refused(f"{self.limits.links} links at once")

    def refused(self, what: str) -> str:
        """Log now and then that a limit was reached; return the reason for the peer."""
        if self.elsewhere is not NOTHING:
            what += ", at all servers together"
        self._refused += 1
        now = self._clock()
        if now >= self._say_at:
            self._say_at = now + SAY_EVERY_S
            log_event(LOG, logging.WARNING, "limit.reached", user=self.name,
                limit=what, count=self._refused)  # fmt: skip
            self._refused = 0
        return f"limit of user {self.name}: {what}"

    @staticmethod
    def _overdrawn(meter: Meter | None) -> bool:
        return meter is not None and meter.overdrawn
