"""Whoever stands at the link port without a token keeps nobody out."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from support.targets import Target, read_exactly, visit

if TYPE_CHECKING:
    import socket

    from support.processes import Machine

SILENT = 1_064


def echo(conn: socket.socket) -> object:
    while data := conn.recv(100):
        conn.sendall(data)
    return None


def test_a_client_gets_in_at_once_although_a_thousand_say_nothing(
    machine: Machine,
) -> None:
    with Target(echo) as target, ExitStack() as stack:
        server = machine.serve()
        for number in range(SILENT):
            silent = stack.enter_context(visit(server.port))
            if number % 4 == 0:
                silent.sendall(b"\x16\x03\x01\x02\x00\x01")  # and no more of it
        began = time.monotonic()
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        took_s = time.monotonic() - began
        port = int(client.out.all()[0].split()[1].rpartition(":")[2])
        with visit(port) as visitor:
            visitor.sendall(b"hello")
            assert read_exactly(visitor, 5) == b"hello"
        # Two seconds, and what it takes to start Python on a busy machine.
        assert took_s < 6
        assert "Traceback" not in server.program.errors()


def test_a_wrong_token_behind_the_same_address_keeps_nobody_out(
    machine: Machine,
) -> None:
    server = machine.serve()
    name, token = server.join.split("://")[1].split("@")[0].split(":")
    wrong = server.join.replace(f"{name}:{token}", f"{name}:{'A' * 42 + 'E'}")
    guessing = [machine.tunnel("up", "--tcp", "1", to=wrong) for _ in range(4)]
    assert {one.wait() for one in guessing} == {6}
    with Target(echo) as target:
        machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
