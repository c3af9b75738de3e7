"""The same words to ``ssh -D`` and to us: where the answers differ is listed here."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import WAIT_S, Machine, Sshd, eventually, free_port, program
from support.targets import read_to_end, visit

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
    """Say each piece when something came for the one before; give all that comes."""
    heard = b""
    with visit(port) as app:
        app.settimeout(WAIT_S)
        for piece in pieces[:-1]:
            app.sendall(piece)
            heard += app.recv(100)
        app.sendall(pieces[-1])
        app.shutdown(socket.SHUT_WR)
        return heard + read_to_end(app)[0]


def scripts(echo: int, nobody: int) -> dict[str, tuple[bytes, ...]]:
    """Give the words of apps to a proxy, by what they try."""
    at, off = echo.to_bytes(2, "big"), nobody.to_bytes(2, "big")
    here, name = b"\x7f\0\0\1", b"\3\x09localhost"
    return {
        "socks5, address": (HELLO, b"\5\1\0\1" + here + at, b"ping"),
        "socks5, name": (HELLO, b"\5\1\0" + name + at, b"ping"),
        "socks4": (b"\4\1" + at + here + b"me\0", b"ping"),
        "socks4a": (b"\4\1" + at + b"\0\0\0\1me\0localhost\0", b"ping"),
        "refused": (HELLO, b"\5\1\0\1" + here + off),
        "unknown command": (HELLO, b"\5\x09\0\1" + here + at),
        "unknown address": (HELLO, b"\5\1\0\2" + here + at),
        "no method": (b"\5\1\2",),
    }


NOWHERE: Final = bytes(6)
DIFFERENCES: Final = {
    # (ssh -D, ours)
    "refused": (b"\5\0", b"\5\0\5\5\0\1" + NOWHERE),
    "unknown command": (b"\5\0", b"\5\0\5\7\0\1" + NOWHERE),
    "unknown address": (b"\5\0", b"\5\0\5\x08\0\1" + NOWHERE),
    "no method": (b"", b"\5\xff"),
}
"""Where ssh -D hangs up, an app is told why here."""


def unbound(name: str, heard: bytes) -> bytes:
    """Blot out the exit's own address in a success, which ssh does not tell."""
    if name.startswith("socks5"):
        return heard[:6] + NOWHERE + heard[12:] if len(heard) > 6 else heard
    return heard[:2] + NOWHERE + heard[8:] if name.startswith("socks4") else heard


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
    assert found == DIFFERENCES
