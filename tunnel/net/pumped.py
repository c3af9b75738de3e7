"""A relay in two tasks, one for each direction: for streams that nobody carries."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tunnel.errors import Code
from tunnel.net.relay_policy import Down, Event
from tunnel.net.relay_state import code_of
from tunnel.net.sockets import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.net.relay_state import RelayState
    from tunnel.net.sockets import FastStream


async def pump_both(ends: RelayState) -> None:
    """Carry what is left of both directions until they are over."""
    ends.virtual.on_closed(ends.peer_closed)
    if ends.is_over():
        return
    with ends.waiting_idly():
        async with trio.open_nursery() as nursery:
            if ends.down is Down.OPEN:
                nursery.start_soon(_downward, ends)
            await _upward(ends)


async def _upward(ends: RelayState) -> None:
    end = await pump(
        partial(ends.bytes.receive_some, CHUNK_BYTES),
        ends.virtual.put,
        ends.count_sent,
        ends.early,
    )
    if end.how is Ended.SINK:
        ends.peer_closed(end.code)
        if end.code is not Code.NORMAL:
            return
        end = await discard(ends.bytes)
    if end.how is Ended.SOURCE:
        ends.happened(Event.LOCAL_BROKE)
    else:
        ends.local_finished()


async def _downward(ends: RelayState) -> None:
    end = await pump(
        ends.virtual.receive_piece, ends.bytes.put, ends.count_received, ends.late
    )
    if end.how is Ended.FINISHED:
        # Also when it is the last: a stream that is not a socket may say its end and
        # its close differently.
        end = await _pass_end(ends.bytes.send_eof)
    if end.how is Ended.SOURCE:
        ends.happened(Event.PEER_DRAINED, end.code)
    elif end.how is Ended.SINK:
        ends.local_write_failed()
    else:
        ends.happened(Event.PEER_FINISHED)


class Ended(Enum):
    """Why a pump stopped."""

    FINISHED = "the source came to its end of file"
    SOURCE = "the source broke"
    SINK = "the sink broke"


class PumpEnd(NamedTuple):
    """Why a pump stopped, and the code that the broken stream gave."""

    how: Ended
    code: Code = Code.NORMAL


async def pump(
    receive: Callable[[], Awaitable[bytes | bytearray]],
    send: Callable[[bytes | bytearray], Awaitable[None]],
    count: Callable[[int], None],
    early: bytes = b"",
) -> PumpEnd:
    """Carry bytes from a source to a sink until one of them ends.

    The end of file is not passed on: only the caller knows whether to believe it.

    Args:
        receive: the checkpoint of the loop.
        send: may return without a checkpoint.
        count: is told what the sink took.
        early: goes first.
    """
    data: bytes | bytearray = early
    while True:
        try:
            if data:  # never empty but before the first read
                await send(data)
                count(len(data))
        except trio.BrokenResourceError as error:
            return PumpEnd(Ended.SINK, code_of(error))
        try:
            data = await receive()
        except trio.BrokenResourceError as error:
            return PumpEnd(Ended.SOURCE, code_of(error))
        if not data:
            return PumpEnd(Ended.FINISHED)


async def _pass_end(send_eof: Callable[[], Awaitable[None]]) -> PumpEnd:
    try:
        await send_eof()
    except trio.BrokenResourceError as error:
        return PumpEnd(Ended.SINK, code_of(error))
    return PumpEnd(Ended.FINISHED)


async def discard(source: FastStream, pause_s: float = 0.0) -> PumpEnd:
    """Read to the end for nobody; ``pause_s`` keeps a flood from costing much."""
    try:
        while await source.receive_some(CHUNK_BYTES):
            if pause_s:
                await trio.sleep(pause_s)
    except trio.BrokenResourceError as error:
        return PumpEnd(Ended.SOURCE, code_of(error))
    return PumpEnd(Ended.FINISHED)
