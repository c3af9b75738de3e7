"""A client that floods its link slows itself: others' visitors do not notice."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from support import flooder
from support.processes import PACKAGE
from support.targets import Target, echo, visit

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Machine

CALM_AFTER: Final = ("draining", "ping")
"""What has no effect, and is counted."""
ROUND_TRIPS: Final = 60
EVERY_S: Final = 0.005
STALL_S: Final = 0.25
"""No window at all may be as bad as this, however busy the machine is."""
FLOOR_S: Final = 0.008
"""Two time slices of the kernel: a flood makes more programs busy than there are cores.
Without turns the same floods take 80 ms to seconds."""


def p99s(conn: socket.socket, windows: int, enough_s: float = 0.0) -> list[float]:
    """Give the p99 of each window; none is measured behind one that is quiet enough.

    What makes others slower than the quietest is what the machine does beside.
    """
    found: list[float] = []
    for _ in range(windows):
        if found and found[-1] <= enough_s:
            break
        took = []
        began = time.perf_counter()
        for at in range(ROUND_TRIPS):
            due = began + at * EVERY_S
            time.sleep(max(0.0, due - time.perf_counter()))
            conn.sendall(b"x")
            assert conn.recv(1) == b"x"
            # From when it was due: else a long stop would be one slow answer of many.
            took.append(time.perf_counter() - due)
        found.append(sorted(took)[int(0.99 * ROUND_TRIPS) - 1])
    return found


@pytest.mark.parametrize("kind", flooder.KINDS)
def test_a_flood_ends_in_calm_or_is_not_noticed_by_anothers_visitor(
    machine: Machine, kind: str, figures: Callable[[str], None]
) -> None:
    flooded(machine, kind, 12, figures)


@pytest.mark.deep
@pytest.mark.parametrize("kind", flooder.KINDS)
def test_a_long_flood_ends_in_calm_or_is_not_noticed(
    machine: Machine, kind: str, figures: Callable[[str], None]
) -> None:
    flooded(machine, kind, 40, figures)


def flooded(
    machine: Machine, kind: str, windows: int, figures: Callable[[str], None]
) -> None:
    with ExitStack() as stack:
        echoes = stack.enter_context(Target(echo))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        server = machine.serve("--plain")
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{echoes.port}")
        port = int(client.out.all()[0].split()[1].rpartition(":")[2])
        conn = stack.enter_context(visit(port))
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        p99s(conn, 2)
        idle_s = min(p99s(conn, 4))
        bound_s = max(2 * idle_s, FLOOR_S)
        lines = len(server.program.err.all())
        running = machine.start(
            sys.executable,
            "-m",
            "support.flooder",
            server.join,
            kind,
            str(60),
            str(silent.getsockname()[1]),
            env={"PYTHONPATH": f"{PACKAGE}:{PACKAGE / 'tests'}"},
        )
        running.out.wait("floods")
        if kind == "remove":  # its own names were written down before
            lines = len(server.program.err.all())
        if kind in CALM_AFTER:
            assert running.out.wait("ended") == "ended CALM"
            assert len(server.program.err.all()) - lines < 20
        else:
            found = p99s(conn, windows, bound_s)
            assert running.process.poll() is None, "it flooded all the while"
            assert not server.program.err.count("link.broken"), "and its link held it"
            assert len(server.program.err.all()) - lines < 20
            running.end()
            figures(
                f"flood of {kind}: p99 {1000 * idle_s:.2f} ms idle, "
                f"{1000 * min(found):.2f} flooded, {1000 * max(found):.0f} at worst"
            )
            assert min(found) <= bound_s
            assert max(found) < STALL_S
        p99s(conn, 1)  # it is alive
