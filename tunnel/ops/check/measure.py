"""How long and how wide the way to the server is, by questions to the server alone."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.errors import Code
from tunnel.proto.frames import ThroughputTarget
from tunnel.proto.throughput import REPORT

if TYPE_CHECKING:
    from tunnel.link.session import Session
    from tunnel.link.virtual import VirtualStream

PINGS: Final = 20
PING_EVERY_S: Final = 0.05
PING_S: Final = 3.0
"""A question that was lost is sent again within 1 s on most paths."""
TEST_S: Final = 2.0
"""TCP has found its speed by then, on paths up to 200 ms."""
LATE_S: Final = 6.0
"""More than a server may take to end: what has not come by then does not come."""
MOST_BYTES: Final = 1 << 30
BLOCK: Final = bytes(range(256)) * 256


class RoundTrips(NamedTuple):
    """Of questions that were answered, in seconds."""

    answered: int
    least: float
    usual: float
    """The median: one that was lost and sent again does not move it."""
    most: float
    jitter: float
    """The mean difference of two in turn."""


async def round_trips(session: Session) -> RoundTrips | None:
    """Ask, and measure each answer; None where the server is silent."""
    found: list[float] = []
    for _ in range(PINGS):
        took_s = await session.ping(PING_S)
        if took_s is None:
            break
        found.append(took_s)
        await trio.sleep(PING_EVERY_S)
    if not found:
        return None
    steps = [abs(one - other) for one, other in pairwise(found)]
    jitter = fmean(steps) if steps else 0.0
    return RoundTrips(len(found), min(found), median(found), max(found), jitter)


class Rate(NamedTuple):
    """What passed one way."""

    bytes: int
    seconds: float
    per_s: float
    """In the second half: TCP begins slowly."""


async def throughput(session: Session, *, upload: bool) -> Rate:
    """Send, or receive, as much as passes in 2 s.

    Raises:
        StreamError: ``NOT_ALLOWED`` without the right; ``UNSUPPORTED`` by a server that
            is too old.
        trio.BrokenResourceError: the link was lost.
    """
    target = ThroughputTarget(upload, int(TEST_S * 1000), MOST_BYTES)
    stream = await session.open(target)
    try:
        with trio.move_on_after(LATE_S):
            marks = await (_sent(stream) if upload else _received(stream))
            return _rate(marks)
        return Rate(0, LATE_S, 0.0)
    finally:
        stream.reset(Code.RESET)


async def _received(stream: VirtualStream) -> list[tuple[float, int]]:
    """Return, for each piece, when it came and how much had come by then."""
    marks: list[tuple[float, int]] = []
    total, until = 0, trio.current_time() + LATE_S
    while piece := await stream.receive_some():
        now = trio.current_time()
        if not marks:
            until = now + TEST_S
        total += len(piece)
        marks.append((now, total))
        if now >= until:
            break
    return marks


async def _sent(stream: VirtualStream) -> list[tuple[float, int]]:
    """Send until the server has enough; return what it has reported."""
    marks: list[tuple[float, int]] = [(0.0, 0)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send, stream)
        came = b""
        while piece := await stream.receive_some():
            came += piece
            whole = len(came) - len(came) % REPORT.size
            for ms, total in REPORT.iter_unpack(came[:whole]):
                marks.append((ms / 1000, total))
            came = came[whole:]
        nursery.cancel_scope.cancel()
    return marks


async def _send(stream: VirtualStream) -> None:
    try:
        while True:
            await stream.send_all(BLOCK)
    except trio.BrokenResourceError:
        pass  # the server has enough; why, the reader hears


def _rate(marks: list[tuple[float, int]]) -> Rate:
    if len(marks) < 2:
        return Rate(marks[-1][1] if marks else 0, 0.0, 0.0)
    (first_s, _first), (last_s, last) = marks[0], marks[-1]
    seconds = last_s - first_s
    middle = first_s + seconds / 2
    since = next(mark for mark in reversed(marks) if mark[0] <= middle)
    per_s = (last - since[1]) / max(last_s - since[0], 0.001)
    return Rate(last, seconds, per_s)
