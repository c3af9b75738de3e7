"""The header of a datagram between an app and its SOCKS5 proxy (RFC 1928 §7).

Fragments are not put together again: RFC 1928 lets such an implementation drop them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.socks.common import (
    UnknownAddressKindError,
    address_bytes,
    decode_address,
    encode_address,
)

if TYPE_CHECKING:
    from tunnel.proto.frames import Address

_ADDRESS_AT: Final = 3
"""Behind two reserved bytes and FRAG."""
_FRAGMENT_AT: Final = 2


def encode_datagram(source: Address, payload: bytes) -> bytes:
    """Write what the app gets: who has sent it, and what."""
    return bytes(_ADDRESS_AT) + encode_address(source) + payload


def decode_datagram(data: bytes) -> tuple[Address, bytes] | None:
    """Return where a datagram of the app is to go, and its payload.

    None for one that is to be dropped: a fragment, cut short, to port 0, or to an
    address that cannot be one. The reserved bytes are not looked at.
    """
    if len(data) <= _ADDRESS_AT or data[_FRAGMENT_AT]:
        return None
    try:
        size = address_bytes(data, _ADDRESS_AT)
    except UnknownAddressKindError:
        return None
    if size is None or len(data) < _ADDRESS_AT + size:
        return None
    end = _ADDRESS_AT + size
    target = decode_address(data[_ADDRESS_AT:end])
    if target is None or target.port == 0:
        return None
    return target, data[end:]
