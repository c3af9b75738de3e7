"""Wrong passwords, counted by the address that they come from.

An address has some at once and then one every few seconds. Above that its words are not
even looked at, right or wrong, so that going on teaches nothing. A right password never
counts. This module decides and remembers. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import Final

from tunnel.access.failures import Failures
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


class Guesses:
    """How often each address was wrong lately."""

    def __init__(self) -> None:
        self._of_addresses: Failures[str] = Failures(BURST, MAX_REMEMBERED, REFILL_S)
        self._of_this_machine: Failures[str] = Failures(
            SHARED * BURST, 1, REFILL_S / SHARED
        )

    def wait_s(self, host: str, now: float) -> float:
        """Return for how long words of an address are not looked at, in seconds."""
        key = _key(host)
        return self._failures(key).wait_s(key, now)

    def failed(self, host: str, now: float) -> None:
        """Count a wrong password."""
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
"""Shared by all front ends of this process: a guess at one counts for all."""
