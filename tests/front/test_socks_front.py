from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from python_socks import ProxyError
from python_socks.async_.trio import Proxy
from support.far import Far, open_nothing, read, read_to_end
from support.logs import lines, text

from tunnel.access.proxy_users import ProxyUsers
from tunnel.addresses import Address
from tunnel.errors import Code, RemoteStreamError, UsageError
from tunnel.front.dialer import Dialer, OpenTarget
from tunnel.front.proxy import handle_app, serve_proxy
from tunnel.front.socks import BIND_S
from tunnel.net.listen import open_listener
from tunnel.net.relay import GRACE_S
from tunnel.net.sockets import FastSocket
from tunnel.proto.frames import Target, TcpTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x01a\x00\x50"
SUCCESS = b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)


@asynccontextmanager
async def proxy(open_target: OpenTarget) -> AsyncIterator[Proxy]:
    listeners = await open_listener("127.0.0.1", 0)
    port = listeners[0].socket.getsockname()[1]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_proxy, listeners, Dialer(open_target))
            yield Proxy.from_url(f"socks5://127.0.0.1:{port}", rdns=True)
            nursery.cancel_scope.cancel()


async def test_a_real_client_reaches_the_target_that_it_named() -> None:
    """Points 10, 11, 72."""
    far = Far()
    targets: list[Target] = []

    async def open_target(target: Target) -> Far:
        targets.append(target)
        return far

    async with proxy(open_target) as client:
        sock = await client.connect("www.example.org", 443)
        async with trio.SocketStream(sock) as app:
            await app.send_all(b"ping")
            assert await far.far.receive_some() == b"ping"
            await far.far.send_all(b"pong")
            assert await app.receive_some() == b"pong"
    assert targets == [TcpTarget(Address("www.example.org", 443))]


@pytest.mark.parametrize(
    ("code", "reply"), [(Code.REFUSED, 5), (Code.NOT_ALLOWED, 2), (Code.TIMEOUT, 6)]
)
async def test_a_real_client_hears_why_its_target_is_not_reached(
    code: Code, reply: int
) -> None:
    async def open_target(target: Target) -> Far:
        await trio.lowlevel.checkpoint()
        raise RemoteStreamError(code, "said the exit")

    async with proxy(open_target) as client:
        with pytest.raises(ProxyError) as caught:
            await client.connect("192.0.2.1", 80)
    assert caught.value.error_code == reply


async def test_early_bytes_and_an_early_end_arrive_before_the_rest() -> None:
    """Points 7, 8."""
    far = Far()
    app, ours = trio.testing.memory_stream_pair()
    connected = trio.Event()

    async def open_target(target: Target) -> Far:
        await connected.wait()
        return far

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, Dialer(open_target))
        await app.send_all(REQUEST + b"one ")
        await app.send_all(b"two ")
        await trio.testing.wait_all_tasks_blocked()
        await app.send_all(b"three")
        await app.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        connected.set()
        assert await read(app, len(SUCCESS)) == SUCCESS
        assert await read(far.far, 13) == b"one two three"
        assert await far.far.receive_some() == b""
        await far.far.send_eof()
        assert await app.receive_some() == b""


async def test_no_success_is_said_before_the_target_is_connected() -> None:
    app, ours = trio.testing.memory_stream_pair()

    async def open_target(target: Target) -> Far:
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, Dialer(open_target))
        await app.send_all(REQUEST)
        assert await read(app, 2) == SUCCESS[:2]
        with trio.move_on_after(0) as nothing_more:
            await app.receive_some()
        assert nothing_more.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_an_app_that_resets_takes_its_attempt_with_it() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    started = trio.Event()
    cancelled = trio.Event()

    async def open_target(target: Target) -> Far:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    async with listener:
        app = await trio.open_tcp_stream(*listener.socket.getsockname())
        ours = await listener.accept()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle_app, ours, Dialer(open_target))
            await app.send_all(REQUEST)
            await started.wait()
            await read(app, 2)
            FastSocket.of(app.socket).reset()
            await cancelled.wait()
    assert ours.socket.fileno() == -1


async def test_cancellation_in_the_moment_of_success_leaves_nothing_open() -> None:
    far = Far()
    app, ours = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def open_target(target: Target) -> Far:
            nursery.cancel_scope.cancel()
            return far

        nursery.start_soon(handle_app, ours, Dialer(open_target))
        await app.send_all(REQUEST)
        nursery.start_soon(trio.sleep_forever)
    assert far.resets == [Code.RESET]


async def test_a_silent_app_is_closed_after_the_deadline(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Point 9; row A16."""
    caplog.set_level(logging.INFO, "tunnel.front")
    app, ours = trio.testing.memory_stream_pair()
    start = trio.current_time()
    await app.send_all(b"\x05")
    await handle_app(ours, Dialer(open_nothing))
    assert trio.current_time() - start == pytest.approx(10)
    assert await app.receive_some() == b""
    assert 'proxy.refused peer=local:0 reason="no request in time"' in text(caplog)


@pytest.mark.parametrize(
    ("said", "answer", "reason"),
    [
        (b"\x05\x01\x01", b"\x05\xff", "NOT_ALLOWED"),
        (
            b"\x05\x01\x00\x05\x02\x00\x03\x01a\x00\x50",
            b"\x05\x00\x05\x07\x00\x01" + bytes(6),
            "UNSUPPORTED",
        ),
        (
            b"\x05\x01\x00\x05\x03\x00\x03\x01a\x00\x50",
            b"\x05\x00\x05\x07\x00\x01" + bytes(6),
            "UNSUPPORTED",
        ),
        (b"\x05\x01\x00\x04", b"", "PROTOCOL"),
        (b"\x04\x03\x00\x50" + bytes(5), b"\x00\x5b" + bytes(6), "UNSUPPORTED"),
        (b"", b"", '"the app left"'),
    ],
)
async def test_what_cannot_be_served_is_answered_closed_and_logged_once(
    said: bytes, answer: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunnel.front")
    app, ours = trio.testing.memory_stream_pair()
    if said:
        await app.send_all(said)
    await app.send_eof()
    await handle_app(ours, Dialer(open_nothing))
    assert await read_to_end(app) == answer
    assert lines(caplog) == [f"proxy.refused peer=local:0 reason={reason}"]


async def test_one_byte_at_a_time_is_as_good() -> None:
    """Points 7, 69; row A10."""
    far = Far(Address("192.0.2.7", 258))
    app, ours = trio.testing.memory_stream_pair()

    async def open_target(target: Target) -> Far:
        assert target == TcpTarget(Address("a", 80))
        return far

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, Dialer(open_target))
        for byte in REQUEST:
            await app.send_all(bytes((byte,)))
            await trio.testing.wait_all_tasks_blocked()
        await app.send_eof()
        assert await read(app, 12) == b"\5\0\5\0\0\1\xc0\0\2\7\1\2"
        await far.far.send_eof()
        assert await read_to_end(app) == b""


async def test_a_name_of_socks4a_goes_to_the_exit() -> None:
    """Points 23, 24, 69."""
    far = Far()
    app, ours = trio.testing.memory_stream_pair()
    targets: list[Target] = []

    async def open_target(target: Target) -> Far:
        targets.append(target)
        return far

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, Dialer(open_target))
        await app.send_all(b"\4\1\0\x50\0\0\0\1me\0a.lan\0early")
        assert await read(app, 8) == b"\0\x5a" + bytes(6)
        assert await read(far.far, 5) == b"early"
        await app.send_eof()
        await far.far.send_eof()
        assert await read_to_end(app) == b""
    assert targets == [TcpTarget(Address("a.lan", 80))]


async def test_socks4_says_that_its_target_is_not_reached() -> None:
    app, ours = trio.testing.memory_stream_pair()

    async def open_target(target: Target) -> Far:
        await trio.lowlevel.checkpoint()
        raise RemoteStreamError(Code.REFUSED, "said the exit")

    await app.send_all(b"\4\1\0\x50\xc0\0\2\7\0")
    await app.send_eof()
    await handle_app(ours, Dialer(open_target))
    assert await read_to_end(app) == b"\0\x5b" + bytes(6)


async def test_after_a_failure_the_connection_is_closed_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Point 16."""
    app, ours = trio.testing.memory_stream_pair()

    async def open_target(target: Target) -> Far:
        await trio.lowlevel.checkpoint()
        raise RemoteStreamError(Code.REFUSED, "said the exit")

    await app.send_all(REQUEST)
    start = trio.current_time()
    await handle_app(ours, Dialer(open_target))
    assert trio.current_time() - start == pytest.approx(GRACE_S)
    assert (await read_to_end(app))[2:4] == b"\5\5"


# Users -----------------------------------------------------------------------------

USERS = ProxyUsers({"alice": "s:e%cr\u00e9t"})


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"\5\2\0\2\1\5alice\1x", b"\5\2\1\1"),
        (b"\5\1\0", b"\5\xff"),
        (b"\4\1\0\x50\xc0\0\2\7alice\0", b"\0\x5b" + bytes(6)),
    ],
)
async def test_who_is_no_user_is_shown_out(said: bytes, answer: bytes) -> None:
    """Points 5, 26."""
    app, ours = trio.testing.memory_stream_pair()
    await app.send_all(said)
    await app.send_eof()
    await handle_app(ours, Dialer(open_nothing), users=USERS)
    assert await read_to_end(app) == answer


async def test_a_user_is_let_in() -> None:
    """Points 4, 6."""
    app, ours = trio.testing.memory_stream_pair()

    async def open_target(target: Target) -> Far:
        await trio.lowlevel.checkpoint()
        raise RemoteStreamError(Code.REFUSED, "said the exit")

    password = "s:e%cr\u00e9t".encode()
    login = b"\1\5alice" + bytes((len(password),)) + password
    await app.send_all(b"\5\2\0\2" + login + REQUEST[3:])
    await app.send_eof()
    await handle_app(ours, Dialer(open_target), users=USERS)
    assert await read_to_end(app) == b"\5\2\1\0" + b"\5\5\0\1" + bytes(6)


@pytest.mark.parametrize("pair", [("", "x"), ("a:b", "x"), ("a", ""), ("a" * 256, "x")])
def test_a_user_whom_no_app_could_name_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError):
        ProxyUsers(dict([pair]))


# BIND ------------------------------------------------------------------------------

BIND = b"\5\1\0" + b"\5\2\0\1" + bytes(6)


class Bound:
    """A port at the exit; its peer comes when ``peer`` is set."""

    def __init__(self) -> None:
        self.address = Address("192.0.2.1", 258)
        self.peer = trio.Event()
        self.far = Far()
        self.closed = False

    async def accept(self) -> tuple[Far, Address]:
        await self.peer.wait()
        return self.far, Address("192.0.2.9", 515)

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_a_bind_is_answered_twice_and_then_carried() -> None:
    """Point 17."""
    bound = Bound()
    app, ours = trio.testing.memory_stream_pair()

    async def bind(expected: Address) -> Bound:
        assert expected == Address("0.0.0.0", 0)
        return bound

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, Dialer(open_nothing, bind))
        await app.send_all(BIND)
        assert await read(app, 12) == b"\5\0" + b"\5\0\0\1\xc0\0\2\1\1\2"
        await app.send_all(b"early")
        await trio.testing.wait_all_tasks_blocked()
        bound.peer.set()
        assert await read(app, 10) == b"\5\0\0\1\xc0\0\2\x09\2\3"
        assert bound.closed
        assert await read(bound.far.far, 5) == b"early"
        await app.send_eof()
        await bound.far.far.send_eof()
        assert await read_to_end(app) == b""


async def test_a_bind_to_which_nobody_comes_times_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Point 17."""
    bound = Bound()
    app, ours = trio.testing.memory_stream_pair()

    async def bind(expected: Address) -> Bound:
        return bound

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, Dialer(open_nothing, bind))
        await app.send_all(BIND)
        assert (await read_to_end(app))[12:] == b"\5\6\0\1" + bytes(6)
        assert trio.current_time() - start == pytest.approx(BIND_S)
        await app.aclose()
    assert bound.closed


async def test_a_cancelled_bind_leaves_nothing_behind() -> None:
    bound = Bound()
    app, ours = trio.testing.memory_stream_pair()

    async def bind(expected: Address) -> Bound:
        return bound

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, Dialer(open_nothing, bind))
        await app.send_all(BIND)
        await read(app, 12)
        nursery.cancel_scope.cancel()
    assert bound.closed


async def test_a_bind_that_the_exit_refuses_is_answered_once() -> None:
    """Point 17."""
    app, ours = trio.testing.memory_stream_pair()

    async def bind(expected: Address) -> Bound:
        await trio.lowlevel.checkpoint()
        raise RemoteStreamError(Code.NOT_ALLOWED, "said the exit")

    await app.send_all(BIND)
    await app.send_eof()
    await handle_app(ours, Dialer(open_nothing, bind))
    assert await read_to_end(app) == b"\5\0" + b"\5\2\0\1" + bytes(6)
