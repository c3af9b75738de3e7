"""A target that speaks HTTP/2, as the engine has it: in HTTP/1.1."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from h2.errors import ErrorCodes
from h2.events import RequestReceived, StreamReset
from support.cycles import cycles_of
from support.far import Far
from support.http2 import Two

from tunnel.errors import Code, LocalStreamError
from tunnel.front.http.h2.target import Http2Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = b"GET /x HTTP/1.1\r\nHost: a.test\r\nX-A: 1\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = [(b":status", b"200"), (b"content-length", b"2")]


class Pair:
    """What is asked, and the target that hears it."""

    def __init__(self) -> None:
        self.far = Far()
        self.asks = Http2Target(self.far, secure=False)
        self.two = Two(self.far.far, client=False)

    async def asked(self, count: int = 1) -> int:
        """Wait for a request, and return its stream."""

        def seen() -> list[RequestReceived]:
            return [e for e in self.two.events if isinstance(e, RequestReceived)]

        await self.two.until(lambda: len(seen()) >= count)
        return seen()[-1].stream_id or 0

    async def say(self, number: int, body: bytes = b"ok") -> None:
        self.two.conn.send_headers(number, OK)
        self.two.conn.send_data(number, body, end_stream=True)
        await self.two.flush()

    async def hear(self, end: bytes) -> bytes:
        heard = b""
        while not heard.endswith(end):
            piece = await self.asks.receive_piece()
            assert piece, heard
            heard += piece
        return heard


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    with trio.fail_after(10):
        await made.two.begin()
        yield made
    made.asks.close()


async def test_one_request_after_the_other_goes_over_one_connection() -> None:
    async with pair() as it:
        for count in (1, 2):
            await it.asks.put(GET)
            number = await it.asked(count)
            await it.say(number)
            heard = await it.hear(b"ok")
            assert heard == b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok"
        assert [e.headers for e in it.two.of(3, RequestReceived)] == [
            [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"),
             (b":path", b"/x"), (b"x-a", b"1")]
        ]  # fmt: skip


async def test_a_target_that_was_asked_is_held_by_nothing() -> None:
    async def ask() -> None:
        async with pair() as it:
            await it.asks.put(GET)
            await it.say(await it.asked())
            await it.hear(b"ok")

    await ask()  # what is made once
    with cycles_of("tunnel") as found:
        for _ in range(3):
            await ask()
    assert found == {}


async def test_what_is_given_up_is_cancelled_at_the_target() -> None:
    async with pair() as it:
        await it.asks.put(POST + b"1\r\nx\r\n")
        number = await it.asked()
        # What a socket would take at once a memory stream does not: it is looked at.
        it.asks.reset(Code.RESET)
        it.two.conn.receive_data(b"")
        assert it.far.is_closed
        assert (
            it.asks._h2.streams.get(number) is None
            or it.asks._h2.streams[number].closed
        )


@pytest.mark.parametrize(
    ("error", "code"),
    [(ErrorCodes.CANCEL, Code.RESET), (ErrorCodes.REFUSED_STREAM, Code.REFUSED)],
)
async def test_a_stream_that_the_target_resets_breaks(
    error: ErrorCodes, code: Code
) -> None:
    async with pair() as it:
        await it.asks.put(GET)
        number = await it.asked()
        it.two.conn.reset_stream(number, error)
        await it.two.flush()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await it.asks.receive_piece()
        cause = caught.value.__cause__
        assert isinstance(cause, LocalStreamError)
        assert cause.code is code


async def test_a_target_that_says_goodbye_answers_first() -> None:
    async with pair() as it:
        await it.asks.put(GET)
        number = await it.asked()
        goodbye = b"\0\0\x08\x07\0\0\0\0\0" + number.to_bytes(4, "big") + bytes(4)
        await it.far.far.send_all(goodbye)
        await it.say(number)
        assert (await it.hear(b"ok")).startswith(b"HTTP/1.1 200 ")
        assert await it.asks.receive_piece() == b""


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\0\2\2\x46" + bytes(20)]
)
async def test_a_target_that_speaks_something_else_is_broken(said: bytes) -> None:
    far = Far()
    asks = Http2Target(far, secure=False)
    with trio.fail_after(10):
        await asks.put(GET)
        await far.far.send_all(said)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await asks.receive_piece()
    assert isinstance(caught.value.__cause__, LocalStreamError)
    assert caught.value.__cause__.code is Code.PROTOCOL


async def test_a_body_waits_for_the_targets_window() -> None:
    async with pair() as it:
        it.two.acknowledges = False
        async with trio.open_nursery() as nursery:
            body = bytes(100_000)
            nursery.start_soon(it.asks.put, POST + b"186a0\r\n" + body + b"\r\n")
            number = await it.asked()
            await it.two.until(lambda: it.two.size_of(number) == 65_535)
            nursery.start_soon(it.asks.receive_piece)
            it.two.conn.increment_flow_control_window(100_000)
            it.two.conn.increment_flow_control_window(100_000, number)
            await it.two.flush()
            await it.two.until(lambda: it.two.size_of(number) == 100_000)
            nursery.cancel_scope.cancel()
        assert not it.two.of(number, StreamReset)
