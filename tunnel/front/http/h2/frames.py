"""What ``h2`` is not asked: where frames end, how many are of no use, and GOAWAY.

``h2`` takes a peer's GOAWAY for the end of all streams; here those that are under way
still end well. And a flood is over before its frames have cost anything. Sans-IO.
"""

from __future__ import annotations

import math
from typing import Final

from tunnel.access.guesses import Failures
from tunnel.access.visitors import address_key

HEADER_BYTES: Final = 9
MAX_FRAME_BYTES: Final = 16_384
"""We announce no more (RFC 9113 §4.2)."""
DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
GOAWAY: Final = 7
CONTINUATION: Final = 9

USELESS_BURST: Final = 1_000.0
"""Frames that bring nothing, at once: a page of 100 images has some 300."""
USELESS_PER_S: Final = 200.0
"""And for ever: 1 % of a core."""
BYTES_EACH: Final = 512
"""Carried either way pay for one: windows are given every few KiB, pings measure."""
SETTINGS_COST: Final = 10
"""Of one SETTINGS in useless frames: each may touch all streams."""
RESETS_BURST: Final = 200.0
"""Requests given up at once: who leaves a page gives up to 100 up."""
RESETS_PER_S: Final = 20.0
USELESS_AGAIN: Final = 100.0
"""For who comes from where a flood has come from: who makes a new connection for each
would have all of them anew, and a thousand are 20 ms."""
RESETS_AGAIN: Final = 100.0
"""The same: a browser there may leave one page."""
REMEMBERED_S: Final = 60.0
"""For so long, and twice as long behind several."""
MAX_REMEMBERED: Final = 4_096
"""Addresses; with more, the one that flooded first is forgotten."""
MAX_EMPTY_CONTINUATIONS: Final = 8
"""Of one head; h2 takes 64 that are full."""


class FloodError(Exception):
    """A peer sends what costs us and serves nobody; the text says which kind."""


_FLOODERS: Final = Failures[str](1, MAX_REMEMBERED, REMEMBERED_S)


def _where(host: str) -> str:
    try:
        return address_key(host)
    except ValueError:  # of a stream that has no address
        return host


class _Bucket:
    __slots__ = ("_at", "_burst", "_per_s", "left")

    def __init__(self, burst: float, per_s: float, now: float) -> None:
        self.left = self._burst = burst
        self._per_s = per_s
        self._at = now

    def fill(self, now: float) -> float:
        filled = self.left + (now - self._at) * self._per_s
        self._at, self.left = now, min(filled, self._burst)
        return self.left

    def take(self, cost: float) -> bool:
        self.left -= cost
        return self.left >= 0


class FrameReader:
    """Looks at frames before ``h2`` does.

    Args:
        now: on any clock.
        guarded: floods end here; not those of a target, which was chosen.
        host: where it comes from.
    """

    __slots__ = (
        "_continued", "_head", "_left", "_paid", "_resets", "_skip", "_useless",
        "_where", "frames", "goaway",
    )  # fmt: skip

    def __init__(self, now: float, *, guarded: bool = True, host: str = "") -> None:
        self.frames = 0
        """In what was read last."""
        self.goaway: int | None = None
        """The last stream that the peer will have served; None: it said no end."""
        self._head = b""
        self._left = 0
        """Of the frame that has begun."""
        self._skip: bytearray | None = None
        """Of a GOAWAY, which h2 does not get."""
        self._continued = 0
        self._paid = 0.0
        self._useless: _Bucket | None = None
        self._resets: _Bucket | None = None
        self._where = ""
        if guarded:
            self._where = _where(host)
            again = _FLOODERS.wait_s(self._where, now) > 0
            useless = USELESS_AGAIN if again else USELESS_BURST
            resets = RESETS_AGAIN if again else RESETS_BURST
            self._useless = _Bucket(useless, USELESS_PER_S, now)
            self._resets = _Bucket(resets, RESETS_PER_S, now)

    def pay(self, size: int) -> None:
        """Note bytes of a body that were carried, either way."""
        self._paid += size / BYTES_EACH

    def read(self, data: bytes, now: float) -> bytes:
        """Return what ``h2`` is to be given.

        Raises:
            FloodError: that was one frame too many.
        """
        self.frames = 0
        kept, at = list[bytes](), 0
        useless = resets = 0.0
        most_useless = most_resets = math.inf
        if self._useless is not None and self._resets is not None:
            most_useless = self._useless.fill(now) + self._paid
            most_resets = self._resets.fill(now)
        untouched = self._skip is None and not self._head
        while at < len(data) and useless <= most_useless and resets <= most_resets:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._skip is None:
                    kept.append(piece)
                else:
                    self._hear_end(piece)
                continue
            part = data[at : at + HEADER_BYTES - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) < HEADER_BYTES:
                untouched = False
                break
            head, self._head = self._head, b""
            size, kind = int.from_bytes(head[:3], "big"), head[3]
            self.frames += 1
            self._left = size
            if kind == GOAWAY:
                untouched, self._skip = False, bytearray()
            else:
                kept.append(head)
            resets += kind == RST_STREAM
            useless += self._cost(kind, size)
        self._charge(useless, resets, now)
        return data if untouched else b"".join(kept)

    def _hear_end(self, piece: bytes) -> None:
        assert self._skip is not None  # noqa: S101 - the caller looked
        self._skip += piece
        if not self._left:
            self.goaway = int.from_bytes(self._skip[:4], "big") & 0x7FFF_FFFF
            self._skip = None

    def _cost(self, kind: int, size: int) -> float:
        """Return how many useless frames one is like."""
        if size > MAX_FRAME_BYTES or (kind == GOAWAY and size < 8):
            raise FloodError("a frame of no allowed size, or another protocol")
        if kind == CONTINUATION:
            self._continue(size)
        elif kind == HEADERS:
            self._continued = 0
        elif kind == SETTINGS:
            return SETTINGS_COST
        elif kind != RST_STREAM and (kind != DATA or not size):
            return 1
        return 0

    def _continue(self, size: int) -> None:
        if size < MAX_FRAME_BYTES // 2:
            self._continued += 1
            if self._continued > MAX_EMPTY_CONTINUATIONS:
                raise FloodError("a head in pieces without end")

    def _charge(self, useless: float, resets: float, now: float) -> None:
        if self._useless is None or self._resets is None:
            return
        paid = min(self._paid, useless)
        self._paid = min(self._paid - paid, USELESS_BURST)
        why = ""
        if not self._useless.take(useless - paid):
            why = "frames that bring nothing"
        elif not self._resets.take(resets):
            why = "requests given up as soon as they were made"
        if why:
            _FLOODERS.failed(self._where, now)
            raise FloodError(why)
