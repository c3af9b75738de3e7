from __future__ import annotations

import re

import pytest

from tunnel.addresses import (
    MAX_NAME_BYTES,
    Address,
    AddressKindError,
    ShortAddressError,
    bare_ip,
    decode_host,
    encode_address,
    host_of,
    is_localhost,
    parse_ip,
    read_address,
    unmapped,
)
from tunnel.errors import UsageError

LONGEST = ".".join(("n" * 63, "n" * 63, "n" * 63, "n" * 61))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("db.lan", "db.lan"),
        ("Db.LAN.", "Db.LAN."),
        ("_srv.my_db", "_srv.my_db"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::ffff:192.0.2.1]", "::ffff:192.0.2.1"),
        ("B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("stra\u00dfe.de", "xn--strae-oqa.de"),
        (LONGEST, LONGEST),
        (LONGEST + ".", LONGEST + "."),
    ],
)
def test_a_name_or_an_address_goes_on_as_everybody_knows_it(
    text: str, host: str
) -> None:
    assert host_of(text) == host
    assert decode_host(text.encode()) == host


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a..b", ".a", "a b", "a\n", "a\0", "*", "a/b", "a" * 64,
     LONGEST + "n", "n." + LONGEST, "\u00fc" * 64, "a..\u00fc", "\u2028.de",
     ":", "::1]", "[::1", "[127.0.0.1]", "[db.lan]", "[]", "[[::1]]", "::1%lo",
     "[fe80::1%eth0]", "1:2"],
)  # fmt: skip
def test_what_no_resolver_should_see_is_no_host(text: str) -> None:
    assert host_of(text) is None
    assert decode_host(text.encode()) is None


def test_the_longest_name_is_as_long_as_the_dns_allows() -> None:
    assert len(LONGEST) == MAX_NAME_BYTES


def test_bytes_that_are_not_utf_8_are_no_host() -> None:
    assert decode_host(b"b\xfccher.example") is None


def test_a_zone_is_for_who_uses_the_address_itself() -> None:
    assert host_of("[fe80::1%eth0]", zone=True) == "fe80::1%eth0"
    assert host_of("fe80::1%e\n", zone=True) is None


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "localhost."])
def test_localhost_is_known_in_all_its_spellings(host: str) -> None:
    assert is_localhost(host)


@pytest.mark.parametrize("host", ["localhost.lan", "my-localhost", "127.0.0.1", ""])
def test_other_names_are_not_localhost(host: str) -> None:
    assert not is_localhost(host)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("[::1]:80", Address("::1", 80)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("*:7443", Address("*", 7443)),
        ("b\u00fccher.example:80", Address("xn--bcher-kva.example", 80)),
        ("7443", Address("*", 7443)),
    ],
)
def test_an_address_is_read_by_the_same_rule(text: str, address: Address) -> None:
    assert Address.parse(text, "*") == address


@pytest.mark.parametrize(
    "text", ["::1:80", "[127.0.0.1]:80", "a b:80", "a..b:80", ":80", "[::1]", "a\n:1"]
)
def test_what_is_no_address_is_said_to_be_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        Address.parse(text, "*")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("::1:22", "[::1]:22"),
        ("2001:db8::1:80", "[2001:db8::1]:80"),
        ("fe80::1%eth0:80", "[fe80::1%eth0]:80"),
        ("1:2:3:4:5:6:7:8:22", "[1:2:3:4:5:6:7:8]:22"),
        ("[::1:80", "[::1]:80"),
        ("::1]:80", "[::1]:80"),
        ("::1", "[::1]:PORT"),
        ("[2001:db8::1]", "[2001:db8::1]:PORT"),
        ("::ffff", "[::ffff]:PORT"),
    ],
)
def test_who_forgets_the_brackets_is_shown_them(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)) as caught:
        Address.parse(text)
    assert caught.value.fix == f"write {meant}"
    Address.parse(meant.replace("PORT", "1"))


@pytest.mark.parametrize("text", ["a:b:22", "db.lan", "[db.lan]:1", "::g:1"])
def test_brackets_are_shown_to_nobody_else(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.parse(text)
    assert caught.value.fix == "for example db.lan:5432"


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "db.lan"])
def test_an_address_is_read_wherever_it_begins_and_only_as_a_whole(host: str) -> None:
    written = b"abc" + encode_address(Address(host, 5432))
    read, port, end = read_address(written + b"behind", 3)
    assert (read, port, end) in [
        (host, 5432, len(written)),
        (host.encode(), 5432, len(written)),
    ]
    for size in range(len(written)):
        with pytest.raises(ShortAddressError):
            read_address(bytearray(written[:size]), 3)


def test_an_address_of_another_kind_has_no_end() -> None:
    with pytest.raises(AddressKindError, match="address form 2"):
        read_address(b"\2\0\0\0\0\0\0", 0)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
def test_a_peer_is_known_by_its_address_alone(text: str, bare: str) -> None:
    assert bare_ip(text) == bare


def test_only_an_ip_address_is_one() -> None:
    assert parse_ip("db.lan") is None
    zoned = parse_ip("fe80::1%eth0")
    assert zoned is not None
    assert unmapped(zoned) is zoned
