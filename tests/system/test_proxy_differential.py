"""The same words to ``ssh -D`` and to us: where the answers differ is listed here."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import WAIT_S, Machine, Sshd, eventually, free_port, program
from support.targets import read_exactly, read_to_end, visit

if TYPE_CHECKING:
    from support.world import World

HELLO: Final = b"\5\1\0"


@pytest.fixture
def ssh_d(machine: Machine) -> int:
    """Start ``ssh -D``; give its port."""
    sshd = Sshd(machine)
    port = free_port()
    where = ("-p", str(sshd.port), "127.0.0.1")
    options = [w for w in sshd.options("none") if w != "ProxyCommand=none"]
    del options[options.index("-o")]  # the one that stood before it
    machine.start(program("ssh"), *options, "-N", "-D", f"127.0.0.1:{port}", *where)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(listens, "ssh -D listens")
    return port


def answer(port: int, pieces: tuple[bytes, ...]) -> bytes:
    """Say each piece when something came for the one before; give all that comes.

    With nothing to say at the end the app leaves; else it waits for the end.
    """
    heard = b""
    with visit(port) as app, contextlib.suppress(ConnectionError):
        app.settimeout(WAIT_S)
        for piece in pieces[:-1]:
            app.sendall(piece)
            heard += app.recv(100)
            while piece.endswith(b"ping") and not heard.endswith(b"ping"):
                heard += read_exactly(app, 1)
        if pieces[-1]:
            app.sendall(pieces[-1])
            with contextlib.suppress(OSError):  # the proxy has left before
                app.shutdown(socket.SHUT_WR)
            heard += read_to_end(app)[0]
    return heard


def scripts(echo: int, nobody: int) -> dict[str, tuple[bytes, ...]]:
    """Give the words of apps to a proxy, by what they try."""
    at, off = echo.to_bytes(2, "big"), nobody.to_bytes(2, "big")
    here, name = b"\x7f\0\0\1", b"\3\x09localhost"
    connect = b"\5\1\0"
    return {
        "socks5, address": (HELLO, connect + b"\1" + here + at, b"ping"),
        "socks5, name": (HELLO, connect + name + at, b"ping"),
        "socks5, address as a name": (
            HELLO,
            connect + b"\3\x09127.0.0.1" + at,
            b"ping",
        ),
        "socks5, many methods": (b"\5\3\0\1\2", connect + name + at, b"ping"),
        "socks5, all at once": (HELLO + connect + name + at + b"ping", b""),
        "socks5, something reserved": (HELLO, b"\5\1\7" + name + at, b"ping"),
        "socks4": (b"\4\1" + at + here + b"me\0", b"ping"),
        "socks4, all at once": (b"\4\1" + at + here + b"me\0ping", b""),
        "socks4a": (b"\4\1" + at + b"\0\0\0\1me\0localhost\0", b"ping"),
        "refused": (HELLO, connect + b"\1" + here + off),
        "refused, name": (HELLO, connect + name + off),
        "refused, ipv6": (HELLO, connect + b"\4" + bytes(15) + b"\1" + off),
        "refused, socks4": (b"\4\1" + off + here + b"me\0",),
        "impossible name": (HELLO, connect + b"\3\x40" + b"x" * 64 + at),
        "no name": (HELLO, connect + b"\3\0" + at),
        "name with a NUL": (HELLO, connect + b"\3\x03a\0b" + at),
        "port 0": (HELLO, connect + b"\1" + here + b"\0\0"),
        "socks5, bind": (HELLO, b"\5\2\0\1" + here + at, b""),
        "socks5, datagrams": (HELLO, b"\5\3\0\1" + bytes(6), b""),
        "socks4, bind": (b"\4\2" + at + here + b"me\0", b""),
        "unknown command": (HELLO, b"\5\x09\0\1" + here + at),
        "unknown address": (HELLO, b"\5\1\0\2" + here + at),
        "no method": (b"\5\1\2",),
        "no methods": (b"\5\0",),
        "cut": (HELLO, connect + b"\1\x7f"),
        "another version": (b"\6\1\0",),
        "http": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",),
    }


NOWHERE: Final = bytes(6)
OK5, OK4 = b"\5\0\0\1" + NOWHERE, b"\0\x5a" + NOWHERE
WHY: Final = "an app is told why, where ssh hangs up"
FIRST_BYTE: Final = "one port is for HTTP, too: what is not SOCKS is answered as that"
DIFFERENCES: Final = {
    # What ssh -D says, what we say, and why.
    "socks5, something reserved": (
        b"\5\0",
        b"\5\0" + OK5 + b"ping",
        "be liberal: RFC 1928 gives it no meaning",
    ),
    "socks5, bind": (b"\5\0", b"\5\0" + OK5, "we have it"),
    "socks5, datagrams": (b"\5\0", b"\5\0" + OK5, "we have it"),
    "socks4, bind": (b"", OK4, "we have it"),
    "refused": (b"\5\0", b"\5\0\5\5\0\1" + NOWHERE, WHY),
    "refused, name": (b"\5\0", b"\5\0\5\5\0\1" + NOWHERE, WHY),
    "refused, ipv6": (b"\5\0", b"\5\0\5\5\0\1" + NOWHERE, WHY),
    "refused, socks4": (b"", b"\0\x5b" + NOWHERE, WHY),
    "impossible name": (b"\5\0", b"\5\0\5\x08\0\1" + NOWHERE, WHY),
    "no name": (b"\5\0", b"\5\0\5\x08\0\1" + NOWHERE, WHY),
    "name with a NUL": (b"\5\0", b"\5\0\5\x08\0\1" + NOWHERE, WHY),
    "port 0": (b"\5\0", b"\5\0\5\x08\0\1" + NOWHERE, WHY),
    "unknown command": (b"\5\0", b"\5\0\5\7\0\1" + NOWHERE, WHY),
    "unknown address": (b"\5\0", b"\5\0\5\x08\0\1" + NOWHERE, WHY),
    "no method": (b"", b"\5\2", "ours lets in who can only offer a password"),
    "no methods": (b"", b"\5\xff", WHY),
    "another version": (b"", b"HTTP/1.1 400 Bad Request", FIRST_BYTE),
    "http": (b"", b"HTTP/1.1 400 Bad Request", FIRST_BYTE),
}


def unbound(name: str, heard: bytes) -> bytes:
    """Blot out the exit's own address in a success, and what HTTP says in words."""
    if heard.startswith(b"HTTP/"):
        return heard.partition(b"\r\n")[0]
    at = {"socks5": 6, "socks4": 2}.get(name[:6], len(heard))
    return heard[:at] + NOWHERE + heard[at + 6 :] if len(heard) > at else heard


def test_the_answers_of_ssh_d_and_ours_differ_only_as_listed(
    world: World, ssh_d: int
) -> None:
    """Point 73."""
    said = scripts(world.targets["echo"].port, world.targets["nobody"].port)
    proxy = world.port("C", "web")
    found = {}
    for name, pieces in said.items():
        theirs = unbound(name, answer(ssh_d, pieces))
        ours = unbound(name, answer(proxy, pieces))
        if theirs != ours:
            found[name] = theirs, ours
    listed = {name: (theirs, ours) for name, (theirs, ours, _) in DIFFERENCES.items()}
    assert found == listed
