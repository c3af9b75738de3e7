"""What was sent and is not confirmed; what was received and is not stated.

The numbers that let a session change links (protocol.md#position): each direction is
one endless sequence of session-frame bytes, counted from 0.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from tunnel.proto.frames import HEADER_BYTES
from tunnel.proto.pools import KEPT_LIMIT_BYTES, Room

REPLAY_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""Unconfirmed bytes that one session keeps: 100 Mbit/s for more than a second."""
STATE_EVERY_BYTES: Final = 1_048_576
"""RECEIVED is due after so many bytes, but not before ``STATE_PAUSE_S``."""
LEAST_KEPT_BYTES: Final = STATE_EVERY_BYTES
"""What a session may keep however little the process has left. With less, RECEIVED
would come by its timer only, and a fast session would wait for it: 2.6 MB/s."""
STATE_PAUSE_S: Final = 0.004
"""A RECEIVED for itself wakes both ends: a thousand a second cost 5 % of the processor
time of a gigabyte a second."""
STATE_MOST_BYTES: Final = 4 * STATE_EVERY_BYTES
"""After so many bytes RECEIVED waits for nothing."""
STATE_AFTER_S: Final = 0.1
"""RECEIVED is due this long after the first byte that is not stated."""
_JOINED_BYTES: Final = 16_384


class ResendBuffer:
    """Our direction: bytes with a place, kept until the peer has them.

    When ``limit_bytes`` are unconfirmed, nothing new gets a place.
    """

    def __init__(
        self, limit_bytes: int = REPLAY_LIMIT_BYTES, room: Room | None = None
    ) -> None:
        self.limit_bytes = limit_bytes
        self._room = room or Room(KEPT_LIMIT_BYTES)
        self.position = 0
        """The place of the next byte."""
        self.confirmed = 0
        """How far the peer has said that it has everything."""
        self._chunks: deque[bytes | bytearray] = deque()
        """Whole turns; a bytearray still takes small ones."""
        self._start = 0

    @property
    def unconfirmed(self) -> int:
        """Bytes that the peer may not have."""
        return self.position - self.confirmed

    def full(self) -> bool:
        """Say whether nothing new may be given a place."""
        kept = self.position - self.confirmed
        if kept <= LEAST_KEPT_BYTES:
            return kept >= self.limit_bytes
        return kept >= self.limit_bytes or not self._room.allows(kept)

    def record(self, chunk: bytes) -> None:
        """Append ``chunk``: whole frames, kept by reference.

        Small chunks are joined: as objects of their own they would cost many times
        their bytes.
        """
        self.position += len(chunk)
        self._room.free_bytes -= len(chunk)
        if self._chunks and len(self._chunks[-1]) + len(chunk) <= _JOINED_BYTES:
            last = self._chunks[-1]
            if isinstance(last, bytearray):
                last += chunk
                return
        small = len(chunk) < _JOINED_BYTES
        self._chunks.append(bytearray(chunk) if small else chunk)

    def allows(self, count: int) -> bool:
        """Say whether the peer can have received ``count`` bytes.

        No fewer than it has confirmed, no more than there are, and whole frames only.
        """
        if not self.confirmed <= count <= self.position:
            return False
        start = self._start
        # What was confirmed ends with a frame, so nothing is walked over twice.
        border = self.confirmed - start
        for chunk in self._chunks:
            if count < start + len(chunk):
                return _is_boundary(chunk, border, count - start)
            start += len(chunk)
            border = 0
        return count == start

    def confirm(self, count: int) -> bool:
        """Forget what the peer has; False, and no effect, when that cannot be."""
        if not self.allows(count):
            return False
        self._room.free_bytes += count - self.confirmed
        self.confirmed = count
        chunks = self._chunks
        while chunks and self._start + len(chunks[0]) <= count:
            self._start += len(chunks.popleft())
        return True

    def clear(self) -> None:
        """Forget everything: there will be no other link."""
        self._room.free_bytes += self.unconfirmed
        self.confirmed = self._start = self.position
        self._chunks.clear()

    def rest(self) -> list[bytes]:
        """Return everything that is not confirmed, to be sent again, by reference."""
        # What is repeated must not grow any more, and is not worth a second copy.
        self._chunks = deque(bytes(chunk) for chunk in self._chunks)
        rest = [bytes(chunk) for chunk in self._chunks]
        if rest:
            rest[0] = rest[0][self.confirmed - self._start :]
        return rest


def _is_boundary(chunk: bytes | bytearray, at: int, offset: int) -> bool:
    """Say whether a frame of ``chunk`` begins at ``offset``; one does at ``at``."""
    while at < offset:
        at += HEADER_BYTES + int.from_bytes(chunk[at : at + 3], "big")
    return at == offset


@dataclass(slots=True)
class AckTracker:
    """The peer's direction: when to state how much of it we have (RECEIVED).

    What is due depends on the peer's replay limit, which must never fill because we
    state too little.
    """

    every_bytes: int
    most_bytes: int
    received: int = 0
    stated: int = 0
    stated_at: float = -math.inf
    due_at: float | None = None
    due: bool = False

    def took(self, count: int, now: float) -> bool:
        """Count session bytes up to ``count``; True when ``due_at`` was set."""
        self.received = count
        size = count - self.stated
        if size >= self.most_bytes or (
            size >= self.every_bytes and now - self.stated_at >= STATE_PAUSE_S
        ):
            self.due = True
        elif self.due_at is None and not self.due and count > self.stated:
            self.due_at = now + STATE_AFTER_S
            return True
        return False

    def worth(self) -> bool:
        """Say whether to state what was received where other frames go anyway."""
        return self.received - self.stated >= self.every_bytes

    def on_time(self, now: float) -> None:
        """Make a RECEIVED due when its time has come."""
        if self.due_at is not None and now >= self.due_at:
            self.due = True
            self.due_at = None

    def state(self, now: float) -> int:
        """Return the count to be stated, and count it as said now."""
        self.stated = self.received
        self.stated_at = now
        self.due_at = None
        self.due = False
        return self.received


def acks_for(limit_bytes: int) -> AckTracker:
    """Make the tracker for a peer that keeps ``limit_bytes``."""
    return AckTracker(
        max(1, min(STATE_EVERY_BYTES, limit_bytes // 8)),
        max(1, min(STATE_MOST_BYTES, limit_bytes // 2)),
    )
