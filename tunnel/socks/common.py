"""What the versions of SOCKS share: requests, and the addresses in them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from tunnel.addresses import Address, decode_host, read_address


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


def read_target(data: bytes | bytearray, at: int) -> tuple[Address | None, int]:
    """Read the address (RFC 1928 §5) at ``at``; return it and where it ends.

    None stands for an address whose name cannot be one.

    Raises:
        ShortAddressError: it is not there as a whole.
        AddressKindError: its length cannot be known.
    """
    host, port, end = read_address(data, at)
    name = decode_host(host) if isinstance(host, bytes) else host
    return None if name is None else Address(name, port), end
