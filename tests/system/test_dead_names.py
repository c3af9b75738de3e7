"""Names that nobody answers for, and everybody else who uses the same exit."""

from __future__ import annotations

import select
import socket
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
from support.namespaces import Namespace, only_as_root
from support.processes import WAIT_S

from tunnel.errors import CODES, Code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Machine

DEAD: Final = 150
SOCKS: Final = 1080


@pytest.fixture
def silent(machine: Machine) -> Iterator[Namespace]:
    """A network whose resolver hears everything and says nothing."""
    only_as_root()
    resolv, hosts = machine.home / "resolv.conf", machine.home / "hosts"
    resolv.write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:5\n")
    hosts.write_text("127.0.0.1 localhost\n127.0.0.1 printer.lan\n")
    files = {"/etc/resolv.conf": resolv, "/etc/hosts": hosts}
    namespace = Namespace(machine, files)
    with namespace.inside(partial(socket.socket, type=socket.SOCK_DGRAM)) as resolver:
        resolver.bind(("127.0.0.53", 53))
        machine.command = (*namespace.enter, sys.executable, "-m", "tunnel")
        yield namespace


def ask(host: str, port: int) -> socket.socket:
    """Ask the proxy for a target, and do not wait for its answer."""
    app = socket.create_connection(("127.0.0.1", SOCKS), WAIT_S)
    name = host.encode()
    app.sendall(b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    assert app.recv(2, socket.MSG_WAITALL) == b"\5\0"
    return app


def reply(app: socket.socket) -> int:
    app.settimeout(WAIT_S)
    return app.recv(4, socket.MSG_WAITALL)[1]


@pytest.mark.parametrize("exit_", ["server", "client"])
def test_dead_names_hold_up_nobody_who_needs_no_resolver(
    machine: Machine, silent: Namespace, exit_: str
) -> None:
    server = machine.serve()
    if exit_ == "client":
        leave = machine.up(
            server.join, "--be-exit", "here,network=127.0.0.0/8", ready=1
        )
        machine.up(server.join, "--socks", str(SOCKS), "--exit", "here", ready=1)
    else:
        leave = server.program
        machine.up(server.join, "--socks", str(SOCKS))
    listener = silent.inside(partial(socket.create_server, ("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    with listener:
        dead = [
            silent.inside(partial(ask, f"dead{number}.example", 80))
            for number in range(DEAD)
        ]
        for host in ("localhost", "127.0.0.1", "printer.lan"):
            with silent.inside(partial(ask, host, port)) as app:
                assert reply(app) == 0, host
        answered, _, _ = select.select(dead, [], [], 0)
        assert not answered, "the dead names were answered before the living ones"
        for app in dead:
            app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            app.close()
    # Threads of it wait for the resolver for minutes still: they hold up nothing.
    assert leave.stop() == 0


@pytest.mark.deep
def test_dead_names_are_given_up_and_a_server_is_dialled_meanwhile(
    machine: Machine, silent: Namespace
) -> None:
    server = machine.serve()
    machine.up(server.join, "--socks", str(SOCKS))
    dead = [
        silent.inside(partial(ask, f"dead{number}.example", 80))
        for number in range(DEAD)
    ]
    replies = {reply(app) for app in dead}
    for app in dead:
        app.close()
    assert replies <= {CODES[Code.TIMEOUT].socks5, CODES[Code.RESOURCE].socks5}
    errors = server.program.errors()
    assert errors.count("the resolver gave no answer in 8 s") >= 1
    assert errors.count("looked up first") >= 1
