"""Many users' machines in one program, and how long one more takes to log in.

As a script: the first argument is a file of join lines, the second how many machines
each of them has. What is told on stdin is done, a line at a time.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import trio

from tunnel.access.join import JoinLine, parse_join
from tunnel.center.client import CenterClient

AT_ONCE = 8
"""Log-ins that are under way while the crowd comes together."""


class Crowd:
    """Clients that stay."""

    def __init__(self, joins: list[JoinLine], machines: int) -> None:
        self._joins = joins
        self._machines = machines
        self._room = trio.CapacityLimiter(AT_ONCE)
        self.took_ms: list[float] = []

    async def run(self) -> None:
        async with trio.open_nursery() as stay:
            async with trio.open_nursery() as coming:
                for join in self._joins * self._machines:
                    coming.start_soon(self._come, join, stay)
            print("up", len(self.took_ms), flush=True)
            async for line in trio.wrap_file(sys.stdin):
                count, every_s = int(line.split()[0]), float(line.split()[1])
                self.took_ms.clear()
                async with trio.open_nursery() as coming:
                    for number in range(count):
                        join = self._joins[number % len(self._joins)]
                        coming.start_soon(self._come, join, stay)
                        await trio.sleep(every_s)
                print("took", *(f"{ms:.1f}" for ms in self.took_ms), flush=True)
            stay.cancel_scope.cancel()

    async def _come(self, join: JoinLine, stay: trio.Nursery) -> None:
        async with self._room:
            began = trio.current_time()
            await stay.start(CenterClient(join).run)
            self.took_ms.append((trio.current_time() - began) * 1e3)


if __name__ == "__main__":
    gc.disable()  # its pauses are not the server's
    lines = Path(sys.argv[1]).read_text().splitlines()
    trio.run(Crowd([parse_join(line) for line in lines], int(sys.argv[2])).run)
