"""An opener, the server between, and an exit at another client."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.wires import TARGET, session_pair, small_window

from tunnel.addresses import Address
from tunnel.center.exit.tcp import serve_chained
from tunnel.errors import Code, StreamError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.wires import SessionPair

    from tunnel.link.session import Session
    from tunnel.link.virtual import VirtualStream

    Serve = Callable[[VirtualStream], Awaitable[None]]

BOUND = Address("192.0.2.1", 5)


@dataclass
class Way:
    opener: Session
    between: SessionPair
    exit: SessionPair


@asynccontextmanager
async def way(serve: Serve, window: int = 262_144) -> AsyncIterator[Way]:
    """Two links of one server; ``serve`` is the exit."""
    terms = small_window(window)

    async def offered(stream: VirtualStream) -> None:
        assert stream.create is not None
        onward = far.server.open_now(stream.create.target)
        await serve_chained(stream, onward)

    async with (
        session_pair(serve_client=serve, terms=terms) as far,
        session_pair(serve_server=offered, terms=terms) as near,
    ):
        yield Way(near.client, near, far)


def code_of(error: BaseException) -> Code:
    assert isinstance(error.__cause__, StreamError)
    return error.__cause__.code


async def test_bytes_and_half_closes_pass_both_ways(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def echo(stream: VirtualStream) -> None:
        stream.accept(BOUND)
        data = b""
        async for piece in stream:
            data += piece
        await stream.send_all(data[::-1])
        await stream.send_eof()
        await stream.aclose()

    async with way(echo) as w:
        stream = await w.opener.open(TARGET, exit_name="far")
        assert stream.bound == BOUND
        await stream.send_all(b"abc")
        await stream.send_eof()
        assert await stream.receive_some() == b"cba"
        assert await stream.receive_some() == b""


async def test_a_refusal_keeps_its_code_and_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def refuse(stream: VirtualStream) -> None:
        stream.reset(Code.HOST_UNREACHABLE, "no such machine")

    async with way(refuse) as w:
        with pytest.raises(StreamError) as caught:
            await w.opener.open(TARGET)
        assert caught.value.code is Code.HOST_UNREACHABLE
        assert caught.value.what == "no such machine"


async def test_a_reset_of_the_exit_reaches_the_opener_behind_its_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def break_off(stream: VirtualStream) -> None:
        stream.accept()
        await stream.send_all(b"last words")
        stream.reset(Code.RESET)

    async with way(break_off) as w:
        stream = await w.opener.open(TARGET)
        assert await stream.receive_some() == b"last words"
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert code_of(caught.value) is Code.RESET


async def test_a_reset_of_the_opener_reaches_the_exit_though_it_reads_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hung: list[VirtualStream] = []

    async def hang(stream: VirtualStream) -> None:
        hung.append(stream)
        stream.accept()
        await trio.sleep_forever()

    async with way(hang, window=16_376) as w:
        stream = await w.opener.open(TARGET)
        with trio.move_on_after(5):  # until both windows are full
            while True:
                await stream.send_all(bytes(10_000))
        stream.reset(Code.RESET)
        with trio.fail_after(10):
            while hung[0]._send_error is None:  # noqa: ASYNC110  # nothing tells
                await trio.sleep(0.1)
        assert hung[0]._send_error.code is Code.RESET


async def test_an_opener_who_gives_up_takes_the_attempt_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offered: list[VirtualStream] = []

    async def never(stream: VirtualStream) -> None:
        offered.append(stream)
        await trio.sleep_forever()

    async with way(never) as w:
        with trio.move_on_after(1):
            await w.opener.open(TARGET)
        await trio.testing.wait_all_tasks_blocked()
        assert offered[0]._send_error is not None
        assert offered[0]._send_error.code is Code.RESET


async def test_an_exit_that_is_lost_resets_its_openers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def hang(stream: VirtualStream) -> None:
        stream.accept()
        await trio.sleep_forever()

    async with way(hang) as w:
        stream = await w.opener.open(TARGET)
        w.exit.cut()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
