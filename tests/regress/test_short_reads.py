"""A read may give less than is there: it is no sign that nothing is behind it.

Urgent data (an FTP client's ABOR, Telnet's Synch) and descriptors that are passed over
a unix socket cut a read short: who waits edge-triggered would wait for ever then.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.wires import Offers, open_one, session_pair

from tunnel.net.relay import relay
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from collections.abc import Callable


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = socket.create_connection(listener.getsockname())
        return program, listener.accept()[0]


def send_urgent(program: socket.socket) -> None:
    program.send(b"on")
    program.send(b"!", socket.MSG_OOB)
    program.send(b"etwo")


def send_descriptor(program: socket.socket) -> None:
    socket.send_fds(program, [b"one"], [program.fileno()])
    program.send(b"two")


@pytest.mark.parametrize(
    ("pair", "send"), [(tcp, send_urgent), (socket.socketpair, send_descriptor)]
)
async def test_bytes_behind_a_short_read_are_not_left(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    send: Callable[[socket.socket], None],
) -> None:
    offers = Offers()
    program, near = pair()
    got = b""
    with program, trio.fail_after(5):
        async with session_pair(serve_server=offers) as sessions:
            left, right = await open_one(sessions, offers)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, FastSocket(near), left)
                await trio.testing.wait_all_tasks_blocked()
                send(program)
                while len(got) < 6:
                    got += bytes(await right.receive_some())
                nursery.cancel_scope.cancel()
    assert got == b"onetwo"
