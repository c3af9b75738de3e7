"""``tunnel why`` says what a connection waits for, on a long line with losses."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from support.long_line import FAR, LongLine
from support.processes import WAIT_S, Machine, eventually
from support.targets import Target, echo, flood

from tunnel.ops.control.ask import ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Program

    Fields = dict[str, Any]

LOOKS: Final = 5
"""One a second. Most of them must be of the same opinion."""
LOOKS_AT_A_LINE: Final = 8
"""So many that some packets of it are lost."""
SLOW_S: Final = 3.0
"""Long beside the way between the programs, which takes 0.1 s and more for losses: of
so few looks two at most find something under way."""
SLOW_BYTES_PER_S: Final = 50_000


class Bed:
    """A server and clients with a long line between."""

    def __init__(self, near: Machine, far: Machine, stack: ExitStack) -> None:
        self.line = LongLine(near, far, delay_ms=50, loss_percent=1, mbit=40)
        self.near, self.far = near, far
        self._stack = stack
        self.state = far.home / "server"
        self.join = far.serve(
            "--http", f"{FAR}:8080", "--domain", "t.test", listen=f"{FAR}:0"
        ).join
        self.ups: list[Program] = []
        self.known: set[str] = set()
        """Ids of the connections so far."""

    def publish(self, serve: Callable[[socket.socket], object], join: str = "") -> int:
        """Have a client publish a target; return the public port."""
        running = self._up(serve, join or self.join, "--tcp", "{}")
        return int(running.out.all()[0].split()[1].rpartition(":")[2])

    def publish_site(
        self, serve: Callable[[socket.socket], object], name: str, words: str
    ) -> None:
        """Have a client publish a target by name, as words want it."""
        self._up(serve, self.join, "--http", f"{name}={{}}{words}")

    def _up(
        self,
        serve: Callable[[socket.socket], object],
        join: str,
        kind: str,
        entry: str,
    ) -> Program:
        target = self._stack.enter_context(self.line.near.inside(lambda: Target(serve)))
        entry = entry.format(target.port)
        self.ups.append(self.near.up(join, kind, entry, ready=1))
        return self.ups[-1]

    def visit(self, port: int, do: Callable[[socket.socket], object]) -> str:
        """Connect to a public port, at the server, and do something with it.

        Returns the id of the connection.
        """
        conn = self._stack.enter_context(self.line.far.inside(socket.socket))
        conn.settimeout(WAIT_S)
        conn.connect((FAR, port))
        go(do, conn, self._stack)
        eventually(lambda: self.ids() > self.known, f"a connection for {do}")
        (new,) = self.ids() - self.known
        self.known.add(new)
        return new

    def ids(self) -> set[str]:
        """Ask the server which connections there are, and which there were."""
        return self.known | {one["id"] for one in asked(self.state)}

    def wait_for_looks(self, looks: int) -> None:
        """Wait until all connections have been looked at so often."""

        def enough() -> bool:
            return all(one["looks"] >= looks for one in asked(self.state))

        eventually(enough, "looks", 60)

    def run(self, where: Machine, *words: str) -> str:
        """Run a command at one of the two; return what it prints."""
        done = where.run(*where.command, *words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def both(self, connection: str) -> tuple[Fields, Fields]:
        """Ask both ends about a connection: its opener and its exit."""
        command = "why", connection, "--json"
        there, here = (
            [json.loads(line) for line in self.run(where, *command).splitlines()]
            for where in (self.far, self.near)
        )
        (server,) = (one for one in there if one["process"].startswith("serve-"))
        (client,) = (one for one in here if one["process"].startswith("up-"))
        return server, client


def asked(state: Path) -> list[Fields]:
    """Ask the server about all connections."""
    answer = ask(state, "why", {})
    assert answer is not None
    listed = answer["listed"]
    assert isinstance(listed, list)
    return listed


@dataclass
class Told:
    """What both ends have said of each connection, and the commands to a person."""

    ends: dict[str, tuple[Fields, Fields]]
    listed: str
    about: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Have connections wait for all that there is, and ask why."""
    near, far = (Machine(tmp_path_factory.mktemp(name)) for name in ("near", "far"))
    for one in (near, far):
        one.env["XDG_RUNTIME_DIR"] = str(one.home / "none")
    with ExitStack() as stack:
        stack.callback(near.close)
        stack.callback(far.close)
        bed = Bed(near, far, stack)
        invite = "invite", "slow", "--rate", "100kB/s", "--state", str(bed.state)
        slow = bed.run(far, *invite).strip()
        # The line is for itself: on a full one all connections wait for it.
        sender = bed.publish(read_all)
        bed.line.set("rate", 2)
        ids = {"line": bed.visit(sender, send_on)}
        bed.wait_for_looks(LOOKS_AT_A_LINE)
        ends = {"line": bed.both(ids["line"])}
        bed.ups.pop().end()
        eventually(lambda: asked(bed.state)[0]["now"] == "link", "a lost link", 30)
        bed.line.set("rate", 40)
        with ThreadPoolExecutor() as pool:
            sites = ("plain", ""), ("words", ",header=+X-From:tunnel")
            begun = [
                pool.submit(bed.publish_site, answer_web_late, *one) for one in sites
            ]
            slowly, quickly, late, once, held = pool.map(
                bed.publish,
                (read_slowly, flood, answer_late, echo, read_all),
                ("", "", "", "", slow),
            )
            for site in begun:
                site.result()
        bed.known.clear()  # the client came back: its numbers begin anew
        ids = {
            "reader there": bed.visit(slowly, send_on),
            "reader here": bed.visit(quickly, read_slowly),
            "target": bed.visit(late, ask_on),
            "rest": bed.visit(once, ask_once),
            "rate": bed.visit(held, send_on),
            "site": bed.visit(8080, partial(browse, "plain")),
            "site with words": bed.visit(8080, partial(browse, "words")),
        }
        bed.wait_for_looks(LOOKS)
        ends |= {name: bed.both(connection) for name, connection in ids.items()}
        return Told(ends, bed.run(far, "why"), bed.run(far, "why", ids["rest"]))


def go(
    do: Callable[[socket.socket], object], conn: socket.socket, stack: ExitStack
) -> None:
    """Do something with a connection in a thread, to the end of the test."""

    def run() -> None:
        with suppress(OSError):
            do(conn)

    thread = threading.Thread(target=run)
    thread.start()
    stack.callback(thread.join, WAIT_S)
    stack.callback(end, conn)


def end(conn: socket.socket) -> None:
    """End a connection under whoever uses it."""
    with suppress(OSError):
        conn.shutdown(socket.SHUT_RDWR)


def read_slowly(conn: socket.socket) -> None:
    """Read so many bytes a second."""
    conn.settimeout(WAIT_S)
    while conn.recv(SLOW_BYTES_PER_S // 10):
        time.sleep(0.1)


def read_all(conn: socket.socket) -> None:
    """Read as quickly as it comes."""
    while conn.recv(65_536):
        pass


def send_on(conn: socket.socket) -> None:
    """Send until the other end is gone."""
    while True:
        conn.sendall(bytes(65_536))


def answer_late(conn: socket.socket) -> None:
    """Answer each question after a while."""
    while conn.recv(1_000):
        time.sleep(SLOW_S)
        conn.sendall(b"x" * 100)


def ask_on(conn: socket.socket) -> None:
    """Ask, and ask again as soon as there is an answer."""
    while True:
        conn.sendall(b"?")
        if not conn.recv(1_000):
            return


def ask_once(conn: socket.socket) -> None:
    """Ask, hear the answer, and rest."""
    conn.sendall(b"?")
    assert conn.recv(100) == b"?"


def answer_web_late(conn: socket.socket) -> None:
    """Answer each request after a while."""
    while conn.recv(10_000):
        time.sleep(SLOW_S)
        conn.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def browse(name: str, conn: socket.socket) -> None:
    """Ask a site, and ask again as soon as there is an answer."""
    while True:
        conn.sendall(f"GET / HTTP/1.1\r\nHost: {name}.t.test\r\n\r\n".encode())
        if not conn.recv(1_000).startswith(b"HTTP/1.1 204"):
            return


@pytest.mark.parametrize(
    ("case", "opener", "exit_"),
    [
        ("reader there", "credit", "local"),
        ("reader here", "local", "credit"),
        ("line", "line", "nothing"),
        ("rate", "rate", "nothing"),
        ("target", "target", "target"),
        ("site", "target", "target"),
        ("site with words", "target", "target"),
        ("rest", "program", "program"),
    ],
)
def test_both_ends_know_what_a_connection_waits_for(
    told: Told, case: str, opener: str, exit_: str
) -> None:
    there, here = told.ends[case]
    assert (there["end"], here["end"]) == ("opener", "exit")
    assert there["id"] == here["id"]
    assert there["mostly"] == opener, there
    assert there["minute"][opener] > 50
    assert here["mostly"] == exit_, here
    assert here["minute"][exit_] > 50
    assert bool(there["elsewhere"]) is (opener in ("credit", "target"))
    assert bool(here["elsewhere"]) is (exit_ in ("credit", "nothing"))


def test_the_figures_of_a_line_are_those_that_were_set(told: Told) -> None:
    line = told.ends["line"][0]["line"]
    assert 100 <= line["min_rtt_ms"] < 150
    assert line["retransmits"] > 0
    assert 0.2 < line["repeated_percent"] < 5
    assert 100_000 < line["delivery_bytes_per_s"] < 500_000


def test_a_person_reads_all_that_wait_and_all_about_one(told: Told) -> None:
    assert all(there["id"] in told.listed for there, _ in told.ends.values())
    assert told.about.startswith(told.ends["rest"][0]["id"])
    assert "round trip 1" in told.about
    assert "serve-" in told.about
    assert told.ends["rate"][0]["user"] == "slow"
