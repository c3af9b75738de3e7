"""Which visitor is which, wherever one is counted, slowed, logged or let in.

IPv4 counts by address, IPv6 by its /64 (what one customer gets), IPv4-mapped IPv6 as
the IPv4 address that it means. What a connection says about its visitor is believed
only if it comes from a proxy that the user named.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import nlargest
from ipaddress import IPv6Address, ip_address
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from tunnel.addresses import parse_ip, unmapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.access.networks import Network
    from tunnel.addresses import Address

THIS_MACHINE: Final = "this machine"
"""Loopback and unix sockets: many visitors may stand behind it, as those of a proxy."""

MAX_REMEMBERED: Final = 1_024
"""Addresses whose key is remembered: to compute one takes as long as to accept."""


@dataclass(eq=False, slots=True)
class Visitors:
    """The proxies that are trusted about visitors, and the count for each address."""

    trusted: Sequence[Network] = ()
    """Networks of the proxies in front of us."""
    max_per_address: int | None = None
    """Visitors at once; None leaves it to the front ends."""
    _inside: dict[str, int] = field(default_factory=dict, init=False)

    def change(self, trusted: Sequence[Network], max_per_address: int | None) -> bool:
        """Believe these proxies from now on; say whether they are others.

        Who came in by the word of others is not counted any more.
        """
        self.max_per_address = max_per_address
        if tuple(trusted) == tuple(self.trusted):
            return False
        self.trusted = trusted
        self._inside.clear()
        return True

    def trusts(self, host: str) -> bool:
        """Say whether an address is that of a trusted proxy."""
        # A unix socket has no IP address.
        if not self.trusted or (ip := parse_ip(host)) is None:
            return False
        ip = unmapped(ip)
        return any(ip in network for network in self.trusted)

    def visitor(self, peer: Address, hops: Sequence[Address]) -> int:
        """Return the place in ``hops`` of the visitor of whom the proxies speak.

        ``hops`` are the addresses that the peer and those before it name, the peer's
        last. The visitor is the last that is not a trusted proxy itself, for nothing
        vouches for what that one says. ``len(hops)`` stands for the peer.
        """
        at = len(hops)
        while at and self.trusts((peer if at == len(hops) else hops[at]).host):
            at -= 1
        return at

    def enter(self, host: str, most: int) -> bool:
        """Count a visitor of an address; return False if it has ``most`` already.

        This machine and trusted proxies may have any number: they stand for others.
        After True the caller calls ``leave`` once.
        """
        key = address_key(host)
        if key is THIS_MACHINE or self.trusts(host):
            return True
        inside = self._inside.get(key, 0)
        if inside >= most:
            return False
        self._inside[key] = inside + 1
        return True

    def most(self, addresses: int) -> dict[str, int]:
        """Return how many are in by address, of those that have most of them."""
        if len(self._inside) <= addresses:
            return dict(self._inside)
        return dict(nlargest(addresses, self._inside.items(), key=itemgetter(1)))

    def leave(self, host: str) -> None:
        """Count one visitor less."""
        key = address_key(host)
        if key is not THIS_MACHINE and not self.trusts(host):
            left = self._inside.pop(key, 1) - 1  # it may have come before a change
            if left:
                self._inside[key] = left


VISITORS: Final = ContextVar("VISITORS", default=Visitors())  # noqa: B039
"""Those of the server, or else of the process: every task below sees them."""


@lru_cache(MAX_REMEMBERED)
def address_key(host: str) -> str:
    """Return what stands for an address where it is counted.

    Args:
        host: an IP address, or what a socket says of a unix peer: a path, an empty
            name, ``-`` or ``local``.

    Raises:
        ValueError: it is neither.
    """
    if host in ("", "-", "local") or host[0] in "/@\0":
        return THIS_MACHINE
    ip = unmapped(ip_address(host))
    if ip.is_loopback:
        return THIS_MACHINE
    return f"{int(ip) >> 64:x}::/64" if isinstance(ip, IPv6Address) else str(ip)
