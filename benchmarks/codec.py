"""How fast is the codec alone?

Decodes and encodes DATA frames of 64 KiB and of 64 bytes, in one process, without a
link: the upper bound of what any link can carry. Prints frames/s and GB/s; three
rounds, the best counts, for whatever else runs can only slow it down.

    python benchmarks/codec.py
"""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING

from tunnel.proto.codec import FrameDecoder, data_header, encode
from tunnel.proto.frames import MAX_FRAME_BYTES, ProtData, SockMap

if TYPE_CHECKING:
    from collections.abc import Callable

ROUND_S = 0.7
ROUNDS = 3
READ_BYTES = 262_144


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


def main() -> None:
    print(f"python {platform.python_version()}, {platform.machine()}")
    for size, floor in ((MAX_FRAME_BYTES, "3 GB/s"), (64, "0.5 M frames/s")):
        for name, make in (("decode", decoding), ("encode", encoding)):
            frames = rate(make(size))
            print(
                f"{name} {size:>6} B  {frames / 1e6:7.3f} M frames/s"
                f"  {frames * size / 1e9:7.2f} GB/s   (floor for decoding: {floor})"
            )


if __name__ == "__main__":
    main()
