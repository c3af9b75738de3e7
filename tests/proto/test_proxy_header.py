from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.proto.frames import Address
from tunnel.proto.proxy_header import ProxyVersion, encode_proxy_header

V1, V2 = ProxyVersion.V1, ProxyVersion.V2
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
VISITOR = Address("198.51.100.9", 51000)
PUBLIC = Address("203.0.113.1", 443)
VISITOR6 = Address("2001:db8::9", 51000)


def test_version_1_is_a_line_of_text() -> None:
    header = encode_proxy_header(V1, VISITOR, PUBLIC)
    assert header == b"PROXY TCP4 198.51.100.9 203.0.113.1 51000 443\r\n"
    header = encode_proxy_header(V1, VISITOR6, Address("2001:db8::1", 22))
    assert header == b"PROXY TCP6 2001:db8::9 2001:db8::1 51000 22\r\n"


def test_version_2_is_binary() -> None:
    assert encode_proxy_header(V2, VISITOR, PUBLIC) == SIGNATURE + bytes.fromhex(
        "21 11 000c c6336409 cb007101 c738 01bb"
    )
    header = encode_proxy_header(V2, VISITOR6, Address("2001:db8::1", 22))
    assert header == SIGNATURE + bytes.fromhex(
        "21 21 0024 20010db8000000000000000000000009 20010db8000000000000000000000001"
        "c738 0016"
    )


@pytest.mark.parametrize("visitor", [None, Address("local", 0)])
def test_a_visitor_without_an_ip_address_is_unknown(visitor: Address | None) -> None:
    assert encode_proxy_header(V1, visitor, PUBLIC) == b"PROXY UNKNOWN\r\n"
    header = encode_proxy_header(V2, visitor, PUBLIC)
    assert header == SIGNATURE + b"\x21\x00\x00\x00"


@pytest.mark.parametrize(
    "public", [Address("vps.example.net", 22), Address("2001:db8::1", 22)]
)
def test_a_public_address_of_another_kind_is_left_open(public: Address) -> None:
    header = encode_proxy_header(V1, VISITOR, public)
    assert header == b"PROXY TCP4 198.51.100.9 0.0.0.0 51000 22\r\n"


def test_without_a_public_address_its_place_is_empty() -> None:
    header = encode_proxy_header(V1, VISITOR6, None)
    assert header == b"PROXY TCP6 2001:db8::9 :: 51000 0\r\n"


def test_an_ipv4_visitor_in_ipv6_clothes_is_undressed() -> None:
    header = encode_proxy_header(V1, Address("::ffff:198.51.100.9", 51000), PUBLIC)
    assert header == encode_proxy_header(V1, VISITOR, PUBLIC)


def test_a_scope_says_nothing_to_another_machine() -> None:
    header = encode_proxy_header(V1, Address("fe80::1%eth0", 5), None)
    assert header == b"PROXY TCP6 fe80::1 :: 5 0\r\n"


@given(st.ip_addresses().map(str), st.integers(0, 65535), st.sampled_from(ProxyVersion))
def test_no_header_is_longer_than_its_version_allows(
    host: str, port: int, version: ProxyVersion
) -> None:
    header = encode_proxy_header(version, Address(host, port), Address(host, port))
    if version is V1:
        assert len(header) <= 107
        assert header.count(b"\r\n") == 1
    else:
        assert int.from_bytes(header[14:16], "big") == len(header) - 16
