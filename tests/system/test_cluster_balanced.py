"""Three nodes behind HAProxy in TCP mode: cuts, drains, and who answers."""

from __future__ import annotations

import hashlib
import http.client
import random
import signal
import socket
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from support.processes import Machine, eventually, free_port, program
from support.targets import Content, Target, echo, read_exactly, visit, web
from support.three_nodes import start_node, three_nodes
from support.web_server import web_server

from tunnel.center.drain import MOVE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Program
    from support.three_nodes import Cluster

DRAIN_S = 40
README = Path(__file__).parents[2] / "README.md"


class Haproxy:
    """HAProxy in front of the nodes: for links, and for visitors."""

    def __init__(self, machine: Machine, cluster: Cluster, folder: Path) -> None:
        self.links, self.web = free_port(), free_port()
        self._socket = folder / "h"
        recipe = README.read_text().split("<!-- haproxy -->\n```haproxy\n")[1]
        text = recipe.split("```")[0].replace("inter 1s fall 2", "inter 200ms fall 1")
        text = text.replace("bind :7443", f"bind 127.0.0.1:{self.links}")
        text = text.replace("bind :80\n", f"bind 127.0.0.1:{self.web}\n")
        for number, node in enumerate(cluster.nodes, 1):
            text = text.replace(f"10.0.0.{number}:7443", f"127.0.0.1:{node.link}")
            text = text.replace(f"10.0.0.{number}:8080", f"127.0.0.1:{node.web}")
        config = folder / "haproxy.cfg"
        config.write_text(f"global\n    stats socket {folder}/h level admin\n{text}")
        self.program = machine.start(program("haproxy"), "-f", str(config))
        eventually(self._is_up, "the balancer")

    def _is_up(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.web)).close()
        except OSError:
            return False
        return self._socket.exists()

    def ask(self, command: str) -> str:
        """Ask at its socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._socket))
            sock.sendall(command.encode() + b"\n")
            said = b""
            while data := sock.recv(65_536):
                said += data
        return said.decode()

    def cut(self) -> int:
        """Break all links; return how many there were."""
        lines = self.ask("show sess").splitlines()
        ids = [line.split(":")[0] for line in lines if " fe=links " in line]
        for number in ids:
            self.ask(f"shutdown session {number}")
        return len(ids)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    program("haproxy")
    with three_nodes(tmp_path, "--drain", f"{DRAIN_S}s") as nodes:
        yield nodes


@pytest.fixture
def balanced(cluster: Cluster, tmp_path: Path) -> Iterator[Haproxy]:
    (tmp_path / "balancer").mkdir()
    machine = Machine(tmp_path / "balancer")
    yield Haproxy(machine, cluster, tmp_path / "balancer")
    machine.close()


def naming(name: str) -> type[BaseHTTPRequestHandler]:
    """A web service that says its name and the host that was asked for."""

    class Named(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            said = f"{name} {self.headers['Host']}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Named


class Clients:
    """Clients with names and a port each, each with a visitor who stays."""

    def __init__(self, stack: ExitStack, folder: Path, join: str, count: int,
        names: int) -> None:  # fmt: skip
        self.count, self.names = count, names
        self.programs: list[Program] = []
        self.visitors: list[socket.socket] = []
        target = stack.enter_context(Target(echo))
        for number in range(count):
            to = stack.enter_context(web_server(naming(f"c{number}")))
            machine = Machine(folder / f"c{number}")
            machine.home.mkdir()
            stack.callback(machine.close)
            entries = [
                word
                for name in range(names)
                for word in ("--http", f"n{name}-c{number}={to}")
            ]
            one = machine.up(join, "--tcp", f"{target.port}", *entries)
            self.programs.append(one)
            port = int(one.out.wait("tcp ").split()[1].rpartition(":")[2])
            self.visitors.append(stack.enter_context(visit(port)))

    def all_alive(self, said: bytes) -> None:
        """Have every visitor hear what it says."""
        for one in self.visitors:
            one.sendall(said)
        for one in self.visitors:
            assert read_exactly(one, len(said)) == said


class Load:
    """Visitors of random names at random nodes; what is wrong is kept."""

    def __init__(self, clients: Clients, port: int, threads: int) -> None:
        self._clients, self._port = clients, port
        self.count = 0
        self.wrong: list[str] = []
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(number,), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for one in self._threads:
            one.join()

    def _visit(self, seed: int) -> None:
        choose = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._stopped.is_set():
            client = choose.randrange(self._clients.count)
            host = f"n{choose.randrange(self._clients.names)}-c{client}.t.test"
            closes = choose.random() < 0.3
            try:
                connection.request("GET", "/", headers={"Host": host})
                answer = connection.getresponse()
                said = answer.read().decode()
                if (answer.status, said) != (200, f"c{client} {host}"):
                    self.wrong.append(f"{answer.status} {said[:60]!r}")
                self.count += 1
                closes = closes or answer.will_close
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                closes = True
            if closes:
                connection.close()
                connection = http.client.HTTPConnection(
                    "127.0.0.1", self._port, timeout=20
                )
            time.sleep(0.02)
        connection.close()


def joined(cluster: Cluster, balanced: Haproxy) -> str:
    return cluster.join.replace(f":{cluster.balancer.port}/", f":{balanced.links}/")


@pytest.mark.deep
def test_links_are_cut_a_thousand_times_and_no_byte_is_lost(
    cluster: Cluster, balanced: Haproxy, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        clients = Clients(stack, tmp_path, joined(cluster, balanced), 20, 10)
        load = stack.enter_context(Load(clients, balanced.web, 8))
        cuts = rounds = 0
        while cuts < 1_000:
            cuts += balanced.cut()
            rounds += 1
            clients.all_alive(b"%d " % rounds * 200)
        assert load.count > 300
        # A visitor whose owner's link has just been cut waits for another.
        assert load.wrong == []
        log = "".join(one.errors() for one in clients.programs)
        assert log.count("event=link.resumed") > 900
        assert "session.lost" not in log


def test_a_rolling_upgrade_is_noticed_by_nobody(
    cluster: Cluster, balanced: Haproxy, tmp_path: Path
) -> None:
    content = Content(tmp_path / "content", 2)
    with ExitStack() as stack:
        clients = Clients(stack, tmp_path, joined(cluster, balanced), 4, 4)
        files = stack.enter_context(Target(web(content)))
        home = Machine(tmp_path / "files")
        home.home.mkdir()
        stack.callback(home.close)
        entries = [word for _ in range(4) for word in ("--tcp", f"0={files.port}")]
        far = home.up(joined(cluster, balanced), *entries)
        far.out.wait("tcp ", 4)
        ports = [
            int(line.split()[1].rpartition(":")[2])
            for line in far.out.all() if line.startswith("tcp ")
        ]  # fmt: skip
        load = stack.enter_context(Load(clients, balanced.web, 64))
        eventually(lambda: load.count > 500, "visitors")
        for number, node in enumerate(cluster.nodes):
            transfers = [_Transfer(port, content.size) for port in ports]
            node.program.send(signal.SIGTERM)
            for visitor in clients.visitors:  # who has come is let go within the drain
                visitor.close()
            clients.visitors.clear()
            assert [one.digest() for one in transfers] == [content.digest()] * 4
            assert node.program.wait(DRAIN_S + 10) == 0, node.program.errors()
            again = start_node(
                node.machine, cluster.redis, f"n{number}", "--drain", f"{DRAIN_S}s",
                at=(node.link, node.web),
            )  # fmt: skip
            cluster.nodes[number] = again
            before = load.count
            eventually(lambda now=before: load.count > now + 300, "visitors")  # type: ignore[misc]
    log = "".join(one.errors() for one in (far, *clients.programs))
    assert load.wrong == []
    assert "session.lost" not in log
    assert log.count("event=session.departs") >= 5
    assert MOVE_S < DRAIN_S


class _Transfer:
    """A download that has begun, and the hash of what comes."""

    def __init__(self, port: int, size: int) -> None:
        self._sock = visit(port)
        self._sock.sendall(f"GET /0/{size} HTTP/1.1\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._sock.recv(4_096)
        body = head.partition(b"\r\n\r\n")[2]
        self._digest = hashlib.sha256(body)
        self._left = size - len(body)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while self._left:
            data = self._sock.recv(min(self._left, 1 << 20))
            if not data:
                break
            self._digest.update(data)
            self._left -= len(data)
        self._sock.close()

    def digest(self) -> str:
        self._thread.join()
        return self._digest.hexdigest()
