"""The ``tunnel`` command on a machine whose clocks can be set while it runs.

The file that ``CLOCKS`` names holds two numbers of seconds: what the wall clock is off
by, and how long the machine has slept.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

COMMAND: Final = (sys.executable, __file__)


def read() -> tuple[float, float]:
    """Return both numbers."""
    wall, slept = Path(os.environ["CLOCKS"]).read_text().split()
    return float(wall), float(slept)


def main() -> None:
    true_time, true_ns, true_clock = time.time, time.time_ns, time.clock_gettime
    boot = time.CLOCK_BOOTTIME

    def clock_gettime(which: int) -> float:
        return true_clock(which) + (read()[1] if which == boot else 0)

    vars(time)["time"] = lambda: true_time() + read()[0]
    vars(time)["time_ns"] = lambda: true_ns() + int(read()[0] * 1e9)
    vars(time)["clock_gettime"] = clock_gettime

    from tunnel.__main__ import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
