"""A server that is started with its sockets, as by a .socket unit of systemd."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from support.processes import WORKERS, Machine, curl, eventually, free_port
from support.targets import Target, echo

from tunnel.access.join import make_token

if TYPE_CHECKING:
    from pathlib import Path

START = """
import fcntl, os, socket, sys
count = int(sys.argv[1])
words, command = sys.argv[2:2 + count], sys.argv[2 + count:]
names, socks = [], []
for word in words:
    name, port = word.split("=")
    names.append(name)
    socks.append(socket.create_server(("127.0.0.1", int(port))))
# Out of the way first: they have just the numbers that others are to have.
numbers = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 100) for one in socks]
for number, given in enumerate(numbers, 3):
    os.dup2(given, number)
told = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count),
        "LISTEN_FDNAMES": ":".join(names)}
os.execve(command[0], command, os.environ | told)
"""
"""Opens NAME=PORT, so many, and becomes a program that is given them."""


def start(*given: str) -> tuple[str, ...]:
    return (sys.executable, "-c", START, str(len(given)), *given)


def test_links_and_visitors_come_in_at_the_given_sockets(tmp_path: Path) -> None:
    link, http = free_port(), free_port()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page.html").write_text("a page")
    with closing(Machine(tmp_path)) as machine, Target(echo):
        usual = machine.command
        # A port that both are bound to is never free for a second bind.
        machine.command = (*start(f"tunnel.socket={link}", f"http={http}"), *usual)
        server = machine.serve("--domain", "x.test", listen=f"127.0.0.1:{link}")
        assert server.port == link
        machine.command = usual
        machine.up(server.join, "--http", f"site={tmp_path / 'site'}")
        to = ("--resolve", f"site.x.test:{http}:127.0.0.1")
        asked = curl(*to, f"http://site.x.test:{http}/page.html")
        assert machine.run(*asked).stdout == b"a page"
        server.program.send(signal.SIGHUP)
        said = server.program.err
        eventually(lambda: said.count("config.reloaded") == WORKERS, "a reload")
        assert machine.run(*asked).stdout == b"a page"


def test_what_is_for_nothing_ends_the_start(tmp_path: Path) -> None:
    token = make_token()
    with closing(Machine(tmp_path)) as machine:
        machine.command = (*start("web=0"), *machine.command)
        state = ("--state", str(tmp_path / "s"))
        serve = machine.tunnel("serve", *state, "--listen", "127.0.0.1:0")
        to = f"tunnel+plain://default:{token.reveal()}@127.0.0.1:9/"
        up = machine.tunnel("up", "--tcp", "1=1", to=to)
        for program in serve, up:
            assert program.wait() == 3
            assert "the given socket 3 (127.0.0.1:" in program.errors()
            assert "named 'web') is for nothing here" in program.errors()
