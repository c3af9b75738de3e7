"""A flood of strangers is some lines of the log and a count."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Final

from tunnel.ops.show import LINES_IN_A_WINDOW

if TYPE_CHECKING:
    from support.processes import Machine

JUNK: Final = 3_000


def test_junk_connects_are_some_lines_and_a_count(machine: Machine) -> None:
    server = machine.serve()
    for _ in range(JUNK):
        with socket.create_connection(("127.0.0.1", server.port)) as conn:
            conn.sendall(b"GET / HTTP/1.1\r\n\r\n")
            conn.shutdown(socket.SHUT_WR)
            conn.settimeout(20)
            try:
                while conn.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    server.program.stop()  # the rest is said at the latest now
    counted = 0
    for line in server.program.err.all():
        if "event=link." in line:
            more = re.search(r" more=(\d+)", line)
            counted += int(more[1]) if more else 1
    assert counted == JUNK
    assert len(server.program.err.all()) < 10 * LINES_IN_A_WINDOW
