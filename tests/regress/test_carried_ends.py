"""A socket that a session carried was left waiting, ended too soon, or not begun."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from support.engines import needs_epoll
from support.wires import Offers, open_one, session_pair

from tunnel.errors import Code
from tunnel.link.link import SLEEP_CHECK_S
from tunnel.net.relay import RelayResult, relay
from tunnel.net.sockets import FastSocket


def pair() -> tuple[socket.socket, FastSocket]:
    program, near = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    program.setblocking(False)
    return program, FastSocket(near)


async def test_a_program_that_has_finished_and_reads_nothing_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    results: list[RelayResult] = []
    program, local = pair()
    with program:
        async with session_pair(serve_server=offers) as sessions:
            left, right = await open_one(sessions, offers)

            async def go() -> None:
                results.append(await relay(local, left, idle_s=360))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                program.send(b"question")
                program.shutdown(socket.SHUT_WR)
                assert await right.receive_some() == b"question"
                assert await right.receive_some() == b""
                await right.send_all(bytes(200_000))
                right.finish()
                right.close()
                await trio.sleep(1_000)
                nursery.cancel_scope.cancel()
    assert [result.code for result in results] == [Code.IDLE]


async def test_what_has_come_is_written_out_for_as_long_as_the_program_takes_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    results: list[RelayResult] = []
    program, local = pair()
    got = 0
    with program:
        async with session_pair(serve_server=offers) as sessions:
            left, right = await open_one(sessions, offers)

            async def go() -> None:
                results.append(await relay(local, left, idle_s=3600))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                for _ in range(10):
                    await right.send_all(bytes(20_000))
                right.finish()
                while got < 200_000 and not results:
                    await trio.sleep(60)
                    got += len(program.recv(2_500))
                nursery.cancel_scope.cancel()
    assert (got, results) == (200_000, [])


@pytest.mark.parametrize(("age_s", "idle_s"), [(34, 30), (0.5, 3600), (35.5, 3600)])
async def test_the_limit_of_silence_is_kept_whatever_the_sessions_age(
    autojump_clock: trio.testing.MockClock, age_s: float, idle_s: float
) -> None:
    offers = Offers()
    program, local = pair()
    with program:
        async with session_pair(serve_server=offers) as sessions:
            await trio.sleep(age_s)
            left, _right = await open_one(sessions, offers)
            began = trio.current_time()
            result = await relay(local, left, idle_s=idle_s)
            took_s = trio.current_time() - began
    assert result.code is Code.IDLE
    assert idle_s <= took_s <= 1.2 * idle_s + SLEEP_CHECK_S


@needs_epoll
async def test_a_stream_that_another_resets_ends_its_relay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    program, local = pair()
    with program:
        async with session_pair(serve_server=offers) as sessions:
            left, _right = await open_one(sessions, offers)

            async def go() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await relay(local, left)

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(go)
                    await trio.testing.wait_all_tasks_blocked()
                    left.reset(Code.RESET)


async def test_early_bytes_leave_at_once_from_an_offered_stream_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    program, local = pair()
    with program:
        async with session_pair(serve_server=offers) as sessions:
            left, right = await open_one(sessions, offers)

            async def go() -> None:
                await relay(local, right, early=b"early")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                with trio.fail_after(10):
                    assert await left.receive_some() == b"early"
                nursery.cancel_scope.cancel()
