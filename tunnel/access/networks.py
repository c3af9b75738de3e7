"""What others may reach in this machine's network: a rule about addresses.

It is asked about the very address that is dialled, after a name was resolved.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from tunnel.access.closed import METADATA, hidden_ipv4, meant_ip
from tunnel.errors import UsageError
from tunnel.platform.addresses import OWN_ADDRESSES

if TYPE_CHECKING:
    from tunnel.addresses import IpAddress

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks that others may reach through this machine.

    Without one: everything but this machine itself. What listens on loopback was never
    meant for the network, and link-local addresses and some others hold the credentials
    of clouds.
    """

    allowed: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, texts: list[str]) -> Networks:
        """Read addresses and networks such as ``10.0.0.0/8``; none is the default.

        Raises:
            UsageError: one is neither.
        """
        return cls(tuple(map(parse_network, texts)))

    def allow(self, ip: str, _port: int) -> bool:
        """Say whether that address may be reached through this machine."""
        address = meant_ip(ip)
        if address is None:
            return False
        if self.allowed:
            return any(address in network for network in self.allowed)
        return not (_is_here(address) or any(map(_is_here, hidden_ipv4(address))))

    def __str__(self) -> str:
        if self.allowed:
            return ", ".join(map(str, self.allowed))
        return "everything but this machine"


def parse_network(text: str) -> Network:
    """Read an address, or a network such as ``10.0.0.0/8``.

    Raises:
        UsageError: it is neither.
    """
    why = "it is neither an address nor a network"
    try:
        network = ip_network(text, strict=False)
        if "/" not in text or network.network_address == ip_address(text.split("/")[0]):
            return network
        why = f"a network begins at its first address: {network}"
    except ValueError:
        pass
    raise UsageError(f"{text!r} is not a network", why, "for example 192.168.1.0/24")


def _is_here(ip: IpAddress) -> bool:
    """Say whether an address leads to this machine, or to those that run it."""
    return (
        ip.is_loopback
        or ip.is_link_local
        or ip.is_unspecified
        or ip.is_multicast
        or ip in METADATA
        or ip in OWN_ADDRESSES
    )
