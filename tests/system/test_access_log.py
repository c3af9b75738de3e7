"""The log in a file, and a line of the access log for each visitor, of a real pair."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.processes import PROCESSES, Machine, curl, eventually, free_port
from support.targets import END, Target, echo, read_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.processes import Program, Server


@dataclass
class Pair:
    machine: Machine
    server: Server
    client: Program
    target: Target
    tcp: int
    http: int
    socks: int
    udp: int

    def lines(self, name: str) -> list[str]:
        return (self.machine.home / name).read_text().splitlines()

    def line(self, name: str, *words: str) -> str:
        """Wait for a line that holds these words."""

        def found() -> list[str]:
            return [
                one for one in self.lines(name) if all(word in one for word in words)
            ]

        eventually(lambda: bool(found()), f"{words} in {name}")
        return found()[-1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    machine = Machine(tmp_path_factory.mktemp("logs"))
    home = machine.home
    (home / "site").mkdir()
    (home / "site" / "page.html").write_text("a page")
    tcp, http, socks, udp = (free_port() for _ in range(4))
    with closing(machine), Target(echo) as target:
        server = machine.serve(
            "--http", f"127.0.0.1:{http}", "--domain", "x.test",
            "--log-file", str(home / "serve.log"),
            "--access-log", str(home / "serve.access"), "--udp-idle", "1s",
        )  # fmt: skip
        client = machine.up(
            server.join,
            "--tcp", f"{tcp}={target.port}", "--udp", f"{udp}=9",
            "--http", f"site={home / 'site'}", "--http", f"web={target.port}",
            "--socks", f"127.0.0.1:{socks}",
            "--log", "json", "--access-log", "-", "--udp-idle", "1s", ready=5,
        )  # fmt: skip
        yield Pair(machine, server, client, target, tcp, http, socks, udp)


def fields(line: str) -> dict[str, str]:
    return {
        key: value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|\S+)', line)
    }


def test_a_visitor_of_a_port_is_a_line_at_both_ends(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.tcp)) as conn:
        peer = f"127.0.0.1:{conn.getsockname()[1]}"
        conn.sendall(b"hello")
        conn.shutdown(socket.SHUT_WR)
        assert read_to_end(conn) == (b"hello", END)
    line = fields(pair.line("serve.access", peer))
    assert line.pop("ts")
    assert float(line.pop("seconds")) < 20
    assert re.fullmatch("[0-9a-f]+", line.pop("client"))
    assert line == {
        "level": "info", "event": "visitor.served", "peer": peer, "user": "default",
        "entry": f"tcp {pair.tcp}", "up_bytes": "5", "down_bytes": "5",
        "code": "NORMAL",
    }  # fmt: skip
    at_client = json.loads(pair.client.err.wait(f'"peer": "{peer}"'))
    assert at_client["event"] == "visitor.served"
    assert at_client["entry"] == f"tcp {pair.tcp}"
    assert (at_client["up_bytes"], at_client["down_bytes"]) == (5, 5)
    assert at_client["code"] == "NORMAL"


def ask(pair: Pair, *args: str) -> int:
    """Ask the server's HTTP port with curl; return its status."""
    where = f"127.0.0.1:{pair.http}"
    done = pair.machine.run(
        *(one for one in curl(*args) if one != "--fail"),
        "-w", "\n%{http_code}\n",
        "--connect-to", f"::{where}",
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def test_a_request_is_a_line_with_its_path_and_without_its_query(pair: Pair) -> None:
    assert ask(pair, "http://site.x.test/page.html?token=geheim") == 200
    line = fields(pair.line("serve.access", "page.html"))
    assert line["entry"] == "http site.x.test"
    assert line["user"] == "default"
    assert (line["method"], line["status"]) == ("GET", "200")
    assert line["path"] == "/page.html"
    assert int(line["up_bytes"]) > 50
    assert int(line["down_bytes"]) > len("a page")
    at_client = json.loads(pair.client.err.wait('"path": "/page.html"'))
    assert at_client["entry"] == "http site"
    assert at_client["status"] == 200
    assert at_client["peer"].startswith("127.0.0.1:")
    assert at_client["down_bytes"] == int(line["down_bytes"])
    whole = "\n".join(pair.lines("serve.access")) + pair.client.errors()
    assert "geheim" not in whole


def test_each_request_of_a_connection_has_its_own_bytes(pair: Pair) -> None:
    urls = [f"http://site.x.test/page.html?{n}" for n in range(3)]
    before = len(pair.lines("serve.access"))
    assert ask(pair, *urls) == 200
    eventually(lambda: len(pair.lines("serve.access")) == before + 3, "three lines")
    each = [fields(line) for line in pair.lines("serve.access")[before:]]
    assert len({line["peer"] for line in each}) == 1
    assert len({line["down_bytes"] for line in each}) == 1


def test_what_the_server_answers_itself_is_a_line_too(pair: Pair) -> None:
    assert ask(pair, "http://nobody.x.test/wp-login.php") == 404
    line = fields(pair.line("serve.access", "wp-login"))
    assert line["status"] == "404"
    assert "up_bytes" not in line
    assert "user" not in line


def test_words_of_strangers_begin_no_line(pair: Pair) -> None:
    assert ask(pair, "http://nobody.x.test/a%0a%1b") == 404
    with socket.create_connection(("127.0.0.1", pair.http)) as conn:
        conn.sendall(b"GET /\x1b[31m\xff HTTP/1.1\r\nHost: a.x.test\r\n\r\n")
        conn.shutdown(socket.SHUT_WR)
        while conn.recv(65_536):
            pass
        peer = f"127.0.0.1:{conn.getsockname()[1]}"
    pair.line("serve.access", peer)
    assert all(line.startswith("ts=") for line in pair.lines("serve.access"))
    assert "\x1b" not in (pair.machine.home / "serve.access").read_text()


def test_a_head_that_is_no_request_is_a_line_too(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.http)) as conn:
        peer = f"127.0.0.1:{conn.getsockname()[1]}"
        conn.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 140_000 + b"\r\n\r\n")
        assert conn.recv(12) == b"HTTP/1.1 431"
    line = fields(pair.line("serve.access", peer))
    assert line["status"] == "431"
    assert float(line["seconds"]) >= 0


def test_an_app_of_the_proxy_is_a_line_where_it_came_and_where_it_left(
    pair: Pair,
) -> None:
    proxy = f"socks5h://127.0.0.1:{pair.socks}"
    there = f"127.0.0.1:{pair.http}"
    done = pair.machine.run(
        *curl("-x", proxy, "-H", "Host: site.x.test", f"http://{there}/page.html")
    )
    assert done.stdout == b"a page"
    at_client = json.loads(pair.client.err.wait(f'"target": "{there}"'))
    assert at_client["entry"] == f"socks 127.0.0.1:{pair.socks}"
    left = fields(pair.line("serve.access", "entry=exit"))
    assert left["target"] == there
    assert left["user"] == "default"
    assert int(left["down_bytes"]) == at_client["down_bytes"]
    assert int(left["up_bytes"]) == at_client["up_bytes"]


def test_a_connect_is_one_line_at_its_end(pair: Pair) -> None:
    there = f"127.0.0.1:{pair.target.port}"
    with socket.create_connection(("127.0.0.1", pair.socks)) as conn:
        peer = f"127.0.0.1:{conn.getsockname()[1]}"
        conn.sendall(f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n".encode())
        assert conn.recv(65_536).startswith(b"HTTP/1.1 200")
        conn.sendall(b"hello")
        conn.shutdown(socket.SHUT_WR)
        assert read_to_end(conn) == (b"hello", END)
    line = json.loads(pair.client.err.wait(f'"peer": "{peer}"'))
    assert pair.client.err.count(peer) == 1
    assert (line["method"], line["path"], line["status"]) == ("CONNECT", there, 200)
    assert (line["up_bytes"], line["down_bytes"], line["code"]) == (5, 5, "NORMAL")


def test_a_flow_of_datagrams_is_a_line_when_it_is_silent(pair: Pair) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", pair.udp))
        sock.send(b"four")
        peer = f"127.0.0.1:{sock.getsockname()[1]}"
        line = fields(pair.line("serve.access", peer))
    assert line["entry"] == f"udp {pair.udp}"
    assert (line["up_bytes"], line["down_bytes"]) == ("4", "0")
    assert line["user"] == "default"
    pair.client.err.wait(f'"peer": "{peer}"')


def test_logrotate_finds_the_new_lines_in_the_new_file(pair: Pair) -> None:
    home, running = pair.machine.home, pair.server.program
    assert (home / "serve.log").stat().st_mode & 0o777 == 0o600
    assert "event=link.up" in (home / "serve.log").read_text()
    assert running.err.all() == []
    for number in (signal.SIGUSR1, signal.SIGHUP):
        for name in ("serve.log", "serve.access"):
            os.replace(home / name, home / f"{name}.1")
        running.send(number)
        eventually((home / "serve.access").exists, "the files are opened anew")
        assert ask(pair, f"http://nobody.x.test/after-{number.name}") == 404
        pair.line("serve.access", f"/after-{number.name}")
        assert f"/after-{number.name}" not in (home / "serve.access.1").read_text()
    # SIGHUP has read what was told again, besides.
    pair.line("serve.log", "config.reloaded", "by=SIGHUP")
    shown = pair.machine.run(*pair.machine.command, "logs", "serve").stdout.decode()
    assert "event=config.reloaded" in shown
    assert "visitor.served" not in shown


def test_a_short_command_survives_what_has_its_log_opened_anew(pair: Pair) -> None:
    log: Path = pair.machine.home / "short.log"
    running = pair.machine.tunnel(
        "tcp",
        str(pair.target.port),
        "--log-file",
        str(log),
        to=pair.server.join,
    )
    running.out.wait("tcp")
    for number in (signal.SIGUSR1, signal.SIGHUP):
        log.unlink()
        running.send(number)
        eventually(log.exists, "it is opened anew")
    assert running.stop() == 0


def test_a_full_disk_is_said_once_and_the_server_goes_on(pair: Pair) -> None:
    running = pair.machine.tunnel(
        "serve", "--listen", "127.0.0.1:0", "--state", str(pair.machine.home / "full"),
        "--log-file", "/dev/full",
    )  # fmt: skip
    running.out.wait("tunnel://")
    assert "No space left on device" in running.err.wait("/dev/full")
    for _ in range(2):
        running.send(signal.SIGHUP)
    shown = pair.machine.run(*pair.machine.command, "logs", f"serve-{running.pid}")
    assert b"log.not_written" in shown.stdout
    assert running.stop() == 0
    assert running.err.count("No space left") == PROCESSES


def test_a_folder_that_is_not_there_ends_the_command(pair: Pair) -> None:
    where = pair.machine.home / "nowhere" / "log"
    done = pair.machine.run(
        *pair.machine.command, "serve", "--listen", "0", "--log-file", str(where)
    )
    assert done.returncode == 3
    assert f"cannot write the log {where}" in done.stderr.decode()
