"""Processes that take over what their file says now, while they carry connections."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import statistics
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import WAIT_S, eventually, free_port
from support.targets import Target, read_exactly, visit

from tunnel.access.join import make_token, parse_join
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Machine, Program

DEFAULT: Final = 64
"""Connections that ask small questions."""
BULK: Final = 4
BLOCK: Final = os.urandom(1 << 16)


class Written:
    """A configuration file, saved as an editor does: moved into its place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.path)


@dataclass
class Asker:
    """One connection to an echo that asks on and on; notes how long answers took."""

    port: int
    size: int
    took_s: list[tuple[float, float]] = field(default_factory=list)
    """When each answer came, and how long it took."""
    sent: int = 0
    fault: str = ""

    def __post_init__(self) -> None:
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        out, back = hashlib.sha256(), hashlib.sha256()
        number = 0
        try:
            with visit(self.port) as sock:
                sock.settimeout(WAIT_S)
                while not self.over.is_set():
                    number += 1
                    asked = number.to_bytes(8, "big") + BLOCK[: self.size - 8]
                    out.update(asked)
                    began = time.monotonic()
                    sock.sendall(asked)
                    back.update(read_exactly(sock, len(asked)))
                    self.took_s.append((time.monotonic(), time.monotonic() - began))
                    self.sent += len(asked)
                    time.sleep(0 if self.size > 1_000 else 0.02)
        except OSError as error:
            self.fault = str(error) or type(error).__name__
        if out.digest() != back.digest():
            self.fault = self.fault or "other bytes came back"

    def stop(self) -> None:
        self.over.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        assert not self.fault, self.fault
        assert self.sent


def can_visit(port: int, word: bytes = b"hello") -> bool:
    try:
        with visit(port) as sock:
            sock.settimeout(2)
            sock.sendall(word)
            return read_exactly(sock, len(word)) == word
    except OSError:
        return False


def is_cut(sock: socket.socket) -> bool:
    """Wait until a connection is reset."""
    sock.settimeout(WAIT_S)
    try:
        sock.sendall(b"gone")
        return not sock.recv(5)
    except ConnectionError:
        return True


def refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def p99(answers: list[float]) -> float:
    return statistics.quantiles(answers, n=100)[98] if len(answers) > 1 else 0.0


@dataclass
class Pair:
    """A server and a client that read files, and what is in them."""

    machine: Machine
    target: Target
    kept: int = field(default_factory=free_port)
    changed: int = field(default_factory=free_port)
    removed: int = field(default_factory=free_port)
    added: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        home = self.machine.home
        self.server_file = Written(home / "serve.toml")
        self.client_file = Written(home / "up.toml")
        self.listen = free_port()
        self.serve_text()
        self.server = self.machine.tunnel("serve", "--config", str(home / "serve.toml"))
        self.join = self.server.out.wait("tunnel")
        self.up_text()
        self.client = self.machine.tunnel("up", "--config", str(home / "up.toml"))
        for number in range(3):
            self.client.out.wait("tcp ", number + 1)

    def serve_text(self, *more: str, port: int | None = None) -> None:
        self.server_file.write(
            "\n".join(
                (
                    "[server]",
                    f'listen = "127.0.0.1:{port or self.listen}"',
                    f'state = "{self.machine.home}/server"',
                    *more,
                )
            )
        )

    def up_text(
        self,
        *more: str,
        changed_to: int | None = None,
        ports: tuple[int, ...] | None = None,
    ) -> None:
        lines = ["[client]", f'to = "{self.join}"']
        for port in ports or (self.kept, self.changed, self.removed):
            to = self.target.port
            if port == self.changed and changed_to is not None:
                to = changed_to
            lines += ["[[client.tcp]]", f'remote = "{port}"', f'target = "{to}"']
        self.client_file.write("\n".join((*lines, *more)))

    def reload(self, how: str, *programs: Program) -> None:
        """Have programs take their files over, as people do; wait until they have."""
        done = [program.err.count("event=config.reloaded") for program in programs]
        for program in programs:
            if how == "signal":
                program.send(signal.SIGHUP)
            elif how == "command":
                role = "serve" if program is self.server else "up"
                name = f"{role}-{program.pid}"
                asked = self.machine.run(*self.machine.command, "reload", name)
                assert asked.returncode == 0, asked.stderr
        for program, before in zip(programs, done, strict=True):
            program.err.wait("event=config.reloaded", before + 1)


@pytest.fixture
def pair(machine: Machine, target: Target) -> Pair:
    return Pair(machine, target)


def shouted(sock: socket.socket) -> str:
    while data := sock.recv(65_536):
        sock.sendall(data.upper())
    return "end"


def test_an_entry_comes_one_changes_and_one_goes(pair: Pair) -> None:
    with (
        Target(shouted) as loud,
        visit(pair.changed) as old,
        visit(pair.removed) as last,
    ):
        for sock in (old, last):
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
        ports = pair.kept, pair.changed, pair.added
        pair.up_text(changed_to=loud.port, ports=ports)
        pair.reload("saved", pair.client)
        changes = [
            line.partition("change=")[2].strip('"')
            for line in pair.client.err.all()
            if "event=config.change" in line
        ]
        assert changes == [
            f"- tcp {pair.removed}",
            f"~ tcp {pair.changed} target",
            f"+ tcp {pair.added}",
        ]
        eventually(lambda: can_visit(pair.added), "the new entry")
        eventually(lambda: refused(pair.removed), "the end of the old one")
        with visit(pair.changed) as new:
            new.sendall(b"hello")
            assert read_exactly(new, 5) == b"HELLO"
        for sock in (old, last):  # they go on as they began
            sock.sendall(b"still")
            assert read_exactly(sock, 5) == b"still"
        pair.client_file.write("")


def test_now_cuts_what_was_changed_or_removed_and_nothing_else(pair: Pair) -> None:
    with (
        visit(pair.changed) as old,
        visit(pair.removed) as last,
        visit(pair.kept) as on,
    ):
        for sock in (old, last, on):
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
        pair.up_text(changed_to=1, ports=(pair.kept, pair.changed))
        asked = pair.machine.run(*pair.machine.command, "reload", "up", "--now")
        assert asked.returncode == 0, asked.stderr
        for sock in (old, last):
            assert is_cut(sock)
        on.sendall(b"still")
        assert read_exactly(on, 5) == b"still"


def test_a_faulty_file_changes_nothing_and_every_fault_is_told(pair: Pair) -> None:
    pair.up_text('[[client.tcp]]\nremote = "70000"\ntarget = "x"', "nonsense = 1")
    asked = pair.machine.run(*pair.machine.command, "reload", "up")
    assert asked.returncode == 3
    faults = asked.stderr.decode().splitlines()
    assert len(faults) >= 2
    assert all("up.toml:" in fault for fault in faults)
    for fault in faults:
        number = fault.partition("up.toml:")[2].partition(":")[0]
        pair.client.err.wait(f"up.toml:{number}")
    assert not pair.client.err.count("event=config.change")
    pair.serve_text("domain = 7")
    asked = pair.machine.run(*pair.machine.command, "reload", "serve")
    assert asked.returncode == 3
    for port in (pair.kept, pair.changed, pair.removed):
        assert can_visit(port)
    pair.up_text(ports=(pair.kept,))
    pair.reload("saved", pair.client)
    assert can_visit(pair.kept)
    eventually(lambda: refused(pair.changed), "what the next good file leaves out")


def test_a_file_that_says_nothing_any_more_changes_nothing(pair: Pair) -> None:
    """As an editor that truncates leaves it, or a full disk: it was no defaults."""
    for text in ("", "# nothing\n", "[client]\ndrain = '1s'\n"):
        pair.server_file.write(text)
        asked = pair.machine.run(*pair.machine.command, "reload", "serve")
        assert asked.returncode == 3
        assert b"[server] is there no more" in asked.stderr
    pair.client_file.write("")
    asked = pair.machine.run(*pair.machine.command, "reload", "up")
    assert asked.returncode == 3
    assert b"[client] is there no more" in asked.stderr
    assert can_visit(pair.kept)
    assert not pair.client.err.count("link.lost")
    assert not refused(pair.listen)


def test_a_server_moves_and_what_needs_a_restart_is_said(pair: Pair) -> None:
    port = free_port()
    pair.serve_text('drain = "3s"', 'idle = "1h"', port=port)
    pair.reload("command", pair.server)
    pair.server.err.wait('change="~ listen"')
    pair.server.err.wait('change="! idle: needs a restart"')
    assert can_visit(pair.kept)  # the link that was there stays
    kept = (pair.machine.home / "server" / "join").read_text(encoding="utf-8")
    assert f":{port}/" in kept
    assert refused(pair.listen)
    assert not refused(port)


def test_of_a_thousand_entries_one_is_changed_within_a_second(machine: Machine) -> None:
    http = free_port()
    serving = machine.serve("--http", f"127.0.0.1:{http}", "--domain", "t.test")
    file = Written(machine.home / "up.toml")

    def write(port: int) -> None:
        lines = ["[client]", f'to = "{serving.join}"']
        for number in range(1_000):
            to = port if number == 500 else 9
            lines += ["[[client.http]]", f'name = "n{number}"', f"target = {to}"]
        file.write("\n".join(lines))

    write(9)
    client = machine.tunnel("up", "--config", str(file.path), "--drain", "0s")
    client.out.wait("http ", 1_000)
    for port in (10, 11, 12):
        write(port)
        client.send(signal.SIGHUP)
    client.err.wait("changes=1")
    took_ms = []
    for port in (13, 14, 15):
        write(port)
        done = client.err.count("event=config.reloaded")
        began = time.monotonic()
        client.send(signal.SIGHUP)
        client.err.wait("event=config.reloaded", done + 1)
        took_ms.append(1_000 * (time.monotonic() - began))
    print(f"\n1,000 entries, one changed: {min(took_ms):.0f} ms")
    assert min(took_ms) < 1_000
    changes = [one for one in client.err.all() if "event=config.change" in one]
    assert all("~ http n500 target" in one for one in changes)
    assert client.out.count("http ") >= 1_000


def test_words_that_hold_secrets_are_no_change(machine: Machine) -> None:
    serving = machine.serve("--http", f"127.0.0.1:{free_port()}", "--domain", "t.test")
    entry = "shop=9,auth=anna:kept-to-itself"
    client = machine.up(serving.join, "--http", entry)
    client.send(signal.SIGHUP)
    client.err.wait("changes=0")


@pytest.mark.parametrize("how", ["signal", "command", "saved"])
def test_who_is_not_concerned_loses_no_byte(
    pair: Pair, how: str, record_property: Callable[[str, object], None]
) -> None:
    under_load(pair, how, 1.0, 16, record_property)


@pytest.mark.deep
@pytest.mark.parametrize("how", ["signal", "command", "saved"])
def test_under_load_who_is_not_concerned_loses_no_byte(
    pair: Pair, how: str, record_property: Callable[[str, object], None]
) -> None:
    under_load(pair, how, 10.0, DEFAULT, record_property)


class Guest:
    """A user whom the server's file has, and the one client of that user."""

    def __init__(self, pair: Pair) -> None:
        token, self.port = make_token(), free_port()
        self.verifier = verifier_of("guest", token.reveal()).render()
        pair.serve_text(self.text())
        pair.reload("command", pair.server)
        line = replace(parse_join(pair.join), name="guest", token=token).render()
        words = "tcp", str(pair.target.port), "--remote", str(self.port)
        self.client = pair.machine.tunnel(*words, to=line)
        self.client.out.wait("tcp ")

    def text(self, may: str | None = None) -> str:
        """Give the table of the file, with the right to the port or another."""
        right = f'"tcp:{self.port}"' if may is None else may
        return f'[server.users.guest]\nverifier = "{self.verifier}"\nmay = [{right}]\n'


def under_load(
    pair: Pair,
    how: str,
    calm_s: float,
    count: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Change both sides beside busy connections, which must not notice."""
    guest = Guest(pair)
    askers = [Asker(pair.kept, 64) for _ in range(count)]
    askers += [Asker(pair.kept, len(BLOCK)) for _ in range(BULK)]
    try:
        eventually(lambda: all(one.sent for one in askers), "the first answers")
        time.sleep(calm_s)
        began = time.monotonic()
        ports = pair.kept, pair.changed, pair.added
        pair.up_text(changed_to=1, ports=ports)
        limit = 'limit = ["connections=5000"]'
        pair.serve_text(limit, f'http = "{free_port()}"', guest.text())
        pair.reload(how, pair.client, pair.server)
        with visit(guest.port) as visitor:
            visitor.sendall(b"hello")
            assert read_exactly(visitor, 5) == b"hello"
            pair.serve_text(limit, guest.text(may=""))
            pair.reload(how, pair.server)
            guest.client.err.wait("NOT_ALLOWED")
            assert is_cut(visitor)
        time.sleep(calm_s)
    finally:
        for one in askers:
            one.over.set()
    for one in askers:
        one.stop()
    small = [each for one in askers[:count] for each in one.took_s]
    before = p99([took for at, took in small if at < began])
    during = p99([took for at, took in small if at >= began])
    figure = f"p99 {before * 1000:.1f} ms before, {during * 1000:.1f} ms during"
    record_property("reload", f"{how}: {figure}")
    print(f"\nreload by {how}, {count} + {BULK} connections: {figure}")
    assert pair.client.process.poll() is None
    assert pair.server.process.poll() is None
