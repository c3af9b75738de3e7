"""How much a peer may do in a while, and how many connections either side may open.

Each side opens under numbers of its own parity and counts what it may still open; the
other counts too, and believes only its own count (protocol.md#limits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, LocalStreamError
from tunnel.proto.calm import Calm, calm
from tunnel.proto.frames import SockMap

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.frames import Target, Terms

MAX_UNANSWERED_OPENS: Final = 4_096
"""CREATEs of ours without an answer: each holds a task and a visitor."""
MAX_UNANSWERED_OF_ONE: Final = MAX_UNANSWERED_OPENS // 4
"""The same towards one target: a busy port must not stop the others."""
MAX_UNANSWERED_CLOSES: Final = 4_096
"""Numbers of the peer's that are not free, above all that it may have open: it has as
many refusals to answer as opens of it may wait, after a cut of the link at once."""
OPEN_DEADLINE_S: Final = 12.0
"""How long a CREATE of ours may wait: the exit gives up after 10 s, and its answer
needs a while on the way."""
FLOOD_FACTOR: Final = 10
"""So many times opens_per_s, and it is no scan of a port any more but a flood."""
OPENS_TOLERANCE: Final = 256
"""CREATEs above max_streams that are refused only by RESOURCE: the sender frees its
place at CLOSE, the receiver when its task has ended."""


@dataclass(slots=True)
class TokenBucket:
    """Let ``per_s`` things pass each second, and ``burst`` at once.

    Times are seconds on the caller's clock.
    """

    per_s: float
    burst: float
    filled_at: float
    left: float = -1.0

    def __post_init__(self) -> None:
        self.left = self.burst

    def allow(self, now: float, cost: float = 1.0) -> bool:
        """Take ``cost`` from the bucket; False, and no effect, when it is not there."""
        refill = (now - self.filled_at) * self.per_s
        self.left = min(self.burst, self.left + refill)
        self.filled_at = now
        if self.left < cost:
            return False
        self.left -= cost
        return True


class OwnOpens:
    """What this side opens; the arguments are those of ``MuxCore``."""

    def __init__(
        self, *, client: bool, top: int, theirs: Terms, deadline_s: float, now: float
    ) -> None:
        self.open = 0
        """Connections of ours whose number is not free."""
        self._lowest = 1 if client else 2
        self._cursor = self._lowest
        self._top = top
        self._most = theirs.max_streams
        self._rate = TokenBucket(theirs.opens_per_s, theirs.opens_per_s, now)
        self._deadline_s = deadline_s
        self.unanswered: dict[VirtualConn, tuple[float, Target]] = {}
        """CREATEs that wait for their answer, with its deadline; the oldest first."""
        self._towards: dict[Target, int] = {}

    def is_ours(self, number: int) -> bool:
        """Say whether this side gave a number."""
        return number % 2 == self._lowest % 2

    def next_number(self, taken: Container[int], target: Target, now: float) -> SockMap:
        """Return the next free number, for a CREATE of ``target``.

        Raises:
            LocalStreamError: ``RESOURCE``: too many are open, or too fast.
        """
        if (
            self.open >= self._most
            or len(self.unanswered) >= MAX_UNANSWERED_OPENS
            or self._towards.get(target, 0) >= MAX_UNANSWERED_OF_ONE
            or not self._rate.allow(now)
        ):
            raise LocalStreamError(Code.RESOURCE, "too many connections at once")
        # max_streams is far below 2^23: among so many there is one.
        for _ in range(2 * self._most + 2):
            number, self._cursor = self._cursor, self._cursor + 2
            if self._cursor > self._top:
                self._cursor = self._lowest
            if number not in taken:
                return SockMap(number)
        raise LocalStreamError(Code.RESOURCE, "every number is in use")

    def opened(self, conn: VirtualConn, target: Target, now: float) -> None:
        """Count a CREATE that was queued."""
        self.open += 1
        self.unanswered[conn] = now + self._deadline_s, target
        self._towards[target] = self._towards.get(target, 0) + 1

    def answered(self, conn: VirtualConn) -> None:
        """Count the end of waiting for an answer; harmless for any other connection."""
        found = self.unanswered.pop(conn, None)
        if found is not None:
            left = self._towards.pop(found[1]) - 1
            if left:
                self._towards[found[1]] = left

    def next_deadline(self) -> float | None:
        """Return when the oldest CREATE is given up."""
        for deadline, _target in self.unanswered.values():
            return deadline
        return None

    def expired(self, now: float) -> Iterator[VirtualConn]:
        """Yield each CREATE whose time is over; the caller closes it."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            conn = next(iter(self.unanswered))
            self.answered(conn)
            yield conn

    def clear(self) -> None:
        """Forget everything: the session is over."""
        self.open = 0
        self.unanswered.clear()
        self._towards.clear()


class PeerOpens:
    """What the peer opens, judged by what this side announced."""

    def __init__(self, ours: Terms, now: float) -> None:
        self.served = 0
        """Offers whose task has not ended."""
        self._most = ours.max_streams + OPENS_TOLERANCE
        self._most_numbers = self._most + MAX_UNANSWERED_CLOSES
        self._rate = TokenBucket(ours.opens_per_s, ours.opens_per_s, now)
        most = FLOOD_FACTOR * ours.opens_per_s
        self._flood = TokenBucket(most, most, now)

    def check(self, numbers: int, now: float) -> None:
        """Count another CREATE, while ``numbers`` of the peer's are not free yet.

        Raises:
            RemoteSessionError: ``CALM``: far too fast, or it answers no CLOSE.
        """
        if not self._flood.allow(now):
            raise calm(Calm.OPENS)
        if numbers >= self._most_numbers:
            raise calm(Calm.NUMBERS)

    def may_serve(self, now: float) -> bool:
        """Say whether it may be offered, or is to be refused with ``RESOURCE``."""
        return self._rate.allow(now) and self.served < self._most
