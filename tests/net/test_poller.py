"""What comes on a socket that a session carries is read, with whatever is behind it."""

from __future__ import annotations

import os
import random
import socket

import pytest
import trio
import trio.testing
from support.wires import Offers, open_one, session_pair, small_window

from tunnel.net.poller import Poller
from tunnel.net.relay import relay
from tunnel.net.sockets import FastSocket

WINDOW_BYTES = 4096


async def _all_of(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("size", [0, 1, WINDOW_BYTES, WINDOW_BYTES + 1, 100_000])
async def test_an_end_that_comes_with_the_last_bytes_is_heard(
    size: int, early: bool
) -> None:
    """With all of it there before the first look, and while there is no credit."""
    offers = Offers()
    blob = random.Random(size).randbytes(size)
    program, near = socket.socketpair()
    terms = small_window(WINDOW_BYTES)
    with program, trio.fail_after(10):
        async with session_pair(terms=terms, serve_server=offers) as sessions:
            left, right = await open_one(sessions, offers)
            async with trio.open_nursery() as nursery:
                if not early:
                    nursery.start_soon(relay, FastSocket(near), left)
                    await trio.testing.wait_all_tasks_blocked()
                program.setblocking(False)
                assert not size or program.send(blob) == size
                program.shutdown(socket.SHUT_WR)
                await trio.testing.wait_all_tasks_blocked()
                if early:
                    nursery.start_soon(relay, FastSocket(near), left)
                assert await _all_of(right) == blob
                await right.aclose()


async def test_who_was_forgotten_is_called_no_more() -> None:
    calls: list[None] = []
    turns: list[int] = []

    def turn(ready: list[tuple[int, int]]) -> None:
        turns.append(len(ready))
        for number, _events in ready:
            poller.call(number)

    poller = Poller(turn)
    one, other = socket.socketpair()
    with one, other:
        poller.watch(one.fileno(), lambda: calls.append(None))
        poller.forget(one.fileno())
        poller.forget(one.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            other.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
            poller.close()
    assert not calls
    assert not turns


async def test_a_closed_poller_calls_nobody_and_watches_nobody() -> None:
    calls: list[None] = []
    before = len(os.listdir("/proc/self/fd"))
    poller = Poller(lambda _ready: None)
    one, other = socket.socketpair()
    with one, other:
        poller.watch(one.fileno(), lambda: calls.append(None))
        poller.close()
        poller.close()
        poller.call(one.fileno())
        poller.watch(other.fileno(), lambda: calls.append(None))
        poller.call(other.fileno())
        with trio.fail_after(1):
            await poller.run()
    assert not calls
    assert len(os.listdir("/proc/self/fd")) == before
