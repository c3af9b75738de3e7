"""Addresses that no wide right opens, and the disguises in which they come.

What listens on loopback, in a private network or on this machine was never meant for
everybody, and metadata addresses give out the credentials of clouds. An address is
judged as what it means, not as how it is written.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from tunnel.addresses import IpAddress, parse_ip, unmapped

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

METADATA: Final = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254",  # AWS, Google, Azure, OpenStack and most others
            "169.254.170.2",  # AWS, containers
            "169.254.170.23",  # AWS, Kubernetes
            "168.63.129.16",  # Azure
            "100.100.100.200",  # Alibaba
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",  # AWS
            "fd00:ec2::23",  # AWS, Kubernetes
            "fd20:ce::254",  # Google
            "fd00:c1::a9fe:a9fe",  # Oracle
        ),
    )
)
"""Where clouds tell a machine its own credentials."""

CLOSED: Final = (
    "0.0.0.0/8",  # unspecified: this machine
    "10.0.0.0/8",  # private (RFC 1918), as are 172.16/12 and 192.168/16
    "100.64.0.0/10",  # shared: a provider's own (RFC 6598)
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local
    "172.16.0.0/12",
    "192.0.0.0/24",  # of protocols between this machine and its router (RFC 6890)
    "192.168.0.0/16",
    "198.18.0.0/15",  # of laboratories (RFC 2544), and of proxies for names
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "::/128",
    "::1/128",
    "100::/64",  # discarded (RFC 6666)
    "fc00::/7",  # unique local
    "fe80::/10",  # link-local
    "fec0::/10",  # site-local, which some stacks still route
    "ff00::/8",  # multicast
)
"""Opened only by a right whose network lies within that one."""

_DISGUISES: Final = (
    ("::/96", 128),  # IPv4-compatible (RFC 4291 §2.5.5.1): routed by nobody
    ("64:ff9b:1::/48", 96),  # a NAT64 of the place (RFC 8215): only by its own prefix
)
"""Closed, and how long the network of the right must be that opens them."""

_WORD: Final = 0xFFFF_FFFF
_NAT64: Final = 0x64_FF9B << 64
_NAT64_OF_THE_PLACE: Final = 0x64_FF9B_0001
_TRANSLATED: Final = 0xFFFF_0000
_TEREDO: Final = 0x2001_0000
_SIX_TO_FOUR: Final = 0x2002
_ISATAP: Final = (0x5EFE, 0x0200_5EFE)

_Table = list[tuple[int, dict[int, int]]]


def _tables() -> tuple[_Table, _Table]:
    """Return for IPv4 and IPv6: the shift, and what opens each prefix behind it."""
    found: tuple[dict[int, dict[int, int]], ...] = {}, {}
    rows = [(ip_network(text), 0) for text in CLOSED]
    rows += [(ip_network(text), least) for text, least in _DISGUISES]
    for network, least in rows:
        shift = network.max_prefixlen - network.prefixlen
        prefix = int(network.network_address) >> shift
        of_version = found[not isinstance(network, IPv4Network)]
        of_version.setdefault(shift, {})[prefix] = least or network.prefixlen
    # The smallest network that holds an address speaks for it.
    ipv4, ipv6 = (sorted(one.items()) for one in found)
    return ipv4, ipv6


_IPV4, _IPV6 = _tables()


@lru_cache(1_024)
def meant_ip(text: str) -> IpAddress | None:
    """Return the IP address that a socket's address means; None for what is none.

    A zone names an interface of this machine, and an IPv4-mapped address is dialled as
    IPv4: neither is a part of what it means.
    """
    ip = parse_ip(text.partition("%")[0])
    return None if ip is None else unmapped(ip)


def least_prefix(ip: IpAddress, own: Container[IpAddress]) -> int:
    """Return how long the network of a right must be to open an address; 0: any is.

    A metadata address, an address of this machine, and an IPv6 address behind which a
    closed IPv4 address is reached are opened by that very address alone, a closed range
    by a network within it.

    Args:
        ip: as ``meant_ip`` gives it.
        own: the addresses of this machine.
    """
    whole = ip.max_prefixlen
    if ip in METADATA or ip in own:
        return whole
    value = int(ip)
    if isinstance(ip, IPv6Address):
        if any(least_prefix(one, own) for one in hidden_ipv4(ip)):
            return whole
        return _look_up(_IPV6, value)
    return _look_up(_IPV4, value)


def hidden_ipv4(ip: IpAddress) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses at which packets to an IPv6 address can arrive.

    Those of NAT64 (RFC 6052, RFC 8215), of SIIT (RFC 2765), of 6to4 (RFC 3056), of
    ISATAP (RFC 5214), and both of Teredo: the server, and the peer behind its NAT
    (RFC 4380).
    """
    if isinstance(ip, IPv4Address):
        return
    value = int(ip)
    if (
        value >> 32 in (_NAT64, _TRANSLATED)
        or value >> 80 == _NAT64_OF_THE_PLACE
        or value >> 32 & _WORD in _ISATAP
    ):
        yield IPv4Address(value & _WORD)
    if value >> 112 == _SIX_TO_FOUR:
        yield IPv4Address(value >> 80 & _WORD)
    elif value >> 96 == _TEREDO:
        yield IPv4Address(value >> 64 & _WORD)
        yield IPv4Address(~value & _WORD)


def translated_ipv4(ip: IpAddress) -> IPv4Address | None:
    """Return what an address of the well-known NAT64 means (RFC 6052 §2.1)."""
    value = int(ip)
    is_nat64 = isinstance(ip, IPv6Address) and value >> 32 == _NAT64
    return IPv4Address(value & _WORD) if is_nat64 else None


def _look_up(table: _Table, value: int) -> int:
    for shift, opened_by in table:
        least = opened_by.get(value >> shift)
        if least is not None:
            return least
    return 0
