"""Ports of this run of the tests: others may run on the machine at the same time."""

from __future__ import annotations

import socket
from typing import Final

_RUNS: Final = range(20_000, 30_000, 1_000)


def _take() -> tuple[socket.socket, int]:
    """Take a thousand ports that no other run on this machine has; give the first.

    The lock lasts as long as the socket.
    """
    for first in _RUNS:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0tunnel-tests-{first}")
        except OSError:
            lock.close()
        else:
            return lock, first
    raise AssertionError(f"more than {len(_RUNS)} runs of the tests on this machine")


_LOCK, _FIRST = _take()
OF_PROGRAMS: Final = range(_FIRST, _FIRST + 700)
"""For servers that are programs: a port that one loses while it is restarted must not
be given away by a server of other tests."""
OF_SERVERS: Final = range(_FIRST + 700, _FIRST + 900)
"""For servers within a test."""
_IN_A_ROW: Final = range(_FIRST + 900, _FIRST + 1_000)


def in_a_row(count: int) -> range:
    """Give so many ports that are free."""
    for first in range(_IN_A_ROW[0], _IN_A_ROW[-1], count):
        row = range(first, first + count)
        try:
            for port in row:
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
        except OSError:
            continue
        return row
    raise AssertionError(f"no {count} free ports in a row")
