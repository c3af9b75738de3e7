"""How much passes between an opener and this server (protocol.md#throughput)."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.exit.tcp import refuse
from tunnel.center.who import WHO
from tunnel.errors import Code
from tunnel.log import log_event
from tunnel.proto.throughput import REPORT

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import ThroughputTarget

MOST_MS: Final = 5_000
"""More than TCP needs to find its speed on a path of 300 ms."""
MOST_BYTES: Final = 1 << 30
"""A gigabit for eight seconds; less than a person notices in a month's bytes."""
REPORT_MS: Final = 100
GRACE_S: Final = 10.0
"""For the opener to read what is on the way and to close: a slow line may hold a
window's worth."""
BLOCK_BYTES: Final = 65_536

logger = logging.getLogger("tunnel.exit")


class Throughput:
    """The measurements of one session: one at a time."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: VirtualStream | None = None

    def serve(self, stream: VirtualStream, target: ThroughputTarget) -> Awaitable[None]:
        """Serve one measurement to its end, or refuse it; the session ends the stream.

        The caller has decided that the user may.
        """
        if self._running is not None:
            why = "another measurement of this session runs"
            return refuse(stream, Code.RESOURCE, why)
        self._running = stream
        # The next may be asked for behind the CLOSE, before this one has its turn.
        stream.on_closed(lambda _code: self._ended(stream))
        return self._serve(stream, target)

    def _ended(self, stream: VirtualStream) -> None:
        if self._running is stream:
            self._running = None

    async def _serve(self, stream: VirtualStream, target: ThroughputTarget) -> None:
        bytes_most = min(target.most_bytes, MOST_BYTES)
        most_s = min(target.most_ms, MOST_MS) / 1000
        try:
            stream.accept()
            log_event(logger, logging.INFO, "throughput.measuring", **WHO.get(),
                direction="up" if target.upload else "down")  # fmt: skip
            measure = _take if target.upload else _give
            await measure(stream, bytes_most, most_s)
            with trio.move_on_after(GRACE_S):
                while await stream.receive_some():
                    pass
                await stream.aclose()
        except trio.BrokenResourceError:
            pass  # it has seen enough
        finally:
            self._ended(stream)


async def _give(stream: VirtualStream, most_bytes: int, most_s: float) -> None:
    """Send bytes of no meaning, and the end."""
    block, sent = _block(), 0
    with trio.move_on_after(most_s):
        while sent < most_bytes:
            piece = block[: most_bytes - sent]
            await stream.send_all(piece)
            sent += len(piece)
    await stream.send_eof()


async def _take(stream: VirtualStream, most_bytes: int, most_s: float) -> None:
    """Drop what comes, and report how much it was."""
    began, taken, due_ms = trio.current_time(), 0, REPORT_MS
    with trio.move_on_after(most_s):
        while taken < most_bytes and (piece := await stream.receive_some()):
            taken += len(piece)
            passed_ms = int((trio.current_time() - began) * 1000)
            if passed_ms >= due_ms:
                due_ms = passed_ms + REPORT_MS
                await stream.send_all(REPORT.pack(passed_ms, taken))
    passed_ms = int((trio.current_time() - began) * 1000)
    await stream.send_all(REPORT.pack(passed_ms, taken))
    await stream.send_eof()


@cache
def _block() -> bytes:
    """Return bytes that nothing on the way can make fewer of; the same each time."""
    return os.urandom(BLOCK_BYTES)
