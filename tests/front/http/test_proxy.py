"""The HTTP proxy, between a scripted app and scripted origins."""

from __future__ import annotations

import base64
import logging
import math
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.far import Far, memory_pair, read, read_head, read_to_end
from support.logs import lines

from tunnel.access.proxy_users import ProxyUsers
from tunnel.addresses import Address
from tunnel.errors import CODES, Code, RemoteStreamError
from tunnel.front.dialer import Dialer
from tunnel.front.http.limits import BETWEEN_S, HEAD_BYTES, HEAD_S, LINGER_S, MAX_FIELDS
from tunnel.front.proxy import handle_app
from tunnel.net.listen import open_listener
from tunnel.net.relay import GRACE_S
from tunnel.net.timeouts import TIMEOUTS, Timeouts
from tunnel.proto.frames import Target, TcpTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.far import Head

USERS = ProxyUsers({"alice": "s:e%crét"})
GET = b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Talk:
    """An app at a proxy of its own, and the origins that it is connected to."""

    def __init__(self, refusal: Code | None, lockstep: bool) -> None:
        self.app, self.ours = memory_pair(lockstep)
        self.fars: list[Far] = []
        self.targets: list[Target] = []
        self.over = trio.Event()
        self._refusal = refusal
        self._lockstep = lockstep
        self._opened, self._news = trio.open_memory_channel[Far](100)

    async def open(self, target: Target) -> Far:
        await trio.lowlevel.checkpoint()
        self.targets.append(target)
        if self._refusal is not None:
            raise RemoteStreamError(self._refusal, "said the exit")
        self.fars.append(Far(lockstep=self._lockstep))
        self._opened.send_nowait(self.fars[-1])
        return self.fars[-1]

    async def origin(self) -> trio.abc.HalfCloseableStream:
        """Wait for the next connection; give the origin's end of it."""
        return (await self._news.receive()).far

    async def ask(self, request: bytes) -> tuple[trio.abc.HalfCloseableStream, Head]:
        """Say a request without a body; give its origin and what that hears."""
        await self.app.send_all(request)
        origin = await self.origin()
        return origin, await read_head(origin)

    async def hear(self, body: bytes = b"ok") -> Head:
        head = await read_head(self.app)
        assert await read(self.app, len(body)) == body
        return head

    async def end(self) -> bytes:
        """Read to the end, then leave."""
        data = await read_to_end(self.app)
        await self.app.aclose()
        await self.over.wait()
        return data


@asynccontextmanager
async def proxied(
    refusal: Code | None = None,
    users: ProxyUsers | None = None,
    lockstep: bool = False,
    limit_s: float = 10,
) -> AsyncIterator[Talk]:
    talk = Talk(refusal, lockstep)

    async def run() -> None:
        await handle_app(talk.ours, Dialer(talk.open), users=users, pseudonym=b"me")
        talk.over.set()

    with trio.fail_after(limit_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield talk
            nursery.cancel_scope.cancel()


async def test_a_cancelled_answer_is_a_reset_for_its_app() -> None:
    """An answer of HTTP/1.0 ends with its connection: a clean end would look whole."""
    far, dialled = Far(), trio.Event()

    async def open_far(_target: Target) -> Far:
        await trio.lowlevel.checkpoint()
        dialled.set()
        return far

    (listener,) = await open_listener("127.0.0.1", 0)
    async with listener, trio.open_nursery() as nursery:
        app = await trio.open_tcp_stream(*listener.socket.getsockname())
        ours = await listener.accept()
        nursery.start_soon(handle_app, ours, Dialer(open_far))
        with trio.fail_after(10):
            await app.send_all(b"GET http://a.test/ HTTP/1.0\r\n\r\n")
            await dialled.wait()
            await read_head(far.far)
            await far.far.send_all(b"HTTP/1.0 200 OK\r\n\r\nhalf of it")
            await read_head(app)
            assert await read(app, 10) == b"half of it"
            nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await app.receive_some()
    await app.aclose()


# CONNECT ---------------------------------------------------------------------------


async def test_a_connect_becomes_a_tunnel_with_all_that_came_behind_it() -> None:
    """Points 38, 39, 41."""
    async with proxied() as talk:
        await talk.app.send_all(
            b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n\x16\x03hello"
        )
        origin = await talk.origin()
        head = await read_head(talk.app)
        assert head.status == 200
        assert not head.names & {"content-length", "transfer-encoding"}
        assert await read(origin, 7) == b"\x16\x03hello"
        await talk.app.send_eof()
        assert await read_to_end(origin) == b""
        await origin.send_all(b"GET is not HTTP here")
        await origin.send_eof()
        assert await talk.end() == b"GET is not HTTP here"
    assert talk.targets == [TcpTarget(Address("a.test", 443))]


async def test_a_connect_to_ipv6_and_of_http_1_0_is_as_good() -> None:
    """Points 38, 51."""
    async with proxied() as talk:
        await talk.app.send_all(b"CONNECT [::1]:443 HTTP/1.0\r\n\r\n")
        await talk.origin()
        assert (await read_head(talk.app)).status == 200
    assert talk.targets == [TcpTarget(Address("::1", 443))]


@pytest.mark.parametrize("piece", [1, 7, 1_000])
async def test_a_connect_to_a_name_in_utf_8_leads_to_its_idna_form(piece: int) -> None:
    head = "CONNECT bücher.test:443 HTTP/1.1\r\nHost: bücher.test:443\r\n\r\n".encode()
    async with proxied() as talk:
        for at in range(0, len(head), piece):
            await talk.app.send_all(head[at : at + piece])
        await talk.origin()
        assert (await read_head(talk.app)).status == 200
    assert talk.targets == [TcpTarget(Address("xn--bcher-kva.test", 443))]


async def test_a_target_that_speaks_first_is_heard() -> None:
    """Point 22."""
    async with proxied() as talk:
        await talk.app.send_all(b"CONNECT a.test:22 HTTP/1.1\r\nHost: a\r\n\r\n")
        origin = await talk.origin()
        await origin.send_all(b"SSH-2.0-x\r\n")
        await talk.hear(b"SSH-2.0-x\r\n")


@pytest.mark.parametrize("code", [c for c in Code if CODES[c].http >= 400])
@pytest.mark.parametrize(
    "request_", [b"CONNECT a.test:443 HTTP/1.1\r\nHost: a\r\n\r\n", GET]
)
async def test_a_target_that_is_not_reached_has_the_status_of_its_code(
    code: Code, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Points 14, 40, 68."""
    caplog.set_level(logging.INFO, "tunnel.front")
    async with proxied(code) as talk:
        await talk.app.send_all(request_)
        head = await read_head(talk.app)
        assert head.status == CODES[code].http
        assert head.all("connection") == ["close"]
        assert ("retry-after" in head.names) == (head.status == 503)
        body = await talk.end()
        assert body.partition(b": ")[2].startswith(b"a.test:")
        assert len(body) == int(head.all("content-length")[0]) < 100
    assert lines(caplog) == [f"proxy.refused peer=local:0 reason={code.name}"]


async def test_head_has_no_body_even_in_a_refusal() -> None:
    """Point 52."""
    async with proxied(Code.REFUSED) as talk:
        await talk.app.send_all(b"HEAD" + GET[3:])
        assert (await read_head(talk.app)).status == 502
        assert await talk.end() == b""


async def test_a_cancelled_connect_leaves_nothing_open() -> None:
    far = Far()
    app, ours = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def open_target(target: Target) -> Far:
            nursery.cancel_scope.cancel()
            return far

        nursery.start_soon(handle_app, ours, Dialer(open_target))
        await app.send_all(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a\r\n\r\n")
        nursery.start_soon(trio.sleep_forever)
    assert far.resets == [Code.RESET]


# Users -----------------------------------------------------------------------------


def basic(pair: str, scheme: str = "Basic") -> bytes:
    said = f"{scheme} {base64.b64encode(pair.encode()).decode()}"
    return f"Proxy-Authorization: {said}\r\n".encode()


GOOD = basic("alice:s:e%crét")


@pytest.mark.parametrize("line", [b"CONNECT a.test:1 HTTP/1.1", GET[:30]])
async def test_a_login_is_asked_for_and_may_follow_on_the_same_connection(
    line: bytes,
) -> None:
    """Points 42, 43; row A9."""
    line = line.partition(b"\r")[0] + b"\r\nHost: a.test\r\n"
    async with proxied(users=USERS) as talk:
        for wrong in (b"", basic("alice:x"), basic("bob:s:e%crét"), GOOD + GOOD):
            await talk.app.send_all(line + wrong + b"\r\n")
            head = await read_head(talk.app)
            assert head.status == 407
            assert head.all("proxy-authenticate")[0].startswith('Basic realm="')
            assert "connection" not in head.names
            await read(talk.app, int(head.all("content-length")[0]))
        assert not talk.targets
        await talk.app.send_all(line + basic("alice:s:e%crét", "bAsIc") + b"\r\n")
        origin = await talk.origin()
        if line.startswith(b"GET"):
            heard = await read_head(origin)
            assert "proxy-authorization" not in heard.names
            await origin.send_all(OK)
            assert (await talk.hear()).status == 200
        else:
            assert (await read_head(talk.app)).status == 200


@pytest.mark.parametrize(
    "value", [b"Basic", b"Basic !", b"Basic YQ==", b"Bearer YWxpY2U6eA==", b"Basic YQ"]
)
async def test_credentials_that_are_none_are_refused(value: bytes) -> None:
    """Point 43."""
    async with proxied(users=USERS) as talk:
        field = b"Proxy-Authorization: " + value + b"\r\n\r\n"
        await talk.app.send_all(GET[:-2] + field)
        assert (await read_head(talk.app)).status == 407


async def test_a_request_with_a_body_is_not_read_for_somebody_without_a_login() -> None:
    """Point 42."""
    async with proxied(users=USERS) as talk:
        await talk.app.send_all(
            b"POST http://a.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nx"
        )
        head = await read_head(talk.app)
        assert (head.status, head.all("connection")) == (407, ["close"])
        assert b"password" in await talk.end()


# Heads -----------------------------------------------------------------------------


async def test_the_target_is_that_of_the_absolute_form() -> None:
    """Points 45, 48; row A6."""
    async with proxied() as talk:
        origin, head = await talk.ask(
            b"GET http://A.test:8080/x?y HTTP/1.1\r\nHost: other.test\r\n"
            b"X-Case: A\r\n\r\n"
        )
        assert head.line == "GET /x?y HTTP/1.1"
        assert head.fields == [
            ("host", "A.test:8080"),
            ("x-case", "A"),
            ("via", "1.1 me"),
        ]
        await origin.send_all(OK)
        assert (await talk.hear()).all("via") == ["1.1 me"]
    assert talk.targets == [TcpTarget(Address("A.test", 8080))]


async def test_what_is_for_one_hop_goes_neither_way() -> None:
    """Point 47; rows A8, A9."""
    async with proxied() as talk:
        origin, head = await talk.ask(
            GET[:-2] + b"Connection: keep-alive, X-Hop, Authorization\r\nX-Hop: 1\r\n"
            b"Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n"
            b"Upgrade: h2c\r\nProxy-Authorization: Basic eDp5\r\n"
            b"Authorization: mine\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
        )
        assert [name for name, _ in head.fields] == [
            "host",
            "authorization",
            "x-forwarded-for",
            "via",
        ]
        await origin.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
            b"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\n"
            b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok"
        )
        assert (await talk.hear()).fields == [
            ("content-length", "2"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("via", "1.1 me"),
        ]


async def test_a_request_that_comes_round_again_is_a_loop() -> None:
    """Point 48."""
    async with proxied() as talk:
        await talk.app.send_all(GET[:-2] + b"Via: 1.1 x, 1.1 me (tunnel)\r\n\r\n")
        assert (await read_head(talk.app)).status == 508


async def test_max_forwards_is_counted_down_and_answered_at_0() -> None:
    """Point 49."""
    async with proxied() as talk:
        line = b"OPTIONS http://a.test HTTP/1.1\r\nHost: a\r\nMax-Forwards: "
        await talk.app.send_all(line + b"0\r\n\r\n")
        head = await read_head(talk.app)
        assert head.status == 200
        assert "CONNECT" in head.all("allow")[0]
        _, heard = await talk.ask(line + b"3\r\n\r\n")
        assert heard.line == "OPTIONS * HTTP/1.1"
        assert heard.all("max-forwards") == ["2"]


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET https://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"TRACE http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"CONNECT a.test HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a.test:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"GET http://a.test/\r\n\r\n", 400),
        (b"GET http://a.test/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"\r\xff\x00nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"SSH-2.0-x\r\n", 400),
        (b"\x06\x01\x00", 400),
        (b"G" * (HEAD_BYTES + 9000), 431),
        (GET[:-2] + b"X: " + b"x" * (HEAD_BYTES + 9000), 431),
        (GET[:-2] + b"X: x\r\n" * MAX_FIELDS + b"\r\n", 431),
    ],
)
async def test_what_cannot_be_served_is_answered_and_closed(
    said: bytes, status: int
) -> None:
    """Points 1, 38, 46, 49, 56, 69; rows A5, A6."""
    async with proxied() as talk:
        await talk.app.send_all(said)
        await talk.app.send_eof()
        head = await read_head(talk.app)
        assert head.status == status
        assert head.all("connection") == ["close"]
        assert (await talk.end()).count(b"\n") == 1
    assert not talk.targets


async def test_a_browser_that_takes_it_for_a_web_server_is_told_what_it_is() -> None:
    async with proxied() as talk:
        await talk.app.send_all(b"GET / HTTP/1.1\r\nHost: localhost:1080\r\n\r\n")
        await read_head(talk.app)
        assert b": This is a proxy" in await talk.end()


POST = b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\n"
SMUGGLED = b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
        b"Content-Length: 0, 5\r\n\r\n",
        b"Content-Length: +0\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 0x0\r\n\r\n",
        b"Content-Length : 0\r\n\r\n",
        b"Content-Length\x0b: 0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"X: a\x00b\r\n\r\n",
        b"X: a\rContent-Length: 5\r\n\r\n",
        b" X: obsolete fold at the start\r\n\r\n",
        b"X\r\n\r\n",
        b": x\r\n\r\n",
    ],
)
async def test_a_request_with_two_readings_reaches_nobody(fields: bytes) -> None:
    """Row A5."""
    async with proxied() as talk:
        await talk.app.send_all(POST + fields + SMUGGLED)
        await talk.app.send_eof()
        assert (await read_head(talk.app)).status in (400, 501)
        await talk.end()
    assert not talk.targets


@pytest.mark.parametrize(
    "chunks",
    [
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \x0b\r\nhello\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFFFFFF\r\nhello",
    ],
)
async def test_malformed_chunks_end_both_sides(chunks: bytes) -> None:
    """Row A5."""
    async with proxied() as talk:
        await talk.app.send_all(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        await talk.app.send_all(SMUGGLED)
        assert (await read_head(talk.app)).status == 400
        await talk.end()
        assert talk.fars[0].resets == [Code.RESET]
    assert len(talk.targets) == 1


async def test_an_http_1_0_request_with_chunks_is_refused() -> None:
    """Row A5 (RFC 9112 §6.1)."""
    async with proxied() as talk:
        await talk.app.send_all(
            b"POST http://a.test/ HTTP/1.0\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert (await read_head(talk.app)).status == 400


# Bodies ----------------------------------------------------------------------------


async def test_chunks_go_both_ways_and_trailers_with_them() -> None:
    """Points 51, 65: each goes on when it comes."""
    async with proxied() as talk:
        origin, head = await talk.ask(
            POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
        )
        assert head.all("transfer-encoding") == ["chunked"]
        assert await read(origin, 8) == b"3\r\none\r\n"
        await talk.app.send_all(b"3;ext=1\r\ntwo\r\n0\r\nX-Trailer: 1\r\n\r\n")
        last = b"0\r\nX-Trailer: 1\r\n\r\n"
        assert await read(origin, 8 + len(last)) == b"3\r\ntwo\r\n" + last
        await origin.send_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
        )
        head = await talk.hear(b"2\r\nok\r\n")
        assert head.all("transfer-encoding") == ["chunked"]
        await origin.send_all(last)
        assert await read(talk.app, len(last)) == last
        origin2, _ = await talk.ask(GET.replace(b"a.test", b"b.test"))
        await origin2.send_all(OK)
        await talk.hear()


async def test_a_body_with_a_length_keeps_it() -> None:
    async with proxied() as talk:
        origin, head = await talk.ask(POST + b"Content-Length: 6\r\n\r\nabc")
        assert head.all("content-length") == ["6"]
        assert await read(origin, 3) == b"abc"
        await talk.app.send_all(b"def")
        assert await read(origin, 3) == b"def"
        await origin.send_all(OK)
        await talk.hear()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nok",
    ],
)
async def test_an_app_of_http_1_0_gets_a_body_that_ends_with_the_connection(
    answer: bytes,
) -> None:
    """Points 51, 53."""
    async with proxied() as talk:
        origin, _ = await talk.ask(b"GET http://a.test/ HTTP/1.0\r\n\r\n")
        await origin.send_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        await origin.send_all(answer)
        await origin.send_eof()
        head = await talk.hear()
        assert head.status == 200
        assert "transfer-encoding" not in head.names
        assert head.all("connection") == ["close"]
        assert await talk.end() == b""


async def test_an_answer_that_ends_with_its_connection_is_chunked_for_the_app() -> None:
    """Point 51."""
    async with proxied() as talk:
        origin, _ = await talk.ask(GET)
        await origin.send_all(b"HTTP/1.1 200 OK\r\n\r\nok")
        await talk.hear(b"2\r\nok\r\n")
        await origin.send_eof()
        assert await read(talk.app, 5) == b"0\r\n\r\n"
        origin, _ = await talk.ask(GET)  # a new connection, for the old one is over
        await origin.send_all(OK)
        await talk.hear()


async def test_answers_without_a_body_stay_in_step() -> None:
    """Points 52, 54."""
    async with proxied() as talk:
        origin, _ = await talk.ask(b"HEAD" + GET[3:])
        await origin.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        assert (await read_head(talk.app)).all("content-length") == ["9"]
        for said in (
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ):
            await talk.app.send_all(GET)
            await read_head(origin)
            await origin.send_all(said)
            assert (await read_head(talk.app)).status == int(said.split()[1])
        await talk.app.send_all(GET)
        await read_head(origin)
        await origin.send_all(OK)
        await talk.hear()
    assert len(talk.targets) == 1


async def test_interim_answers_pass_all() -> None:
    """Point 53."""
    async with proxied() as talk:
        origin, _ = await talk.ask(GET)
        for status in (102, 103, 103):
            await origin.send_all(b"HTTP/1.1 %d X\r\nLink: </x>\r\n\r\n" % status)
            head = await read_head(talk.app)
            assert (head.status, head.all("link")) == (status, ["</x>"])
        await origin.send_all(OK)
        await talk.hear()


async def test_who_expects_100_gets_it_from_the_origin() -> None:
    """Point 50."""
    async with proxied() as talk:
        origin, head = await talk.ask(
            POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert head.all("expect") == ["100-continue"]
        await trio.testing.wait_all_tasks_blocked()
        await origin.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert (await read_head(talk.app)).status == 100
        await talk.app.send_all(b"hello")
        assert await read(origin, 5) == b"hello"
        await origin.send_all(OK)
        assert "connection" not in (await talk.hear()).names


async def test_who_expects_100_and_gets_a_refusal_keeps_its_body() -> None:
    """Points 50, 55."""
    async with proxied() as talk:
        origin, _ = await talk.ask(
            POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        await origin.send_all(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
        head = await talk.hear(b"no")
        assert (head.status, head.all("connection")) == (417, ["close"])
        assert await talk.end() == b""


async def test_who_does_not_wait_for_100_is_not_held_up() -> None:
    """Point 50."""
    async with proxied() as talk:
        origin, _ = await talk.ask(
            POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
        )
        assert await read(origin, 5) == b"hello"


@pytest.mark.parametrize("closes", [False, True])
async def test_an_answer_before_the_end_of_the_body_is_heard_then_closed(
    closes: bool,
) -> None:
    """Point 55."""
    async with proxied() as talk:
        origin, _ = await talk.ask(POST + b"Content-Length: 1000000\r\n\r\nstart")
        await origin.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        if closes:
            await origin.aclose()
        await talk.app.send_all(b"x" * 1000)
        head = await talk.hear(b"no")
        assert (head.status, head.all("connection")) == (413, ["close"])
        assert await talk.end() == b""
        assert talk.fars[0].resets == [Code.RESET]


async def test_large_bodies_are_never_held() -> None:
    """Point 57: the app waits while the origin does not read, and the other way."""
    async with proxied(lockstep=True) as talk:
        sent = 0

        async def upload() -> None:
            nonlocal sent
            for _ in range(64):
                await talk.app.send_all(bytes(65_536))
                sent += 65_536

        async with trio.open_nursery() as nursery:
            await talk.app.send_all(POST + b"Content-Length: %d\r\n\r\n" % (1 << 22))
            origin = await talk.origin()
            await read_head(origin)
            nursery.start_soon(upload)
            await trio.testing.wait_all_tasks_blocked()
            assert sent <= 3 * 65_536
            await read(origin, 1 << 22)
        answered = 0

        async def download() -> None:
            nonlocal answered
            await origin.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 22)
            )
            for _ in range(64):
                await origin.send_all(bytes(65_536))
                answered += 65_536

        async with trio.open_nursery() as nursery:
            nursery.start_soon(download)
            await read_head(talk.app)
            await trio.testing.wait_all_tasks_blocked()
            assert answered <= 3 * 65_536
            await read(talk.app, 1 << 22)


# Connections -----------------------------------------------------------------------


async def test_the_next_request_may_go_to_another_host() -> None:
    """Point 54."""
    async with proxied() as talk:
        for name in (b"a.test", b"a.test:81", b"b.test"):
            origin, head = await talk.ask(GET.replace(b"a.test", name))
            assert head.all("host") == [name.decode()]
            await origin.send_all(OK)
            await talk.hear()
        assert [far.is_closed for far in talk.fars] == [True, True, False]
    assert [str(target) for target in talk.targets] == [
        "a.test:80",
        "a.test:81",
        "b.test:80",
    ]


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Points 7, 54."""
    async with proxied() as talk:
        await talk.app.send_all(GET + GET.replace(b"a.test", b"b.test") + GET)
        for _ in range(3):
            origin = await talk.origin()
            await read_head(origin)
            await origin.send_all(OK)
            await talk.hear()


async def test_an_origin_that_closed_meanwhile_is_not_used_again() -> None:
    """Point 58."""
    async with proxied() as talk:
        origin, _ = await talk.ask(GET)
        await origin.send_all(OK)
        await talk.hear()
        await origin.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        origin, _ = await talk.ask(POST + b"Content-Length: 1\r\n\r\nx")
        await read(origin, 1)
        await origin.send_all(OK)
        await talk.hear()


@pytest.mark.parametrize(
    ("again", "served"), [(GET, True), (POST + b"Content-Length: 1\r\n\r\nx", False)]
)
async def test_only_what_does_no_harm_twice_is_asked_again(
    again: bytes, served: bool
) -> None:
    """Point 58."""
    async with proxied() as talk:
        origin, _ = await talk.ask(GET)
        await origin.send_all(OK)
        await talk.hear()
        await talk.app.send_all(again)
        await read_head(origin)  # it was under way when the origin gave up
        await talk.fars[0].break_with(Code.RESET)
        if served:
            origin = await talk.origin()
            await read_head(origin)
            await origin.send_all(OK)
            await talk.hear()
        else:
            assert (await read_head(talk.app)).status == 502
    assert len(talk.targets) == 1 + served


async def test_a_first_request_that_fails_is_not_asked_again() -> None:
    """Point 58."""
    async with proxied() as talk:
        await talk.ask(GET)
        await talk.fars[0].break_with(Code.LINK_LOST)
        assert (await read_head(talk.app)).status == 502
    assert len(talk.targets) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 90_000,
    ],
)
async def test_an_origin_that_does_not_speak_http_is_a_bad_gateway(
    answer: bytes,
) -> None:
    """Points 40, 68; row A5."""
    async with proxied() as talk:
        origin, _ = await talk.ask(GET)
        await origin.send_all(answer)
        await origin.send_eof()
        assert (await read_head(talk.app)).status == 502
        assert b"a.test:80" in await talk.end()
        assert talk.fars[0].resets == [Code.RESET]


@pytest.mark.parametrize(
    ("head", "body"),
    [(b"Content-Length: 9\r\n\r\n", b"ok"), (b"\r\n", b"2\r\nok\r\n")],
)
async def test_an_answer_that_broke_off_is_not_taken_for_complete(
    head: bytes, body: bytes
) -> None:
    async with proxied() as talk:
        origin, _ = await talk.ask(GET)
        await origin.send_all(b"HTTP/1.1 200 OK\r\n" + head + b"ok")
        await talk.hear(body)
        await talk.fars[0].break_with(Code.LINK_LOST)
        assert await talk.end() == b""


async def test_an_origin_that_is_done_hears_a_close_and_no_reset() -> None:
    async with proxied() as talk:
        origin, _ = await talk.ask(GET)
        await origin.send_all(OK)
        await talk.hear()
        await talk.app.send_eof()
        assert await talk.end() == b""
        assert talk.fars[0].is_closed
        assert not talk.fars[0].resets


async def test_an_app_that_leaves_takes_its_request_with_it() -> None:
    async with proxied() as talk:
        await talk.ask(POST + b"Content-Length: 9\r\n\r\nx")
        await talk.app.aclose()
        await talk.over.wait()
        assert talk.fars[0].resets == [Code.RESET]


async def test_an_app_that_only_ends_its_side_hears_the_answer() -> None:
    async with proxied() as talk:
        await talk.app.send_all(GET)
        await talk.app.send_eof()
        origin = await talk.origin()
        await read_head(origin)
        await trio.testing.wait_all_tasks_blocked()
        await origin.send_all(OK)
        await talk.hear()
        assert await talk.end() == b""


# Upgrade ---------------------------------------------------------------------------

UPGRADE = (
    GET[:-2] + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: y\r\n\r\n"
)


async def test_a_websocket_becomes_a_tunnel_with_what_came_behind_its_heads() -> None:
    """Point 61."""
    async with proxied() as talk:
        origin, head = await talk.ask(UPGRADE + b"early")
        assert head.all("connection") == ["Upgrade"]
        assert head.all("upgrade") == ["websocket"]
        assert head.all("sec-websocket-key") == ["x"]
        await origin.send_all(SWITCH + b"at once")
        head = await talk.hear(b"at once")
        assert (head.status, head.all("upgrade")) == (101, ["websocket"])
        assert head.all("sec-websocket-accept") == ["y"]
        assert await read(origin, 5) == b"early"
        await talk.app.send_all(b"ping")
        assert await read(origin, 4) == b"ping"
        await origin.send_eof()
        await talk.app.send_eof()
        assert await talk.end() == b""


async def test_an_upgrade_that_is_refused_goes_on_as_http() -> None:
    """Point 61."""
    async with proxied() as talk:
        origin, _ = await talk.ask(UPGRADE)
        await origin.send_all(OK)
        await talk.hear()
        await talk.app.send_all(GET)
        await read_head(origin)
        await origin.send_all(OK)
        await talk.hear()


# Time ------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"G", GET[:-2]])
async def test_a_slow_head_is_ended_after_its_time(
    said: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Row A16."""
    async with proxied(limit_s=math.inf) as talk:
        start = trio.current_time()
        await talk.app.send_all(said)

        async def drip() -> None:
            while True:
                await trio.sleep(1)
                await talk.app.send_all(b"x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            assert (await read_head(talk.app)).status == 408
            nursery.cancel_scope.cancel()
        assert trio.current_time() - start == pytest.approx(HEAD_S)


async def test_an_app_that_says_nothing_is_closed_without_a_word(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Points 9, 69; row A16."""
    caplog.set_level(logging.INFO, "tunnel.front")
    async with proxied(limit_s=math.inf) as talk:
        start = trio.current_time()
        assert await talk.end() == b""
        assert trio.current_time() - start == pytest.approx(HEAD_S)
    assert lines(caplog) == ['proxy.refused peer=local:0 reason="no request in time"']


async def test_between_requests_an_app_may_think_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with proxied(limit_s=math.inf) as talk:
        origin, _ = await talk.ask(GET)
        await origin.send_all(OK)
        await talk.hear()
        start = trio.current_time()
        assert await talk.end() == b""
        assert trio.current_time() - start == pytest.approx(BETWEEN_S)


async def test_an_origin_that_never_answers_is_a_gateway_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Point 40."""
    TIMEOUTS.set(Timeouts(idle_s=3_600))
    async with proxied(limit_s=math.inf) as talk:
        await talk.ask(GET)
        start = trio.current_time()
        assert (await read_head(talk.app)).status == 504
        assert 3_600 <= trio.current_time() - start <= 3_600 * 1.02


async def test_an_origin_may_take_a_day_to_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with proxied(limit_s=math.inf) as talk:
        origin, _ = await talk.ask(GET)
        await trio.sleep(86_400)
        await origin.send_all(OK)
        assert (await read_head(talk.app)).status == 200


async def test_an_app_that_goes_on_sending_is_closed_after_an_early_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Point 55."""
    async with proxied(limit_s=math.inf) as talk:
        origin, _ = await talk.ask(POST + b"Content-Length: 1000000\r\n\r\nstart")
        await origin.send_all(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
        assert (await read_head(talk.app)).status == 413
        start = trio.current_time()
        await talk.over.wait()
        assert trio.current_time() - start == pytest.approx(GRACE_S)


async def test_a_slow_line_may_go_on_sending_behind_an_early_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A close with bytes under way destroys an answer that is not read yet."""
    async with proxied(limit_s=math.inf) as talk:
        origin, _ = await talk.ask(POST + b"Content-Length: 1000000\r\n\r\nstart")
        await origin.send_all(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
        start = trio.current_time()
        with suppress(trio.BrokenResourceError):
            while not talk.over.is_set():
                await trio.sleep(GRACE_S / 2)
                await talk.app.send_all(b"x")
        # It ends all the same, as long as it was said.
        assert trio.current_time() - start == pytest.approx(LINGER_S, abs=GRACE_S)
        assert (await read_head(talk.app)).status == 413


async def test_two_hundred_slow_heads_do_not_delay_a_whole_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Row A16."""
    over = 0

    async def slow() -> None:
        nonlocal over
        async with proxied(limit_s=math.inf) as talk:
            await talk.app.send_all(b"G")
            with suppress(trio.BrokenResourceError):
                while not talk.over.is_set():
                    await trio.sleep(1)
                    await talk.app.send_all(b"x")
            over += 1

    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        for _ in range(200):
            nursery.start_soon(slow)
        await trio.testing.wait_all_tasks_blocked()
        async with proxied(limit_s=math.inf) as talk:
            origin, _ = await talk.ask(GET)
            await origin.send_all(OK)
            await talk.hear()
        assert trio.current_time() == start
    assert over == 200
    assert trio.current_time() - start < HEAD_S + GRACE_S + 2
