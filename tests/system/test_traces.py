"""Who was refused is in the log under stable names, and README's filter finds it."""

from __future__ import annotations

import configparser
import contextlib
import re
import shutil
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from support.processes import WAIT_S, Machine
from support.strangers import shake, tls_link
from support.targets import Target, echo, read_to_end, visit

from tunnel.access.join import make_token, parse_join
from tunnel.errors import TunnelError

README: Final = Path(__file__).parents[2] / "README.md"
FILTER: Final = (
    README.read_text().split("<!-- fail2ban -->\n```ini\n")[1].split("```")[0]
)
ADDRESS: Final = (
    r"\[?(?:(?:::f{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})"
    r"|(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|(?<=:):)))\]?"
)
"""What fail2ban 1.0 puts in the place of ``<ADDR>``."""
BANNED: Final = ("link.refused", "login.failed", "visitor.denied")
NAME: Final = "a level=info event=link.refused peer=192.0.2.66:1 code=AUTH"
"""What a stranger calls itself to have somebody else banned."""


def filter_of(text: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser["Definition"]


def found(lines: list[str], *, in_journal: bool = False) -> list[tuple[str, str]]:
    """Give the lines that the filter of README finds, and the addresses, as fail2ban.

    It cuts the time out of a line of a file, and puts host and program before one of
    the journal.
    """
    definition = filter_of(FILTER)
    date = definition["datepattern"]
    for word, digits in (("%Y", r"\d{4}"), ("%f", r"\d{1,6}"), ("%z", "Z")):
        date = date.replace(word, digits)
    date = re.sub("%[mdHMS]", lambda _: r"\d\d", date)
    rules = [
        re.compile(rule.replace("<ADDR>", f"(?:{ADDRESS})"))
        for rule in definition["failregex"].splitlines()
    ]
    matched: list[tuple[str, str]] = []
    for line in lines:
        assert re.search(date, line), line
        read = (
            f"host tunnel[7]: {line}" if in_journal else re.sub(date, "", line, count=1)
        )
        ones = filter(None, (rule.search(read) for rule in rules))
        matched += [(line, one["ip4"] or one["ip6"]) for one in ones]
    return matched


def visited(port: int, password: str = "", host: str = "shop.t.test") -> bytes:
    word = b64encode(f"me:{password}".encode()).decode()
    login = f"Authorization: Basic {word}\r\n" if password else ""
    head = f"GET / HTTP/1.1\r\nHost: {host}\r\n{login}Connection: close\r\n\r\n"
    with visit(port) as conn:
        conn.sendall(head.encode())
        return read_to_end(conn)[0].split(b"\r\n")[0]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All lines of a server and a client that met honest people and others."""
    machine = Machine(tmp_path_factory.mktemp("log"))
    with Target(echo) as target, contextlib.closing(machine):
        there = f"127.0.0.1:{target.port}"
        names = ("--http", "127.0.0.1:0", "--domain", "t.test")
        server = machine.serve(*names, "--log", "logfmt")
        client = machine.up(
            server.join,
            *("--tcp", f"0={there}", "--http", f"shop={there},auth=me:rightpass"),
            *("--http", f"out={there},deny=127.0.0.0/8", "--log", "logfmt"),
            ready=3,
        )
        where = dict(line.split()[:2] for line in client.out.all())
        with visit(int(where["tcp"].rpartition(":")[2])) as conn:
            conn.sendall(b"hello")
            assert conn.recv(5) == b"hello"
        port = int(client.out.wait("shop").split()[1].rstrip("/").rpartition(":")[2])
        assert b" 401 " in visited(port, "wrongpass")
        visited(port, "rightpass")
        assert b" 401 " in visited(port)
        assert b" 403 " in visited(port, host="out.t.test")
        join = parse_join(server.join)
        for name in ("default", NAME):
            with tls_link(join) as wire, contextlib.suppress(TunnelError):
                shake(wire, replace(join, name=name), token=make_token().reveal())
        server.program.err.wait("event=link.refused", 2, timeout_s=WAIT_S)
        client.stop()
        server.program.stop()
        return server.program.err.all() + client.err.all()


def event_of(line: str) -> str:
    match = re.search(r"event=(\S+)", line)
    assert match
    return match[1]


def test_the_filter_finds_who_guesses_and_nobody_else(log: list[str]) -> None:
    events = [event_of(line) for line in log]
    assert {"link.up", "link.down", "mapping.open", "session.ended"} <= set(events)
    bad = [line for line in log if event_of(line) in BANNED]
    assert sorted(map(event_of, bad)) == [
        "link.refused", "link.refused", "login.failed", "visitor.denied",
    ]  # fmt: skip
    for in_journal in (False, True):
        got = found(log, in_journal=in_journal)
        assert [line for line, _ in got] == bad
        assert {address for _, address in got} == {"127.0.0.1"}


def test_fail2ban_itself_reads_the_filter_so(machine: Machine, log: list[str]) -> None:
    program = shutil.which("fail2ban-regex")
    if program is None:
        pytest.skip("NOT TESTED: fail2ban-regex is not installed on this machine")
    rules, lines = machine.home / "tunnel.conf", machine.home / "log"
    rules.write_text(FILTER)
    lines.write_text("\n".join(log) + "\n")
    done = machine.run(program, "--print-all-matched", str(lines), str(rules))
    said = done.stdout.decode()
    bad = [line for line in log if event_of(line) in BANNED]
    assert f"{len(log)} lines, 0 ignored, {len(bad)} matched" in said, (
        said + done.stderr.decode()
    )
    assert "192.0.2.66 " not in said.split("Failregex:")[1].split("Ignoreregex:")[0]


@pytest.mark.parametrize("peer", ["192.0.2.7:1", "[2001:db8::7]:65535"])
def test_both_families_are_found(peer: str) -> None:
    line = (
        f"ts=2026-01-02T03:04:05.678Z level=info event=link.refused peer={peer} code="
    )
    host = peer.rpartition(":")[0].strip("[]")
    assert found([line + "AUTH reason=x"]) == [(line + "AUTH reason=x", host)]
    assert not found([line + "VERSION reason=x", line + "LINK_LOST claimed=AUTH"])
    counted = line.partition(" peer")[0] + " more=250 in_s=10.0"
    assert not found([counted])


def test_lines_of_a_link_and_a_mapping_say_who(log: list[str]) -> None:
    who = r"peer=127\.0\.0\.1:\d+ user=default client=[0-9a-f]{8}"
    for event in (
        "link.up",
        "link.down",
        "mapping.open",
        "mapping.closed",
        "session.ended",
    ):
        lines = [line for line in log if f"event={event} " in line and "user=" in line]
        assert lines, event
        for line in lines:
            assert re.search(f"event={re.escape(event)} {who} ", line), line


def test_who_was_refused_a_port_or_a_target_is_said(machine: Machine) -> None:
    server = machine.serve("--log", "logfmt")
    client = machine.up(
        server.join,
        *("--tcp", f"{server.port}=127.0.0.1:1", "--socks", "127.0.0.1:0"),
        ready=1,
    )
    who = r"peer=127\.0\.0\.1:\d+ user=default client=[0-9a-f]{8}"
    line = server.program.err.wait("event=mapping.refused")
    assert re.search(
        f"refused {who} type=TCP port={server.port} code=TAKEN reason=", line
    )
    port = int(client.out.all()[0].split()[1].rpartition(":")[2])
    with visit(port) as conn:
        conn.sendall(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        read_to_end(conn)
    line = server.program.err.wait("event=exit.refused")
    assert re.search(f"refused {who} target=127.0.0.1:1 code=REFUSED reason=", line)
