"""What the versions of SOCKS share: commands, and addresses as RFC 1928 §5 has them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from tunnel.addresses import decode_host
from tunnel.proto.frames import Address

_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_PORT_BYTES: Final = 2

NOWHERE: Final = Address("0.0.0.0", 0)  # noqa: S104  # said, never listened on
"""Stands in a reply where there is no address to tell."""


class SocksCommand(IntEnum):
    """What an app may ask for; SOCKS4 knows the first two."""

    CONNECT = 1
    BIND = 2
    ASSOCIATE = 3


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """What the app asks for; ``address.host`` is what it wrote, name or literal.

    Of CONNECT it is the target, of BIND the peer that the app expects, of ASSOCIATE
    where its datagrams will come from; the last two may be all zeros: not known.
    """

    command: SocksCommand
    address: Address


class UnknownAddressKindError(ValueError):
    """An address of a kind that RFC 1928 does not know: its length is unknown too."""


def address_bytes(data: bytes | bytearray, start: int) -> int | None:
    """Return how long the address (kind, host, port) at ``start`` is.

    None while that cannot be known yet. It may be longer than what is there.

    Raises:
        UnknownAddressKindError: no length to be had.
    """
    if len(data) <= start:
        return None
    match data[start]:
        case 1:
            return 1 + 4 + _PORT_BYTES
        case 4:
            return 1 + 16 + _PORT_BYTES
        case 3 if len(data) > start + 1:
            return 2 + data[start + 1] + _PORT_BYTES
        case 3:
            return None
        case kind:
            raise UnknownAddressKindError(f"address kind {kind}")


def decode_address(raw: bytes) -> Address | None:
    """Return the address that is exactly ``raw``; None for an unusable name."""
    kind, host = raw[0], raw[1:-_PORT_BYTES]
    port = int.from_bytes(raw[-_PORT_BYTES:], "big")
    if kind == _IPV4:
        return Address(str(IPv4Address(host)), port)
    if kind == _IPV6:
        return Address(str(IPv6Address(host)), port)
    name = decode_host(host[1:])
    return None if name is None else Address(name, port)


def encode_address(address: Address) -> bytes:
    """Write kind, host and port; a name of more than 255 bytes is not one."""
    port = address.port.to_bytes(_PORT_BYTES, "big")
    ip = literal(address.host)
    if ip is None:
        name = address.host.encode("latin-1", "replace")[:255]
        return bytes((_NAME, len(name))) + name + port
    return bytes((_IPV4 if ip.version == 4 else _IPV6,)) + ip.packed + port


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that ``host`` is; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
