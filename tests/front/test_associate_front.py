"""UDP ASSOCIATE, with real sockets towards the app and a fake exit."""

from __future__ import annotations

import logging
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.far import open_nothing, read, read_to_end
from support.logs import text

import tunnel.front.associate
from tunnel.addresses import Address
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import handle_app, serve_proxy
from tunnel.net.listen import open_listener
from tunnel.net.sockets import FastSocket
from tunnel.socks.v5 import encode_datagram

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TARGET = Address("192.0.2.7", 53)


class Echo:
    """Sends back what it is told to send, from where it was to go."""

    passed = 0, 0

    def __init__(self) -> None:
        self.sent: list[tuple[Address, bytes]] = []
        self.lost = 0
        self._waiting: list[tuple[Address, bytes]] = []
        self.closed = trio.Event()

    def put(self, address: Address, payload: bytes) -> None:
        self.sent.append((address, payload))
        self._waiting.append((address, payload))

    def flush(self) -> None:
        for address, payload in self._waiting:
            self.lost += not self._take(address, payload)
        self._waiting.clear()

    def deliver_to(
        self, take: Callable[[Address, bytes], bool], over: Callable[[], None]
    ) -> None:
        self._take, self.lose = take, over

    def close(self) -> None:
        self.closed.set()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class Association:
    def __init__(self, far: Echo, control: trio.SocketStream) -> None:
        self.far = far
        self.control = control
        self.relay = ("", 0)

    async def begin(self, port: int = 0) -> None:
        request = b"\5\3\0\1" + bytes(4) + port.to_bytes(2, "big")
        await self.control.send_all(b"\5\1\0" + request)
        head = await read(self.control, 6)
        assert head[:5] == b"\5\0\5\0\0"
        size, family = (4, socket.AF_INET) if head[5] == 1 else (16, socket.AF_INET6)
        body = await read(self.control, size + 2)
        host = socket.inet_ntop(family, body[:size])
        self.relay = host, int.from_bytes(body[size:], "big")


@asynccontextmanager
async def control(
    host: str = "127.0.0.1", public: str | None = None
) -> AsyncIterator[Association]:
    far = Echo()

    async def associate() -> Echo:
        await trio.lowlevel.checkpoint()
        return far

    listeners = await open_listener(host, 0)
    where = listeners[0].socket.getsockname()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            dialer = Dialer(open_nothing, associate=associate, udp_public=public)
            nursery.start_soon(serve_proxy, listeners, dialer)
            async with await trio.open_tcp_stream(*where[:2]) as stream:
                yield Association(far, stream)
            nursery.cancel_scope.cancel()
    assert far.closed.is_set()


def udp(host: str = "127.0.0.1") -> trio.socket.SocketType:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    raw = socket.socket(family, socket.SOCK_DGRAM)
    raw.bind((host, 0))
    return trio.socket.from_stdlib_socket(raw)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_datagrams_go_out_and_answers_name_their_source(host: str) -> None:
    """Points 28, 29, 33, 36: a name goes to the exit."""
    async with control(host) as it:
        await it.begin()
        assert it.relay[0] == host
        with udp(host) as app:
            for target in (TARGET, Address("2001:db8::1", 9), Address("db.lan", 53)):
                data = encode_datagram(target, b"hello")
                await app.sendto(data, it.relay)
                assert await app.recvfrom(100) == (
                    data,
                    (*it.relay, 0, 0)[: 2 if host == "127.0.0.1" else 4],
                )
        assert [str(to) for to, _ in it.far.sent] == [
            "192.0.2.7:53",
            "[2001:db8::1]:9",
            "db.lan:53",
        ]


async def test_a_fragment_is_dropped_and_the_association_lives_on() -> None:
    """Point 30."""
    async with control() as it:
        await it.begin()
        whole = encode_datagram(TARGET, b"x")
        with udp() as app:
            for bad in (
                whole[:2] + b"\1" + whole[3:],
                b"",
                b"\0\0\0\1",
                b"\0\0\0\7" * 9,
            ):
                await app.sendto(bad, it.relay)
            await app.sendto(whole, it.relay)
            assert await app.recv(100) == whole
        assert it.far.sent == [(TARGET, b"x")]


async def test_only_the_first_source_may_send() -> None:
    """Point 31."""
    async with control() as it:
        await it.begin()
        with udp() as app, udp() as other:
            data = encode_datagram(TARGET, b"app")
            await app.sendto(data, it.relay)
            assert await app.recv(100) == data
            await other.sendto(encode_datagram(TARGET, b"other"), it.relay)
            await app.sendto(data, it.relay)
            assert await app.recv(100) == data
        assert [payload for _, payload in it.far.sent] == [b"app", b"app"]


async def test_only_the_port_that_the_app_named_may_send() -> None:
    """Point 31."""
    async with control() as it:
        with udp() as app, udp() as other:
            await it.begin(app.getsockname()[1])
            data = encode_datagram(TARGET, b"app")
            await other.sendto(encode_datagram(TARGET, b"other"), it.relay)
            await app.sendto(data, it.relay)
            assert await app.recv(100) == data
        assert it.far.sent == [(TARGET, b"app")]


async def test_only_the_address_of_the_app_may_send() -> None:
    """Point 31."""
    async with control() as it:
        await it.begin()
        with udp("127.0.0.2") as other, udp() as app:
            data = encode_datagram(TARGET, b"app")
            await other.sendto(encode_datagram(TARGET, b"other"), it.relay)
            await app.sendto(data, it.relay)
            assert await app.recv(100) == data
        assert it.far.sent == [(TARGET, b"app")]


async def test_what_comes_before_the_app_has_sent_is_dropped() -> None:
    async with control() as it:
        await it.begin()
        await trio.testing.wait_all_tasks_blocked()
        it.far.put(TARGET, b"nobody asked")
        it.far.flush()
        assert it.far.lost == 1
        await trio.testing.wait_all_tasks_blocked()
        with udp() as app:
            data = encode_datagram(TARGET, b"x")
            await app.sendto(data, it.relay)
            assert await app.recv(100) == data


async def test_every_size_passes_whole_or_not_at_all() -> None:
    """Point 34."""
    async with control() as it:
        await it.begin()
        with udp() as app:
            app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            for size in (0, 1, 1472, 65_507 - 10):
                data = encode_datagram(TARGET, bytes(size))
                await app.sendto(data, it.relay)
                assert await app.recv(70_000) == data
            it.far.put(TARGET, bytes(65_507))  # too large with its header
            it.far.flush()
            assert it.far.lost == 1
            data = encode_datagram(TARGET, b"the next")
            await app.sendto(data, it.relay)
            assert await app.recv(70_000) == data


async def test_it_ends_with_the_tcp_connection_on_which_nothing_is_said() -> None:
    """Point 32."""
    async with control() as it:
        await it.begin()
        await it.control.send_all(b"ignored" * 1000)
        with udp() as app:
            data = encode_datagram(TARGET, b"x")
            await app.sendto(data, it.relay)
            assert await app.recv(100) == data
        await it.control.send_eof()
        assert await read_to_end(it.control) == b""
        await it.far.closed.wait()
        with udp() as app:
            await app.connect(it.relay)
            await app.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await app.recv(1)


async def test_it_ends_with_a_reset_of_the_tcp_connection() -> None:
    """Point 32."""
    async with control() as it:
        await it.begin()
        FastSocket.of(it.control.socket).reset()
        await it.far.closed.wait()


async def test_the_loss_of_the_far_side_ends_the_tcp_connection() -> None:
    async with control() as it:
        await it.begin()
        it.far.lose()
        assert await read_to_end(it.control) == b""


async def test_without_a_socket_for_it_the_reply_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tunnel.front.associate, "bare_ip", lambda host: "192.0.2.1")
    async with control() as it:
        await it.control.send_all(b"\5\1\0\5\3\0\1" + bytes(6))
        await it.control.send_eof()
        assert await read_to_end(it.control) == b"\5\0\5\1\0\1" + bytes(6)


async def test_what_the_exit_cannot_do_is_not_supported() -> None:
    """Points 17, 28."""
    for command in (2, 3):
        app, ours = trio.testing.memory_stream_pair()
        await app.send_all(bytes((5, 1, 0, 5, command, 0, 1)) + bytes(6))
        await app.send_eof()
        await handle_app(ours, Dialer(open_nothing))
        assert await read_to_end(app) == b"\5\0\5\7\0\1" + bytes(6)


async def test_an_app_of_this_machine_is_told_the_address_that_it_came_to() -> None:
    async with control(public="203.0.113.7") as it:
        await it.begin()
        assert it.relay[0] == "127.0.0.1"


async def test_that_others_send_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel.front")
    async with control() as it:
        await it.begin()
        data = encode_datagram(TARGET, b"x")
        with udp() as app, udp("127.0.0.2") as other:
            for _ in range(3):
                await other.sendto(data, it.relay)
            await app.sendto(data, it.relay)
            assert (await app.recvfrom(100))[0] == data
            source = f"127.0.0.2:{other.getsockname()[1]}"
    assert text(caplog).count("datagram.dropped") == 1
    assert f"source={source}" in text(caplog)
