"""How fast is the codec alone?

Decodes and encodes DATA frames of the largest size and of 64 bytes, in one process,
without a link: the upper bound of what any link can carry. Three rounds, the best
counts, for whatever else runs can only slow it down.

    python -m benchmarks --family codec, or alone: python -m benchmarks.codec
"""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING

from tunnel.proto.codec import FrameDecoder
from tunnel.proto.frames import MAX_FRAME_BYTES, ProtData, SockMap
from tunnel.proto.payloads import data_header, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUND_S = 0.7
ROUNDS = 3
READ_BYTES = 262_144
SMALL_BYTES = 64


def rate(turn: Callable[[], int]) -> float:
    """Give the best number of frames per second that ``turn`` makes."""
    best = 0.0
    for _ in range(ROUNDS):
        frames, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < ROUND_S:
            frames += turn()
        best = max(best, frames / spent)
    return best


def decoding(size: int) -> Callable[[], int]:
    frame = encode(ProtData(SockMap(1), os.urandom(size)))
    count = max(READ_BYTES // len(frame), 1)
    data = frame * count
    decoder = FrameDecoder()

    def turn() -> int:
        for _ in decoder.feed(data):
            pass
        return count

    return turn


def encoding(size: int) -> Callable[[], int]:
    payload = os.urandom(size)
    count = max(READ_BYTES // (size + 8), 1)

    def turn() -> int:
        out: list[bytes] = []
        for _ in range(count):
            out += (data_header(1, size), payload)
        b"".join(out)
        return count

    return turn


def figures() -> Iterator[tuple[str, float]]:
    """Yield each figure, named with its unit."""
    for name, make in (("decoding", decoding), ("encoding", encoding)):
        yield (
            f"{name} {MAX_FRAME_BYTES:,} B, GB/s",
            rate(make(MAX_FRAME_BYTES)) * MAX_FRAME_BYTES / 1e9,
        )
        yield f"{name} {SMALL_BYTES} B, /s", rate(make(SMALL_BYTES))


def main() -> None:
    print(f"python {platform.python_version()}, {platform.machine()}")
    for figure, value in figures():
        name, _, unit = figure.rpartition(", ")
        print(f"{name:20} {value:14,.1f} {unit}")


if __name__ == "__main__":
    main()
