"""Whoever speaks nonsense, something else or nothing is shown out, and nobody minds."""

from __future__ import annotations

import os
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import WAIT_S, Machine, Server, free_port
from support.targets import END, RESET, drain, read_exactly, visit
from support.world import MODES, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from support.processes import Program
    from support.targets import Content

pytestmark = pytest.mark.usefixtures("waits")

ALPN: Final = "prot/1"
MARGIN_S: Final = 3.0
FIRST_BYTE_S: Final = 5.0
HANDSHAKE_S: Final = 10.0
PIPE_S: Final = 10.0
ANY_TOKEN: Final = "A" * 42 + "E"

GARBAGE: Final = {
    "http": b"GET / HTTP/1.1\r\nHost: example.net\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "zeros": bytes(70_000),
    "ones": b"\xff" * 70_000,
    "random": bytes((17 * n * n + n) % 256 for n in range(5000)),
    "socks": b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
    "tls record": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
}


def address_of(conn: socket.socket) -> str:
    host, port = conn.getsockname()
    return f"{host}:{port}"


def insecure_context(alpn: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def one_line_about(running: Program, peer: str) -> str:
    """Wait for the log line about a peer; there is no other."""
    line = running.err.wait(peer)
    assert running.err.count(peer) == 1
    assert "Traceback" not in running.errors()
    return line


def others_are_served(world: World) -> None:
    for way in "ABC":
        with world.visit(way, "echo") as conn:
            conn.sendall(b"hello")
            assert read_exactly(conn, 5) == b"hello"


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_on_the_link_port_is_closed_with_one_log_line(
    world: World, garbage: bytes
) -> None:
    with visit(world.server.port) as conn:
        peer = address_of(conn)
        conn.sendall(garbage)
        drain(conn)  # ends: the server has closed it
    line = one_line_about(world.server.program, peer)
    assert "link.refused" in line
    others_are_served(world)


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_inside_tls_is_closed_with_one_log_line(
    tls_world: World, garbage: bytes
) -> None:
    world = tls_world
    with (
        visit(world.server.port) as raw,
        insecure_context([ALPN]).wrap_socket(raw) as conn,
    ):
        peer = address_of(conn)
        try:
            conn.sendall(garbage)
            while conn.recv(65_536):
                pass
        except (ssl.SSLError, OSError):
            pass
    assert "link.refused" in one_line_about(world.server.program, peer)
    others_are_served(world)


@pytest.mark.parametrize("alpn", [[], ["h2", "http/1.1"]], ids=["none", "web"])
def test_a_tls_client_of_another_protocol_is_closed_with_one_log_line(
    tls_world: World, alpn: list[str]
) -> None:
    world = tls_world
    with visit(world.server.port) as raw:
        peer = address_of(raw)
        try:
            with insecure_context(alpn).wrap_socket(raw) as conn:
                conn.sendall(GARBAGE["http"])
                assert drain(conn)[0] == 0
        except (ssl.SSLError, OSError):
            pass
    assert "link.refused" in one_line_about(world.server.program, peer)
    others_are_served(world)


@pytest.mark.parametrize("kind", [kind for kind in GARBAGE if kind != "ssh"])
def test_garbage_on_the_socks_port_is_closed_with_one_log_line(
    world: World, kind: str
) -> None:
    """The words of SSH may be the begin of a head: see ``Waits``."""
    garbage = GARBAGE[kind]
    if kind == "socks":
        garbage = b"\x04" + garbage
    with visit(world.port("C", "web")) as app:
        peer = address_of(app)
        app.sendall(garbage)
        # RST where it was shut out with bytes unread, which is right for nonsense
        assert drain(app)[1] in (END, RESET)
    assert "proxy.refused" in one_line_about(world.client, peer)
    others_are_served(world)


def test_a_port_of_a_mapping_carries_any_protocol(world: World) -> None:
    for garbage in GARBAGE.values():
        for way in "AB":
            with world.visit(way, "echo") as conn:
                conn.sendall(garbage[:5000])
                assert read_exactly(conn, len(garbage[:5000])) == garbage[:5000]


def test_a_crowd_that_says_nonsense_does_not_disturb_a_transfer(
    tls_world: World,
) -> None:
    world = tls_world
    size = world.content.size
    with ThreadPoolExecutor(9) as pool:
        command = world.curl("A", f"/0/{size}", "--limit-rate", "16M")
        whole = pool.submit(world.machine.digest_of, *command)

        def disturb(number: int) -> None:
            with visit(world.server.port) as conn:
                conn.sendall(os.urandom(1 + 97 * number))
                conn.shutdown(socket.SHUT_WR)
                drain(conn)

        list(pool.map(disturb, range(100)))
        assert whole.result() == world.content.digest()
    assert "Traceback" not in world.server.program.errors()


# Silence: all at once and beside the other tests, for each takes its whole deadline ---


@dataclass
class Silent:
    """What came of a connection that said no more."""

    seconds: float
    lines: list[str]


class Waits:
    """Begins every silence when it is made; each test looks at one of them."""

    def __init__(self, stack: ExitStack, make: Callable[[], Machine]) -> None:
        self._pool = stack.enter_context(ThreadPoolExecutor(16))
        self._stack = stack
        self.begun: dict[str, Future[Silent]] = {}
        for mode, options in MODES.items():
            machine = make()
            server = machine.serve(*options)
            client = machine.up(server.join, "--socks", "127.0.0.1:0")
            socks = int(client.out.all()[0].split()[1].rpartition(":")[2])
            self._begin(f"{mode} link", server.program, server.port, b"")
            self._begin(f"{mode} link byte", server.program, server.port, b"\x16")
            self._begin(f"{mode} socks", client, socks, b"")
            self._begin(f"{mode} socks greeting", client, socks, b"\x05\x01\x00")
            self._begin(f"{mode} socks ssh", client, socks, GARBAGE["ssh"])
            if mode == "tls":
                self._begin_tls(server)
        machine = make()
        nowhere = f"tunnel+plain://default:{ANY_TOKEN}@127.0.0.1:{free_port()}/"
        began = time.monotonic()
        self.pipe = machine.tunnel("pipe", "127.0.0.1:1", to=nowhere)
        self.pipe_ended = self._pool.submit(self._wait_pipe, began)

    def _wait_pipe(self, began: float) -> tuple[int, float]:
        return self.pipe.wait(), time.monotonic() - began

    def _begin(self, name: str, running: Program, port: int, words: bytes) -> None:
        conn = self._stack.enter_context(visit(port))
        conn.sendall(words)
        self.begun[name] = self._pool.submit(self._watch, running, conn)

    def _begin_tls(self, server: Server) -> None:
        raw = self._stack.enter_context(visit(server.port))
        conn = self._stack.enter_context(insecure_context([ALPN]).wrap_socket(raw))
        self.begun["tls after handshake"] = self._pool.submit(
            self._watch, server.program, conn
        )

    @staticmethod
    def _watch(running: Program, conn: socket.socket) -> Silent:
        peer = address_of(conn)
        began = time.monotonic()
        conn.settimeout(WAIT_S)
        drain(conn)
        seconds = time.monotonic() - began
        running.err.wait(peer)
        lines = [line for line in running.err.all() if peer in line]
        assert "Traceback" not in running.errors()
        return Silent(seconds, lines)


@pytest.fixture(scope="session")
def waits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waits]:
    with ExitStack() as stack:

        def make() -> Machine:
            made = Machine(tmp_path_factory.mktemp("silent"))
            stack.callback(made.close)
            return made

        yield Waits(stack, make)


@pytest.fixture(scope="session")
def tls_world(
    tmp_path_factory: pytest.TempPathFactory, content: Content
) -> Iterator[World]:
    made = World(Machine(tmp_path_factory.mktemp("tls")), content)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "deadline_s", "event"),
    [
        ("tls link", FIRST_BYTE_S, "link.refused"),
        ("tls link byte", HANDSHAKE_S, "link.refused"),
        ("tls after handshake", HANDSHAKE_S, "link.refused"),
        ("tls socks", HANDSHAKE_S, "proxy.refused"),
        ("tls socks greeting", HANDSHAKE_S, "proxy.refused"),
        ("tls socks ssh", HANDSHAKE_S, "proxy.refused"),
        ("plain link", FIRST_BYTE_S, "link.refused"),
        ("plain link byte", HANDSHAKE_S, "link.refused"),
        ("plain socks", HANDSHAKE_S, "proxy.refused"),
        ("plain socks greeting", HANDSHAKE_S, "proxy.refused"),
        ("plain socks ssh", HANDSHAKE_S, "proxy.refused"),
    ],
)
def test_silence_is_closed_at_its_deadline_with_one_log_line(
    waits: Waits, name: str, deadline_s: float, event: str
) -> None:
    silent = waits.begun[name].result()
    assert deadline_s - 0.5 < silent.seconds < deadline_s + MARGIN_S
    assert len(silent.lines) == 1
    assert event in silent.lines[0]


def test_pipe_gives_up_after_10_s_without_a_server(waits: Waits) -> None:
    status, seconds = waits.pipe_ended.result()
    assert status == 4
    assert PIPE_S - 0.5 < seconds < PIPE_S + MARGIN_S
    assert "connection refused" in waits.pipe.errors()
    assert "Traceback" not in waits.pipe.errors()
    assert waits.pipe.out.all() == []
