from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.addresses import Address
from tunnel.front.http.headers import (
    TargetError,
    absolute_target,
    check_host,
    connect_target,
    passed_on,
    quoted_line,
    wants_websocket,
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
        (b"http://a.test:80@b.test/", 400),
        (b"http://user@b.test/", 400),
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
    head = "CONNECT bücher.test:1 HTTP/1.1\r\nX: ü\r\n\r\n".encode()
    quoted = b"CONNECT b%C3%BCcher.test:1 HTTP/1.1\r\nX: \xc3\xbc\r\n\r\n"
    assert quoted_line(head) == quoted
    assert quoted_line(quoted) == quoted


def test_the_host_field_of_a_connect_may_be_as_bare_as_its_target() -> None:
    check_host([(b"Host", b"::1:443"), (b"host", b"[::1]"), (b"Host", b"")])
    with pytest.raises(TargetError):
        check_host([(b"Host", b"a b")])


def test_what_is_for_one_hop_is_left_out() -> None:
    """Point 47; row A9."""
    fields = [
        (b"Connection", b"close, X-One ,, x-TWO"),
        (b"Connection", b"x-three"),
        (b"X-One", b"1"),
        (b"x-two", b"2"),
        (b"X-Three", b"3"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"TE", b"trailers"),
        (b"Trailer", b"X-Sum"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authorization", b"Basic eDp5"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"X-Four", b"4"),
    ]
    assert passed_on(fields) == [(b"X-Four", b"4")]


def test_connection_cannot_take_away_what_is_for_the_other_end() -> None:
    """Row A8."""
    names = [
        b"Authorization",
        b"X-Forwarded-For",
        b"Host",
        b"Content-Length",
        b"Cookie",
    ]
    fields = [(name, b"x") for name in names]
    assert passed_on([(b"Connection", b", ".join(names)), *fields]) == fields


def test_only_websocket_is_an_upgrade_that_passes() -> None:
    """Point 61."""
    connection = (b"Connection", b"keep-alive, Upgrade")
    assert wants_websocket([connection, (b"Upgrade", b"WebSocket")])
    assert not wants_websocket([connection, (b"Upgrade", b"h2c")])
    assert not wants_websocket([connection, (b"Upgrade", b"websocket, h2c")])
    assert not wants_websocket([(b"Upgrade", b"websocket")])


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
