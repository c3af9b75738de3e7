"""The header of a datagram between an app and its SOCKS5 proxy (RFC 1928 §7).

Fragments are not put together again: RFC 1928 lets such an implementation drop them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.addresses import AddressKindError, ShortAddressError, encode_address
from tunnel.socks.common import read_target

if TYPE_CHECKING:
    from tunnel.addresses import Address

_ADDRESS_AT: Final = 3
"""Behind two reserved bytes and FRAG."""
_FRAGMENT_AT: Final = 2


def encode_datagram(source: Address, payload: bytes) -> bytes:
    """Write the datagram that an app gets: where it comes from, then the payload.

    Raises:
        LocalStreamError: ``source`` is a name that cannot be written.
    """
    return bytes(_ADDRESS_AT) + encode_address(source) + payload


def decode_datagram(data: bytes) -> tuple[Address, bytes] | None:
    """Return where a datagram of the app is to go, and its payload.

    None for one that is to be dropped: a fragment, cut short, to port 0, or to an
    address that cannot be one. The reserved bytes are not looked at.
    """
    if len(data) <= _ADDRESS_AT or data[_FRAGMENT_AT]:
        return None
    try:
        target, end = read_target(data, _ADDRESS_AT)
    except (ShortAddressError, AddressKindError):
        return None
    if target is None or target.port == 0:
        return None
    return target, data[end:]
