"""Failures, counted by key, and wrong passwords, by the address that they come from.

A key has some failures at once and then one every few seconds. This module only counts:
callers decide what follows. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from tunnel.access.visitors import THIS_MACHINE, address_key

BURST: Final = 10
"""Wrong passwords of one address at once: a person tries all that they have."""
REFILL_S: Final = 6.0
"""One more is allowed after this time: 10 a minute, 14,400 a day, which finds no
password that is not on a list of the first few thousand."""
SHARED: Final = 10
"""This machine may be wrong so many times as often: it may stand for all visitors of a
proxy in front that is not trusted, of whom one must not easily lock the others out.
Without a bound anybody could guess through such a proxy."""
MAX_REMEMBERED: Final = 4_096
"""Addresses remembered, in under 1 MiB. With more, the one that failed first is
forgotten."""

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


class Guesses:
    """Wrong passwords of each address; a right one never counts.

    Above the burst the words of an address are not even looked at, right or wrong, so
    that going on teaches nothing.
    """

    def __init__(self) -> None:
        self._of_addresses = Failures[str](BURST, MAX_REMEMBERED, REFILL_S)
        self._of_this_machine = Failures[str](SHARED * BURST, 1, REFILL_S / SHARED)

    def wait_s(self, host: str, now: float) -> float:
        """Return for how long words of an address are not looked at, in seconds."""
        failures, key = self._of(host)
        return failures.wait_s(key, now)

    def failed(self, host: str, now: float) -> None:
        """Count a wrong password."""
        failures, key = self._of(host)
        failures.failed(key, now)

    def _of(self, host: str) -> tuple[Failures[str], str]:
        try:
            key = address_key(host)
        except ValueError:  # a name, or nobody knows
            key = THIS_MACHINE
        is_here = key is THIS_MACHINE
        return self._of_this_machine if is_here else self._of_addresses, key


GUESSES: Final = Guesses()
"""Shared by all front ends of this process: a guess at one counts for all."""
