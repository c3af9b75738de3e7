"""`serve --takeover`: a new process takes a running server over; nobody notices."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest
from support.cutting import Relay
from support.processes import eventually, free_port
from support.supervisor import Supervisor
from support.targets import Content, is_alive, read_exactly, visit, web
from support.targets import Target as TcpTarget
from support.web_server import Hello, web_server

from tunnel.center.drain import MOVE_S

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Machine, Server
    from support.targets import Target

DRAIN = ("--drain", "30s")
VISITORS = 6
"""Threads that ask all the time, each 100 to 300 times a second."""


@pytest.fixture
def at(machine: Machine) -> int:
    """A port for the names, on a machine of its own."""
    machine.alone()
    return free_port()


def served(machine: Machine, at: int, *more: str) -> Server:
    return machine.serve("--http", f"127.0.0.1:{at}", *DRAIN, *more)


def status_of(machine: Machine) -> dict[str, Any]:
    running = machine.tunnel("status", "--json")
    assert running.wait() == 0, running.errors()
    found: dict[str, Any] = json.loads(running.out.all()[0])
    return found


class Crowd:
    """Visitors of a name and of a port, who ask all the time and count what they hear.

    A third of them have a connection for each request, a third keep theirs, and a third
    are visitors of the port.
    """

    def __init__(self, web_at: int, port: int) -> None:
        self._web_at, self._port = web_at, port
        self.heard: dict[str, int] = {}
        self._stopped = threading.Event()
        kinds = (self._once, self._kept, self._of_port)
        self._threads = [
            threading.Thread(target=kinds[number % 3], daemon=True)
            for number in range(VISITORS)
        ]

    def __enter__(self) -> Self:
        for one in self._threads:
            one.start()
        eventually(lambda: self.count > 50, "visitors")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for one in self._threads:
            one.join()

    @property
    def count(self) -> int:
        return sum(self.heard.values())

    def some_more(self) -> None:
        """Wait until all have asked some more times."""
        now = self.count
        eventually(lambda: self.count > now + 200, "more visitors")

    def _note(self, what: str) -> None:
        self.heard[what] = self.heard.get(what, 0) + 1

    def _get(self, connection: http.client.HTTPConnection) -> bool:
        """Ask once; say whether the connection may be used again."""
        connection.request("GET", "/", headers={"Host": "shop.localhost"})
        answer = connection.getresponse()
        body = answer.read()
        self._note(f"{answer.status} {body.decode()[:20]}")
        return not answer.will_close

    def _once(self) -> None:
        while not self._stopped.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._web_at)
            try:
                self._get(connection)
            except OSError as error:
                self._note(f"once: {error!r}")
            connection.close()

    def _kept(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._web_at)
        while not self._stopped.is_set():
            try:
                if self._get(connection):
                    continue
            except (OSError, http.client.HTTPException) as error:
                self._note(f"kept: {error!r}")
            connection.close()
            connection = http.client.HTTPConnection("127.0.0.1", self._web_at)
        connection.close()

    def _of_port(self) -> None:
        while not self._stopped.is_set():
            try:
                with visit(self._port) as conn:
                    conn.sendall(b"echo")
                    self._note(f"port {read_exactly(conn, 4).decode()}")
            except OSError as error:
                self._note(f"port: {error!r}")


def test_no_visitor_is_refused_and_what_runs_ends_whole(
    machine: Machine, at: int, target: Target, tmp_path: Path
) -> None:
    old = served(machine, at)
    content = Content(tmp_path / "content", 2)
    with web_server(Hello) as hello, TcpTarget(web(content)) as files:
        port, of_files = free_port(), free_port()
        client = machine.up(
            old.join, "--http", f"shop={hello}", "--tcp", f"{port}={target.port}",
            "--tcp", f"{of_files}={files.port}",
        )  # fmt: skip
        transfer = visit(of_files)
        transfer.sendall(f"GET /0/{content.size} HTTP/1.1\r\n\r\n".encode())
        head = transfer.recv(65_536)
        assert b"200 OK" in head
        with Crowd(at, port) as crowd:
            new = served(machine, at, "--takeover")
            assert new.join == old.join
            client.err.wait("event=session.departs")
            eventually(lambda: status_of(machine)["links"] != [], "the client is there")
            crowd.some_more()
            assert old.program.process.poll() is None  # the transfer runs
            digest = hashlib.sha256(head.partition(b"\r\n\r\n")[2])
            left = content.size - len(head.partition(b"\r\n\r\n")[2])
            while left:
                data = transfer.recv(1 << 20)
                assert data
                digest.update(data)
                left -= len(data)
            assert digest.hexdigest() == content.digest()
            transfer.close()
            assert old.program.wait() == 0, old.program.errors()
            crowd.some_more()
        assert set(crowd.heard) == {"200 hello", "port echo"}, crowd.heard
        assert "session.lost" not in client.errors()
        new.program.err.wait("event=takeover.over")
        assert new.program.stop() == 0


def test_a_session_that_stayed_behind_goes_on_over_another_link(
    machine: Machine, at: int, target: Target
) -> None:
    old = served(machine, at)
    line = Relay(machine, old)
    port = free_port()
    client = machine.up(line.join, "--tcp", f"{port}={target.port}")
    visitor = visit(port)
    assert is_alive(visitor)
    new = served(machine, at, "--takeover")
    client.err.wait("event=session.departs")
    client.err.wait("event=mapping.ready", 2)  # so who comes now comes to the new one
    line.do("rst")  # all of its links, and both sessions go on
    assert is_alive(visitor)
    second = visit(port)
    assert is_alive(second)
    assert client.err.count("session.lost") == 0
    visitor.close()
    assert old.program.wait(MOVE_S + 10) == 0
    assert is_alive(second)
    second.close()
    assert new.program.stop() == 0


def test_a_server_can_be_taken_over_again_and_what_passed_is_not_forgotten(
    machine: Machine, at: int, target: Target
) -> None:
    server = served(machine, at)
    port = free_port()
    invited = machine.tunnel(
        "invite", "ann", "--may", f"tcp:{port}", "--state", str(machine.home / "server")
    )
    assert invited.wait() == 0, invited.errors()
    machine.up(invited.out.all()[0], "--tcp", f"{port}={target.port}")

    def passed() -> int:
        shown = machine.tunnel("status", "--json")
        assert shown.wait() == 0, shown.errors()
        (link,) = json.loads(shown.out.all()[0])["links"]
        assert link["user"] == "ann"
        with (machine.home / "server" / "months.json").open() as file:
            return int(json.load(file)["bytes"].get("ann", 0))

    expected = 0
    for _ in range(3):
        visitor = visit(port)
        visitor.sendall(bytes(50_000))
        assert len(read_exactly(visitor, 50_000)) == 50_000
        expected += 100_000
        next_one = served(machine, at, "--takeover")
        # What runs there passes still.
        visitor.sendall(bytes(10_000))
        assert len(read_exactly(visitor, 10_000)) == 10_000
        expected += 20_000
        visitor.close()
        assert server.program.wait(MOVE_S + 10) == 0, server.program.errors()
        next_one.program.err.wait("event=takeover.over")
        server = next_one
    eventually(lambda: len(status_of(machine)["links"]) == 1, "the client is there")
    assert server.program.stop() == 0
    with (machine.home / "server" / "months.json").open() as file:
        assert int(json.load(file)["bytes"]["ann"]) == expected


def test_systemd_hears_who_is_the_process_now(
    machine: Machine, at: int, tmp_path: Path
) -> None:
    with Supervisor(tmp_path / "notify") as heard:
        machine.env |= heard.env
        old = served(machine, at)
        del machine.env["NOTIFY_SOCKET"]  # as where somebody starts it by hand
        assert heard.all()[-1][0] == "READY=1"
        new = served(machine, at, "--takeover")
        assert old.program.wait() == 0
        words = [line for message in heard.all() for line in message]
        assert words[0] == "STATUS=it is starting"  # the new one, which is not it yet
        assert f"MAINPID={new.program.pid}" in words
        assert words.index("READY=1") > words.index(f"MAINPID={new.program.pid}")
        assert "STOPPING=1" not in words
        assert new.program.stop() == 0
        assert heard.all()[0][0] == "STOPPING=1"


def test_what_cannot_be_is_refused_and_leaves_the_server_as_it_was(
    machine: Machine, at: int, target: Target
) -> None:
    server = served(machine, at)
    state = ("--state", str(machine.home / "server"))
    client = machine.up(server.join, "--http", f"shop={target.port}")
    for words, status, said in (
        (("--takeover", "--workers", "2"), 2, "--takeover and --workers"),
        (("--takeover", "--plain"), 3, "has another identity"),
        (("--takeover", "--http", f"127.0.0.1:{target.port}"), 7, "in use"),
    ):
        refused = machine.tunnel("serve", *state, *words)
        assert refused.wait() == status, refused.errors()
        assert said in refused.errors()
    assert server.program.process.poll() is None
    assert "takeover.given" not in server.program.errors()
    assert status_of(machine)["pid"] == server.program.pid
    assert client.err.count("event=link.up") == 1
    # And after all these it can still be taken over.
    new = served(machine, at, "--takeover")
    assert server.program.wait(MOVE_S + 10) == 0
    assert status_of(machine)["pid"] == new.program.pid


def test_a_port_for_those_who_watch_that_is_taken_ends_nothing(
    machine: Machine, at: int, target: Target
) -> None:
    old = served(machine, at)
    taken = f"127.0.0.1:{target.port}"
    more = ("--metrics", taken, "--dashboard", taken)
    new = served(machine, at, "--takeover", *more)
    assert new.program.errors().count("already in use") == 2
    assert old.program.wait(MOVE_S + 10) == 0
    assert status_of(machine)["pid"] == new.program.pid


def test_where_the_new_one_dies_a_third_starts_while_the_first_still_drains(
    machine: Machine, at: int, target: Target
) -> None:
    old = served(machine, at)
    port = free_port()
    client = machine.up(old.join, "--tcp", f"{port}={target.port}")
    visitor = visit(port)
    assert is_alive(visitor)
    new = served(machine, at, "--takeover")
    client.err.wait("event=mapping.ready", 2)
    new.program.send(signal.SIGKILL)
    new.program.wait()
    old.program.err.wait("event=takeover.lost")
    again = machine.serve("--http", f"127.0.0.1:{at}", listen=f"127.0.0.1:{old.port}")
    assert is_alive(visitor)  # the first one's
    client.err.wait("event=mapping.ready", 3)
    with visit(port) as second:
        assert is_alive(second)
    visitor.close()
    assert old.program.wait(MOVE_S + 10) == 0
    assert again.program.stop() == 0


def test_where_nobody_runs_it_is_a_start_like_any_other(
    machine: Machine, at: int
) -> None:
    server = served(machine, at, "--takeover")
    assert "event=takeover.nobody" in server.program.errors()
    second = machine.tunnel("serve", "--state", str(machine.home / "server"))
    assert second.wait() == 3
    server.program.process.send_signal(signal.SIGKILL)
    server.program.process.wait()
    server = served(machine, at, "--takeover")
    assert server.program.stop() == 0


def test_a_server_of_workers_says_that_it_cannot(machine: Machine, at: int) -> None:
    server = served(machine, at, "--workers", "2")
    state = ("--state", str(machine.home / "server"))
    refused = machine.tunnel("serve", "--takeover", *state)
    assert refused.wait() != 0
    assert "several workers" in refused.errors()
    assert server.program.process.poll() is None
