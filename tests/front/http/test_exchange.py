"""One request and its answer, whoever leaves, answers or ends at whatever moment."""

from __future__ import annotations

import contextlib
import logging
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import far as fars
from support import logs
from support.town import OK, VISITOR, Town, get, status, town, until

from tunnel.errors import Code
from tunnel.front.http.names import Absent, Destination, handle_visitor
from tunnel.front.http.server import Visit
from tunnel.net.timeouts import TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.addresses import Address

CL = "Content-Length: 5"
TE = "Transfer-Encoding: chunked"
UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")


async def kept(it: Town, *, path: str = "/") -> fars.Far:
    """Have one request answered; return the connection, which is kept."""
    await it.say(get("a.test", path=path))
    far, _ = await it.target()
    await far.far.send_all(OK)
    await it.hear(b"ok")
    return far


# Visitors that end their side --------------------------------------------------------


async def test_requests_that_a_visitor_sends_before_it_ends_are_all_answered() -> None:
    one = get("a.test", CL, method="POST", path="/1") + b"hello"
    async with town() as it:
        await it.say(one + one.replace(b" /1", b" /2"))
        await it.visitor.send_eof()
        far = await it.opened()
        assert b"/1" in await until(far.far, b"hello")
        await far.far.send_all(OK)
        assert b"/2" in await until(far.far, b"hello")
        assert await far.far.receive_some() == b""  # nothing follows this one
        await far.far.send_all(OK)
        assert (await it.rest()).count(b"200 OK") == 2


async def test_a_connection_whose_end_was_told_is_not_kept() -> None:
    async with town() as it:
        far = await kept(it)
        await it.say(get("a.test"))
        await it.visitor.send_eof()
        await until(far.far, b"\r\n\r\n")
        assert await far.far.receive_some() == b""
        await far.far.send_all(OK)
        assert (await it.rest()).endswith(b"ok")
        assert far.is_closed or far.resets


async def test_a_body_that_a_visitor_ends_too_soon_reaches_no_end() -> None:
    async with town() as it:
        await it.say(get("a.test", CL, method="POST") + b"hel")
        await it.visitor.send_eof()
        far = await it.opened()
        assert status(await it.hear()) == 400
        assert far.resets == [Code.RESET]


# Visitors that leave -----------------------------------------------------------------

MOMENTS = {
    "before a word": (b"", b""),
    "within its head": (b"GET / HTTP/1.1\r\nHo", b""),
    "within its body": (get("a.test", CL, method="POST") + b"he", b""),
    "within a chunk": (get("a.test", TE, method="POST") + b"5\r\nhe", b""),
    "before the answer": (get("a.test"), b""),
    "within the answer's head": (get("a.test"), b"HTTP/1.1 200"),
    "behind an interim answer": (get("a.test"), b"HTTP/1.1 103 E\r\n\r\n"),
    "behind the answer's head": (get("a.test"), OK[:-2]),
    "within the answer": (get("a.test"), OK[:-1]),
    "behind the answer": (get("a.test"), OK),
    "with a request behind it": (get("a.test") + get("a.test"), OK[:-1]),
    "behind a switch": (get("a.test", *UPGRADE), b"HTTP/1.1 101 S\r\n\r\nx"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_visitor_may_leave_at_every_moment(moment: str, goes_on: bool) -> None:
    said, answer = MOMENTS[moment]
    visitor, ours = trio.testing.memory_stream_pair()
    it, ended = Town(visitor), trio.Event()
    far: fars.Far | None = None

    async def serve() -> None:
        await handle_visitor(Visit(ours, VISITOR), it.route)
        ended.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await it.say(said)
            await trio.testing.wait_all_tasks_blocked()
            if it.asked:
                far = await it.opened()
                await far.far.send_all(answer)
                await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(visitor)
            if far is not None:
                await finish(far, b"more" if goes_on else b"")
            await ended.wait()
    assert far is None or far.is_closed or far.resets


async def finish(far: fars.Far, data: bytes) -> None:
    """Have a target go on and end, as far as its connection lets it."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await far.far.send_all(data)
        await far.far.send_eof()


# Targets that answer, and when -------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2])
async def test_an_answer_before_the_first_byte_of_a_request_is_nobody_s(
    size: int,
) -> None:
    """On a kept connection it would be taken for the answer to what follows."""
    async with town() as it:
        far = await kept(it)
        await far.far.send_all(OK[: len(OK) - size])
        await trio.testing.wait_all_tasks_blocked()
        assert far.is_closed
        await it.say(get("a.test", path="/2"))
        other, head = await it.target()
        assert other is not far
        assert head.startswith(b"GET /2 ")


async def test_bytes_behind_an_answer_are_nobody_s() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(OK + OK)
        await it.hear(b"ok")
        await it.say(get("a.test", path="/2"))
        other, _ = await it.target()
        await other.far.send_all(OK.replace(b"ok", b"no"))
        assert (await it.hear(b"no")).count(b"HTTP/1.1 200") == 1
        assert far.is_closed


async def test_an_answer_that_comes_before_the_body_s_end_is_the_last() -> None:
    async with town() as it:
        await it.say(get("a.test", TE, method="POST") + b"5\r\nhel")
        far, _ = await it.target()
        await far.far.send_all(OK)
        await it.say(b"lo\r\n0\r\n\r\n" + get("a.test", path="/2"))
        heard = await it.rest()
        assert b"Connection: close" in heard
        assert heard.count(b"HTTP/1.1 ") == 1
        assert it.asked == ["a.test"]
        assert far.is_closed or far.resets


async def test_a_switch_before_the_whole_request_is_a_bad_gateway() -> None:
    """What is missing of the body would be taken for the new protocol."""
    async with town() as it:
        await it.say(get("a.test", *UPGRADE, CL, method="POST") + b"hel")
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 101 Switching\r\nUpgrade: tcp\r\n\r\n")
        assert status(await it.hear()) == 502
        assert far.resets == [Code.RESET]


async def test_a_body_before_a_switch_arrives_and_then_all_is_raw() -> None:
    async with town() as it:
        await it.say(get("a.test", *UPGRADE, CL, method="POST") + b"helloGET / raw")
        far, head = await it.target()
        if not head.endswith(b"hello"):
            await until(far.far, b"hello")
        await far.far.send_all(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nraw")
        heard = await it.hear(b"raw")
        assert heard.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
        await until(far.far, b"GET / raw")


# Kept connections that end -----------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_safe_request_that_meets_the_end_is_asked_once_more(
    method: str,
) -> None:
    async with town() as it:
        far = await kept(it)
        await it.say(get("a.test", method=method))
        await until(far.far, b"\r\n\r\n")
        await far.far.send_eof()
        again, head = await it.target()
        assert head.startswith(method.encode())
        await again.far.send_eof()  # and not a third time
        assert status(await it.hear()) == 502


async def test_a_request_that_could_not_be_sent_is_sent_on_the_new_connection() -> None:
    """The new one was given nothing, and waited for ever."""
    async with town() as it:
        await it.say(get("a.test"))
        far = await it.opened()
        await until(far.far, b"\r\n\r\n")
        await far.far.send_all(OK)
        await it.hear(b"ok")
        far.broken = Code.RESET
        await it.say(get("a.test", path="/2"))
        await trio.testing.wait_all_tasks_blocked()
        far.give_way(Code.RESET)
        again, head = await it.target()
        assert head.startswith(b"GET /2 ")
        await again.far.send_all(OK)
        assert status(await it.hear(b"ok")) == 200


async def test_the_time_that_a_request_took_does_not_count_what_came_behind(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunnel.access")
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await trio.sleep(2)
        await far.far.send_all(OK)
        await it.hear(b"ok")
        await trio.sleep(60)
    assert re.findall(r"visitor\.served .* seconds=2\.0\b", logs.text(caplog))


@pytest.mark.parametrize("lines", [(), (CL,)])
async def test_what_may_do_harm_is_never_asked_again(
    lines: tuple[str, ...],
) -> None:
    async with town() as it:
        far = await kept(it)
        await it.say(get("a.test", *lines, method="POST") + b"hello" * len(lines))
        await until(far.far, b"\r\n\r\n")
        await far.far.send_eof()
        assert await it.rest() == b""


async def test_an_answer_that_began_is_not_asked_for_again() -> None:
    async with town() as it:
        far = await kept(it)
        await it.say(get("a.test"))
        await until(far.far, b"\r\n\r\n")
        await far.far.send_all(b"HTTP/1.1 2")
        await far.far.send_eof()
        assert status(await it.hear()) == 502
        assert it.asked == ["a.test"] * 2


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_silence_on_a_kept_connection_is_no_end_of_it(
    method: str, autojump_clock: trio.testing.MockClock
) -> None:
    """It was asked a second time, and a POST was closed without a word."""
    TIMEOUTS.set(Timeouts(idle_s=30))
    async with town() as it:
        far = await kept(it)
        await it.say(get("a.test", method=method))
        await until(far.far, b"\r\n\r\n")
        assert status(await it.hear()) == 504
        assert far.resets == [Code.RESET]
        assert trio.current_time() < 60


# Sides that do not read --------------------------------------------------------------


@asynccontextmanager
async def lockstep() -> AsyncIterator[tuple[Town, fars.Far]]:
    """A visitor and a target, and whatever is sent to them waits until they read."""
    visitor, ours = trio.testing.lockstep_stream_pair()
    it, far = Town(visitor), fars.Far(lockstep=True)

    async def open_one(_visitor: Address) -> fars.Far:
        await trio.lowlevel.checkpoint()
        return far

    def route(_host: str) -> Destination | Absent:
        return Destination(None, open_one)

    with trio.fail_after(500):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle_visitor, Visit(ours, VISITOR), route)
            yield it, far
            nursery.cancel_scope.cancel()


async def test_no_page_is_said_while_an_interim_answer_is() -> None:
    async with lockstep() as (it, far), trio.open_nursery() as nursery:
        await it.say(get("a.test", TE, method="POST"))
        await until(far.far, b"\r\n\r\n")
        nursery.start_soon(far.far.send_all, b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await it.say(b"no chunk\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert far.resets == [Code.RESET]
        heard = await it.rest()
        assert b"400" not in heard
        nursery.cancel_scope.cancel()


async def test_a_target_that_does_not_read_is_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    TIMEOUTS.set(Timeouts(idle_s=30))
    async with lockstep() as (it, far):
        await it.say(get("a.test"))
        assert status(await it.hear()) == 504
        assert far.resets == [Code.RESET]


async def test_many_small_chunks_of_an_answer_leave_turns_to_others() -> None:
    turns, over = 0, trio.Event()

    async def tick() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()

    async with town() as it, trio.open_nursery() as nursery:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await it.hear()
        nursery.start_soon(tick)
        await far.far.send_all(b"1\r\nx\r\n" * 21_845 + b"0\r\n\r\n")
        heard = await until(it.visitor, b"\r\n0\r\n\r\n")
        over.set()
    assert heard.count(b"x") == 21_845
    assert turns > 80


async def test_many_small_chunks_of_a_request_leave_turns_to_others() -> None:
    async with town() as it:
        await it.say(get("a.test", TE, method="POST"))
        far, _ = await it.target()
        await it.say(b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n" + get("a.test", path="/2"))
        said = await until(far.far, b"\r\n0\r\n\r\n")
        assert said.count(b"x") == 10_000
        await far.far.send_all(OK)
        await it.hear(b"ok")
        assert b"/2" in (await it.target(again=True))[1]
