"""Who a visitor is, wherever one is counted, slowed, logged or let in.

One rule for all of them: IPv4 by itself, IPv6 by its /64 (what one customer gets),
IPv4-mapped IPv6 as the IPv4 address that it is. Decides nothing else and keeps nothing.
"""

from __future__ import annotations

import ipaddress
from contextvars import ContextVar
from functools import lru_cache
from typing import Final

THIS_MACHINE: Final = "this machine"
"""Loopback and unix sockets: many may stand behind it, visitors of a proxy too."""

MAX_REMEMBERED: Final = 1_024
"""Addresses whose key is remembered: to find it anew takes as long as to accept."""


class Visitors:
    """How many visitors there are of each address, and how many there may be.

    Args:
        max_per_address: at once; None leaves it to the front ends.
    """

    def __init__(self, max_per_address: int | None = None) -> None:
        self.max_per_address = max_per_address
        self._inside: dict[str, int] = {}

    def enter(self, host: str, most: int) -> bool:
        """Count a visitor of an address; False if it has ``most`` already.

        This machine may have any number: it stands for others. After True the caller
        owes one ``leave``.
        """
        key = address_key(host)
        if key is THIS_MACHINE:
            return True
        inside = self._inside.get(key, 0)
        if inside >= most:
            return False
        self._inside[key] = inside + 1
        return True

    def leave(self, host: str) -> None:
        """Count it no more."""
        key = address_key(host)
        if key is not THIS_MACHINE:
            left = self._inside.pop(key) - 1
            if left:
                self._inside[key] = left


VISITORS: Final = ContextVar("VISITORS", default=Visitors())  # noqa: B039
"""Of the server, or else of the process: every task below sees it."""


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
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return THIS_MACHINE if ip.is_loopback else f"{int(ip) >> 64:x}::/64"
        ip = ip.ipv4_mapped
    return THIS_MACHINE if ip.is_loopback else str(ip)
