"""Who may begin a link: the doorkeeper in front of everything unauthenticated.

A link that has not proven who it is costs a descriptor, a task and 8 KiB, and whoever
finds the port can begin one. So places are few, nobody takes many, a flood is thinned
at random before the room is full, and whoever authenticated lately still finds a place.
Guessing is slowed by a limit that counts failures only (protocol.md#limits).

This module decides and remembers, nothing else: no IO, no clock, no randomness of its
own. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.access.visitors import THIS_MACHINE, address_key

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_UNPROVEN: Final = 64
"""Unauthenticated links at once: 64 · 8 KiB is nothing, and at 10 s each they still
admit a flood's 6 a second; real handshakes take milliseconds and never need so many."""

EARLY_DROP_FROM: Final = 32
"""From here on some strangers are refused at random, up to all of them when full: a
flood then cannot shut out everybody by taking each place the moment it is free."""

KEPT_FOR_KNOWN: Final = 16
"""The last places, only for addresses that authenticated within ``KNOWN_S``: users
whose link broke during a flood come back. A quarter: two full addresses of 8."""

MAX_PER_ADDRESS: Final = 8
"""Unauthenticated links of one address at once: a household behind one NAT that comes
back together fits, and eight addresses are needed to fill the room."""

KNOWN_S: Final = 3_600.0
"""How long a success makes an address known: longer than an outage at home, shorter
than the time in which dynamic addresses change hands."""

FAILURE_BURST: Final = 10
"""Failures that an address may make at once: a wrong token in a start script, several
clients behind one NAT. Against 128 random bits any finite number is safe."""

FAILURE_REFILL_S: Final = 6.0
"""One more failure is forgiven every so often: 10 a minute, so that a scanner costs no
work worth naming and a person who mends the token waits no longer than this."""

MAX_REMEMBERED: Final = 4_096
"""Addresses remembered in all: under 1 MiB, whatever an attacker with an IPv6 /32 does.
Half are for known addresses and half for failing ones: else failures from 4,096
addresses would make the gate forget its users, at the time when that matters."""

_MAX_EACH: Final = MAX_REMEMBERED // 2


class Gate:
    """Counts unauthenticated links and remembers successes and failures by address.

    An address is what the socket says of its peer, without the port: IPv4 by itself,
    IPv6 by its /64 (what one customer gets), IPv4-mapped IPv6 as the IPv4 address that
    it is. Everything of this machine is one address: loopback, and a unix socket's
    path, empty name or ``-``. Many clients stand behind it (a reverse proxy's too), so
    ``MAX_PER_ADDRESS`` does not apply to it; and because it may stand for anybody it
    never becomes known, or a flood through a proxy would get the kept places. Its
    failures are limited like those of any other.

    Args:
        random: gives numbers of [0, 1), as ``random.random`` does; drawn only where
            chance decides.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._unproven: dict[str, int] = {}
        self._total = 0
        # Both are in the order of the last entry, so that the first is the oldest.
        self._authenticated_at: dict[str, float] = {}
        self._forgiven_at: dict[str, float] = {}

    def enter(self, address: str, now: float) -> bool:
        """Whether an unauthenticated link from ``address`` may begin.

        After True the caller owes exactly one ``leave``; after False it closes.

        Raises:
            ValueError: ``address`` is neither an IP address nor of a unix socket.
        """
        key = address_key(address)
        held = self._unproven.get(key, 0)
        if held >= MAX_PER_ADDRESS and key != THIS_MACHINE:
            return False
        if not self._has_place(known=self._is_known(key, now)):
            return False
        self._unproven[key] = held + 1
        self._total += 1
        return True

    def leave(self, address: str) -> None:
        """A link that entered has authenticated or ended: its place is free again.

        Raises:
            KeyError: no link of ``address`` is inside.
        """
        key = address_key(address)
        held = self._unproven.pop(key)
        if held > 1:
            self._unproven[key] = held - 1
        self._total -= 1

    def succeeded(self, address: str, now: float) -> None:
        """A link from ``address`` authenticated: the kept places are open to it.

        Its failures stay counted, or who owns one account could guess at others for
        ever by using the own one in between.
        """
        key = address_key(address)
        if key != THIS_MACHINE:
            _remember(self._authenticated_at, key, now)

    def failed(self, address: str, now: float) -> None:
        """A link from ``address`` did not prove who it is."""
        key = address_key(address)
        forgiven_at = max(self._forgiven_at.get(key, now), now) + FAILURE_REFILL_S
        # Links that were already begun may fail beyond the burst; they add no wait.
        latest = now + FAILURE_BURST * FAILURE_REFILL_S
        _remember(self._forgiven_at, key, min(forgiven_at, latest))

    def may_try(self, address: str, now: float) -> bool:
        """Whether another proof from ``address`` would be looked at.

        False after ``FAILURE_BURST`` failures, until the next is forgiven. Changes
        nothing: only ``failed`` counts.
        """
        wait_s = self._forgiven_at.get(address_key(address), now) - now
        return wait_s <= (FAILURE_BURST - 1) * FAILURE_REFILL_S

    def _has_place(self, *, known: bool) -> bool:
        if known:
            return self._total < MAX_UNPROVEN
        if self._total >= MAX_UNPROVEN - KEPT_FOR_KNOWN:
            return False
        if self._total < EARLY_DROP_FROM:
            return True
        above = self._total - EARLY_DROP_FROM
        return self._random() >= above / (MAX_UNPROVEN - EARLY_DROP_FROM)

    def _is_known(self, key: str, now: float) -> bool:
        at = self._authenticated_at.get(key)
        return at is not None and now - at < KNOWN_S


def _remember(table: dict[str, float], key: str, at: float) -> None:
    table.pop(key, None)
    table[key] = at
    if len(table) > _MAX_EACH:
        del table[next(iter(table))]
