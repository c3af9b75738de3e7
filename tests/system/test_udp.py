"""``tunnel udp`` with real programs, also beside a download that fills the link."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

import pytest
from support.engines import needs_epoll
from support.processes import WAIT_S, eventually
from support.pysocks import socks
from support.targets import Target, flood, read_exactly, visit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.processes import Machine, Program, Server

COUNT: Final = 1_000
PER_BURST: Final = 50
"""On their way at once: what a kernel that is asked for nothing holds of small ones."""
QUESTIONS: Final = 200
FLOWS: Final = 600
FLOW_BYTES: Final = 8_192
"""Of memory at each end, with its share of what grows in steps."""
LATE_S: Final = 1.0
"""Far above what is measured: this test is about arriving, not about speed."""


class Echo:
    """A UDP service: sends back what comes, in a thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(WAIT_S)
        self._socket.close()

    def _serve(self) -> None:
        while not self._over:
            data, source = self._socket.recvfrom(70_000)
            self._socket.sendto(data, source)


@contextmanager
def visitor(port: int) -> Iterator[socket.socket]:
    """A socket that talks to a public port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(("127.0.0.1", port))
        yield sock


def port_of(client: Program, kind: str) -> int:
    line = client.out.wait(f"{kind} ")
    return int(line.split()[1].rpartition(":")[2])


def ask(sock: socket.socket, number: int) -> float:
    """Ask as a resolver does, and again after a second; give the time it took."""
    question = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0)
    question += b"\4name\4test\0\0\1\0\1"
    began = time.monotonic()
    sock.settimeout(1.0)
    for _ in range(5):
        sock.send(question)
        with contextlib.suppress(TimeoutError):
            while sock.recv(1_000) != question:
                pass
            return time.monotonic() - began
    pytest.fail("five questions were lost")


@pytest.fixture(params=["tls", pytest.param("plain", marks=pytest.mark.deep)])
def server(request: pytest.FixtureRequest, machine: Machine) -> Server:
    return machine.serve(*(("--plain",) if request.param == "plain" else ()))


def test_tunnel_udp_says_one_line_and_carries_datagrams(
    machine: Machine, server: Server
) -> None:
    with Echo() as echo:
        client = machine.tunnel("udp", str(echo.port), to=server.join)
        line = client.out.wait("udp ")
        public = line.split()[1]
        assert line == f"udp {public} localhost:{echo.port}"
        with visitor(port_of(client, "udp")) as sock:
            sock.send(b"hello")
            assert sock.recv(100) == b"hello"
        assert client.stop() == 0


def test_a_thousand_datagrams_come_back_once_each_and_whole(
    machine: Machine, server: Server
) -> None:
    noise = random.Random(5)
    said = [
        struct.pack(">I", number) + noise.randbytes(noise.randrange(1_400))
        for number in range(COUNT)
    ]
    heard = []
    with Echo() as echo:
        client = machine.up(server.join, "--udp", str(echo.port))
        with visitor(port_of(client, "udp")) as sock:
            for at in range(0, COUNT, PER_BURST):
                for datagram in said[at : at + PER_BURST]:
                    sock.send(datagram)
                heard += [sock.recv(2_000) for _ in range(PER_BURST)]
    assert heard == said


def test_the_largest_datagram_comes_back_whole_and_an_empty_one_too(
    machine: Machine, server: Server
) -> None:
    with Echo() as echo:
        client = machine.up(server.join, "--udp", str(echo.port))
        with visitor(port_of(client, "udp")) as sock:
            for size in (65_507, 0, 65_506, 1):
                datagram = random.Random(size).randbytes(size)
                sock.send(datagram)
                assert sock.recv(70_000) == datagram


def test_each_visitor_hears_its_own_answers(machine: Machine, server: Server) -> None:
    with Echo() as echo, contextlib.ExitStack() as stack:
        client = machine.up(server.join, "--udp", str(echo.port))
        port = port_of(client, "udp")
        visitors = [stack.enter_context(visitor(port)) for _ in range(50)]
        for number, sock in enumerate(visitors):
            sock.send(b"%d" % number)
        assert [sock.recv(100) for sock in visitors] == [b"%d" % n for n in range(50)]


@needs_epoll  # else each socket is read by a task of its own
def test_a_silent_flow_takes_little_memory(machine: Machine, server: Server) -> None:
    with Echo() as echo:
        client = machine.up(server.join, "--udp", str(echo.port))
        port = port_of(client, "udp")

        def flows(count: int) -> None:
            for _ in range(count):  # each lives on for a minute or three
                with visitor(port) as sock:
                    sock.send(b"one")
                    assert sock.recv(100) == b"one"

        programs = client, server.program
        flows(FLOWS // 3)
        before = [one.rss_bytes() for one in programs]
        flows(FLOWS)
        each = [
            (one.rss_bytes() - was) / FLOWS
            for one, was in zip(programs, before, strict=True)
        ]
        assert max(each) <= FLOW_BYTES, each


def test_a_service_that_is_not_there_yet_is_heard_when_it_is(
    machine: Machine, server: Server
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
        late.bind(("127.0.0.1", 0))
        port: int = late.getsockname()[1]
        late.close()
        client = machine.up(server.join, "--udp", str(port))
        with visitor(port_of(client, "udp")) as sock:
            sock.send(b"nobody")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
                service.bind(("127.0.0.1", port))
                service.settimeout(WAIT_S)
                sock.send(b"somebody")
                data, source = service.recvfrom(100)
                while data != b"somebody":
                    data, source = service.recvfrom(100)
                service.sendto(b"here", source)
                assert sock.recv(100) == b"here"
            assert client.process.poll() is None


def test_questions_are_answered_while_a_download_fills_the_link(
    machine: Machine, server: Server, figures: Callable[[str], None]
) -> None:
    got = 0
    with Echo() as echo, Target(flood) as bulk:
        client = machine.up(
            server.join, "--udp", str(echo.port), "--tcp", f"0=127.0.0.1:{bulk.port}"
        )
        port = port_of(client, "udp")
        with visit(port_of(client, "tcp")) as download, visitor(port) as sock:

            def read() -> None:
                nonlocal got
                with contextlib.suppress(OSError):
                    while data := download.recv(1 << 20):
                        got += len(data)

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            eventually(lambda: got > 1 << 24, "the download fills the link")
            before, began = got, time.monotonic()
            took = sorted(ask(sock, number) for number in range(QUESTIONS))
            rate = (got - before) / (time.monotonic() - began)
            download.shutdown(socket.SHUT_RDWR)
            reader.join(WAIT_S)
    p99 = took[QUESTIONS * 99 // 100]
    figures(
        f"UDP question beside a download of {rate / 1e6:.0f} MB/s: "
        f"median {took[QUESTIONS // 2] * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms"
    )
    assert got > before, "the questions stopped the download"
    assert p99 < LATE_S


# Through SOCKS5 ----------------------------------------------------------------------


def socks_command(conn: socket.socket, command: int, host: str, port: int) -> None:
    request = bytes((5, command, 0, 1)) + socket.inet_aton(host)
    conn.sendall(b"\5\1\0" + request + port.to_bytes(2, "big"))
    assert read_exactly(conn, 2) == b"\5\0"


def socks_reply(conn: socket.socket) -> tuple[str, int]:
    assert read_exactly(conn, 4) == b"\5\0\0\1"
    host, port = read_exactly(conn, 4), read_exactly(conn, 2)
    return socket.inet_ntoa(host), int.from_bytes(port, "big")


def test_socks_udp_leaves_at_the_server(machine: Machine, server: Server) -> None:
    client = machine.up(server.join, "--socks", "127.0.0.1:0")
    with Echo() as echo, visit(port_of(client, "socks")) as conn:
        socks_command(conn, 3, "0.0.0.0", 0)
        relay = socks_reply(conn)
        where = b"\1" + socket.inet_aton("127.0.0.1") + echo.port.to_bytes(2, "big")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
            app.settimeout(WAIT_S)
            for payload in (b"query", b"", bytes(60_000)):
                app.sendto(b"\0\0\0" + where + payload, relay)
                assert app.recv(70_000) == b"\0\0\0" + where + payload
            by_name = b"\0\0\0\3\x09localhost" + echo.port.to_bytes(2, "big")
            app.sendto(by_name + b"by name", relay)
            assert app.recv(70_000).endswith(b"by name")


def test_socks_udp_to_localhost_finds_a_service_on_ipv6_only(
    machine: Machine, server: Server
) -> None:
    client = machine.up(server.join, "--socks", "127.0.0.1:0")
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as service,
        visit(port_of(client, "socks")) as conn,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app,
    ):
        service.bind(("::1", 0))
        service.settimeout(WAIT_S)
        app.settimeout(WAIT_S)
        port = service.getsockname()[1].to_bytes(2, "big")
        socks_command(conn, 3, "0.0.0.0", 0)
        app.sendto(b"\0\0\0\3\x09localhost" + port + b"ping", socks_reply(conn))
        payload, exit_ = service.recvfrom(100)
        assert payload == b"ping"
        service.sendto(b"pong", exit_)
        source = b"\4" + socket.inet_pton(socket.AF_INET6, "::1") + port
        assert app.recv(100) == b"\0\0\0" + source + b"pong"


def test_socks_bind_takes_one_connection_at_the_server(
    machine: Machine, server: Server
) -> None:
    client = machine.up(server.join, "--socks", "127.0.0.1:0")
    with visit(port_of(client, "socks")) as conn:
        socks_command(conn, 2, "127.0.0.1", 0)
        bound = socks_reply(conn)
        with socket.create_connection(bound, WAIT_S) as peer:
            peer.sendall(b"220 ready")
            assert socks_reply(conn) == peer.getsockname()
            assert read_exactly(conn, 9) == b"220 ready"
            conn.sendall(b"QUIT")
            assert read_exactly(peer, 4) == b"QUIT"


def test_pysocks_sends_datagrams(machine: Machine, server: Server) -> None:
    client = machine.up(server.join, "--socks", "127.0.0.1:0")
    port = port_of(client, "socks")
    with Echo() as echo, socks.socksocket(type=socket.SOCK_DGRAM) as app:
        app.set_proxy(socks.SOCKS5, "127.0.0.1", port)
        app.settimeout(WAIT_S)
        app.sendto(b"query", ("127.0.0.1", echo.port))
        assert app.recvfrom(100) == (b"query", ("127.0.0.1", echo.port))
