"""The gate in front of links that have not authenticated yet.

Such a link costs a descriptor, a task and 16 KiB, and anybody who finds the port can
begin one. So places are few. No link is refused one: a newcomer takes the place of a
link that is more likely a stranger's, so no address can shut out others by taking all
places, not even those behind its own NAT. A right proof always gets in; failed ones are
counted for each address *and* name (protocol.md#limits).

This module decides and remembers: no IO, no clock. Times are seconds of one monotonic
clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.access.guesses import Failures
from tunnel.access.visitors import THIS_MACHINE, address_key

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_UNPROVEN: Final = 256
"""Unauthenticated links at once. Real link starts take two round trips: a flood of 500
a second leaves each half a second, and all together cost less than 32 MiB."""

KNOWN_S: Final = 3_600.0
"""How long a success makes an address known: longer than an outage at home, shorter
than the time in which dynamic addresses change hands."""

FAILURE_BURST: Final = 10
"""Failures of an address for one name at once: a wrong token in a start script. Against
256 random bits any finite number is safe."""

FAILURE_REFILL_S: Final = 6.0
"""One more failure is forgiven after this time: 10 a minute, so that a scanner's do not
fill the log, and a person who mends the token waits no longer than this."""

MAX_REMEMBERED: Final = 4_096
"""Addresses remembered in all: under 1 MiB, whatever an attacker with an IPv6 /32 does.
Half are for known addresses and half for failing ones: else failures from 4,096
addresses would make the gate forget its users, at the time when that matters."""

_MAX_EACH: Final = MAX_REMEMBERED // 2


@dataclass(eq=False, slots=True)
class GatePlace:
    """The place of one unauthenticated link."""

    key: str
    known: bool
    evict: Callable[[], None]
    heard: bool = False
    """The link has sent something: to be silent costs a stranger least."""
    taken: bool = False
    """A newcomer has it now."""


class Gate:
    """Gives places to unauthenticated links; remembers successes and failures.

    Addresses are told apart by ``address_key``. This machine is one address, with many
    clients behind it (a reverse proxy's too). Because it may stand for anybody it never
    becomes known, or a flood through a proxy would be spared like a user.
    """

    def __init__(self, most: int = MAX_UNPROVEN) -> None:
        self._most = most
        self.places: dict[GatePlace, None] = {}
        """In the order of their coming."""
        self._living = Counter[str]()
        # In the order of the last entry, so that the first is the oldest.
        self._authenticated_at: dict[str, float] = {}
        self._failures = Failures[tuple[str, str]](
            FAILURE_BURST, _MAX_EACH, FAILURE_REFILL_S
        )

    # Places --------------------------------------------------------------------------

    def enter(self, address: str, now: float, evict: Callable[[], None]) -> GatePlace:
        """Return a place for a link, if need be that of another.

        The caller calls ``leave`` once the link has proved itself or ended.

        Args:
            address: what ``address_key`` takes.
            now: the time.
            evict: called when a newcomer takes the place. It ends the link and must not
                wait.
        """
        key = address_key(address)
        if len(self.places) >= self._most:
            self._make_room()
        place = GatePlace(key, self._is_known(key, now), evict)
        self.places[place] = None
        return place

    def leave(self, place: GatePlace) -> None:
        """Take a place back. May be repeated."""
        self.places.pop(place, None)

    def _make_room(self) -> None:
        """Evict a stranger's link before a user's, a silent one, one of a crowd."""
        crowd = Counter(place.key for place in self.places)
        # The first of the best is the oldest.
        victim = max(
            self.places,
            key=lambda place: (not place.known, not place.heard, crowd[place.key]),
        )
        del self.places[victim]
        victim.taken = True
        victim.evict()

    # Successes -----------------------------------------------------------------------

    def succeeded(self, address: str, now: float) -> None:
        """Count an authenticated link, whose address is known while it lives.

        The caller calls ``ended`` once. Failures stay counted: else the owner of one
        account could guess at others for ever by using its own in between.
        """
        key = address_key(address)
        if key is not THIS_MACHINE:
            self._living[key] += 1
            self._remember(key, now)

    def ended(self, address: str, now: float) -> None:
        """Count the end of an authenticated link.

        Its address stays known for ``KNOWN_S``.
        """
        key = address_key(address)
        if key in self._living:
            self._living[key] -= 1
            if not self._living[key]:
                del self._living[key]
            self._remember(key, now)

    def _remember(self, key: str, now: float) -> None:
        known = self._authenticated_at
        known.pop(key, None)
        known[key] = now
        if len(known) > _MAX_EACH:
            del known[next(iter(known))]

    def _is_known(self, key: str, now: float) -> bool:
        if key in self._living:
            return True
        at = self._authenticated_at.get(key)
        return at is not None and now - at < KNOWN_S

    # Failures ------------------------------------------------------------------------

    def failed(self, address: str, name: str, now: float) -> float:
        """Count a failed proof of ``name``; return for how long to stay away, in s.

        0 while there were few. A right proof is never refused because of it.
        """
        key = address_key(address), name
        wait_s = self._failures.wait_s(key, now)
        self._failures.failed(key, now)
        # However many fail, the next is forgiven no later.
        return min(wait_s, FAILURE_REFILL_S)
