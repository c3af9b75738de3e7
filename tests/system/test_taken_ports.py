"""A public port that somebody else has: who waits for it, and who gives up."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import TYPE_CHECKING

from support.processes import free_port
from support.targets import Target, read_exactly, visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Machine


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)):
        yield


def serves(port: int) -> bool:
    with visit(port) as conn:
        conn.sendall(b"hello")
        return read_exactly(conn, 5) == b"hello"


def test_a_port_that_was_had_comes_back_when_who_took_it_has_left(
    machine: Machine, target: Target
) -> None:
    listen, port = f"127.0.0.1:{free_port()}", free_port()
    first = machine.serve(listen=listen)
    client = machine.up(first.join, "--tcp", f"{port}=127.0.0.1:{target.port}")
    first.program.stop(signal.SIGKILL)
    with taken(port):
        machine.serve(listen=listen)
        client.err.wait("mapping.refused")
    client.err.wait("mapping.ready", 2)
    assert serves(port)
    assert client.err.count("mapping.refused") == 1
    assert client.stop() == 0
    assert len(client.out.all()) == 1


def test_a_port_is_waited_for_while_another_entry_stands_over_any_number_of_links(
    machine: Machine, target: Target
) -> None:
    listen, port, other = f"127.0.0.1:{free_port()}", free_port(), free_port()
    here = f"127.0.0.1:{target.port}"
    server = machine.serve(listen=listen)
    with taken(port):
        client = machine.up(
            server.join, "--tcp", f"{port}={here}", "--tcp", f"{other}={here}", ready=1
        )
        client.err.wait("mapping.refused")
        for times in (2, 3):
            server.program.stop(signal.SIGKILL)
            server = machine.serve(listen=listen)
            client.err.wait("link.up", times)
            client.err.wait("mapping.ready", times)
            assert serves(other)
    client.out.wait(f"tcp 127.0.0.1:{port} {here}")
    assert serves(port)
    assert client.stop() == 0


def test_entries_that_are_all_taken_end_with_7(
    machine: Machine, target: Target
) -> None:
    server, here = machine.serve(), f"127.0.0.1:{target.port}"
    one, other = free_port(), free_port()
    with taken(one), taken(other):
        client = machine.up(
            server.join, "--tcp", f"{one}={here}", "--tcp", f"{other}={here}", ready=0
        )
        assert client.wait() == 7
    assert client.err.count("error: the server does not give") == 2
