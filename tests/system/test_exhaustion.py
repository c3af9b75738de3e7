"""A program that runs out of something refuses some, and is well again later."""

from __future__ import annotations

import resource
import selectors
import socket
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Self

import pytest
from support.processes import WAIT_S, descriptors_of, eventually
from support.targets import Target, read_to_end, visit

if TYPE_CHECKING:
    from support.processes import Machine


SMALL: Final = (192, 500)
"""Descriptors of a process, and strangers: enough to use all of them up."""
LARGE: Final = pytest.param(1_024, 5_000, marks=pytest.mark.deep)


def greet(conn: socket.socket) -> object:
    """Answer one byte with another, then wait for the end."""
    conn.recv(1)
    conn.sendall(b"!")
    return conn.recv(1)


def is_served(conn: socket.socket) -> bool:
    """Say whether an answer comes; not before something has come at all."""
    try:
        return conn.recv(1) == b"!"
    except ConnectionResetError:
        return False


def ask(port: int) -> bool:
    """Come, say something, and hear whether there is an answer."""
    with visit(port) as conn:
        conn.sendall(b"?")
        return is_served(conn)


def ask_web(port: int, host: str) -> bytes:
    """Ask for a page; give the first line of the answer."""
    with visit(port) as conn:
        conn.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        return read_to_end(conn)[0].partition(b"\r\n")[0]


def page(conn: socket.socket) -> object:
    """Answer one request with an empty page."""
    conn.recv(4_096)
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    return None


def port_of(line: str) -> int:
    """Give the public port that a line of ``up`` names."""
    return int(line.split()[1].rpartition(":")[2].strip("/"))


class Strangers:
    """Visitors who say nothing, and come again when they are shown out.

    Args:
        port: where.
        count: at once; four times as many come in all.
    """

    def __init__(self, port: int, count: int) -> None:
        self.came = 0
        self._where = ("127.0.0.1", port)
        self._count = count
        self._stop = threading.Event()
        self._all_came = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._all_came.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with ExitStack() as stack, selectors.EpollSelector() as selector:
            for _ in range(self._count):
                self._come(stack, selector)
            self._all_came.set()
            while not self._stop.is_set():
                for key, _ in selector.select(0.01):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]  # a socket
                    if self.came < 4 * self._count:
                        self._come(stack, selector)

    def _come(self, stack: ExitStack, selector: selectors.BaseSelector) -> None:
        self.came += 1
        conn = stack.enter_context(socket.socket())
        conn.setblocking(False)
        conn.connect_ex(self._where)
        selector.register(conn, selectors.EVENT_READ)


@pytest.mark.parametrize("poor", ["server", "client"])
def test_without_descriptors_some_wait_or_are_refused_and_all_is_well_later(
    machine: Machine, poor: str
) -> None:
    with Target(greet) as target:
        server = machine.serve()
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        port = int(client.out.all()[0].split()[1].rpartition(":")[2])
        running = server.program if poor == "server" else client
        for pid in running.pids():
            few = descriptors_of(pid) + 10
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, few))
        with ExitStack() as stack:
            crowd = []
            for _ in range(40):
                with suppress(ConnectionResetError):  # refused before it looked
                    crowd.append(stack.enter_context(visit(port)))
                    crowd[-1].sendall(b"?")
            if poor == "server":  # those who are not accepted wait in the kernel
                assert is_served(crowd[0])
                running.err.wait("accept.failed")
            else:
                assert 0 < sum(map(is_served, crowd)) < 40

        def is_well() -> bool:
            with suppress(ConnectionResetError), visit(port) as conn:
                conn.sendall(b"?")
                return is_served(conn)
            return False

        eventually(is_well, "a visitor is served again")
        assert running.process.poll() is None
        assert "Traceback" not in running.errors()
        assert running.err.count("accept.failed") < 5


@pytest.mark.parametrize(
    ("soft", "count"), [(64, 150), pytest.param(1_024, 1_500, marks=pytest.mark.deep)]
)
def test_the_soft_limit_of_descriptors_is_none(
    machine: Machine, soft: int, count: int
) -> None:
    machine.descriptors = soft, 4 * count
    with Target(greet) as target, ExitStack() as stack:
        server = machine.serve()
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        port = port_of(client.out.all()[0])
        crowd = [stack.enter_context(visit(port)) for _ in range(count)]
        for conn in crowd:
            conn.sendall(b"?")
        assert all(map(is_served, crowd))


@pytest.mark.parametrize(("limit", "count"), [SMALL, LARGE])
@pytest.mark.parametrize("poor", ["server", "client"])
def test_silent_strangers_at_one_port_keep_nobody_from_another(
    machine: Machine, poor: str, limit: int, count: int
) -> None:
    few = limit, limit
    with Target(greet) as target, Target(page) as web:
        machine.descriptors = few if poor == "server" else None
        server = machine.serve("--http", "127.0.0.1:0")
        machine.descriptors = few if poor == "client" else None
        entry = "--tcp", f"0=127.0.0.1:{target.port}"
        name = "--http", f"web.localhost=127.0.0.1:{web.port}"
        client = machine.up(server.join, *entry, *entry, *name)
        other, attacked, http = map(port_of, sorted(client.out.all(), reverse=True))
        with Strangers(attacked, count):
            for _ in range(3):
                assert ask(other)
                assert ask_web(http, "web.localhost").endswith(b"200 OK")
            machine.descriptors = None
            newcomer = machine.up(server.join, *entry)
            assert ask(port_of(newcomer.out.all()[0]))
    assert "Traceback" not in server.program.errors() + client.errors()
    running = server.program if poor == "server" else client
    assert running.err.count("silent.reset") in (1, 2, 3)


@pytest.mark.parametrize(("limit", "count"), [SMALL, LARGE])
def test_silent_strangers_at_the_http_port_keep_nobody_out(
    machine: Machine, limit: int, count: int
) -> None:
    machine.descriptors = limit, limit
    with Target(page) as web, Target(greet) as target:
        server = machine.serve("--http", "127.0.0.1:0")
        client = machine.up(
            server.join,
            *("--http", f"web.localhost=127.0.0.1:{web.port}"),
            *("--tcp", f"0=127.0.0.1:{target.port}"),
        )
        http, port = map(port_of, sorted(client.out.all()))
        with Strangers(http, count):
            assert ask_web(http, "web.localhost").endswith(b"200 OK")
            assert ask(port)


@pytest.mark.parametrize(
    ("limit", "count"), [(192, 300), pytest.param(1_024, 1_500, marks=pytest.mark.deep)]
)
@pytest.mark.parametrize(
    "poor", ["client", pytest.param("server", marks=pytest.mark.deep)]
)
def test_datagrams_from_many_ports_leave_descriptors_for_the_rest(
    machine: Machine, poor: str, limit: int, count: int
) -> None:
    few = limit, limit
    with Target(greet) as target, ExitStack() as stack:
        machine.descriptors = few if poor == "server" else None
        server = machine.serve()
        machine.descriptors = few if poor == "client" else None
        sink = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sink.bind(("127.0.0.1", 0))
        client = machine.up(
            server.join,
            *("--udp", f"0=127.0.0.1:{sink.getsockname()[1]}"),
            *("--tcp", f"0=127.0.0.1:{target.port}"),
        )
        tcp, udp = map(port_of, sorted(client.out.all()))
        for number in range(count):
            visitor = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            visitor.sendto(bytes([number % 256]), ("127.0.0.1", udp))
        running = server.program if poor == "server" else client
        running.err.wait("udp.given_up")
        assert ask(tcp)
        machine.descriptors = None
        newcomer = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        assert ask(port_of(newcomer.out.all()[0]))
        sink.settimeout(WAIT_S)
        while sink.recv(1) != bytes([(count - 1) % 256]):
            pass  # the last of them is served, whoever gave way
    assert "Traceback" not in server.program.errors() + client.errors()
