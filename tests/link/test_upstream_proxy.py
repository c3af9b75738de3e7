from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.errors import Exit, LocalLinkError, UsageError, ViaError
from tunnel.link import upstream_proxy as via_module
from tunnel.link.upstream_proxy import UpstreamProxy, dial_through

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tunnel.net.sockets import FastSocket

    Talk = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def proxy(talk: Talk) -> AsyncIterator[int]:
    """A proxy that does what ``talk`` does; gives its port."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await talk(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def until(stream: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = await stream.receive_some()
        assert piece, data
        data += piece
    return data


async def exactly(stream: trio.SocketStream | FastSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive_some(size - len(data))
    return data


def answering(*pieces: bytes, heard: list[bytes] | None = None) -> Talk:
    """Answer CONNECT with these pieces, each in a segment of its own, then echo."""

    async def talk(stream: trio.SocketStream) -> None:
        head = await until(stream, b"\r\n\r\n")
        if heard is not None:
            heard.append(head)
        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.005)
        await stream.send_all(await stream.receive_some())

    return talk


async def failure(url: str, host: str = "server.test") -> LocalLinkError:
    with pytest.raises(LocalLinkError) as caught:
        await dial_through(UpstreamProxy.parse(url), host, 7443)
    assert caught.value.exit_status is Exit.NOT_REACHED
    assert caught.value.fix
    return caught.value


async def echoes(stream: FastSocket) -> bool:
    async with stream:
        await stream.send_all(b"hello")
        return await exactly(stream, 5) == b"hello"


# The URL -----------------------------------------------------------------------------


def test_a_url_names_a_proxy_and_its_user() -> None:
    via = UpstreamProxy.parse("http://us%40r:p%3Aw@proxy.lan:3128")
    assert via == UpstreamProxy("http", "proxy.lan", 3128, "us@r", "p:w")
    assert UpstreamProxy.parse("socks5h://[::1]:1080") == UpstreamProxy(
        "socks5h", "::1", 1080
    )


@pytest.mark.parametrize(
    "url",
    [
        "proxy:3128",
        "https://proxy:443",
        "http://proxy",
        "http://:3128",
        "http://u:secret@proxy:99999",
        "http://u:secret@proxy:3128/path",
        "",
        "socks5://u:secret@[::1:1080",
    ],
)
def test_another_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        UpstreamProxy.parse(url)
    assert "secret" not in f"{caught.value.what}{caught.value.cause}"
    assert "--via" in caught.value.fix


def test_neither_text_of_a_proxy_shows_its_password() -> None:
    via = UpstreamProxy.parse("socks5://user:secret@[::1]:1080")
    assert "secret" not in f"{via} {via!r}"


# HTTP --------------------------------------------------------------------------------


async def test_connect_is_asked_for_by_name_and_with_the_user() -> None:
    heard: list[bytes] = []
    talk = answering(b"HTTP/1.1 200 Go\r\n\r\n", heard=heard)
    async with proxy(talk) as port:
        via = UpstreamProxy.parse(f"http://user:pw@127.0.0.1:{port}")
        assert await echoes(await dial_through(via, "server.test", 7443))
    assert heard[0].startswith(b"CONNECT server.test:7443 HTTP/1.1\r\n")
    basic = base64.b64encode(b"user:pw")
    assert b"\r\nproxy-authorization: basic " + basic.lower() in heard[0].lower()
    assert basic in heard[0]


async def test_an_ipv6_server_is_asked_for_in_brackets() -> None:
    heard: list[bytes] = []
    talk = answering(b"HTTP/1.0 200 OK\r\n\r\n", heard=heard)
    async with proxy(talk) as port:
        via = UpstreamProxy.parse(f"http://127.0.0.1:{port}")
        await (await dial_through(via, "2001:db8::7", 7443)).aclose()
    assert heard[0].startswith(b"CONNECT [2001:db8::7]:7443 ")


async def test_an_answer_in_many_pieces_is_taken_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\nVia: 1.1 proxy\r\nX-A: b\r\n\r\n"
    pieces = [head[at : at + 9] for at in range(0, len(head), 9)]
    async with proxy(answering(*pieces)) as port:
        via = UpstreamProxy.parse(f"http://127.0.0.1:{port}")
        assert await echoes(await dial_through(via, "server.test", 7443))


async def test_a_wrong_password_is_said_and_final() -> None:
    talk = answering(
        b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=x\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    async with proxy(talk) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert isinstance(error, ViaError)
    assert "407 Who" in error.what
    assert error.fix == f"--via http://USER:PASSWORD@127.0.0.1:{port}"


async def test_a_server_that_the_proxy_does_not_reach_is_told_from_the_proxy() -> None:
    talk = answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    async with proxy(talk) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert not isinstance(error, ViaError)
    assert error.what.endswith("does not reach server.test:7443: 502 Bad Gateway")
    assert error.fix.endswith("tunnel serve --listen 443")  # of whatever family


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0", b"x" * 20_000],
)
async def test_whoever_is_no_proxy_is_found_out(answer: bytes) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send_all(answer)

    async with proxy(talk) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert "no such proxy" in error.cause


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_is_down_is_named(scheme: str) -> None:
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        error = await failure(f"{scheme}://127.0.0.1:{port}")
    what = f"cannot reach the proxy {scheme}://127.0.0.1:{port}: connection refused"
    assert error.what == what


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_says_nothing_is_given_up(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(via_module, "DIAL_S", 0.2)

    async def talk(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with proxy(talk) as port:
        error = await failure(f"{scheme}://127.0.0.1:{port}")
    assert "no answer" in error.what


# SOCKS -------------------------------------------------------------------------------


async def test_a_socks5_proxy_gets_the_name_and_the_user() -> None:
    asked: list[bytes] = []

    async def talk(stream: trio.SocketStream) -> None:
        assert await exactly(stream, 4) == b"\x05\x02\x00\x02"
        await stream.send_all(b"\x05\x02")
        asked.append(await exactly(stream, 9))
        await stream.send_all(b"\x01\x00")
        asked.append(await exactly(stream, 18))
        await stream.send_all(b"\x05\x00\x00\x01\0\0\0\0\0\0")
        await stream.send_all(await stream.receive_some())

    async with proxy(talk) as port:
        via = UpstreamProxy.parse(f"socks5://user:pw@127.0.0.1:{port}")
        assert await echoes(await dial_through(via, "server.test", 7443))
    assert asked == [b"\x01\x04user\x02pw", b"\x05\x01\x00\x03\x0bserver.test\x1d\x13"]


async def test_a_socks4_proxy_resolves_the_name() -> None:
    asked: list[bytes] = []

    async def talk(stream: trio.SocketStream) -> None:
        asked.append(await until(stream, b"server.test\0"))
        await stream.send_all(b"\x00\x5a" + bytes(6))
        await stream.send_all(await stream.receive_some())

    async with proxy(talk) as port:
        via = UpstreamProxy.parse(f"socks4a://127.0.0.1:{port}")
        assert await echoes(await dial_through(via, "server.test", 7443))
    assert asked[0].startswith(b"\x04\x01\x1d\x13\0\0\0\x01")


@pytest.mark.parametrize("answer", [b"\x05\xff", b"\x05\x02"])
async def test_a_socks_proxy_that_wants_a_user_is_final(answer: bytes) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await exactly(stream, 3)
        await stream.send_all(answer)

    async with proxy(talk) as port:
        error = await failure(f"socks5://127.0.0.1:{port}")
    assert isinstance(error, ViaError)


async def test_the_reply_of_a_socks_proxy_is_passed_on() -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await exactly(stream, 3)
        await stream.send_all(b"\x05\x00")
        await exactly(stream, 18)
        await stream.send_all(b"\x05\x05\x00\x01\0\0\0\0\0\0")

    async with proxy(talk) as port:
        error = await failure(f"socks5://127.0.0.1:{port}")
    assert "does not reach server.test:7443: Connection refused" in error.what


async def test_a_socks_proxy_that_hangs_up_is_said() -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await exactly(stream, 3)

    async with proxy(talk) as port:
        await failure(f"socks5://127.0.0.1:{port}")


@pytest.mark.parametrize("status", [b"407", b"503"])
async def test_words_of_a_proxy_stay_in_their_line(status: bytes) -> None:
    answer = b"HTTP/1.1 " + status + b" no\x9b2J\xad way\r\ncontent-length: 0\r\n\r\n"
    async with proxy(answering(answer)) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert "no?2J? way" in error.what
