"""Who has read one page of protocol.md has a client that works."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from support.processes import free_port
from support.smallest import SmallestClient

if TYPE_CHECKING:
    from support.processes import Machine

REFUSED = 0x14
SIZE = 2_000_000


def echo_once(listener: socket.socket) -> None:
    conn, _ = listener.accept()
    with conn:
        while data := conn.recv(65_536):
            conn.sendall(data)


@pytest.mark.parametrize("flags", [(), ("--plain",)], ids=["tls", "plain"])
def test_a_client_from_one_page_opens_publishes_and_leaves(
    machine: Machine, flags: tuple[str, ...]
) -> None:
    client = SmallestClient(machine.serve(*flags).join)
    payload = os.urandom(SIZE)

    # Out through the server, with half a window and more both ways.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo_once, args=(listener,), daemon=True).start()
        one = client.open(b"127.0.0.1", listener.getsockname()[1])
        one.to_send, one.last = memoryview(payload), True
        back = bytearray()
        while not one.ended or one.came:
            client.step()
            back += client.take(one)
    assert one.accepted
    assert back == payload
    client.close(one)
    client.until(lambda: one.number not in client.numbers)
    assert one.code == 0

    nobody = client.open(b"127.0.0.1", free_port())
    client.until(lambda: nobody.code is not None)
    assert nobody.code == REFUSED
    assert not nobody.accepted

    # In through the server.
    port = client.publish(free_port())
    with socket.create_connection(("127.0.0.1", port), 10) as visitor:
        visitor.sendall(b"ping")
        visitor.shutdown(socket.SHUT_WR)
        client.until(lambda: bool(client.visitors and client.visitors[0].ended))
        came = client.visitors[0]
        assert client.take(came) == b"ping"
        came.to_send, came.last = memoryview(b"pong"), True
        client.until(lambda: came.number not in client.numbers or came.finished)
        client.step()
        assert visitor.recv(100) == b"pong"
        assert visitor.recv(100) == b""
    client.close(came)
    client.until(lambda: came.number not in client.numbers)
    client.leave()
