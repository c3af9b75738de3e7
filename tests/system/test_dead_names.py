"""Names that nobody answers for, and everybody else who uses the same exit."""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
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


ANSWERS: Final = {b"unknown": 3, b"broken": 2}
"""The response code for names that begin so (RFC 1035 §4.1.1); nothing for others."""


def answer(resolver: socket.socket) -> None:
    """Be a resolver until an empty datagram comes."""
    while True:
        query, app = resolver.recvfrom(512)
        if not query:
            return
        label = query[13 : 13 + query[12]]
        if label in ANSWERS:
            head = struct.pack("!5H", 0x8180 | ANSWERS[label], 1, 0, 0, 0)
            end = query.index(0, 12) + 5
            resolver.sendto(query[:2] + head + query[12:end], app)


@pytest.fixture
def answering(machine: Machine) -> Iterator[Namespace]:
    """A network whose resolver says no, says that it is broken, or says nothing."""
    only_as_root()
    resolv = machine.home / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\noptions timeout:1 attempts:1\n")
    namespace = Namespace(machine, {"/etc/resolv.conf": resolv})
    with namespace.inside(partial(socket.socket, type=socket.SOCK_DGRAM)) as resolver:
        resolver.bind(("127.0.0.53", 53))
        thread = threading.Thread(target=answer, args=(resolver,))
        thread.start()
        machine.command = (*namespace.enter, sys.executable, "-m", "tunnel")
        yield namespace
        resolver.sendto(b"", resolver.getsockname())
        thread.join()


FAILED: Final = "the resolver failed (temporary failure in name resolution)"


def test_a_name_without_an_address_is_told_from_a_resolver_that_fails(
    machine: Machine, answering: Namespace
) -> None:
    names = {"unknown": "no such name", "broken": FAILED}
    server = machine.serve()
    entries = [f"--reach={20_000 + at}={name}.lan:80" for at, name in enumerate(names)]
    entries += [f"--tcp={30_000 + at}={name}.lan:80" for at, name in enumerate(names)]
    client = machine.up(
        server.join, "--socks", str(SOCKS), *entries, ready=1 + len(entries)
    )
    visit = partial(socket.create_connection, timeout=WAIT_S)
    code = Code.HOST_UNREACHABLE
    with answering.inside(partial(ask, "silent.lan", 80)) as app:
        assert reply(app) == CODES[code].socks5
    assert f"code={code.name}" in server.program.err.wait(f"silent.lan:80: {FAILED}")
    for at, (name, why) in enumerate(names.items()):
        told = f"cannot reach {name}.lan:80: {why}"
        with answering.inside(partial(ask, f"{name}.lan", 80)) as app:
            assert reply(app) == CODES[code].socks5
        for request in ("CONNECT {}.lan:80", "GET http://{}.lan:80/"):
            head = f"{request.format(name)} HTTP/1.1\r\nHost: {name}.lan:80\r\n\r\n"
            with answering.inside(partial(visit, ("127.0.0.1", SOCKS))) as app:
                app.sendall(head.encode())
                page = app.makefile("rb").read().decode()
            assert page.split()[1] == str(CODES[code].http)
            assert page.endswith(f": {told}\n")
        for port, exit_ in ((20_000, server.program), (30_000, client)):
            visit_it = partial(visit, ("127.0.0.1", port + at))
            # Perhaps it is reset before its connect returns.
            with pytest.raises(ConnectionResetError), answering.inside(visit_it) as app:
                app.recv(1)
            assert f"code={code.name}" in exit_.err.wait(told)
        piped = machine.tunnel("pipe", f"{name}.lan:80", to=server.join)
        assert piped.wait() == CODES[code].exit_status
        assert why in piped.errors()


@pytest.mark.parametrize(
    ("name", "why"),
    [("unknown", "unknown.lan is not known"), ("broken", FAILED)],
)
@pytest.mark.usefixtures("answering")
def test_a_server_that_is_not_found_is_told_from_a_resolver_that_fails(
    machine: Machine, name: str, why: str
) -> None:
    join = f"tunnel://default:{'A' * 43}@{name}.lan:7443/#{'A' * 43}"
    client = machine.up(join, "--tcp", "1", ready=0)
    client.err.wait(f"{name}.lan:7443: {why}")


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
    failed, queued = Code.HOST_UNREACHABLE, Code.RESOURCE
    assert replies <= {CODES[failed].socks5, CODES[queued].socks5}
    errors = server.program.errors()
    assert errors.count("the resolver failed (no answer in 8 s)") >= 1
    assert errors.count("looked up first") >= 1
