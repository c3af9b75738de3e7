"""Which stream of a visitor is answered on which lane.

A lane answers one stream after the other, so that it keeps a target's connection. There
are ``MAX_LANES`` at most, and more only while some wait behind what does not end.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from tunnel.front.http.h2.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.front.http.h2.lane import Stream, Wire

MAX_LANES: Final = 16
"""Streams that are answered at once, each over a connection to its target …"""
PATIENCE_S: Final = 0.05
"""… unless one waits so long, for those may last for ever (gRPC, long polls)."""


class Lanes:
    """The lanes of one visitor.

    Args:
        wire: of the visitor.
        serve: begins to serve a lane.
    """

    def __init__(self, wire: Wire, serve: Callable[[Lane], None]) -> None:
        self._wire = wire
        self._serve = serve
        self._waiting: deque[Stream] = deque()
        self._open: dict[Lane, None] = {}
        self._idle: list[Lane] = []
        self._hurries = False

    def ask(self, stream: Stream) -> None:
        """Have a stream answered when ``go_on`` is called next, or later."""
        self._waiting.append(stream)

    def give_up(self, stream: Stream) -> None:
        """Take it that nobody waits for a stream."""
        if stream.lane is not None:
            stream.lane.ring()
        elif stream in self._waiting:
            self._waiting.remove(stream)

    def free(self, lane: Lane) -> None:
        """Take it that a lane can answer another one."""
        self._idle.append(lane)

    def left(self, lane: Lane) -> Stream | None:
        """Take it that the engine closed a lane; return the stream that it gave up."""
        self._open.pop(lane, None)
        if lane in self._idle:
            self._idle.remove(lane)
        stream, lane.stream = lane.stream, None
        if stream is None or stream.broken or stream.taken:
            return None if stream is None or stream.broken else stream
        stream.lane = None  # it came just when the lane had waited for long enough
        self._waiting.appendleft(stream)
        return None

    def go_on(self, nursery: trio.Nursery, *, beyond: bool = False) -> None:
        """Give lanes to those that wait, ``beyond`` the limit to the impatient."""
        while self._waiting:
            stream = self._waiting[0]
            lane = self._for(stream, beyond=beyond)
            if lane is None:
                if not self._hurries:
                    self._hurries = True
                    nursery.start_soon(self._hurry, nursery)
                return
            self._waiting.popleft()
            stream.lane, lane.stream = lane, stream
            lane.authority = stream.request.authority
            lane.ring()

    def _for(self, stream: Stream, *, beyond: bool) -> Lane | None:
        for lane in self._idle:
            if lane.authority == stream.request.authority:
                self._idle.remove(lane)
                return lane
        if len(self._open) >= MAX_LANES:
            if self._idle:
                return self._idle.pop(0)
            if not beyond or trio.current_time() < stream.came_at + PATIENCE_S:
                return None
        lane = Lane(self._wire)
        self._open[lane] = None
        self._serve(lane)
        return lane

    async def _hurry(self, nursery: trio.Nursery) -> None:
        while self._waiting:
            await trio.sleep_until(self._waiting[0].came_at + PATIENCE_S)
            self.go_on(nursery, beyond=True)
        self._hurries = False
