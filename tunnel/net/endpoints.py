"""The numeric addresses of a target, in the order in which they are tried."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.addresses import LOOPBACKS, unmapped

if TYPE_CHECKING:
    from tunnel.net.lookup import Found

MAX_ADDRESSES: Final = 16
"""Addresses of one name that are tried: who owns a name must not buy a port scan."""

SockAddr = tuple[str | int | bytes, ...] | str


class Endpoint(NamedTuple):
    """One numeric address or unix path, ready for connect(2)."""

    family: int
    sockaddr: SockAddr

    @property
    def host(self) -> str:
        """The IP address, or the path."""
        return str(self.sockaddr[0])


def endpoints(found: list[Found], port: int) -> list[Endpoint]:
    """Return the addresses of a host, each once.

    The resolver's first choice stays first (RFC 6724). The families alternate, so that
    a broken one costs one delay (RFC 8305 §4).
    """
    families: dict[int, dict[Endpoint, None]] = {}
    for family, host, rest in found:
        endpoint = Endpoint(family, (host, port, *rest))
        if family == socket.AF_INET6:
            ip = unmapped(IPv6Address(host))
            if ip.version == 4:
                endpoint = Endpoint(socket.AF_INET, (str(ip), port))
        families.setdefault(endpoint.family, {})[endpoint] = None
    turns = chain.from_iterable(zip_longest(*families.values()))
    return [endpoint for endpoint in turns if endpoint is not None][:MAX_ADDRESSES]


def loopbacks(port: int) -> list[Endpoint]:
    """Return both loopbacks of this machine."""
    ipv4, ipv6 = LOOPBACKS
    return [
        Endpoint(socket.AF_INET, (ipv4, port)),
        Endpoint(socket.AF_INET6, (ipv6, port, 0, 0)),
    ]
