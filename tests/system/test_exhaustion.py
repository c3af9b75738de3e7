"""A program that runs out of something refuses some, and is well again later."""

from __future__ import annotations

import resource
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.processes import eventually
from support.targets import Target, visit

if TYPE_CHECKING:
    import socket

    from support.processes import Machine


def greet(conn: socket.socket) -> object:
    """Say one byte, then wait for the end."""
    conn.sendall(b"!")
    return conn.recv(1)


def is_served(conn: socket.socket) -> bool:
    """Say whether a greeting comes; not before something has come at all."""
    try:
        return conn.recv(1) == b"!"
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("poor", ["server", "client"])
def test_without_descriptors_some_wait_or_are_refused_and_all_is_well_later(
    machine: Machine, poor: str
) -> None:
    with Target(greet) as target:
        server = machine.serve()
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        port = int(client.out.all()[0].split()[1].rpartition(":")[2])
        running = server.program if poor == "server" else client
        few = running.descriptors() + 10
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (few, few))
        with ExitStack() as stack:
            crowd = []
            for _ in range(40):
                with suppress(ConnectionResetError):  # refused before it looked
                    crowd.append(stack.enter_context(visit(port)))
            if poor == "server":  # those who are not accepted wait in the kernel
                assert is_served(crowd[0])
                running.err.wait("accept.failed")
            else:
                assert 0 < sum(map(is_served, crowd)) < 40

        def is_well() -> bool:
            with suppress(ConnectionResetError), visit(port) as conn:
                return is_served(conn)
            return False

        eventually(is_well, "a visitor is served again")
        assert running.process.poll() is None
        assert "Traceback" not in running.errors()
        assert running.err.count("accept.failed") < 5
