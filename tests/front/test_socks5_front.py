from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from python_socks import ProxyError
from python_socks.async_.trio import Proxy
from support.logs import lines, text
from support.virtuals import Far

from tunnel.errors import Code, RemoteStreamError
from tunnel.front.listen import open_listener
from tunnel.front.socks5 import OpenTarget, handle_app, serve_socks
from tunnel.link.relay import reset_socket
from tunnel.proto.frames import Address, Target, TcpTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x01a\x00\x50"
SUCCESS = b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)


async def read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece
        data += piece
    return data


@asynccontextmanager
async def proxy(open_target: OpenTarget) -> AsyncIterator[Proxy]:
    listeners = await open_listener("127.0.0.1", 0)
    port = listeners[0].socket.getsockname()[1]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_socks, listeners, open_target)
            yield Proxy.from_url(f"socks5://127.0.0.1:{port}", rdns=True)
            nursery.cancel_scope.cancel()


async def test_a_real_client_reaches_the_target_that_it_named() -> None:
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
    far = Far()
    app, ours = trio.testing.memory_stream_pair()
    connected = trio.Event()

    async def open_target(target: Target) -> Far:
        await connected.wait()
        return far

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, open_target)
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
        nursery.start_soon(handle_app, ours, open_target)
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
            nursery.start_soon(handle_app, ours, open_target)
            await app.send_all(REQUEST)
            await started.wait()
            await read(app, 2)
            await reset_socket(app)
            await cancelled.wait()
    assert ours.socket.fileno() == -1


async def test_cancellation_in_the_moment_of_success_leaves_nothing_open() -> None:
    far = Far()
    app, ours = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def open_target(target: Target) -> Far:
            nursery.cancel_scope.cancel()
            return far

        nursery.start_soon(handle_app, ours, open_target)
        await app.send_all(REQUEST)
        await trio.sleep_forever()
    assert far.resets == [Code.RESET]


async def test_a_silent_app_is_closed_after_the_deadline(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunnel.front")
    app, ours = trio.testing.memory_stream_pair()
    start = trio.current_time()
    await app.send_all(b"\x05")
    await handle_app(ours, pytest.fail)
    assert trio.current_time() - start == pytest.approx(10)
    assert await app.receive_some() == b""
    assert 'socks.refused peer=local:0 reason="no request in time"' in text(caplog)


@pytest.mark.parametrize(
    ("said", "answer", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", b"", "PROTOCOL"),
        (b"\x05\x01\x02", b"\x05\xff", "NOT_ALLOWED"),
        (
            b"\x05\x01\x00\x05\x03\x00\x03\x01a\x00\x50",
            b"\x05\x00\x05\x07\x00\x01" + bytes(6),
            "UNSUPPORTED",
        ),
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
    await handle_app(ours, pytest.fail)
    heard = b""
    while piece := await app.receive_some():
        heard += piece
    assert heard == answer
    assert lines(caplog) == [f"socks.refused peer=local:0 reason={reason}"]
