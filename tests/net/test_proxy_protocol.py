from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import Address
from tunnel.net.proxy_protocol import (
    ProxyHeader,
    ProxyVersion,
    encode_proxy_header,
    read_proxy_header,
)

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


# Reading -----------------------------------------------------------------------------

LINES = {
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": Address(
        "255.255.255.255", 65_535
    ),
    b"PROXY TCP6 2001:db8::9 ::1 1 2\r\n": Address("2001:db8::9", 1),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n": Address("192.0.2.1", 1),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": None,
    SIGNATURE + b"\x20\x00\x00\x00": None,  # LOCAL
    SIGNATURE + b"\x20\x11\x00\x03abc": None,  # LOCAL: its addresses are skipped
    SIGNATURE + b"\x21\x00\x00\x02ab": None,  # UNSPEC
    SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216): None,  # AF_UNIX
    SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12): None,  # UDP, on TCP
    SIGNATURE
    + bytes.fromhex("21 11 0013 c6336409 cb007101 c738 01bb 04 0004 00000000"): VISITOR,
}
"""Of the specification, and those that it speaks of."""

BROKEN = (
    b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
    b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "PROXY TCP4 192.0.2.1 192.0.2.\u0662 1 2\r\n".encode(),
    b"PROXY UNKNOWN" + b"x" * 94,
    SIGNATURE + b"\x11\x11\x00\x00",
    SIGNATURE + b"\x22\x11\x00\x0c",
    SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
    SIGNATURE + b"\x21\x21\x00\x23" + bytes(35),
    SIGNATURE + b"\x21\x41\x00\x00",
    SIGNATURE + b"\x21\x11\xff\xff",
)


@pytest.mark.parametrize("header", LINES)
def test_a_header_is_read_whatever_follows_it(header: bytes) -> None:
    for behind in (b"", b"GET / HTTP/1.1", header):
        read = read_proxy_header(header + behind)
        assert read == ProxyHeader(len(header), LINES[header])
    for size in range(len(header)):
        assert read_proxy_header(header[:size]) is None


@pytest.mark.parametrize("header", BROKEN)
def test_a_broken_header_is_none(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_proxy_header(header)


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n", b"PROPFIND / ", b"\r\n\r\nGET", b"\x16\x03\x01", b"5"],
)
def test_other_words_have_no_header(words: bytes) -> None:
    assert read_proxy_header(words) == ProxyHeader(0)


@given(
    st.sampled_from([V1, V2]),
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(0, 65_535),
    st.binary(max_size=40),
)
def test_what_is_written_is_read(
    version: ProxyVersion, ip: object, port: int, behind: bytes
) -> None:
    header = encode_proxy_header(version, Address(str(ip), port), PUBLIC)
    read = read_proxy_header(header + behind)
    assert read is not None
    assert read.size == len(header)
    assert read.visitor is not None
    assert read.visitor.port == port
    assert encode_proxy_header(version, read.visitor, PUBLIC) == header


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"]),
    st.binary(max_size=300),
)
def test_no_bytes_are_more_than_refused(start: bytes, rest: bytes) -> None:
    data = start + rest
    try:
        read = read_proxy_header(data)
    except ValueError:
        return
    assert read is None or read.size <= len(data)
