"""The PROXY protocol, versions 1 and 2: tells a target who its visitor really is.

The header stands before the first byte of a connection. It is only written: nobody
who comes to a public port is believed about who they are.
Text: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.proto.frames import Address

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_VERSION_2_PROXY: Final = 0x21
_TCP: Final = {4: 0x11, 6: 0x21}
_UNSPECIFIED: Final[dict[int, IPv4Address | IPv6Address]] = {
    4: IPv4Address(0),
    6: IPv6Address(0),
}


class ProxyVersion(Enum):
    """Which form a target expects; it cannot be found out by asking it."""

    V1 = "v1"
    V2 = "v2"


def encode_proxy_header(
    version: ProxyVersion, visitor: Address | None, public: Address | None
) -> bytes:
    """Write the header for a connection of ``visitor`` to the address ``public``.

    A visitor without an IP address (a unix socket, or nobody knows) gives the form for
    "unknown": the target then goes by the connection's own addresses. A public address
    that is a name, or of the other family, is written as 0.0.0.0 or ``::``.
    """
    source = None if visitor is None else _ip(visitor)
    if visitor is None or source is None:
        if version is ProxyVersion.V1:
            return b"PROXY UNKNOWN\r\n"
        return _SIGNATURE + bytes((_VERSION_2_PROXY, 0, 0, 0))
    destination = _UNSPECIFIED[source.version]
    if public is not None and (ip := _ip(public)) and ip.version == source.version:
        destination = ip
    port = public.port if public is not None else 0
    if version is ProxyVersion.V1:
        text = f"TCP{source.version} {source} {destination} {visitor.port} {port}"
        return f"PROXY {text}\r\n".encode("ascii")
    addresses = (
        source.packed
        + destination.packed
        + visitor.port.to_bytes(2, "big")
        + port.to_bytes(2, "big")
    )
    head = bytes((_VERSION_2_PROXY, _TCP[source.version]))
    return _SIGNATURE + head + len(addresses).to_bytes(2, "big") + addresses


def _ip(address: Address) -> IPv4Address | IPv6Address | None:
    """Give the address as numbers, without the scope of this machine."""
    try:
        ip = ip_address(address.host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip
