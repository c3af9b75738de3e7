from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import Address, host_of
from tunnel.socks.v5 import decode_datagram, encode_datagram

WHOLE = b"\0\0\0\1\xc0\0\2\7\0\x35payload"


def test_a_datagram_says_where_it_goes() -> None:
    """Point 29."""
    assert decode_datagram(WHOLE) == (Address("192.0.2.7", 53), b"payload")
    assert decode_datagram(b"\0\0\0\3\1a\0\x35") == (Address("a", 53), b"")
    v6 = b"\0\0\0\4" + bytes(15) + b"\1\0\x35x"
    assert decode_datagram(v6) == (Address("::1", 53), b"x")


def test_an_answer_says_where_it_comes_from() -> None:
    """Points 29, 36."""
    assert encode_datagram(Address("192.0.2.7", 53), b"payload") == WHOLE
    v6 = encode_datagram(Address("::1", 53), b"x")
    assert v6 == b"\0\0\0\4" + bytes(15) + b"\1\0\x35x"


@pytest.mark.parametrize("fragment", [1, 127, 128, 255])
def test_a_fragment_is_dropped(fragment: int) -> None:
    """Point 30."""
    assert decode_datagram(WHOLE[:2] + bytes((fragment,)) + WHOLE[3:]) is None


def test_the_reserved_bytes_are_not_looked_at() -> None:
    assert decode_datagram(b"\1\2" + WHOLE[2:]) == decode_datagram(WHOLE)


def test_what_is_cut_short_is_dropped() -> None:
    """Row A10."""
    for end in range(10):
        assert decode_datagram(WHOLE[:end]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\1\xc0\0\2\7\0\0x",  # port 0
        b"\0\0\0\2\xc0\0\2\7\0\x35x",
        b"\0\0\0\3\0\0\x35x",
        b"\0\0\0\3\3a b\0\x35x",
        b"\0\0\0\3\3a\r\n\0\x35x",
    ],
)
def test_an_address_that_cannot_be_one_is_dropped(data: bytes) -> None:
    """Points 13, 19; row A11."""
    assert decode_datagram(data) is None


@given(st.binary(max_size=600))
def test_any_bytes_are_a_datagram_or_nothing(data: bytes) -> None:
    decode_datagram(data)
    decode_datagram(bytes(3) + data)


hosts = st.one_of(
    st.ip_addresses().map(str),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", max_size=63).filter(host_of),
)


@given(hosts, st.integers(1, 65_535), st.binary(max_size=100))
def test_what_is_encoded_is_decoded_again(host: str, port: int, data: bytes) -> None:
    address = Address(host, port)
    assert decode_datagram(encode_datagram(address, data)) == (address, data)
