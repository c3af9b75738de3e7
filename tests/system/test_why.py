"""``tunnel why`` says what a connection waits for, on a long line with losses."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
from support.long_line import FAR, LongLine
from support.processes import WAIT_S, Machine, eventually
from support.targets import Target, echo, flood

from tunnel.ops.control.ask import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.processes import Program

LOOKS: Final = 10
"""So many are looked at: about ten seconds."""
SLOW_S: Final = 0.3
SLOW_SITE_S: Final = 0.6
"""Long beside the way between the programs, which takes 0.1 s and more for losses."""
ANSWER: Final = b"x" * 100
SLOW_BYTES_PER_S: Final = 50_000


class Bed:
    """A server and a client with a long line between."""

    def __init__(self, near: Machine, far: Machine) -> None:
        self.line = LongLine(near, far, delay_ms=50, loss_percent=1, mbit=40)
        self._near, self._far = near, far
        self.state = far.home / "server"
        self.join = far.serve(
            "--http", f"{FAR}:8080", "--domain", "t.test", listen=f"{FAR}:0"
        ).join

    def publish(
        self, serve: Callable[[socket.socket], object], stack: ExitStack, join: str = ""
    ) -> int:
        """Have a client publish a target; return the public port."""
        running = self._up(serve, stack, join or self.join, "--tcp", "{}")
        return int(running.out.all()[0].split()[1].rpartition(":")[2])

    def publish_site(
        self, serve: Callable[[socket.socket], object], stack: ExitStack, words: str
    ) -> None:
        """Have a client publish a target by the name web, as words want it."""
        self._up(serve, stack, self.join, "--http", f"web={{}}{words}")

    def _up(
        self,
        serve: Callable[[socket.socket], object],
        stack: ExitStack,
        join: str,
        kind: str,
        entry: str,
    ) -> Program:
        target = self.line.near.inside(lambda: Target(serve))
        stack.enter_context(target)
        running = self._near.up(join, kind, entry.format(target.port))
        stack.callback(running.stop)
        return running

    def visit(self, port: int, stack: ExitStack) -> socket.socket:
        """Connect to a public port, at the server."""
        conn = self.line.far.inside(socket.socket)
        stack.enter_context(conn)
        conn.settimeout(WAIT_S)
        conn.connect((FAR, port))
        return conn

    def run(self, *words: str) -> str:
        """Run a command at the server; return what it prints."""
        done = self._far.run(*self._far.command, *words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def client(self, connection: str) -> dict[str, Any]:
        """Ask the client about a connection."""
        command = (*self._near.command, "why", connection, "--json")
        done = self._near.run(*command)
        assert done.returncode == 0, done.stderr.decode()
        found = map(json.loads, done.stdout.splitlines())
        (one,) = (one for one in found if one["process"].startswith("up-"))
        return dict(one)

    def why(self) -> list[dict[str, Any]]:
        """Ask the server about all connections."""
        answer = ask(self.state, "why", {})
        assert answer is not None
        listed = answer["listed"]
        assert isinstance(listed, list)
        return listed

    def only(self) -> dict[str, Any]:
        """Wait until the one connection has been looked at; ask all about it."""
        eventually(lambda: [one["looks"] >= LOOKS for one in self.why()] == [True],
            "looks", 60)  # fmt: skip
        answer = ask(self.state, "why", {"connection": self.why()[0]["id"]})
        assert answer is not None
        found = answer["found"]
        assert isinstance(found, list)
        return dict(found[0])


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with ExitStack() as stack:
        near, far = (Machine(tmp_path_factory.mktemp(name)) for name in ("near", "far"))
        for one in (near, far):
            one.env["XDG_RUNTIME_DIR"] = str(one.home / "none")
        stack.callback(near.close)
        stack.callback(far.close)
        yield Bed(near, far)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


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
    stack.callback(conn.shutdown, socket.SHUT_RDWR)


def read_slowly(conn: socket.socket) -> None:
    """Read so many bytes a second."""
    conn.settimeout(WAIT_S)
    while conn.recv(SLOW_BYTES_PER_S // 10):
        time.sleep(0.1)


def answer_late(conn: socket.socket) -> None:
    """Answer each question after a while."""
    while conn.recv(1_000):
        time.sleep(SLOW_S)
        conn.sendall(ANSWER)


def answer_web_late(conn: socket.socket) -> None:
    """Answer each request after a while."""
    while conn.recv(10_000):
        time.sleep(SLOW_SITE_S)
        conn.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def send_on(conn: socket.socket) -> None:
    """Send until the other end is gone."""
    while True:
        conn.sendall(bytes(65_536))


def ask_on(conn: socket.socket) -> None:
    """Ask, and ask again as soon as there is an answer."""
    while True:
        conn.sendall(b"?")
        if not conn.recv(1_000):
            return


def drain(conn: socket.socket) -> None:
    """Read as quickly as it comes."""
    while conn.recv(65_536):
        pass


def test_a_reader_at_the_other_end_that_is_slow(bed: Bed, stack: ExitStack) -> None:
    conn = bed.visit(bed.publish(read_slowly, stack), stack)
    go(send_on, conn, stack)
    said = bed.only()
    assert said["mostly"] == "credit", said
    assert said["minute"]["credit"] > 50
    assert said["credit_bytes"] == 0
    assert said["end"] == "opener"
    other = bed.client(said["id"])
    assert other["mostly"] == "local", other
    assert other["minute"]["local"] > 50
    assert other["end"] == "exit"


def test_a_line_that_is_slow(bed: Bed, stack: ExitStack) -> None:
    conn = bed.visit(bed.publish(drain, stack), stack)
    bed.line.set("rate", 2)
    go(send_on, conn, stack)
    said = bed.only()
    bed.line.set("rate", 40)
    assert said["mostly"] == "line", said
    assert said["minute"]["line"] > 50
    line = said["line"]
    assert line["min_rtt_ms"] >= 100
    assert line["retransmits"] > 0
    assert line["delivery_bytes_per_s"] < 2 * 250_000
    other = bed.client(said["id"])
    assert other["mostly"] == "nothing", other
    assert other["elsewhere"]


def test_a_target_that_is_slow(bed: Bed, stack: ExitStack) -> None:
    conn = bed.visit(bed.publish(answer_late, stack), stack)

    go(ask_on, conn, stack)
    said = bed.only()
    assert said["mostly"] == "target", said
    assert said["minute"]["target"] > 50
    assert "other end" in said["elsewhere"]
    other = bed.client(said["id"])
    # There it is seen without the way: 0.3 s of each 0.4 s, in ten looks.
    assert other["mostly"] == "target", other
    assert not other["elsewhere"]


@pytest.mark.parametrize("words", ["", ",header=+X-From:tunnel"])
def test_a_site_that_is_slow(bed: Bed, stack: ExitStack, words: str) -> None:
    bed.publish_site(answer_web_late, stack, words)
    conn = bed.visit(8080, stack)

    def browse(conn: socket.socket) -> None:
        while True:
            conn.sendall(b"GET / HTTP/1.1\r\nHost: web.t.test\r\n\r\n")
            if not conn.recv(1_000).startswith(b"HTTP/1.1 204"):
                return

    go(browse, conn, stack)
    said = bed.only()
    for one in (said, bed.client(said["id"])):
        assert one["mostly"] == "target", one
        assert one["minute"]["target"] > 50


def test_a_reader_at_this_end_that_is_slow(bed: Bed, stack: ExitStack) -> None:
    conn = bed.visit(bed.publish(flood, stack), stack)
    go(read_slowly, conn, stack)
    said = bed.only()
    assert said["mostly"] == "local", said
    assert said["minute"]["local"] > 50
    assert said["unread_bytes"] > 0
    other = bed.client(said["id"])
    assert other["mostly"] == "credit", other
    assert other["minute"]["credit"] > 50


def test_nothing_of_a_connection_that_rests(bed: Bed, stack: ExitStack) -> None:
    conn = bed.visit(bed.publish(echo, stack), stack)
    conn.sendall(b"?")
    assert conn.recv(100) == b"?"
    said = bed.only()
    assert said["mostly"] == "program", said
    assert said["minute"]["program"] > 50
    assert said["id"] in bed.run("why")
    told = bed.run("why", said["id"])
    assert told.startswith(said["id"])
    assert "round trip 1" in told
    other = bed.client(said["id"])
    assert other["id"] == said["id"]
    assert other["mostly"] == "program", other


def test_the_rate_of_a_user(bed: Bed, stack: ExitStack) -> None:
    join = bed.run(
        "invite", "slow", "--rate", "100kB/s", "--state", str(bed.state)
    ).strip()
    conn = bed.visit(bed.publish(drain, stack, join), stack)
    go(send_on, conn, stack)
    said = bed.only()
    assert said["mostly"] == "rate", said
    assert said["minute"]["rate"] > 50
    assert said["user"] == "slow"
