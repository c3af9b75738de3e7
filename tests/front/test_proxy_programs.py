"""Real programs at a proxy whose exit is this process: users, and datagrams."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from support.processes import curl
from support.pysocks import socks

from tunnel.access.proxy_users import ProxyUsers
from tunnel.addresses import Address
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import serve_proxy
from tunnel.net.datagrams import DatagramSocket, read_turn, when_readable
from tunnel.net.listen import open_listener
from tunnel.net.sockets import CHUNK_BYTES
from tunnel.proto.frames import Target, TcpTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.virtuals import Take

    from tunnel.errors import Code
    from tunnel.net.virtual_connection import LocalEnd

PASSWORD = "s:e%c rét"


class Direct:
    """A TCP connection from here, dressed as a virtual one."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.bound: Address | None
        self.bound = Address(*stream.socket.getsockname()[:2])
        self.send_all = self.put = stream.send_all
        self.receive_some = stream.receive_some
        self.aclose = stream.aclose

    def finish(self) -> None:
        self._stream.socket.shutdown(socket.SHUT_WR)

    def carry(
        self, local: LocalEnd, idle_s: float, *, ready: bool = False
    ) -> Take | None:
        return None

    async def wait_room(self) -> int:
        return CHUNK_BYTES

    async def receive_piece(self) -> bytes | bytearray:
        return await self.receive_some()

    def close(self) -> None:
        self._stream.socket.close()

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        pass

    def reset(self, code: Code) -> None:
        self._stream.socket.close()


async def open_direct(target: Target) -> Direct:
    assert isinstance(target, TcpTarget)
    address = target.address
    return Direct(await trio.open_tcp_stream(address.host, address.port))


class Udp:
    """A UDP socket of here."""

    passed = 0, 0

    def __init__(self) -> None:
        raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw.bind(("127.0.0.1", 0))
        self._socket = DatagramSocket.of(raw)

    def put(self, address: Address, payload: bytes) -> None:
        self._socket.sendto(payload, (address.host, address.port))

    def flush(self) -> None:
        pass

    def deliver_to(
        self, take: Callable[[Address, bytes], bool], over: Callable[[], None]
    ) -> None:
        del over

        def one(data: bytes, source: tuple[str, int]) -> None:
            take(Address(*source), data)

        def turn() -> None:
            read_turn(self._socket, one)

        trio.lowlevel.spawn_system_task(when_readable, self._socket, turn)

    def close(self) -> None:
        self._socket.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


async def associate() -> Udp:
    await trio.lowlevel.checkpoint()
    return Udp()


async def page(stream: trio.SocketStream) -> None:
    """Answer every head with the fields that came, and go on."""
    async with stream:
        head = b""
        while data := await stream.receive_some():
            head += data
            if head.endswith(b"\r\n\r\n"):
                size = len(head)
                await stream.send_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, head)
                )
                head = b""


@asynccontextmanager
async def running(users: ProxyUsers | None) -> AsyncIterator[tuple[int, int]]:
    """Give the ports of a proxy and of a page."""
    listeners = await open_listener("127.0.0.1", 0)
    pages = await trio.open_tcp_listeners(0, host="127.0.0.1")
    dialer = Dialer(open_direct, associate=associate)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def go() -> None:
                await serve_proxy(listeners, dialer, users=users)

            nursery.start_soon(go)
            nursery.start_soon(trio.serve_listeners, page, pages)
            yield (
                listeners[0].socket.getsockname()[1],
                pages[0].socket.getsockname()[1],
            )
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "how",
    [
        "--socks5-hostname",
        "--proxy-basic --proxy",
        "--proxy-anyauth --proxy",
        "--proxy-basic --proxytunnel --proxy",
        "--proxy-anyauth --proxytunnel --proxy",
    ],
)
@pytest.mark.parametrize("good", [True, False])
async def test_curl_is_let_in_with_its_password_only(how: str, good: bool) -> None:
    """Points 4, 5, 42, 43, 69; row A9."""
    password = PASSWORD if good else "wrong"
    async with running(ProxyUsers({"alice": PASSWORD})) as (proxy, port):
        where = (*how.split(), f"127.0.0.1:{proxy}")
        login = ("--proxy-user", f"alice:{password}")
        command = curl(*where, *login, f"http://localhost:{port}/")
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env={}
        )
    if good:
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"GET / HTTP/1.1\r\n")
        assert b"proxy-" not in done.stdout.lower()
    else:
        assert done.returncode in (22, 56, 97)


async def test_curl_over_socks4_has_no_password_and_is_refused() -> None:
    """Point 26."""
    async with running(ProxyUsers({"alice": PASSWORD})) as (proxy, port):
        where = ("--socks4a", f"alice@127.0.0.1:{proxy}")
        command = curl(*where, f"http://localhost:{port}/")
        done = await trio.run_process(command, capture_stderr=True, check=False, env={})
    assert done.returncode == 97


async def test_curl_keeps_its_connection_for_the_next_url() -> None:
    """Point 54."""
    async with running(None) as (proxy, port):
        urls = (f"http://localhost:{port}/1", f"http://127.0.0.1:{port}/2")
        shown = ("--write-out", "%{num_connects}\n")
        command = curl("-x", f"127.0.0.1:{proxy}", *urls, *shown)
        done = await trio.run_process(command, capture_stdout=True, env={})
    told = [line for line in done.stdout.split(b"\n") if line in (b"0", b"1")]
    assert told == [b"1", b"0"]


async def test_pysocks_sends_datagrams_and_hears_their_answers() -> None:
    """Points 28, 29, 31, 35."""
    async with running(None) as (proxy, _):
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
            await target.bind(("127.0.0.1", 0))

            def ask() -> tuple[bytes, tuple[str, int]]:
                with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as app:
                    app.settimeout(20)
                    app.set_proxy(socks.SOCKS5, "127.0.0.1", proxy)
                    app.sendto(b"ping", target.getsockname())
                    answer: tuple[bytes, tuple[str, int]] = app.recvfrom(100)
                    return answer

            heard: list[tuple[bytes, tuple[str, int]]] = []
            async with trio.open_nursery() as nursery:

                async def app() -> None:
                    heard.append(await trio.to_thread.run_sync(ask))

                nursery.start_soon(app)
                data, source = await target.recvfrom(100)
                await target.sendto(data + b" pong", source)
            assert heard == [(b"ping pong", target.getsockname())]
