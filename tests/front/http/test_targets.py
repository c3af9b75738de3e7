from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import Address
from tunnel.front.http.fields import answer_lines, framing
from tunnel.front.http.heads import Field, read_answer, read_request
from tunnel.front.http.targets import (
    TargetError,
    absolute_target,
    check_host,
    connect_target,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("target", "address", "path"),
    [
        (b"http://a.test", Address("a.test", 80), b"/"),
        (b"http://a.test/", Address("a.test", 80), b"/"),
        (
            b"HTTP://A.Test:8080/x?y=http://z/",
            Address("A.Test", 8080),
            b"/x?y=http://z/",
        ),
        (b"http://a.test?q", Address("a.test", 80), b"/?q"),
        (b"http://[2001:db8::1]/", Address("2001:db8::1", 80), b"/"),
        (b"http://[::1]:81/", Address("::1", 81), b"/"),
        (b"ws://a.test/chat", Address("a.test", 80), b"/chat"),
        (b"http://u:p@a.test:81/x", Address("a.test", 81), b"/x"),
        (b"http://a.test:80@b.test/", Address("b.test", 80), b"/"),
    ],
)
def test_an_absolute_form_is_taken_apart(
    target: bytes, address: Address, path: bytes
) -> None:
    """Point 45."""
    found = absolute_target(target, b"GET")
    assert (found.address, found.path) == (address, path)


def test_options_without_a_path_is_about_the_whole_server() -> None:
    assert absolute_target(b"http://a.test", b"OPTIONS").path == b"*"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/", 400),
        (b"*", 400),
        (b"a.test:80", 400),
        (b"https://a.test/", 501),
        (b"ftp://a.test/", 501),
        (b"http://", 400),
        (b"http:///x", 400),
        (b"http://:80/", 400),
        (b"http://a.test:/", 400),
        (b"http://a.test:0/", 400),
        (b"http://a.test:65536/", 400),
        (b"http://a.test:+80/", 400),
        (b"http://a.test:080000/", 400),
        (b"http://::1/", 400),
        (b"http://[::1/", 400),
        (b"http://[::1]x/", 400),
        (b"http://[a.test]/", 400),
        (b"http://[fe80::1%25lo]/", 400),
        (b"http://a%2etest/", 400),
        (b"http://a\\b/", 400),
        (b"http://a.test/#x", 400),
        (b"http://a.test#x", 400),
        (b"http://%e9.test/", 400),
        (b"http://%c3%a9%2etest/", 400),
        (b"http://" + b"a" * 256 + b"/", 400),
    ],
)
def test_what_a_parser_could_take_otherwise_is_refused(
    target: bytes, status: int
) -> None:
    """Points 46, 56; rows A6, A11."""
    with pytest.raises(TargetError) as caught:
        absolute_target(target, b"GET")
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("target", "address"),
    [
        (b"a.test:443", Address("a.test", 443)),
        (b"192.0.2.7:1", Address("192.0.2.7", 1)),
        (b"[::1]:65535", Address("::1", 65535)),
        (b"::1:443", Address("::1", 443)),
        (b"2001:db8::7:443", Address("2001:db8::7", 443)),
        (b"b%C3%BCcher.test:1", Address("xn--bcher-kva.test", 1)),
    ],
)
def test_a_connect_names_host_and_port(target: bytes, address: Address) -> None:
    """Point 38."""
    assert connect_target(target) == address


@pytest.mark.parametrize(
    "target",
    [b"a.test", b"[::1]", b"a.test:", b":443", b"a.test:0", b"::1", b"/", b"u@a:1"],
)
def test_a_connect_without_host_or_port_is_refused(target: bytes) -> None:
    """Point 38; row A6."""
    with pytest.raises(TargetError) as caught:
        connect_target(target)
    assert caught.value.status == 400


def test_a_name_in_another_script_is_written_in_ascii_for_the_origin() -> None:
    for port in (b"", b":8080"):
        target = absolute_target(b"http://b%C3%BCcher.test" + port + b"/%C3%BC", b"GET")
        assert target.authority == b"xn--bcher-kva.test" + port
        assert target.address.host == "xn--bcher-kva.test"
        assert target.path == b"/%C3%BC"


def test_only_the_first_line_of_a_head_is_quoted() -> None:
    head = "CONNECT bücher.test:1 HTTP/1.1\r\nHost: a\r\nX: ü\r\n\r\n".encode()
    found = read_request(head, 100)
    assert found.target == b"b%C3%BCcher.test:1"
    assert found.fields[1].line == b"X: \xc3\xbc"


def test_the_host_field_of_a_connect_may_be_as_bare_as_its_target() -> None:
    check_host([Field(b"host", value, b"") for value in (b"::1:443", b"[::1]", b"")])
    with pytest.raises(TargetError):
        check_host([Field(b"host", b"a b", b"")])


def passed_on(*lines: bytes) -> list[bytes]:
    head = b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b""))
    return answer_lines(read_answer(head, b"GET", 100))


def test_what_is_for_one_hop_is_left_out() -> None:
    """Point 47; row A9."""
    assert passed_on(
        b"Connection: close, X-One ,, x-TWO",
        b"Connection: x-three",
        b"X-One: 1",
        b"x_two: 2",
        b"X-Three: 3",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Transfer-Encoding: chunked",
        b"Upgrade: h2c",
        b"Proxy-Authorization: Basic eDp5",
        b"Proxy-Authenticate: Basic",
        b"X-Four:4",
    ) == [b"X-Four:4"]


def test_connection_cannot_take_away_what_is_for_the_other_end() -> None:
    """Row A8."""
    lines = [
        b"Authorization: x",
        b"X-Forwarded-For: x",
        b"Host: x",
        b"Content-Length: 1",
        b"Cookie: x",
    ]
    names = b", ".join(line.partition(b":")[0] for line in lines)
    assert passed_on(b"Connection: " + names, *lines) == lines


@pytest.mark.parametrize(
    ("connection", "upgrade", "passed"),
    [
        (b"keep-alive, Upgrade", b"WebSocket", b"WebSocket"),
        (b"Upgrade", b"tcp", b"tcp"),
        (b"upgrade", b"SPDY/3.1", b"SPDY/3.1"),
        (b"upgrade", b"ts2021", b"ts2021"),
        (b"Upgrade", b"h2c", None),
        (b"Upgrade", b"websocket, h2c", None),
        (b"keep-alive", b"websocket", None),
    ],
)
def test_one_upgrade_of_any_kind_passes_as_it_was_written(
    connection: bytes, upgrade: bytes, passed: bytes | None
) -> None:
    """Point 61."""
    head = read_request(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: %b\r\nUpgrade: %b\r\n\r\n"
        % (connection, upgrade),
        100,
    )
    wanted = [b"Connection: Upgrade", b"Upgrade: %b" % passed] if passed else []
    assert framing(head) == wanted


@given(st.binary(max_size=40))
def test_any_bytes_are_a_target_or_refused(data: bytes) -> None:
    """Row A11."""
    takes: tuple[Callable[[], Address], ...] = (
        lambda: absolute_target(b"http://" + data, b"GET").address,
        lambda: connect_target(data),
    )
    for take in takes:
        try:
            address = take()
        except TargetError:
            continue
        assert address.host.isascii()
        assert address.host.isprintable()
        assert not set(address.host) & set(" @/\\[]?#%,;")
        assert 0 < address.port < 65_536
