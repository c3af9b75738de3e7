"""A unix socket under a relay: it has no RST, so a reset closes behind the bytes."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from support.virtuals import ReadingVirtual, ScriptedVirtual

from tunnel.errors import Code
from tunnel.net.relay import RelayResult, relay
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(params=["a task reads", "the session reads"])
def virtual(request: pytest.FixtureRequest, nursery: trio.Nursery) -> ScriptedVirtual:
    if request.param == "a task reads":
        return ScriptedVirtual()
    return ReadingVirtual(nursery)


class Run:
    result: RelayResult | None = None


def pair() -> tuple[FastSocket, FastSocket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    return FastSocket(ours), FastSocket(theirs)


@asynccontextmanager
async def joined(
    virtual: ScriptedVirtual,
) -> AsyncIterator[tuple[FastSocket, Run]]:
    program, local = pair()
    run = Run()

    async def go() -> None:
        run.result = await relay(local, virtual)

    async with program:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                yield program, run
    assert local.socket.fileno() == -1
    assert virtual.closed


async def read_all(stream: FastSocket) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def test_half_closes_pass_both_ways(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (program, run):
        await program.send_all(b"question")
        await program.send_eof()
        await virtual.until_sent(8)
        virtual.say.send_nowait(b"answer")
        virtual.say.send_nowait(b"")
        assert await read_all(program) == b"answer"
    assert virtual.eof
    assert run.result == RelayResult(8, 6, Code.NORMAL)


async def test_a_reset_from_the_far_side_closes_behind_its_bytes(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (program, run):
        virtual.say.send_nowait(b"last words")
        virtual.say.send_nowait(Code.RESET)
        assert await read_all(program) == b"last words"
    assert run.result is not None
    assert run.result.code is Code.RESET


async def test_a_program_that_leaves_bytes_unread_resets_the_virtual_connection(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (program, run):
        virtual.say.send_nowait(b"unread")
        await program.wait_send_all_might_not_block()
        await trio.lowlevel.wait_readable(program.socket)
        await program.aclose()
    assert run.result is not None
    assert run.result.code is Code.RESET
    assert virtual.resets == [Code.RESET]
