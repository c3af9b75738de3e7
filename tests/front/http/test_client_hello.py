from __future__ import annotations

import ssl
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.certs import choose_curve

from tunnel.front.http.client_hello import (
    HELLO_BYTES,
    P256,
    X25519,
    ClientHello,
    HelloError,
    read_client_hello,
)


def real(
    name: str | None = "tunnel.test", curve: str = "", alpn: tuple[str, ...] = ()
) -> bytes:
    """Give what OpenSSL says first."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    if curve:
        choose_curve(context, curve)
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def sni(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]) + vector(2, name)))


def made(extensions: bytes | None = b"", record: int = 1 << 14) -> bytes:
    """Give a first message with these extensions, in records of this size."""
    body = b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01") + b"\x01\0"
    if extensions is not None:
        body += vector(2, extensions)
    message = b"\x01" + vector(3, body)
    parts = [message[at : at + record] for at in range(0, len(message), record)]
    return b"".join(b"\x16\x03\x01" + vector(2, part) for part in parts)


@pytest.mark.parametrize("alpn", [(), ("prot/1",), ("h2", "http/1.1", "acme-tls/1")])
def test_what_would_be_spoken_is_read(alpn: tuple[str, ...]) -> None:
    hello = read_client_hello(real(alpn=alpn))
    assert hello is not None
    assert hello.protocols == tuple(map(str.encode, alpn))


def test_name_groups_and_shares_of_a_real_message_are_read() -> None:
    hello = read_client_hello(real())
    assert hello is not None
    assert hello.name == "tunnel.test"
    assert X25519 in hello.groups
    assert P256 in hello.groups
    assert X25519 in hello.shares


@pytest.mark.parametrize(
    ("curve", "group"), [("X25519", X25519), ("prime256v1", P256), ("secp521r1", 0x19)]
)
def test_a_visitor_with_one_group_says_that_one(curve: str, group: int) -> None:
    hello = read_client_hello(real(curve=curve))
    assert hello is not None
    assert (hello.groups, hello.shares) == ((group,), (group,))


def test_nothing_is_known_before_the_last_byte() -> None:
    whole = real()
    assert all(read_client_hello(whole[:size]) is None for size in range(len(whole)))
    assert read_client_hello(whole + b"more") == read_client_hello(whole)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100])
def test_a_message_may_come_in_many_records(size: int) -> None:
    hello = read_client_hello(made(sni(b"a.test"), size))
    assert hello == ClientHello("a.test")


@pytest.mark.parametrize(
    "extensions", [None, b"", sni(b"a.test", 1), sni(b"\xff\xfe.test"), sni(b"")]
)
def test_no_name_is_an_empty_one(extensions: bytes | None) -> None:
    assert read_client_hello(made(extensions)) == ClientHello()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",  # SSL 2
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x01\x02",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        made(sni(b"a.test") + sni(b"b.test")),
        made(sni(b"a.test") + b"\0"),
        made(extension(0, vector(2, b"\0" + vector(2, b"a") + b"\0"))),
        made(extension(10, vector(2, b"\0\x1d\0"))),
        made(extension(51, vector(2, b"\0\x1d\0\x20"))),
        made(extension(0, b"\0")),
    ],
)
def test_what_cannot_become_a_first_message_is_refused(said: bytes) -> None:
    with pytest.raises(HelloError):
        read_client_hello(said)


def test_small_records_do_not_make_a_message_without_end() -> None:
    said = made(extension(21, bytes(9_000)), 1)
    assert len(said) > HELLO_BYTES
    assert read_client_hello(said[:HELLO_BYTES]) is None
    with pytest.raises(HelloError):
        read_client_hello(said[: HELLO_BYTES + 1])


WHOLE = real()


@given(st.data())
def test_broken_messages_raise_one_error_and_nothing_else(data: st.DataObject) -> None:
    said = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(said) - 1))
        said[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(HelloError):
        hello = read_client_hello(said)
        assert hello is None or hello.name.isascii()


@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_are_borne(said: bytes) -> None:
    for head in (b"", b"\x16\x03\x01\x01\x00", b"\x16\x03\x01\x01\x00\x01\x00\x00\xf0"):
        with suppress(HelloError):
            read_client_hello(head + said)
