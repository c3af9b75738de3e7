"""The line of other tests is as late, as lossy and as slow as it was told to be."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

from support.long_line import FAR, LongLine

if TYPE_CHECKING:
    from support.processes import Machine

ROUNDS = 20
PACKETS = 20
CARRIED_BYTES = 1_000_000


def test_the_line_delays_and_loses_as_it_is_told(
    machine: Machine, far: Machine
) -> None:
    line = LongLine(machine, far, delay_ms=50)

    def datagrams() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with line.near.inside(datagrams) as near, line.far.inside(datagrams) as other:
        other.bind((FAR, 0))
        near.connect(other.getsockname())
        near.settimeout(5)
        began = time.monotonic()
        near.send(b"ping")
        other.settimeout(5)
        _ping, back = other.recvfrom(100)
        other.sendto(b"pong", back)
        assert near.recv(100) == b"pong"
        assert 0.1 <= time.monotonic() - began < 1

        line.set("delay", 0)
        came = 0
        for _ in range(ROUNDS):  # of what a socket's buffer holds
            line.set("loss", 25)
            for _ in range(PACKETS):
                near.send(b"data")
            line.set("loss", 0)
            near.send(b"end")
            while other.recv(100) != b"end":
                came += 1
        counted = line.count()
    assert counted.dropped == 0
    assert came == ROUNDS * PACKETS - counted.lost
    assert 0.15 < counted.lost / (ROUNDS * PACKETS) < 0.35


def test_the_line_carries_what_its_rate_lets_through(
    machine: Machine, far: Machine
) -> None:
    line = LongLine(machine, far, delay_ms=10, mbit=8)
    listener = line.far.inside(lambda: socket.create_server((FAR, 0)))
    took_s = []

    def read() -> None:
        conn, _address = listener.accept()
        with conn:
            began, size = 0.0, 0
            while data := conn.recv(65_536):
                began = began or time.monotonic()
                size += len(data)
            assert size == CARRIED_BYTES
            took_s.append(time.monotonic() - began)

    reader = threading.Thread(target=read)
    with listener:
        reader.start()
        sender = line.near.inside(socket.socket)
        with sender:
            sender.connect(listener.getsockname())
            sender.sendall(bytes(CARRIED_BYTES))
        reader.join(30)
    assert took_s
    # 8 Mbit/s carry 1 MB in a second, and a little more with the headers.
    assert 0.9 < took_s[0] < 2.5
