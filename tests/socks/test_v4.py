from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import Address
from tunnel.errors import Code, RemoteStreamError
from tunnel.socks.common import SocksCommand, SocksRequest
from tunnel.socks.v4 import Socks4Server

REJECTED = b"\x00\x5b" + bytes(6)
A_NAME = bytes((0, 0, 0, 1))
LONGEST = b".".join((b"n" * 63, b"n" * 63, b"n" * 63, b"n" * 61))
"""253 bytes: what the DNS has room for."""


def request(
    ip: bytes = bytes((192, 0, 2, 7)),
    user: bytes = b"",
    name: bytes | None = None,
    command: int = 1,
    port: int = 80,
) -> bytes:
    tail = b"" if name is None else name + b"\x00"
    return bytes((4, command)) + port.to_bytes(2, "big") + ip + user + b"\x00" + tail


def named(name: bytes, port: int = 80) -> bytes:
    return request(A_NAME, b"me", name, port=port)


@dataclass
class Heard:
    output: bytes
    request: SocksRequest | None
    refused: Code | None
    leftover: bytes
    error: Code | None


def talk(pieces: list[bytes], closed: bool = False) -> Heard:
    server = Socks4Server(closed=closed)
    output = b""
    error = None
    for piece in pieces:
        try:
            server.receive(piece)
        except RemoteStreamError as problem:
            error = problem.code
            break
        finally:
            output += server.take_output()
    return Heard(output, server.request, server.refused, server.leftover, error)


def test_a_connect_to_ipv4_is_understood_and_the_rest_is_left_over() -> None:
    """Point 23."""
    heard = talk([request(user=b"me") + b"GET /", b" more"])
    assert heard.request == SocksRequest(SocksCommand.CONNECT, Address("192.0.2.7", 80))
    assert heard.output == b""
    assert heard.leftover == b"GET / more"


def test_a_name_of_4a_is_carried_as_it_was_written() -> None:
    """Point 24."""
    heard = talk([named(b"www.Example.org", 443) + b"x"])
    assert heard.request == SocksRequest(
        SocksCommand.CONNECT, Address("www.Example.org", 443)
    )
    assert heard.leftover == b"x"


def test_the_reply_has_version_0_and_8_bytes() -> None:
    """Point 23."""
    server = Socks4Server()
    assert server.succeed() == b"\x00\x5a" + bytes(6)
    assert server.succeed(Address("192.0.2.7", 258)) == b"\0\x5a\1\2\xc0\0\2\7"
    assert server.succeed(Address("::1", 258)) == b"\0\x5a\1\2" + bytes(4)


@pytest.mark.parametrize("code", list(Code))
def test_every_failure_is_rejected_or_failed(code: Code) -> None:
    """Point 14."""
    assert Socks4Server().fail(code) == REJECTED


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (request(command=3), Code.UNSUPPORTED),
        (request(command=0), Code.UNSUPPORTED),
        (request(port=0), Code.ADDRESS_UNSUPPORTED),
        (named(b""), Code.ADDRESS_UNSUPPORTED),
        (named(b"a b"), Code.ADDRESS_UNSUPPORTED),
        (named(b"a\r\nX: y"), Code.ADDRESS_UNSUPPORTED),
        (named(b"a" * 256), Code.ADDRESS_UNSUPPORTED),
        (request(user=b"u" * 256), Code.ADDRESS_UNSUPPORTED),
    ],
)
def test_what_cannot_be_served_is_rejected(said: bytes, code: Code) -> None:
    """Points 13, 19, 25; rows A10, A11."""
    heard = talk([said])
    assert (heard.output, heard.refused, heard.request) == (REJECTED, code, None)


def test_the_longest_user_and_name_are_accepted() -> None:
    """Point 25; row A10."""
    heard = talk([request(A_NAME, b"u" * 255, LONGEST)])
    assert heard.request is not None
    assert heard.request.address.host == LONGEST.decode()


@pytest.mark.parametrize("start", [request()[:8], named(b"")[:11]])
def test_a_text_without_an_end_is_rejected_at_its_limit(start: bytes) -> None:
    """Point 25."""
    server = Socks4Server()
    server.receive(start)
    for _ in range(255):
        server.receive(b"x")
    assert not server.over
    server.receive(b"x")
    assert server.refused is Code.ADDRESS_UNSUPPORTED
    server.receive(b"x" * 10_000)
    assert not server._input


def test_a_bind_may_leave_the_peer_open() -> None:
    heard = talk([request(bytes(4), command=2, port=0)])
    assert heard.request == SocksRequest(SocksCommand.BIND, Address("0.0.0.0", 0))


def test_with_users_everybody_is_rejected() -> None:
    """Point 26."""
    heard = talk([request(user=b"alice")], closed=True)
    assert (heard.output, heard.refused) == (REJECTED, Code.AUTH)


def test_another_protocol_is_told_apart_by_its_version_byte() -> None:
    assert talk([b"\x05\x01\x00"]).error is Code.PROTOCOL


conversations = st.one_of(
    st.binary(max_size=600).map(lambda data: b"\x04" + data),
    st.builds(
        lambda head, tail: head + tail,
        st.builds(
            request,
            st.sampled_from([A_NAME, bytes(4), bytes((127, 0, 0, 1))]),
            st.binary(max_size=300),
            st.one_of(st.none(), st.binary(max_size=300)),
            st.integers(0, 4),
            st.integers(0, 3),
        ),
        st.binary(max_size=50),
    ),
)


@given(conversations, st.lists(st.integers(0, 600), max_size=8))
def test_any_split_of_the_bytes_gives_the_same_result(
    data: bytes, cuts: list[int]
) -> None:
    """Point 7; row A10."""
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole = talk([data])
    assert talk(pieces) == whole
    assert talk([data[i : i + 1] for i in range(len(data))]) == whole
