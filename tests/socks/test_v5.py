from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import Address
from tunnel.errors import CODES, Code, RemoteStreamError
from tunnel.socks.common import SocksCommand, SocksRequest
from tunnel.socks.v5 import Socks5Server

GREETING = b"\x05\x01\x00"
METHOD = b"\x05\x00"
LONGEST = b".".join((b"n" * 63, b"n" * 63, b"n" * 63, b"n" * 61))
"""253 bytes: what the DNS has room for."""


def request(command: int, kind: int, body: bytes, port: int = 80) -> bytes:
    return bytes((5, command, 0, kind)) + body + port.to_bytes(2, "big")


def named(name: bytes, port: int = 80, command: int = 1) -> bytes:
    return request(command, 3, bytes((len(name),)) + name, port)


def reply(rep: int) -> bytes:
    return bytes((5, rep, 0, 1, 0, 0, 0, 0, 0, 0))


@dataclass
class Heard:
    output: bytes
    request: SocksRequest | None
    refused: Code | None
    leftover: bytes
    error: Code | None


def check(name: bytes, password: bytes) -> bool:
    return (name, password) == (b"alice", b"s:e%c\xff")


def login(name: bytes, password: bytes) -> bytes:
    parts = bytes((len(name),)) + name + bytes((len(password),)) + password
    return b"\x01" + parts


def talk(pieces: list[bytes], users: bool = False) -> Heard:
    server = Socks5Server(check if users else None)
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


def address(data: bytes) -> Address | None:
    heard = talk([GREETING, data])
    return heard.request.address if heard.request else None


def test_a_connect_by_name_is_understood_and_the_rest_is_left_over() -> None:
    heard = talk([GREETING + named(b"www.example.org", 443) + b"GET /"])
    assert heard.output == METHOD
    assert heard.request == SocksRequest(
        SocksCommand.CONNECT, Address("www.example.org", 443)
    )
    assert heard.leftover == b"GET /"


def test_bytes_behind_a_request_pile_up_in_order() -> None:
    """Point 8."""
    server = Socks5Server()
    server.receive(GREETING + named(b"a") + b"1")
    server.receive(b"2")
    server.receive(b"3")
    assert server.leftover == b"123"


def test_addresses_become_their_usual_text() -> None:
    assert address(request(1, 1, bytes((192, 0, 2, 7)), 8080)) == Address(
        "192.0.2.7", 8080
    )
    assert address(request(1, 4, bytes(15) + b"\x01")) == Address("::1", 80)


def test_a_literal_given_as_a_name_stays_that_literal() -> None:
    """Point 12."""
    assert address(named(b"127.0.0.1")) == Address("127.0.0.1", 80)
    assert address(named(b"2001:DB8::1")) == Address("2001:DB8::1", 80)


@pytest.mark.parametrize(
    "name",
    [b"", b"a b", b"a\x00b", b"\xe9.org", b"a..b", b"a/b", b"a\n", b":", b"fe80::1%lo"],
)
def test_a_malformed_name_is_refused_with_reply_8(name: bytes) -> None:
    """Points 12, 13; row A11."""
    heard = talk([GREETING, named(name)])
    assert heard.output == METHOD + reply(8)
    assert (heard.request, heard.refused) == (None, Code.ADDRESS_UNSUPPORTED)


def test_the_longest_name_is_accepted() -> None:
    """Point 13."""
    assert address(named(LONGEST)) == Address(LONGEST.decode(), 80)
    assert address(named(LONGEST + b".")) == Address(LONGEST.decode() + ".", 80)
    assert talk([GREETING, named(LONGEST + b"a")]).refused is Code.ADDRESS_UNSUPPORTED


def test_an_ipv6_address_as_a_name_may_stand_in_brackets() -> None:
    for name in (b"[::1]", b"::1"):
        assert address(named(name)) == Address("::1", 80)


def test_a_name_in_utf_8_goes_on_as_its_idna_form() -> None:
    name = "Bücher.example".encode()
    assert address(named(name)) == Address("xn--bcher-kva.example", 80)


def test_port_0_is_refused() -> None:
    """Point 19."""
    heard = talk([GREETING, named(b"example.org", 0)])
    assert heard.output == METHOD + reply(8)


@pytest.mark.parametrize("command", [0, 4, 255])
def test_an_unknown_command_is_refused_with_reply_7(command: int) -> None:
    """Point 18."""
    heard = talk([GREETING, named(b"example.org", 80, command)])
    assert heard.output == METHOD + reply(7)
    assert heard.refused is Code.UNSUPPORTED


@pytest.mark.parametrize("kind", [0, 2, 5, 255])
def test_an_unknown_form_of_address_is_refused_with_reply_8(kind: int) -> None:
    """Point 18."""
    heard = talk([GREETING, bytes((5, 1, 0, kind))])
    assert heard.output == METHOD + reply(8)


@pytest.mark.parametrize(
    "greeting", [b"\x05\x00", b"\x05\x01\x01", b"\x05\x02\x01\x80"]
)
def test_without_a_common_method_the_conversation_is_over(greeting: bytes) -> None:
    heard = talk([greeting, named(b"example.org")])
    assert heard.output == b"\x05\xff"
    assert heard.refused is Code.NOT_ALLOWED
    assert heard.request is None


@pytest.mark.parametrize(
    "data", [b"\x04\x01\x00\x50", b"GET / HTTP/1.1", GREETING + b"\x04\x01\x00\x01"]
)
def test_another_protocol_is_told_apart_by_its_version_byte(data: bytes) -> None:
    assert talk([data]).error is Code.PROTOCOL


def test_what_is_not_socks5_never_piles_up() -> None:
    server = Socks5Server()
    for _ in range(3):
        with pytest.raises(RemoteStreamError):
            server.receive(b"\x04" * 1000)
    assert len(server._input) == 1


def test_what_comes_after_a_refusal_never_piles_up() -> None:
    server = Socks5Server()
    server.receive(b"\x05\x00")
    server.receive(b"x" * 1000)
    assert not server._input
    assert server.leftover == b""


def test_nothing_is_decided_before_the_last_byte_of_the_request() -> None:
    data = GREETING + named(b"a" * 255)
    server = Socks5Server()
    server.receive(data[:-1])
    assert not server.over
    server.receive(data[-1:])
    assert server.over


def test_success_names_the_address_of_the_exit_when_it_is_known() -> None:
    """Point 15."""
    server = Socks5Server()
    assert server.succeed(None) == reply(0)
    assert server.succeed(Address("a.name", 9)) == reply(0)
    assert server.succeed(Address("192.0.2.7", 258)) == bytes(
        (5, 0, 0, 1, 192, 0, 2, 7, 1, 2)
    )
    assert (
        server.succeed(Address("::1", 1))
        == b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x01"
    )


@pytest.mark.parametrize("code", list(Code))
def test_every_failure_has_the_reply_of_the_table_and_never_success(code: Code) -> None:
    """Point 14."""
    answer = Socks5Server().fail(code)
    assert answer == reply(CODES[code].socks5 or 1)
    assert answer[1] != 0


# Users -----------------------------------------------------------------------------

LOGIN = login(b"alice", b"s:e%c\xff")


@pytest.mark.parametrize("greeting", [b"\x05\x01\x02", b"\x05\x02\x00\x02"])
def test_with_users_a_password_is_wanted_even_where_none_is_offered_too(
    greeting: bytes,
) -> None:
    """Points 4, 6, 7."""
    heard = talk([greeting + LOGIN + named(b"a") + b"rest"], users=True)
    assert heard.output == b"\x05\x02\x01\x00"
    assert heard.request == SocksRequest(SocksCommand.CONNECT, Address("a", 80))
    assert heard.leftover == b"rest"


@pytest.mark.parametrize("methods", list(itertools.product([0, 1], repeat=4)))
@pytest.mark.parametrize("users", [False, True])
def test_the_chosen_method_is_one_that_was_offered(
    methods: tuple[int, ...], users: bool
) -> None:
    """Points 2, 3, 20."""
    offered = bytes(itertools.compress((0, 1, 2, 0x80), methods))
    heard = talk([bytes((5, len(offered))) + offered], users)
    wanted = (2,) if users else (0, 2)
    chosen = next((method for method in wanted if method in offered), 0xFF)
    assert heard.output == bytes((5, chosen))


@pytest.mark.parametrize("user", [LOGIN, login(b"", b""), login(b"x" * 255, b"y")])
def test_without_users_who_can_only_log_in_is_let_in_with_any_password(
    user: bytes,
) -> None:
    heard = talk([b"\x05\x01\x02" + user + named(b"a") + b"rest"])
    assert heard.output == b"\x05\x02\x01\x00"
    assert heard.request == SocksRequest(SocksCommand.CONNECT, Address("a", 80))
    assert heard.leftover == b"rest"


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (b"alice", b"wrong"),
        (b"bob", b"s:e%c\xff"),
        *itertools.product((b"", b"x", b"x" * 254, b"x" * 255), repeat=2),
    ],
)
def test_a_wrong_login_of_any_length_is_answered_and_over(
    name: bytes, password: bytes
) -> None:
    """Points 5, 6; row A10."""
    said = b"\x05\x01\x02" + login(name, password) + named(b"a")
    heard = talk([said], users=True)
    assert heard.output == b"\x05\x02\x01\x01"
    assert (heard.request, heard.refused) == (None, Code.AUTH)


@pytest.mark.parametrize("size", [1, 254, 255])
def test_a_login_as_long_as_can_be_reaches_a_name_as_long_as_can_be(size: int) -> None:
    """Points 6, 13; row A10."""
    asked: list[tuple[bytes, bytes]] = []

    def note(name: bytes, password: bytes) -> bool:
        asked.append((name, password))
        return True

    server = Socks5Server(note)
    name = LONGEST[-size:]
    for byte in b"\x05\x01\x02" + login(b"u" * size, b"p" * size) + named(name):
        server.receive(bytes((byte,)))
    assert asked == [(b"u" * size, b"p" * size)]
    assert server.request is not None
    assert server.request.address.host == name.decode()


def test_a_login_of_another_version_is_not_answered() -> None:
    """Point 5."""
    heard = talk([b"\x05\x01\x02", b"\x05" + LOGIN[1:]], users=True)
    assert (heard.output, heard.error) == (b"\x05\x02", Code.PROTOCOL)


@pytest.mark.parametrize("command", [SocksCommand.BIND, SocksCommand.ASSOCIATE])
def test_bind_and_associate_may_leave_the_address_open(command: SocksCommand) -> None:
    """Points 17, 28."""
    heard = talk([GREETING + request(command, 1, bytes(4), 0)])
    assert heard.request == SocksRequest(command, Address("0.0.0.0", 0))


def test_the_reserved_byte_is_not_looked_at() -> None:
    """Point 18."""
    data = bytearray(named(b"a"))
    data[2] = 7
    assert address(bytes(data)) == Address("a", 80)


conversations = st.one_of(
    st.binary(max_size=600),
    st.builds(
        lambda methods, body, tail: bytes((5, len(methods))) + methods + body + tail,
        st.binary(max_size=255),
        st.one_of(
            st.builds(
                named,
                st.binary(max_size=255),
                st.integers(0, 65535),
                st.integers(0, 4),
            ),
            st.builds(request, st.integers(0, 4), st.integers(0, 5), st.binary()),
        ),
        st.binary(max_size=50),
    ),
    st.builds(
        lambda head, name, tail: b"\x05\x01\x02" + head + named(name) + tail,
        st.one_of(st.just(LOGIN), st.builds(login, st.binary(), st.binary())),
        st.binary(max_size=40),
        st.binary(max_size=50),
    ),
    st.builds(
        lambda name, tail: GREETING + named(name) + tail,
        st.text("abc.-_:1%", max_size=40).map(str.encode),
        st.binary(max_size=50),
    ),
)


@given(conversations, st.lists(st.integers(0, 600), max_size=8), st.booleans())
def test_any_split_of_the_bytes_gives_the_same_result(
    data: bytes, cuts: list[int], users: bool
) -> None:
    """Point 7; row A10."""
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole = talk([data], users)
    assert talk(pieces, users) == whole
    assert talk([data[i : i + 1] for i in range(len(data))], users) == whole


@given(conversations, st.booleans())
def test_a_conversation_keeps_no_more_than_its_longest_message(
    data: bytes, users: bool
) -> None:
    server = Socks5Server(check if users else None)
    for i in range(len(data)):
        try:
            server.receive(data[i : i + 1])
        except RemoteStreamError:
            break
        assert len(server._input) <= 513
