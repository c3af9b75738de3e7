"""Connections that one program opens one after another: their order at the target.

``iperf3 --bidir`` and active FTP tell their connections apart by nothing else.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import WAIT_S, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Machine

ROUNDS: Final = 60
IN_A_ROUND: Final = 4


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        yield listener


def order_at(target: socket.socket, port: int) -> list[int]:
    """Open some connections, the next when the last is open; give their order there."""
    where = ("127.0.0.1", port)
    visitors = [socket.create_connection(where, WAIT_S) for _ in range(IN_A_ROUND)]
    for number, visitor in enumerate(visitors):
        visitor.sendall(bytes([number]))
    order: list[int] = []
    while len(order) < IN_A_ROUND:
        served, _address = target.accept()
        with served:
            served.settimeout(WAIT_S)
            order += served.recv(1)  # nothing from who only looks whether it is there
    for visitor in visitors:
        visitor.close()
    return order


@pytest.mark.parametrize(
    ("way", "host"), [("--tcp", "localhost"), ("--reach", "127.0.0.1")]
)
def test_connections_reach_the_target_in_the_order_in_which_they_were_opened(
    machine: Machine, target: socket.socket, way: str, host: str
) -> None:
    server = machine.serve()
    there = f"{host}:{target.getsockname()[1]}"
    port = free_port()
    machine.up(server.join, way, f"{port}={there}")
    orders = [order_at(target, port) for _ in range(ROUNDS)]
    wrong = [order for order in orders if order != sorted(order)]
    assert not wrong, f"{len(wrong)} of {ROUNDS} rounds, the first {wrong[0]}"
