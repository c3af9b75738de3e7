"""Looks for inputs that a parser does not bear: a program of its own.

``python -m support.fuzzer PARSER COUNT [SEED]`` feeds that many inputs and prints
``COUNT taken=… refused=… grown=… by=…``. What a parser raises against its promise ends
the program with a traceback and the input. ``grown`` is how many objects Python holds
more at the end than after a tenth; the collector is off.

Atheris leads it into branches that it has not seen. Where it is not installed, or with
``FUZZER=random``, good inputs are changed at random.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

MAX_BYTES: Final = 1_024
WORDS: Final = (
    b"\r\n",
    b"\0",
    b"\xff",
    b"%2C",
    b":",
    b"=",
    b",",
    b"[",
    b"]",
    b"\x80",
    b"@",
)


def coverage_guided() -> ModuleType | None:
    """Return atheris, if it is to be used and is there."""
    if os.environ.get("FUZZER") == "random":
        return None
    with suppress(ImportError):
        return importlib.import_module("atheris")
    return None


def changed(rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """Return a good input with some faults."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = rng.choice(WORDS)
            case 4:
                other = rng.choice(seeds)
                data[at:] = other[rng.randint(0, len(other)) :]
            case _:
                data[at:at] = bytes(data[at : at + 16]) * rng.randint(1, 4)
    return bytes(data[:MAX_BYTES])


class Counted:
    """Feeds a parser, and counts."""

    def __init__(self, name: str, count: int, by: str) -> None:
        self._name = name
        self._count = count
        self._by = by
        self._fed = self._taken = self._before = 0

    def __call__(self, data: bytes) -> None:
        from support.hostile_inputs import blocks, take

        try:
            self._taken += take(self._name, data)
        except BaseException:
            print(f"{self._name} does not bear {data!r}", file=sys.stderr, flush=True)
            raise
        self._fed += 1
        if self._fed == self._count // 10:
            self._before = blocks()
        elif self._fed == self._count:
            grown, refused = blocks() - self._before, self._fed - self._taken
            print(self._fed, f"taken={self._taken} refused={refused} grown={grown} "
                  f"by={self._by}", flush=True)  # fmt: skip


def main(name: str, count: int, seed: int) -> None:
    atheris = coverage_guided()
    if atheris is not None:
        with atheris.instrument_imports(include=["tunnel"]):
            from support import hostile_inputs
    else:
        from support import hostile_inputs
    seeds = hostile_inputs.PARSERS[name].seeds
    gc.collect()
    gc.disable()
    feed: Callable[[bytes], None] = Counted(
        name, count, "atheris" if atheris else "chance"
    )
    if atheris is None:
        rng = random.Random(seed)
        for _ in range(count):
            feed(changed(rng, seeds))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds):
            Path(folder, str(number)).write_bytes(data)
        words = [f"-runs={count}", f"-seed={seed}", f"-max_len={MAX_BYTES}"]
        quiet = [
            "-verbosity=0",
            "-print_final_stats=0",
            "-timeout=20",
            f"-artifact_prefix={folder}/",
        ]
        atheris.Setup([sys.argv[0], *words, *quiet, folder], feed)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["1"])[0]))
