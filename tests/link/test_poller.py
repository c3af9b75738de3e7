"""What comes on a socket is read once, whatever comes together with it."""

from __future__ import annotations

import random
import socket

import pytest
import trio
import trio.testing
from support.wires import Offers, open_one, session_pair, small_window

from tunnel.link.poller import ENDED, Poller
from tunnel.link.relay import relay
from tunnel.link.sockets import LocalSocket

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
                    nursery.start_soon(relay, LocalSocket(near), left)
                    await trio.testing.wait_all_tasks_blocked()
                program.setblocking(False)
                assert not size or program.send(blob) == size
                program.shutdown(socket.SHUT_WR)
                await trio.testing.wait_all_tasks_blocked()
                if early:
                    nursery.start_soon(relay, LocalSocket(near), left)
                assert await _all_of(right) == blob
                await right.aclose()


async def test_bytes_and_end_are_one_call_that_says_both() -> None:
    calls: list[int] = []
    heard = trio.Event()

    def turn(ready: list[tuple[int, int]]) -> None:
        for number, events in ready:
            poller.call(number, events)
        heard.set()

    poller = Poller(turn)
    program, near = socket.socketpair()
    with near, program:
        poller.watch(near.fileno(), calls.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            program.send(b"x")
            await heard.wait()
            assert not calls[0] & ENDED
            heard = trio.Event()
            program.send(b"y")
            program.close()
            await heard.wait()
            assert calls[1] & ENDED
            poller.drop(near.fileno())
            poller.close()
    assert len(calls) == 2


async def test_who_was_forgotten_is_called_no_more() -> None:
    calls: list[int] = []
    turns: list[int] = []

    def turn(ready: list[tuple[int, int]]) -> None:
        turns.append(len(ready))
        for number, events in ready:
            poller.call(number, events)

    poller = Poller(turn)
    one, other = socket.socketpair()
    with one, other:
        poller.watch(one.fileno(), calls.append)
        poller.forget(one.fileno())
        poller.forget(one.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            other.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
            poller.close()
    assert not calls
    assert not turns
