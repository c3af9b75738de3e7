"""What attackers did to other tunnels and proxies, done to ours, with real sockets."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
from base64 import b64encode
from contextlib import ExitStack, suppress
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support import frames, lively
from support.flooder import Flooder, reset
from support.namespaces import Namespace, only_as_root
from support.processes import PACKAGE, WAIT_S, eventually, free_port, program
from support.strangers import tls_link
from support.targets import (
    Target,
    ask_socks,
    drain,
    echo,
    flood,
    is_alive,
    read_exactly,
    read_to_end,
    visit,
)

from tunnel.access.join import parse_join
from tunnel.errors import RemoteSessionError
from tunnel.ops.service.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from support.processes import Machine, Program

MIB: Final = 1 << 20
WINDOW_BYTES: Final = 262_144
LINE: Final = re.compile(r"[\x20-\x7e\x80-\U0010ffff]*")
QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
SECRET: Final = "hunter2-open-sesame"


def port_of(client: Program, number: int = 0) -> int:
    return int(client.out.all()[number].split()[1].strip("/").rpartition(":")[2])


# A client that is let in, and attacks -----------------------------------------------


class Attacker(Flooder):
    """A client that has logged in, and does not care how it is shown out."""

    def _read(self) -> None:
        with suppress(OSError, RemoteSessionError):
            super()._read()


class Peak:
    """The most memory that a program holds while it is watched."""

    def __init__(self, running: Program) -> None:
        self.before = self.bytes = running.rss_bytes()
        self._running = running
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            with suppress(FileNotFoundError):
                self.bytes = max(self.bytes, self._running.rss_bytes())

    def end(self) -> int:
        """Give by how much it was more than at the beginning."""
        self._over.set()
        self._thread.join()
        return self.bytes - self.before


def numbers(count: int) -> range:
    return range(1, 2 * count, 2)


def pieces_of(parts: Iterable[bytes], size: int = 262_144) -> Iterator[bytes]:
    """Join small frames to what one write takes."""
    held = bytearray()
    for part in parts:
        held += part
        if len(held) > size:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def opens_without_end(attacker: Attacker) -> Iterator[bytes]:
    """200,000 opens that are never taken back."""
    address = attacker.address
    return (frames.create_tcp(number, address) for number in numbers(200_000))


def opens_and_resets(attacker: Attacker) -> Iterator[bytes]:
    """100,000 opens that are taken back at once, to a target that is slow."""
    address = attacker.address
    for number in numbers(100_000):
        yield frames.create_tcp(number, address) + reset(number)


def opens_that_are_refused(_: Attacker) -> Iterator[bytes]:
    """100,000 opens that the server has to refuse."""
    for number in numbers(100_000):
        yield frames.create_name(number, "nobody") + frames.close(number)


def data_without_an_open(_: Attacker) -> Iterator[bytes]:
    """The longest frame, for a number that nobody has opened."""
    yield frames.data(1, bytes(65_536))
    yield from repeat(frames.data(3, bytes(65_536)), 1_000)


def bytes_one_by_one(attacker: Attacker) -> Iterator[bytes]:
    """A window full of frames of one byte each, to targets that read nothing."""
    for number in numbers(4):
        attacker.open(frames.create_tcp(number, attacker.address))
    for number in numbers(4):
        yield from repeat(frames.data(number, b"x"), WINDOW_BYTES)


def empty_frames(attacker: Attacker) -> Iterator[bytes]:
    """Frames of DATA that have neither bytes nor an end."""
    attacker.open(frames.create_tcp(1, attacker.address))
    yield from repeat(frames.data(1), 1_000_000)


ATTACKS: Final = (
    (opens_without_end, ("CALM", "-"), 64 * MIB),
    (opens_and_resets, ("CALM", "-"), 64 * MIB),
    (opens_that_are_refused, ("CALM", "-"), 64 * MIB),
    (data_without_an_open, ("PROTOCOL",), 8 * MIB),
    (bytes_one_by_one, ("-",), 4 * WINDOW_BYTES * 11 // 10 + 16 * MIB),
    (empty_frames, ("PROTOCOL",), 8 * MIB),
)


@pytest.mark.parametrize(
    ("attack", "codes", "most"), ATTACKS, ids=[one[0].__name__ for one in ATTACKS]
)
def test_an_attack_from_inside_ends_its_link_or_takes_bounded_memory(
    machine: Machine,
    attack: Callable[[Attacker], Iterator[bytes]],
    codes: tuple[str, ...],
    most: int,
    figures: Callable[[str], None],
) -> None:
    with Target(echo) as echoes, ExitStack() as stack:
        slow = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=8))
        server = machine.serve("--plain")
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{echoes.port}")
        visitor = stack.enter_context(visit(port_of(client)))
        assert is_alive(visitor)
        before = server.program.descriptors()
        peak = Peak(server.program)
        attacker = Attacker(server.join, slow.getsockname()[1])
        took: list[float] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                began = time.monotonic()
                assert is_alive(visitor)
                took.append(time.monotonic() - began)
                over.wait(0.01)

        asking = threading.Thread(target=ask)
        asking.start()
        stack.callback(asking.join)
        stack.callback(over.set)
        attacker.wire.settimeout(WAIT_S)
        try:
            for piece in pieces_of(attack(attacker)):
                attacker.wire.sendall(piece)
        except TimeoutError:
            """It is not read any more: what it sends is bounded too."""
        except OSError:
            """It was shown out."""
        if "-" not in codes:  # what it was told is lost if it had not read so far
            server.program.err.wait(f"code={codes[0]}")
        asked = len(took)
        eventually(lambda: len(took) > asked + 5, "others are served")
        over.set()
        asking.join()
        grown = peak.end()
        code = codes[0] if server.program.err.count(f"code={codes[0]}") else "-"
        with suppress(OSError):
            attacker.wire.shutdown(socket.SHUT_RDWR)
        attacker.wire.close()
        slow.close()
        eventually(lambda: server.program.descriptors() <= before, "nothing is left")
    worst = 1_000 * max(took)
    figures(f"{attack.__name__}: {code}, +{grown / 1e6:.1f} MB, echo ≤ {worst:.0f} ms")
    assert code in codes
    assert grown < most
    assert "Traceback" not in server.program.errors()
    assert len(server.program.err.all()) < 250


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.deep)])
def test_who_takes_nothing_of_many_answers_is_sent_a_window_each(
    machine: Machine, count: int, figures: Callable[[str], None]
) -> None:
    """The attacker never grants more: what its targets send stays with them."""
    with Target(flood) as target, Target(echo) as echoes:
        server = machine.serve("--plain")
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{echoes.port}")
        attacker = Attacker(server.join, target.port)
        peak = Peak(server.program)
        for number in numbers(count):
            attacker.wire.sendall(frames.create_tcp(number, attacker.address))
            time.sleep(0.002)
        last = time.monotonic()
        computed = server.program.computed_s()
        while time.monotonic() - last < 30:
            time.sleep(0.5)
            if server.program.computed_s() - computed < 0.05:
                break
            computed = server.program.computed_s()
        with visit(port_of(client)) as conn:
            assert is_alive(conn)
        grown = peak.end()
        attacker.wire.close()
    figures(f"{count} windows that stay shut: +{grown / 1e6:.1f} MB")
    assert grown < count * 65_536 + 32 * MIB
    assert "Traceback" not in server.program.errors()


def test_half_a_handshake_from_many_keeps_nobody_out(machine: Machine) -> None:
    with Target(echo) as target, ExitStack() as stack:
        server = machine.serve()
        join = parse_join(server.join)
        for number in range(64):
            if number % 2:
                wire = stack.enter_context(tls_link(join))
                wire.sendall(frames.hello()[:-1])
            else:
                raw = stack.enter_context(visit(join.port))
                raw.sendall(b"\x16\x03\x01\x02\x00\x01")
        began = time.monotonic()
        with contextlib.closing(visit(join.port)):
            client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        assert time.monotonic() - began < 9, "before one of them has to leave"
        with visit(port_of(client)) as conn:
            assert is_alive(conn)


def test_a_port_that_leads_to_itself_costs_nobody_else_his_way(
    machine: Machine,
) -> None:
    """Each round takes two descriptors: it ends where an entry has its share."""
    machine.descriptors = 512, 512
    with Target(echo) as target, ExitStack() as stack:
        server = machine.serve()
        loop = free_port()
        client = machine.up(
            server.join, "--tcp", f"{loop}=127.0.0.1:{loop}",
            "--tcp", f"0=127.0.0.1:{target.port}",
        )  # fmt: skip
        port = next(
            int(line.split()[1].rpartition(":")[2])
            for line in client.out.all()
            if line.endswith(f":{target.port}")
        )
        for _ in range(3):
            stack.enter_context(visit(loop)).sendall(b"round and round")
        sides = (server.program, client)

        def rests() -> bool:
            before = [side.computed_s() for side in sides]
            time.sleep(0.5)
            after = [side.computed_s() for side in sides]
            return max(b - a for a, b in zip(before, after, strict=True)) < 0.1

        eventually(rests, "the rounds end")
        assert max(side.descriptors() for side in sides) < 450
        with visit(port) as conn:
            assert is_alive(conn)
        newcomer = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        with visit(port_of(newcomer)) as conn:
            assert is_alive(conn)


def test_a_proxy_that_is_asked_for_itself_is_asked_once(machine: Machine) -> None:
    """And for the port of the links it gets what every stranger there gets."""
    server = machine.serve("--plain")
    client = machine.up(server.join, "--socks", "127.0.0.1:0")
    port = port_of(client)
    before = client.descriptors()
    reply, app = ask_socks(port, "127.0.0.1", port)
    with app:
        assert reply == 0
        app.sendall(b"\x05\x01\x00")
        assert read_exactly(app, 2) == b"\x05\x00"
        assert client.descriptors() < before + 12
    reply, app = ask_socks(port, "127.0.0.1", server.port)
    with app:
        assert reply == 0
        app.sendall(b"GET / HTTP/1.1\r\n\r\n")
        drain(app)
    server.program.err.wait("link.refused")
    with visit(port) as app:
        url = f"http://127.0.0.1:{port}/".encode()
        app.sendall(
            b"GET " + url + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        said, _ = read_to_end(app)
        assert int(said.split()[1]) in (400, 502, 508)
    eventually(lambda: client.descriptors() <= before, "nothing is left")


# Secrets and words ------------------------------------------------------------------


def test_a_login_is_asked_of_each_connection_and_no_word_of_it_is_logged(
    machine: Machine,
) -> None:
    """Behind a tunnel all come from one address: who it is says nothing."""
    with Target(echo) as target:
        server = machine.serve()
        client = machine.up(server.join, "--socks", f"127.0.0.1:0,auth=me:{SECRET}")
        port = port_of(client)

        def log_in(password: bytes) -> bytes:
            with visit(port) as app:
                app.sendall(b"\x05\x01\x02")
                assert read_exactly(app, 2) == b"\x05\x02"
                app.sendall(b"\x01\x02me" + bytes([len(password)]) + password)
                return read_exactly(app, 2)

        def connect(login: str) -> bytes:
            with visit(port) as app:
                app.sendall(
                    f"CONNECT 127.0.0.1:{target.port} HTTP/1.0\r\n{login}\r\n".encode()
                )
                return app.recv(12)

        right = b64encode(f"me:{SECRET}".encode()).decode()
        assert log_in(SECRET.encode()) == b"\x01\x00"
        assert connect(f"Proxy-Authorization: Basic {right}\r\n").endswith(b"200")
        with visit(port) as app:
            app.sendall(b"\x05\x01\x00")
            assert read_exactly(app, 2) == b"\x05\xff"
        assert connect("").endswith(b"407")
        wrong = f"{SECRET}-not"
        assert log_in(wrong.encode()) == b"\x01\x01"
        basic = b64encode(f"me:{wrong}".encode()).decode()
        assert connect(f"Proxy-Authorization: Basic {basic}\r\n").endswith(b"407")
        client.err.wait("login")
    for side in (client, server.program):
        said = side.errors() + "\n".join(side.out.all())
        for secret in (SECRET, right, basic):
            assert secret not in said


def test_what_a_client_opens_by_itself_is_for_this_machine_only(
    machine: Machine,
) -> None:
    with Target(echo) as target:
        server = machine.serve()
        client = machine.up(
            server.join, "--socks", "0", "--reach", f"0=127.0.0.1:{target.port}"
        )
        listening = {
            (line.split()[1], line.split()[9])
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        }
        own = {
            Path(f"/proc/{client.pid}/fd", name.name).readlink().name
            for name in Path(f"/proc/{client.pid}/fd").iterdir()
            if name.is_symlink()
        }
        addresses = {
            where.partition(":")[0]
            for where, inode in listening
            if f"socket:[{inode}]" in own
        }
        assert addresses
        assert addresses <= {"0100007F", "00000000000000000000000001000000"}


HOSTILE_NAMES: Final = (
    b"a\r\nX: y",
    b"a\n2026-01-01 level=error event=forged",
    b"a\0b",
    b"\x1b[2J\x1b[31mred",
    b"a b",
    b"fe80::1%eth0\n",
    "‮evil".encode(),
    b"\xff\xfe",
    b"%0d%0aX",
)


def test_no_name_that_somebody_sends_makes_a_line_of_the_log_or_a_head(
    machine: Machine,
) -> None:
    """Through SOCKS 4a and 5, HTTP, host names and the link start."""
    heads: list[bytes] = []

    def hear(conn: socket.socket) -> object:
        heads.append(conn.recv(65_536))
        return None

    with Target(hear) as target:
        server = machine.serve("--plain", "--http", "127.0.0.1:0")
        client = machine.up(
            server.join, "--socks", "127.0.0.1:0", "--http", f"web={target.port}"
        )
        where = {line.split()[0]: line.split()[1] for line in client.out.all()}
        socks, http = (
            int(where[kind].strip("/").rpartition(":")[2]) for kind in ("socks", "http")
        )
        said: dict[int, Callable[[bytes], tuple[bytes, ...]]] = {
            socks: lambda name: (
                b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name + b"\x00\x50",
                b"\x04\x01\x00\x50\x00\x00\x00\x01" + name + b"\x00" + name + b"\x00",
                b"CONNECT " + name + b":80 HTTP/1.1\r\nHost: " + name + b"\r\n\r\n",
                b"GET http://" + name + b"/ HTTP/1.1\r\nHost: " + name + b"\r\n\r\n",
            ),
            http: lambda name: (
                b"GET / HTTP/1.1\r\nHost: " + name + b"\r\n\r\n",
                b"GET /" + name + b" HTTP/1.1\r\nHost: web.localhost\r\n"
                b"X-Forwarded-For: " + name + b"\r\nConnection: close\r\n\r\n",
            ),
            server.port: lambda name: (
                frames.hello(tlvs=frames.tlv(7, name[:64])) + frames.auth(name),
            ),
        }  # fmt: skip
        for port, ways in said.items():
            with ExitStack() as stack:  # at once: who fails to log in waits a second
                conns = []
                for words in (words for name in HOSTILE_NAMES for words in ways(name)):
                    conns.append(stack.enter_context(visit(port)))
                    with suppress(OSError):
                        conns[-1].settimeout(5)
                        conns[-1].sendall(words)
                        conns[-1].shutdown(socket.SHUT_WR)
                for conn in conns:
                    with suppress(OSError):
                        drain(conn)
        assert heads
        for head in heads:
            lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
            assert not any(line.startswith((b"X: y", b"X\r")) for line in lines)
            assert b"\n" not in b"".join(lines)
    for side in (server.program, client):
        for line in side.err.all():
            assert LINE.fullmatch(line), repr(line)
            assert line.isprintable(), repr(line)
            assert QUOTED.sub("", line).count(" event=") == 1, line
            assert " event=forged" not in QUOTED.sub("", line)
        assert "Traceback" not in side.errors()
    # They are in the log, all but the one that is no UTF-8.
    said_by = server.program.errors().count(" claimed=")
    assert said_by == len(HOSTILE_NAMES) - 1


def test_no_line_that_a_program_prints_by_itself_holds_a_secret(
    machine: Machine,
) -> None:
    with Target(echo) as target:
        server = machine.serve("--http", "127.0.0.1:0")
        token = parse_join(server.join).token.reveal()
        client = machine.up(
            server.join, "--json", "--socks", f"127.0.0.1:0,auth=me:{SECRET}",
            "--http", f"web={target.port},auth=me:{SECRET}", ready=2,
        )  # fmt: skip
        cmdline = Path(f"/proc/{client.pid}/cmdline").read_text()
        assert client.stop() == 0
        for said in (client.errors(), "\n".join(client.out.all()), cmdline,
                     server.program.errors()):  # fmt: skip
            assert SECRET not in said
            assert token not in said


# Slow ones --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count",
    [300, pytest.param(2_000, marks=[pytest.mark.deep, pytest.mark.timeout(600)])],
)
@pytest.mark.parametrize(
    "door",
    [
        "http",
        *(
            pytest.param(door, marks=pytest.mark.deep)
            for door in ("link", "proxy", "https")
        ),
    ],
)
def test_many_who_speak_slowly_at_a_door_keep_nobody_out(
    machine: Machine, door: str, count: int
) -> None:
    machine.command = lively.COMMAND
    slow_words = {
        "link": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "proxy": b"GET http://a.test/ HTTP/1.1\r\nX: y",
        "http": b"GET / HTTP/1.1\r\nHost: web.localhost\r\nX: y",
        "https": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }[door]
    with Target(echo) as target, ExitStack() as stack:
        server = machine.serve("--http", "127.0.0.1:0", "--https", "127.0.0.1:0")
        client = machine.up(
            server.join, "--socks", "127.0.0.1:0", "--http", f"web={target.port}",
            "--https", f"pass={target.port}", "--tcp", f"0=127.0.0.1:{target.port}",
        )  # fmt: skip
        ports = {
            line.split()[0]: int(line.split()[1].strip("/").rpartition(":")[2])
            for line in client.out.all()
        } | {"link": server.port}
        ports["proxy"] = ports["socks"]
        slow = [stack.enter_context(visit(ports[door])) for _ in range(count)]
        for at in range(5):
            for conn in slow:
                with suppress(OSError):
                    conn.send(slow_words[at : at + 1])
        began = time.monotonic()
        with visit(ports["tcp"]) as conn:
            assert is_alive(conn)
        with visit(ports["http"]) as conn:
            conn.sendall(b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n")
            assert read_exactly(conn, 12) == b"HTTP/1.1 404"
        reply, app = ask_socks(ports["proxy"], "127.0.0.1", target.port)
        with app:
            assert reply == 0
            assert is_alive(app)
        assert time.monotonic() - began < 3
        newcomer = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        with visit(port_of(newcomer)) as conn:
            assert is_alive(conn)
        for conn in slow[:: count // 10]:
            conn.settimeout(2 * WAIT_S)
            read_to_end(conn)  # it ends, whatever it was told
    assert "Traceback" not in server.program.errors() + client.errors()


# Datagrams --------------------------------------------------------------------------


def test_a_datagram_from_another_address_is_never_relayed(machine: Machine) -> None:
    with ExitStack() as stack:
        sink = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(WAIT_S)
        to = sink.getsockname()[1].to_bytes(2, "big")
        server = machine.serve()
        client = machine.up(server.join, "--socks", "127.0.0.1:0")
        app = stack.enter_context(visit(port_of(client)))
        app.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        relay = int.from_bytes(read_exactly(app, 12)[10:], "big")
        head = b"\0\0\0\x01\x7f\0\0\x01" + to

        def send(source: str, words: bytes) -> socket.socket:
            udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            udp.bind((source, 0))
            udp.sendto(head + words, ("127.0.0.1", relay))
            return udp

        for at in range(2, 52):
            send(f"127.0.0.{at}", b"spoofed")
        own = send("127.0.0.1", b"own")
        data, exit_ = sink.recvfrom(100)
        assert data == b"own", "nothing came before it"
        for at in range(2, 52):
            send(f"127.0.0.{at}", b"spoofed")
        send("127.0.0.1", b"another program of the app's machine")
        # No answer before the app has spoken, and none to anybody else.
        sink.sendto(b"answer", exit_)
        own.settimeout(WAIT_S)
        assert own.recv(100) == head + b"answer"
        own.sendto(head + b"again", ("127.0.0.1", relay))
        assert sink.recv(100) == b"again"
        app.close()

        def is_gone() -> bool:
            with socket.socket(type=socket.SOCK_DGRAM) as probe:
                probe.connect(("127.0.0.1", relay))
                probe.settimeout(0.2)
                try:
                    probe.send(b"x")
                    probe.recv(1)
                except ConnectionRefusedError:
                    return True
                except TimeoutError:
                    return False
            return False

        eventually(is_gone, "the port has gone with its connection", 5)


# Privileges -------------------------------------------------------------------------


def test_a_server_without_any_privilege_but_low_ports_serves_one(
    machine: Machine,
) -> None:
    """The system gives it that one, and it has no use for another."""
    only_as_root()
    place = Namespace(machine)
    cap = "+net_bind_service"
    machine.command = (
        *place.enter, program("setpriv"), "--no-new-privs",
        "--bounding-set", f"-all,{cap}", f"--inh-caps=-all,{cap}",
        f"--ambient-caps=-all,{cap}", sys.executable, "-m", "tunnel",
    )  # fmt: skip
    running = machine.tunnel(
        "serve", "--listen", "127.0.0.1:443", "--http", "127.0.0.1:80",
        "--state", str(machine.home / "server"),
    )  # fmt: skip
    running.out.wait("tunnel://")
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{running.pid}/status").read_text().splitlines()
    )
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 10

    def come() -> bytes:
        with visit(80) as conn:
            conn.sendall(b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n")
            return read_exactly(conn, 12)

    assert place.inside(come) == b"HTTP/1.1 404"


def test_what_the_pages_tell_to_run_is_not_run_as_root() -> None:
    text = (PACKAGE / "docs" / "container.md").read_text()
    unit = Unit("serve", "tunnel-serve", ["/tunnel", "serve"], low_ports=True).text()
    recipe = text.partition("```dockerfile")[2].partition("```")[0]
    assert "tunnel service install" in text
    assert "\nDynamicUser=yes\n" in unit
    assert "\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in unit
    assert re.search(r"^USER [1-9]\d*$", recipe, re.MULTILINE)
