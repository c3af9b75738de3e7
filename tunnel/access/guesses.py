"""Wrong passwords, counted by the address that they come from.

An address has some at once and then one every few seconds; above that its words are not
even looked at, right ones neither, so that nothing is learned by going on. A right
password never counts. Decides and remembers, nothing else: times are seconds of one
monotonic clock.
"""

from __future__ import annotations

from typing import Final

from tunnel.access.visitors import THIS_MACHINE, address_key

BURST: Final = 10
"""Wrong passwords of one address at once: a person who tries all of its own."""
REFILL_S: Final = 6.0
"""One more after so long: 10 a minute, 14,400 a day, which finds no password that is
not on a list of the first few thousand."""
SHARED: Final = 10
"""So many times as often for this machine: it may stand for all visitors of a proxy in
front that was not said to be trusted, and one of them must not easily lock the others
out. With no bound at all, everybody could guess through such a proxy."""
MAX_REMEMBERED: Final = 4_096
"""Addresses: under 1 MiB. With more, the one that failed first is forgotten."""

_ROUNDING_S: Final = 1e-6


class Guesses:
    """How often each address was wrong lately."""

    def __init__(self) -> None:
        self._forgiven_at: dict[str, float] = {}

    def wait_s(self, host: str, now: float) -> float:
        """Say for how long words of an address are not looked at; 0: they are."""
        key = _key(host)
        spent_s = self._forgiven_at.get(key, now) - now
        wait_s = spent_s - (BURST * REFILL_S - _refill_s(key))
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def failed(self, host: str, now: float) -> None:
        """Count a wrong one."""
        key = _key(host)
        spent_at = max(self._forgiven_at.pop(key, now), now)
        self._forgiven_at[key] = spent_at + _refill_s(key)
        if len(self._forgiven_at) > MAX_REMEMBERED:
            del self._forgiven_at[next(iter(self._forgiven_at))]


def _key(host: str) -> str:
    try:
        return address_key(host)
    except ValueError:  # a name, or nobody knows
        return THIS_MACHINE


def _refill_s(key: str) -> float:
    return REFILL_S / SHARED if key is THIS_MACHINE else REFILL_S


GUESSES: Final = Guesses()
"""Of all front ends of this process: who guesses at one is known to the others."""
