"""Whose bytes go next: control first, then round robin by bytes (protocol.md#fairness).

A lane is the SendQueue of one virtual TCP connection. What is in it has credit already.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from tunnel.proto.frames import HEADER_BYTES
from tunnel.proto.payloads import data_header
from tunnel.proto.pools import UNSENT_LIMIT_BYTES, Room

SHARED_FRAME_BYTES: Final = 16_376
"""Smallest payload of a turn while others wait: with its header one TLS record."""
FRAME_COST_BYTES: Final = 128
"""What a frame costs of a turn besides its bytes: else a turn could hold one of a byte
for each of 16,384 connections."""
WORDS_BYTES: Final = 8_192
"""Small pieces that may have their turn in front of all others, in one turn, at their
cost: sixty keystrokes or requests."""
WORDS_SHARE: Final = 4
"""No more than a quarter of a turn, so that no flood of words stops the others."""

Buffer = bytes | memoryview


class SendQueue:
    """The unsent bytes of one virtual TCP connection, in order.

    After the bytes come FIN, when ``finishing``, and ``close``, an encoded CLOSE.
    """

    __slots__ = ("close", "finishing", "listed", "pieces", "size", "sock_map")

    def __init__(self, sock_map: int) -> None:
        self.sock_map = sock_map
        self.pieces: deque[Buffer] | None = None
        """None while there are none: an empty deque is 600 bytes of an idle stream."""
        self.size = 0
        self.finishing = False
        self.close = b""
        self.listed = False
        """It is in the round."""

    def idle(self) -> bool:
        """Say whether there is nothing to send."""
        return not (self.size or self.finishing or self.close)


class SendScheduler:
    """All lanes of a session that have something to send.

    ``max_frame`` is the largest DATA payload that the peer takes.
    """

    def __init__(self, max_frame: int, room: Room | None = None) -> None:
        self._max_frame = max_frame
        self.room = room or Room(UNSENT_LIMIT_BYTES)
        self.size = 0
        """Bytes of all lanes."""
        self._words_bytes = 0
        """What may still overtake before the next turn."""
        self.waiting: deque[SendQueue] = deque()
        """Lanes with something to send, in turn; to be looked at only."""
        self.parked: deque[SendQueue] = deque()
        """Lanes that have to wait for the rate of their user (``pace``)."""

    def push(self, lane: SendQueue, piece: Buffer) -> None:
        """Queue a piece; it is kept by reference and must not change any more.

        A small one of a lane that had nothing to send goes in front: four busy lanes
        would have 200 KB ahead of it in its turn.
        """
        if lane.pieces is None:
            lane.pieces = deque()
        lane.pieces.append(piece)
        size = len(piece)
        lane.size += size
        self.size += size
        self.room.free_bytes -= size
        if not lane.listed:
            lane.listed = True
            if size + FRAME_COST_BYTES <= self._words_bytes:
                self._words_bytes -= size + FRAME_COST_BYTES
                self.waiting.appendleft(lane)
            else:
                self.waiting.append(lane)

    def end(self, lane: SendQueue, close: bytes = b"") -> None:
        """Queue an encoded CLOSE behind everything, or FIN behind the bytes."""
        if close:
            lane.close = close
        else:
            lane.finishing = True
        if not lane.listed:
            lane.listed = True
            self.waiting.append(lane)

    def take(
        self,
        budget: int,
        out: list[Buffer],
        served: list[SendQueue],
        most: int | None = None,
    ) -> None:
        """Append frames of about ``budget`` bytes to ``out``, lanes in turn.

        The last frame may pass the budget by less than a frame, of which none is larger
        than ``most``. Lanes that gave bytes are appended to ``served``, once for each
        turn.
        """
        waiting, sent = self.waiting, 0
        self._words_bytes = min(budget // WORDS_SHARE, WORDS_BYTES)
        alone = self._max_frame if most is None else min(most, self._max_frame)
        shared = alone
        if len(waiting) > 1:
            shared = min(self._fair_frame(budget), alone)
        while waiting and budget > 0:
            lane = waiting.popleft()
            size = lane.size
            if size or lane.finishing:
                frame = shared if waiting else alone
                if size > frame:
                    size = frame
                    out.append(data_header(lane.sock_map, frame))
                    _take_some(lane, frame, out)
                else:
                    out.append(data_header(lane.sock_map, size, fin=lane.finishing))
                    if lane.pieces is not None:
                        out += lane.pieces
                    lane.pieces, lane.size, lane.finishing = None, 0, False
                budget -= size + HEADER_BYTES + FRAME_COST_BYTES
                sent += size
                served.append(lane)
            if lane.size:
                waiting.append(lane)
                continue
            if lane.close:
                out.append(lane.close)
                lane.close = b""
            lane.listed = False
        self.size -= sent
        self.room.free_bytes += sent

    def purge(self, lane: SendQueue) -> None:
        """Drop everything of a lane that has not been handed out."""
        self.size -= lane.size
        self.room.free_bytes += lane.size
        lane.pieces, lane.size, lane.finishing, lane.close = None, 0, False, b""

    def park(self) -> None:
        """Let no lane that waits now have a turn until ``unpark``."""
        self.parked += self.waiting
        self.waiting.clear()

    def unpark(self) -> None:
        """Let all lanes have turns again, first those that have waited."""
        self.waiting.extendleft(reversed(self.parked))
        self.parked.clear()

    def clear(self) -> None:
        """Drop everything of every lane."""
        self.unpark()
        for lane in self.waiting:
            self.purge(lane)
            lane.listed = False
        self.waiting.clear()

    def _fair_frame(self, budget: int) -> int:
        """Return the payload of a frame with which every lane has one in this turn.

        Whole TLS records, and no less than one.
        """
        record = SHARED_FRAME_BYTES + HEADER_BYTES
        records = budget // max(len(self.waiting), 1) // record
        return min(self._max_frame, max(records, 1) * record - HEADER_BYTES)


def _take_some(lane: SendQueue, size: int, out: list[Buffer]) -> None:
    """Append the first ``size`` bytes of ``lane``, which has more."""
    pieces = lane.pieces or deque()
    lane.size -= size
    while size:
        piece = pieces.popleft()
        if len(piece) <= size:
            out.append(piece)
            size -= len(piece)
        else:
            view = memoryview(piece)
            out.append(view[:size])
            pieces.appendleft(view[size:])
            size = 0
