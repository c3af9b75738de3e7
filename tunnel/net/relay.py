"""Join a local stream and a virtual TCP connection, so that both ends hear the truth.

A half-close stays a half-close, a reset stays a reset, and a reply that was sent before
an early close still arrives (protocol.md#close). This module opens nothing, and knows
no link: all that it is told of one is how a virtual TCP connection broke.

A socket is carried by the session, if that can (``carried``); any other stream takes
two tasks. What an end means is decided in ``relay_policy``. A unix socket knows no RST:
its end is a close, behind what was written.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.errors import Code
from tunnel.net.carried import Carried, RelayState, Traffic, code_of, in_grace
from tunnel.net.relay_policy import CLEAN, GRACE_S, RESET, Down, Event, Farewell
from tunnel.net.sockets import CHUNK_BYTES, FastSocket, quick, socket_beneath
from tunnel.net.timeouts import TIMEOUTS
from tunnel.net.virtual_connection import Joinable, ResettableStream
from tunnel.platform.sockets import unread_bytes, unsent_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tunnel.net.relay_policy import Verdict

__all__ = [
    "GRACE_S",
    "RelayResult",
    "ResettableStream",
    "Traffic",
    "relay",
    "reset_socket",
]

_POLL_S: Final = 0.01


class RelayResult(NamedTuple):
    """What a relay moved, and why it ended."""

    sent_bytes: int
    """Local to virtual."""
    received_bytes: int
    """Virtual to local."""
    code: Code
    """NORMAL: both directions came to their end of file or were not wanted."""


async def relay(
    local: trio.abc.HalfCloseableStream,
    virtual: ResettableStream,
    *,
    early: bytes = b"",
    idle_s: float | None = None,
    traffic: Traffic | None = None,
) -> RelayResult:
    """Carry bytes both ways until both directions have ended or one side broke.

    Owns both streams: they are closed when it returns or raises. Cancellation resets
    both. What a stream raises besides ``trio.BrokenResourceError`` comes out after both
    were reset, maybe in an exception group.

    Args:
        local: a socket, or any stream; only a socket can be given a RST.
        virtual: may still wait for the peer's answer; a refusal is a reset.
        early: bytes that were read from ``local`` before.
        idle_s: without a byte either way for this long, or a fifth more, and a second
            at least, the relay ends with IDLE. None: as ``TIMEOUTS`` says.
        traffic: counters to be kept up to date meanwhile.
    """
    if idle_s is None:
        idle_s = TIMEOUTS.get().idle_s
    traffic = traffic or Traffic()
    verdict = RESET  # unless the end is reached: a cancellation, or a fault
    beneath = socket_beneath(local)
    try:
        if isinstance(local, FastSocket):
            carried = Carried(local, virtual, traffic, idle_s, early)
            await carried.run()
            ends: RelayState = carried
        else:
            ends = RelayState(local, quick(local), virtual, traffic, idle_s, early)
            if beneath is not None:
                beneath.on_given_up = ends.vanished
        if not ends.is_over():
            await _pump_both(ends)
        virtual.on_closed(None)
        verdict = ends.verdict or CLEAN
        if verdict.to_local is Farewell.LATE_RST:
            await _write_out(ends)
    finally:
        if beneath is not None:
            beneath.on_given_up = None  # they would hold each other
        await _close(local, virtual, verdict)
    return RelayResult(traffic.sent, traffic.received, verdict.code)


async def _write_out(ends: RelayState) -> None:
    """Give the other kernel, and the program, the time to take what was written."""
    local, until = ends.local, min(ends.grace_until, in_grace())
    if not isinstance(local, FastSocket):
        return
    with trio.move_on_at(until):
        while unsent_bytes(local.number()):  # noqa: ASYNC110  # the kernel has no such event
            await trio.sleep(_POLL_S)
    if ends.traffic.received and unread_bytes(local.number()):
        # It is still sending, and has not looked at the answer: its next write would
        # meet the RST first. Whoever only reads hears the RST at once.
        with trio.move_on_at(until), suppress(trio.BrokenResourceError):
            while await local.receive_some(CHUNK_BYTES):  # noqa: ASYNC110 - paced
                await trio.sleep(_POLL_S)


async def _close(
    local: trio.abc.AsyncResource, virtual: ResettableStream, verdict: Verdict
) -> None:
    """Close both streams; brief, and not to be cancelled."""
    try:
        if verdict.to_peer is Code.NORMAL:
            virtual.close()
        else:
            virtual.reset(verdict.to_peer)
    finally:
        if verdict.to_local is not Farewell.FIN:
            await reset_socket(local)
        elif isinstance(local, FastSocket):
            local.close()
        else:
            with trio.move_on_after(GRACE_S, shield=True):
                await local.aclose()


async def reset_socket(local: trio.abc.AsyncResource) -> None:
    """Close with a RST, so that nobody takes the end for a clean one.

    Bytes that the kernel has not sent are lost. A stream that is not a socket is only
    closed. Never raises ``OSError``; does not wait for a socket, so that it also works
    while being cancelled.
    """
    if isinstance(local, FastSocket):
        local.reset()
    else:
        await trio.aclose_forcefully(local)


# Two tasks, one for each direction: for streams that nobody carries ------------------


class Ended(Enum):
    """Why a pump stopped."""

    FINISHED = "the source came to its end of file"
    SOURCE = "the source broke"
    SINK = "the sink broke"


async def _pump_both(ends: RelayState) -> None:
    """Carry what is left of both directions until they are over."""
    ends.virtual.on_closed(ends.peer_closed)
    if ends.is_over():
        return
    with ends.waiting_idly(), _joined(ends):
        async with trio.open_nursery() as nursery:
            if ends.down is Down.OPEN:
                nursery.start_soon(_downward, ends)
            await _upward(ends)


@contextmanager
def _joined(ends: RelayState) -> Iterator[None]:
    """Have two virtual TCP connections pass on what comes, without a turn of a task.

    What one does not take at once waits for its task, and all behind it: pieces are
    lent until they are on their way, and nothing overtakes what is lent.
    """
    local, virtual = ends.local, ends.virtual
    if not (isinstance(local, Joinable) and isinstance(virtual, Joinable)):
        yield
        return

    def up(pieces: list[bytes | memoryview], size: int) -> int:
        taken = virtual.put_now(pieces, size)
        ends.count_sent(taken)
        return taken

    def down(pieces: list[bytes | memoryview], size: int) -> int:
        taken = local.put_now(pieces, size)
        ends.count_received(taken)
        return taken

    local.sink, virtual.sink = up, down
    try:
        yield
    finally:
        local.sink = virtual.sink = None


async def _upward(ends: RelayState) -> None:
    read, wait_room = ends.fast.receive_some, ends.virtual.wait_room

    async def receive() -> bytes | bytearray:
        # What is read must not wait here, beside all that counts as buffered.
        most = CHUNK_BYTES
        with suppress(trio.BrokenResourceError):  # ``put`` says what it is
            most = min(most, await wait_room())
        return await read(most)

    if isinstance(ends.local, Joinable):
        receive = ends.local.receive_piece
    how, code = await _pump(receive, ends.virtual.put, ends.count_sent, ends.early)
    if how is Ended.SINK:
        ends.peer_closed(code)
        if code is not Code.NORMAL:
            return
        try:
            while await read(CHUNK_BYTES):
                pass
        except trio.BrokenResourceError:
            how = Ended.SOURCE
    if how is Ended.SOURCE:
        ends.happened(Event.LOCAL_BROKE)
    else:
        ends.local_finished()


async def _downward(ends: RelayState) -> None:
    how, code = await _pump(
        ends.virtual.receive_piece, ends.fast.put, ends.count_received, ends.late
    )
    if how is Ended.FINISHED:
        # Also when it is the last: a stream that is not a socket may say its end and
        # its close differently.
        try:
            await ends.fast.send_eof()
        except trio.BrokenResourceError:
            how = Ended.SINK
    if how is Ended.SOURCE:
        ends.happened(Event.PEER_DRAINED, code)
    elif how is Ended.SINK:
        ends.local_write_failed()
    else:
        ends.happened(Event.PEER_FINISHED)


async def _pump(
    receive: Callable[[], Awaitable[bytes | bytearray]],
    send: Callable[[bytes | bytearray], Awaitable[None]],
    count: Callable[[int], None],
    early: bytes,
) -> tuple[Ended, Code]:
    """Carry bytes from a source to a sink until one of them ends.

    The end of file is not passed on: only the caller knows whether to believe it.

    Args:
        receive: the checkpoint of the loop.
        send: may return without a checkpoint.
        count: is told what the sink took.
        early: goes first.

    Returns:
        Why it stopped, and the code that the broken stream gave.
    """
    data: bytes | bytearray = early
    while True:
        try:
            if data:  # never empty but before the first read
                await send(data)
                count(len(data))
            data = b""  # lent till the next call, which may wait for hours
        except trio.BrokenResourceError as error:
            return Ended.SINK, code_of(error)
        try:
            data = await receive()
        except trio.BrokenResourceError as error:
            return Ended.SOURCE, code_of(error)
        if not data:
            return Ended.FINISHED, Code.NORMAL
