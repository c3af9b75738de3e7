"""Who a visitor is behind proxies that are trusted, and what it may guess."""

from __future__ import annotations

from base64 import b64encode
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.processes import eventually
from support.targets import RESET, Target, echo, read_exactly, read_to_end, visit

if TYPE_CHECKING:
    import socket

    from support.processes import Machine

ANNA, BERTA = "198.51.100.1", "203.0.113.2"
TRUST = ("--trusted-proxy", "127.0.0.0/8")


def repeat_head(conn: socket.socket) -> object:
    """Answer a request with what came of it."""
    head = _heard_until(conn, b"\r\n\r\n")
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    conn.sendall(answer % len(head) + head)
    return None


def repeat_line(conn: socket.socket) -> object:
    """Send a line back."""
    conn.sendall(_heard_until(conn, b"\n"))
    return None


def _heard_until(conn: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end) and (more := conn.recv(1)):
        data += more
    return data


def speak_first(conn: socket.socket) -> object:
    """Say something to a visitor who has said nothing."""
    conn.sendall(b"welcome\n")
    return None


def ports(lines: list[str]) -> dict[str, int]:
    """Give the public port of each kind of entry."""
    words = [line.split() for line in lines]
    return {w[0]: int(w[1].rstrip("/").rpartition(":")[2]) for w in words}


def heard(port: int, words: bytes) -> bytes:
    """Say something and give all that comes back."""
    with visit(port) as conn:
        conn.sendall(words)
        return read_to_end(conn)[0]


def get(port: int, headers: str, host: str = "web.localhost") -> str:
    head = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"
    return heard(port, head.encode()).decode()


def basic(word: str) -> str:
    return f"Authorization: Basic {b64encode(word.encode()).decode()}\r\n"


def header(host: str) -> bytes:
    return f"PROXY TCP4 {host} 192.0.2.1 4711 80\r\n".encode()


@pytest.mark.parametrize("trust", [TRUST, ("--trusted-proxy", "192.0.2.0/24")])
def test_only_a_trusted_proxy_says_who_its_visitor_is(
    machine: Machine, trust: tuple[str, ...]
) -> None:
    with Target(repeat_line) as target, Target(repeat_head) as web:
        server = machine.serve("--http", "127.0.0.1:0", *trust)
        client = machine.up(
            server.join,
            *("--tcp", f"0=127.0.0.1:{target.port},proxy=v1"),
            *("--http", f"web.localhost=127.0.0.1:{web.port}"),
        )
        port = ports(client.out.all())
        told = heard(port["tcp"], header(ANNA) + b"behind\n")
        page = get(port["http"], f"X-Forwarded-For: {BERTA}, {ANNA}\r\n").lower()
        junk = heard(server.port, header(ANNA) + b"GET / HTTP/1.0\r\n\r\n")
    assert b"OK" not in junk
    if trust == TRUST:
        assert told.startswith(f"PROXY TCP4 {ANNA} ".encode())
        assert f"x-forwarded-for: {ANNA}\r\n" in page
        assert f'for="{ANNA}"' in page
        server.program.err.wait(f"peer={ANNA}:4711")
    else:
        assert told.startswith(b"PROXY TCP4 127.0.0.1 ")
        assert "x-forwarded-for: 127.0.0.1\r\n" in page
        assert ANNA not in page + server.program.errors()
    assert BERTA not in page


def test_a_trusted_proxy_may_say_nothing_and_no_nonsense(machine: Machine) -> None:
    with Target(speak_first) as target:
        server = machine.serve(*TRUST)
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        port = ports(client.out.all())["tcp"]
        assert heard(port, b"") == b"welcome\n"
        with visit(port) as conn:
            for part in (b"PRO", b"XY TCP4 1.2.3.4 5.6.7.8 1 ", b"2\r\n"):
                conn.sendall(part)
            assert read_to_end(conn)[0] == b"welcome\n"
        assert heard(port, b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n") == b""
        server.program.err.wait("bad PROXY header")


def test_who_guesses_a_password_is_slowed_and_nobody_else(machine: Machine) -> None:
    with Target(repeat_head) as web:
        server = machine.serve("--http", "127.0.0.1:0", *TRUST)
        client = machine.tunnel(
            *("share", str(web.port), "--name", "web.localhost"),
            *("--auth", "me:right", "--to", server.join),
        )
        port = ports([client.out.wait("http")])["http"]

        def ask(visitor: str, word: str) -> str:
            said = f"X-Forwarded-For: {visitor}\r\n" + basic(f"me:{word}")
            return get(port, said).partition("\r\n")[0].split()[1]

        answers = [ask(ANNA, f"wrong{number}") for number in range(20)]
        assert answers[:10] == ["401"] * 10
        assert answers.count("401") < 13
        assert answers[-1] == "429"
        assert ask(ANNA, "right") == "429"  # nobody looked
        assert ask(BERTA, "right") == "200"
        assert client.err.count(f"peer={ANNA}") >= 10
        assert client.err.count("login.slowed") == 1


def test_a_proxy_into_a_network_knows_its_guessers(machine: Machine) -> None:
    server = machine.serve(*TRUST)
    client = machine.tunnel(
        *("tcp", "--socks", "--auth", "me:right", "--to", server.join)
    )
    port = ports([client.out.wait("tcp")])["tcp"]

    def log_in(visitor: str, word: bytes) -> bytes:
        with visit(port) as app:
            app.sendall(header(visitor) + b"\x05\x01\x02")
            assert read_exactly(app, 2) == b"\x05\x02"
            app.sendall(b"\x01\x02me" + bytes([len(word)]) + word)
            return read_exactly(app, 2)

    for number in range(10):
        assert log_in(ANNA, b"wrong%d" % number) != b"\x01\x00"
    assert log_in(ANNA, b"right") != b"\x01\x00"
    assert log_in(BERTA, b"right") == b"\x01\x00"
    client.err.wait(f"peer={ANNA}:4711")
    said = basic("me:right").replace("Auth", "Proxy-Auth")
    asked = f"GET http://x.test/ HTTP/1.1\r\nHost: x.test\r\n{said}\r\n".encode()
    assert b" 429 " in heard(port, header(ANNA) + asked)
    assert "local:0" not in client.errors()


def test_an_address_takes_its_share_of_visitors_and_no_more(machine: Machine) -> None:
    with Target(echo) as target, ExitStack() as stack:
        server = machine.serve(*TRUST, "--max-per-address", "3")
        client = machine.up(server.join, "--tcp", f"0={target.port}")
        port = ports(client.out.all())["tcp"]

        def visitor(address: str) -> socket.socket:
            conn = stack.enter_context(visit(port))
            conn.sendall(f"PROXY TCP4 {address} 192.0.2.1 40000 80\r\nhello".encode())
            return conn

        def served(address: str) -> socket.socket:
            conn = visitor(address)
            assert read_exactly(conn, 5) == b"hello"
            return conn

        inside = [served(ANNA) for _ in range(3)]
        assert read_to_end(visitor(ANNA)) == (b"", RESET)
        served(BERTA)
        server.program.err.wait("too many of one address")
        inside.pop().close()
        eventually(lambda: is_served(visitor(ANNA)), "room for another visitor")


def is_served(conn: socket.socket) -> bool:
    try:
        return conn.recv(5) == b"hello"
    except ConnectionResetError:
        return False
