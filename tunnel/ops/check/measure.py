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
MARK_EVERY_S: Final = 0.01
"""A few hundred in all; a peer may send a byte at a time."""
READ_BYTES: Final = 65_536
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


class Marks:
    """How much had passed by when; what a peer may choose is bounded."""

    def __init__(self) -> None:
        self.all: list[tuple[float, int]] = []

    def note(self, at_s: float, total: int) -> None:
        """Note it, unless it is no later than the last by 10 ms, or late."""
        since_s = at_s - (self.all[-1][0] if self.all else -MARK_EVERY_S)
        first_s = self.all[0][0] if self.all else at_s
        if since_s >= MARK_EVERY_S and at_s - first_s <= LATE_S:
            self.all.append((at_s, total))

    def take(self, came: bytes) -> bytes:
        """Note the reports of a server in what came; return the part of another."""
        whole = len(came) - len(came) % REPORT.size
        for ms, total in REPORT.iter_unpack(came[:whole]):
            self.note(ms / 1000, total)
        return came[whole:]

    def rate(self) -> Rate:
        """Return what that is in a second, once it has found its speed."""
        if len(self.all) < 2:
            total = self.all[-1][1] if self.all else 0
            return Rate(total, 0.0, 0.0)
        (first_s, _), (last_s, last) = self.all[0], self.all[-1]
        seconds = last_s - first_s
        middle = first_s + seconds / 2
        since = next(mark for mark in reversed(self.all) if mark[0] <= middle)
        per_s = (last - since[1]) / (last_s - since[0])
        return Rate(last, seconds, max(per_s, 0.0))


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
        marks = Marks()
        with trio.move_on_after(LATE_S):
            await (_send(stream, marks) if upload else _receive(stream, marks))
        return marks.rate()
    finally:
        stream.reset(Code.RESET)


async def _receive(stream: VirtualStream, marks: Marks) -> None:
    """Take what comes for 2 s from the first byte on."""
    total, until = 0, trio.current_time() + LATE_S
    while piece := await stream.receive_some():
        now = trio.current_time()
        if not total:
            until = now + TEST_S
        total += len(piece)
        marks.note(now, total)
        if now >= until:
            break


async def _send(stream: VirtualStream, marks: Marks) -> None:
    """Send until the server has enough; note what it reports."""
    marks.note(0.0, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_sending, stream)
        came = b""
        while piece := await stream.receive_some(READ_BYTES):
            came = marks.take(came + piece)
        nursery.cancel_scope.cancel()


async def _keep_sending(stream: VirtualStream) -> None:
    try:
        while True:
            await stream.send_all(BLOCK)
    except trio.BrokenResourceError:
        pass  # the server has enough; why, the reader hears
