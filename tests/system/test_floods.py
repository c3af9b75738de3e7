"""A client that floods its link slows itself: others' visitors do not notice."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from statistics import mean, median
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from support import flooder
from support.processes import PACKAGE
from support.targets import Target, echo, visit

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Machine, Program

BURN: Final = "print('burns', flush=True)\nwhile True: pass"
CALM_AFTER: Final = ("draining", "ping")
"""What has no effect, and is counted."""
ROUND_TRIPS: Final = 60
EVERY_S: Final = 0.005
SHORT: Final = 3
"""Windows of a flood that is not measured beside other loads."""
BUSY: Final = 2
"""Programs that a flood keeps busy: who floods, and the server that takes it."""
WORK_S: Final = 0.005
"""What the server may compute while one round trip is under way, its own two passes and
the turns of the flood before each: a turn is 0.3 ms."""


class Answers(NamedTuple):
    """How round trips went."""

    p99_s: float
    worked_s: float
    """What the server computed during one, for whomever; the mean, as a kernel may
    count by 4 ms. However busy the machine is, its visitors wait for this."""

    def __str__(self) -> str:
        return f"p99 {1000 * self.p99_s:.2f}, work {1000 * self.worked_s:.2f} ms"


class Visitor:
    """Somebody who has a connection through the server, and asks at a pace."""

    def __init__(self, conn: socket.socket, server: Program) -> None:
        self._conn = conn
        self._server = server

    def ask_often(self, windows: int) -> Answers:
        """Give the medians of so many windows."""
        found = [self.ask() for _ in range(windows)]
        return Answers(*map(median, zip(*found, strict=True)))

    def ask(self) -> Answers:
        """Ask for a window's time, about 0.3 s."""
        took, worked = [], []
        began = time.perf_counter()
        for at in range(ROUND_TRIPS):
            due = began + at * EVERY_S
            time.sleep(max(0.0, due - time.perf_counter()))
            before = self._server.computed_s()
            self._conn.sendall(b"x")
            assert self._conn.recv(1) == b"x"
            worked.append(self._server.computed_s() - before)
            # From when it was due: else a long stop would be one slow answer of many.
            took.append(time.perf_counter() - due)
        return Answers(sorted(took)[int(0.99 * ROUND_TRIPS) - 1], mean(worked))


def beside_burners(machine: Machine, visitor: Visitor) -> Answers:
    """Give what the same costs while nobody floods but the processor is as busy."""
    burning = [machine.start(sys.executable, "-c", BURN) for _ in range(BUSY)]
    for program in burning:
        program.out.wait("burns")
    answers = visitor.ask_often(3)
    for program in burning:
        program.end()
    return answers


@pytest.mark.parametrize("kind", flooder.KINDS)
def test_a_flood_ends_in_calm_or_is_not_noticed_by_anothers_visitor(
    machine: Machine, kind: str, figures: Callable[[str], None]
) -> None:
    flooded(machine, kind, SHORT, figures)


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
        visitor = Visitor(conn, server.program)
        visitor.ask()
        before = ""
        if windows > SHORT and kind not in CALM_AFTER:
            before = f"{visitor.ask_often(3)} idle; {beside_burners(machine, visitor)}"
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
            found = visitor.ask_often(windows)
            assert running.process.poll() is None, "it flooded all the while"
            assert not server.program.err.count("link.broken"), "and its link held it"
            assert len(server.program.err.all()) - lines < 20
            running.end()
            if before:
                before += f" beside {BUSY} that burn; "
            figures(f"flood of {kind}: echo {before}{found} flooded")
            assert found.worked_s <= WORK_S
        visitor.ask()  # it is alive
