"""A server that floods its client is left, or costs the client bounded work.

What the client does besides needs no server: an app at its SOCKS port is greeted.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from statistics import median
from typing import TYPE_CHECKING, Final

import pytest
from support import hostile
from support.processes import PACKAGE
from support.targets import Target, deaf, drain, read_exactly, visit

from tunnel.proto.limits import MAX_UNANSWERED_OPENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.processes import Machine, Program

GREETINGS: Final = 60
EVERY_S: Final = 0.01
STALL_S: Final = 0.25
"""No greeting may take as long, however busy the machine is."""
WORK_S: Final = 0.015
"""What the client may compute while an app is greeted: its own millisecond, and a turn
of the flood, 0.3 ms and the dials that it began, before each of a few steps."""
GROWTH_BYTES: Final = 16_000_000
"""What a link holds, both ways, and the tasks of as many visitors as may come at once:
bulk of as many bytes as the flood has would be gigabytes."""
OPENED_BYTES: Final = MAX_UNANSWERED_OPENS * 15_000
"""What connections cost that are being dialled all at the same time: a machine with
other work comes to as many of them as a peer may have opened."""
OPENING: Final = ("open", "passing")
FEW_LINES: Final = 20


def read_all(app: socket.socket) -> None:
    with app:
        drain(app)


def leave(app: socket.socket) -> None:
    with suppress(OSError):  # it was reset before
        app.shutdown(socket.SHUT_RDWR)


class Siege:
    """A client of a hostile server, with every entry that the server can use."""

    def __init__(
        self, machine: Machine, stack: ExitStack, kind: str, mode: str = "plain"
    ) -> None:
        self._server = machine.start(
            sys.executable, "-m", "support.hostile", kind, mode,
            stdin=subprocess.PIPE,
            env={"PYTHONPATH": f"{PACKAGE}:{PACKAGE / 'tests'}"},
        )  # fmt: skip
        self.out = self._server.out
        join = self.out.wait("tunnel")
        tcp = stack.enter_context(Target(deaf))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        self.client: Program = machine.up(
            join, "--tcp", f"0={tcp.port}", "--udp", f"0={udp.getsockname()[1]}",
            "--reach", "127.0.0.1:0=far.test:7", "--socks", "127.0.0.1:0",
        )  # fmt: skip
        lines = [line.split() for line in self.client.out.all()]
        self._ports = {words[0]: int(words[1].rpartition(":")[2]) for words in lines}
        # What the flood is about: an app that reads all that comes.
        app = visit(self._ports["reach"])
        reader = threading.Thread(target=read_all, args=(app,), daemon=True)
        reader.start()
        stack.callback(reader.join)
        stack.callback(leave, app)

    def begin(self) -> None:
        stdin = self._server.process.stdin
        assert stdin is not None
        stdin.write(b"go\n")
        stdin.flush()
        self.out.wait("floods")

    def is_flooding(self) -> bool:
        return self._server.process.poll() is None and not self.out.count("ended")

    def said(self) -> list[str]:
        """What the client has logged, without the apps that were only greeted."""
        return [line for line in self.client.err.all() if "proxy.refused" not in line]

    def greetings(self) -> tuple[float, float]:
        """Greet apps at a pace.

        Returns:
            The longest that one took, and what the client computed meanwhile, for
            whomever: the median. However busy the machine is, this is what an app
            waits for.
        """
        took, worked = [], []
        for _ in range(GREETINGS):
            began, before = time.perf_counter(), self.client.computed_s()
            with visit(self._ports["socks"]) as app:
                app.sendall(b"\x05\x01\x00")
                assert read_exactly(app, 2) == b"\x05\x00"
            took.append(time.perf_counter() - began)
            worked.append(self.client.computed_s() - before)
            time.sleep(max(0.0, EVERY_S - took[-1]))
        return max(took), median(worked)


@pytest.fixture
def besiege(machine: Machine) -> Iterator[Callable[..., Siege]]:
    with ExitStack() as stack:
        yield lambda *kind: Siege(machine, stack, *kind)


@pytest.mark.parametrize(
    ("kind", "mode", "code"),
    [(kind, "plain", "CALM") for kind in hostile.CALM_AFTER]
    + [(kind, "plain", "PROTOCOL") for kind in hostile.BROKEN_AFTER]
    + [("ping", "tls", "CALM")],
)
def test_a_server_that_floods_with_nothing_is_left_with_words(
    besiege: Callable[..., Siege], kind: str, mode: str, code: str
) -> None:
    siege = besiege(kind, mode)
    before = siege.client.rss_bytes()
    siege.begin()
    assert siege.out.wait("ended") == f"ended {code}"
    assert f"code={code}" in siege.client.err.wait("link.broken")
    # Behind the last word the flood goes on; the client has other work.
    longest_s, worked_s = siege.greetings()
    assert longest_s < STALL_S
    assert worked_s < WORK_S
    assert siege.client.rss_bytes() - before < GROWTH_BYTES
    assert len(siege.said()) < FEW_LINES


def test_such_a_server_is_tried_again_at_a_growing_distance(
    besiege: Callable[..., Siege],
) -> None:
    siege = besiege("draining", "leaving")
    siege.begin()
    waits = []
    for number in (1, 2, 3):
        line = siege.client.err.wait("link.lost", number)
        found = re.search(r"retry_s=([\d.]+)", line)
        assert found is not None
        waits.append(float(found[1]))
    # 0.2, 0.4 and 0.8 s, each with half of it to both sides.
    assert waits[0] <= 0.3 < 0.4 <= waits[2]


@pytest.mark.parametrize("kind", hostile.WORK)
def test_a_server_that_floods_with_work_leaves_a_client_to_its_other_work(
    besiege: Callable[..., Siege], kind: str, figures: Callable[[str], None]
) -> None:
    siege = besiege(kind)
    siege.greetings()
    _, idle_s = siege.greetings()
    before, lines = siege.client.rss_bytes(), len(siege.said())
    siege.begin()
    longest_s, worked_s = siege.greetings()
    assert siege.is_flooding()
    figures(
        f"flood of {kind} by a server: work while an app is greeted "
        f"{1000 * idle_s:.2f} ms idle, {1000 * worked_s:.2f} flooded, "
        f"the longest greeting {1000 * longest_s:.0f}; "
        f"memory + {(siege.client.rss_bytes() - before) / 1e6:.1f} MB"
    )
    assert longest_s < STALL_S
    assert worked_s < WORK_S
    most = GROWTH_BYTES + (OPENED_BYTES if kind in OPENING else 0)
    assert siege.client.rss_bytes() - before < most
    assert siege.client.descriptors() < MAX_UNANSWERED_OPENS + 300
    assert len(siege.said()) - lines < FEW_LINES
