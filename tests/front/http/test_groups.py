"""A request at a name that several serve: what one cannot answer, another does."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.town import OK, VISITOR, Far, Town, get, status, until

from tunnel.errors import Code
from tunnel.front.http.names import handle_visitor
from tunnel.front.http.places import Place, Places, Rates, State
from tunnel.front.http.server import AHEAD_BYTES, Visit
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable

    from tunnel.addresses import Address

CL = "Content-Length: 5"


class Member:
    """One whose client and target do as a test says."""

    def __init__(self) -> None:
        self.state = State.READY
        self.in_flight = self.turn = self.opened = 0
        self.shunned_until = 0.0
        self.when_lost: set[Callable[[], None]] = set()
        self.refuses: Code | None = None
        self._put, self._opened = trio.open_memory_channel[Far](10)

    @property
    def key(self) -> Hashable:
        return self

    async def open(self, visitor: Address) -> Far:
        assert visitor == VISITOR
        self.opened += 1
        far = Far()
        if self.refuses is not None:
            far.give_way(self.refuses)
        self._put.send_nowait(far)
        return far

    async def target(self) -> Far:
        return await self._opened.receive()

    def lose_link(self) -> None:
        self.state = State.WAITING
        for call in tuple(self.when_lost):
            call()


@asynccontextmanager
async def group() -> AsyncIterator[tuple[Town, Member, Member]]:
    """Give a visitor, the member that is asked first, and another."""
    visitor, ours = trio.testing.memory_stream_pair()
    first, other = Member(), Member()
    other.turn = 1
    rules = Rules(group="blue", max_body=10 * AHEAD_BYTES)
    found = Places([Place("a.test", rules, math.inf, [first, other])], Rates())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            visit = Visit(ours, VISITOR)
            nursery.start_soon(handle_visitor, visit, lambda _: found)
            yield Town(visitor), first, other
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_a_safe_request_is_asked_elsewhere_when_the_link_is_lost(
    method: str,
) -> None:
    async with group() as (it, first, other):
        await it.say(get("a.test", method=method))
        await until((await first.target()).far, b"\r\n\r\n")
        first.lose_link()
        far = await other.target()
        assert (await until(far.far, b"\r\n\r\n")).startswith(method.encode())
        await far.far.send_all(OK)
        assert status(await it.hear(b"ok")) == 200
        assert first.in_flight == 0
        assert not first.when_lost


@pytest.mark.parametrize("why", ["unsafe", "body", "begun", "nobody"])
async def test_what_may_do_harm_or_has_begun_waits_for_the_link(why: str) -> None:
    async with group() as (it, first, other):
        if why == "nobody":
            other.state = State.OUT
        method = "POST" if why == "unsafe" else "GET"
        body = (CL,) if why == "body" else ()
        await it.say(get("a.test", *body, method=method) + b"hello" * len(body))
        far = await first.target()
        await until(far.far, b"hello" if body else b"\r\n\r\n")
        if why == "begun":
            await far.far.send_all(OK[:-1])
            await it.hear(b"o")
        first.lose_link()
        await trio.testing.wait_all_tasks_blocked()
        assert not other.opened
        await far.far.send_all(OK[-1:] if why == "begun" else OK)  # the link is back
        assert (await it.hear(b"k")).endswith(b"k")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_who_is_refused_is_answered_by_another(method: str) -> None:
    async with group() as (it, first, other):
        first.refuses = Code.REFUSED
        far: Far | None = None
        for _ in range(3):
            body = (CL,) if method == "POST" else ()
            await it.say(get("a.test", *body, method=method) + b"hello" * len(body))
            if far is None:
                far = await other.target()
            await until(far.far, b"\r\n\r\nhello" if body else b"\r\n\r\n")
            await far.far.send_all(OK)
            assert status(await it.hear(b"ok")) == 200
        assert (first.opened, other.opened) == (1, 1)
        assert first.shunned_until > trio.current_time()


async def test_where_all_refuse_a_page_says_so() -> None:
    async with group() as (it, first, other):
        first.refuses = other.refuses = Code.REFUSED
        await it.say(get("a.test"))
        assert status(await it.hear()) == 502
        assert (first.opened, other.opened) == (1, 1)


async def test_a_switched_connection_is_in_flight_while_it_lasts() -> None:
    async with group() as (it, first, _):
        await it.say(get("a.test", "Connection: Upgrade", "Upgrade: websocket"))
        far = await first.target()
        await until(far.far, b"\r\n\r\n")
        await far.far.send_all(
            b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await it.hear()
        await trio.testing.wait_all_tasks_blocked()
        assert first.in_flight == 1
        await it.visitor.aclose()
        await far.far.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert first.in_flight == 0
