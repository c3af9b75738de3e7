"""Wrong passwords, counted by the address that they come from.

An address has some at once and then one every few seconds; above that its words are not
even looked at, right ones neither, so that nothing is learned by going on. A right
password never counts. Decides and remembers, nothing else: times are seconds of one
monotonic clock.
"""

from __future__ import annotations

from typing import Final

from tunnel.access.failures import Failures
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


class Guesses:
    """How often each address was wrong lately."""

    def __init__(self) -> None:
        self._of_addresses: Failures[str] = Failures(BURST, MAX_REMEMBERED, REFILL_S)
        self._of_this_machine: Failures[str] = Failures(
            SHARED * BURST, 1, REFILL_S / SHARED
        )

    def wait_s(self, host: str, now: float) -> float:
        """Say for how long words of an address are not looked at; 0: they are."""
        key = _key(host)
        return self._failures(key).wait_s(key, now)

    def failed(self, host: str, now: float) -> None:
        """Count a wrong one."""
        key = _key(host)
        self._failures(key).failed(key, now)

    def _failures(self, key: str) -> Failures[str]:
        return self._of_this_machine if key is THIS_MACHINE else self._of_addresses


def _key(host: str) -> str:
    try:
        return address_key(host)
    except ValueError:  # a name, or nobody knows
        return THIS_MACHINE


GUESSES: Final = Guesses()
"""Of all front ends of this process: who guesses at one is known to the others."""
