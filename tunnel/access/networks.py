"""What others may reach in this machine's network: a rule about addresses.

It is asked about the very address that is dialled, after a name was resolved.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from tunnel.errors import UsageError

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks that others may reach through this machine.

    Without one: everything but this machine itself. What listens on loopback was never
    meant for the network, and link-local addresses hold the credentials of clouds.
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
        address = ip_address(ip.partition("%")[0])
        if self.allowed:
            return any(address in network for network in self.allowed)
        return not (
            address.is_loopback
            or address.is_link_local
            or address.is_unspecified
            or address.is_multicast
            or _is_own(ip, address.version)
        )

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


def _is_own(ip: str, version: int) -> bool:
    """Ask the kernel: only an address of this machine can be bound."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
