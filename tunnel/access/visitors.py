"""Who a visitor is, wherever one is counted, slowed, logged or let in.

One rule for all of them: IPv4 by itself, IPv6 by its /64 (what one customer gets),
IPv4-mapped IPv6 as the IPv4 address that it is. Decides nothing else and keeps nothing.
"""

from __future__ import annotations

import ipaddress
from typing import Final

THIS_MACHINE: Final = "this machine"
"""Loopback and unix sockets: many may stand behind it, visitors of a proxy too."""


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
