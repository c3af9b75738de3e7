"""When to ask for a sign of life, and to give a link up (protocol.md#liveness)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

HURRY_S: Final = 5.0
"""How long a peer may take to answer after this machine slept."""


class Due(Enum):
    """What ``Liveness.due`` asks for."""

    NOTHING = 0
    PING = 1
    LOST = 2


@dataclass(slots=True)
class Liveness:
    """One link's silence, in seconds on the caller's clock.

    After ``idle_s`` without a byte a PING is due; after ``grace_s`` more the link is
    lost. ``rtt_s`` is the smallest round trip that a PING has measured.
    """

    heard_at: float
    idle_s: float = 10.0
    grace_s: float = 20.0
    asked_at: float | None = None
    first_asked_at: float | None = None
    rtt_s: float | None = None
    hurried: bool = False
    sooner: bool = False
    """``MuxCore.next_wakeup`` may be sooner than it was when it was last asked for."""

    def begin_link(self, now: float) -> None:
        """Forget what was measured on another wire."""
        self.heard_at = now
        self.asked_at = self.first_asked_at = self.rtt_s = None
        self.hurried = False

    def heard(self, now: float) -> None:
        """Count any byte from the peer."""
        if self._asking():
            # The answer's deadline is gone: silence is borne for less time.
            self.sooner = True
        self.heard_at = now
        self.hurried = False

    def asked(self, now: float, *, slept: bool = False) -> None:
        """Count a PING that was queued, perhaps because this machine ``slept``.

        The wire may then be long gone: the answer is waited for only ``HURRY_S``.
        """
        self.asked_at = now
        if self.first_asked_at is None:
            self.first_asked_at = now
        self.hurried = self.hurried or slept

    def answered(self, now: float) -> None:
        """Count a PING's answer."""
        if self.first_asked_at is not None:
            # One answer may answer several questions: from the first, never too short.
            sample = now - self.first_asked_at
            self.rtt_s = sample if self.rtt_s is None else min(self.rtt_s, sample)
            self.asked_at = self.first_asked_at = None

    def next_wakeup(self) -> float:
        """Return the time at which ``due`` may say something new."""
        if self._asking():
            grace_s = HURRY_S if self.hurried else self.grace_s
            return max(self.heard_at, self.asked_at or 0.0) + grace_s
        return self.heard_at + self.idle_s

    def due(self, now: float) -> Due:
        """Say what is due at ``now``; a PING is due until ``asked`` is called."""
        if now < self.next_wakeup():
            return Due.NOTHING
        return Due.LOST if self._asking() else Due.PING

    def _asking(self) -> bool:
        """Say whether a PING waits for its answer: nothing was heard since."""
        return self.asked_at is not None and self.asked_at >= self.heard_at
