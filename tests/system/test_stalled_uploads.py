"""Visitors who send while their client stalls cost a server a share of one bound."""

from __future__ import annotations

import hashlib
import select
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import eventually
from support.targets import Target, echo, shared_out, visit

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Machine

SENT_BYTES: Final = 1_000_000
GROWTH_BYTES: Final = 26_000_000
"""A fifth of 64 MiB, and what the link took: 256 KiB for each would be 39 MB."""
VISITOR_BYTES: Final = 20_000
"""One whose connection is open."""


def digest(conn: socket.socket) -> object:
    """Read all, and answer with what it was."""
    said = hashlib.sha256()
    while data := conn.recv(65_536):
        said.update(data)
    conn.sendall(said.digest())
    return None


def fill(conn: socket.socket, left: int) -> int:
    """Send what is taken without a wait, at most so much; say how much."""
    sent = 0
    conn.setblocking(False)
    while sent < left and select.select([], [conn], [], 0)[1]:
        try:
            sent += conn.send(bytes(min(65_536, left - sent)))
        except BlockingIOError:
            break
    conn.setblocking(True)
    return sent


def finish(conn: socket.socket, sent: int) -> bytes:
    """Send the rest, and read the answer."""
    conn.settimeout(60)
    while sent < SENT_BYTES:
        sent += conn.send(bytes(min(65_536, SENT_BYTES - sent)))
    conn.shutdown(socket.SHUT_WR)
    answer = b""
    while piece := conn.recv(64):
        answer += piece
    return answer


MANY: Final = pytest.param(900, marks=[pytest.mark.deep, pytest.mark.timeout(240)])


@pytest.mark.parametrize("count", [150, MANY])
def test_uploads_to_a_client_that_stalls_are_bounded_and_finish_when_it_goes_on(
    machine: Machine, count: int, figures: Callable[[str], None]
) -> None:
    with ExitStack() as stack:
        sink = stack.enter_context(Target(digest))
        echoes = stack.enter_context(Target(echo))
        server = machine.serve()
        stalled = machine.up(server.join, "--tcp", f"0=127.0.0.1:{sink.port}")
        lively = machine.up(server.join, "--tcp", f"0=127.0.0.1:{echoes.port}")
        ports = [
            int(client.out.all()[0].split()[1].rpartition(":")[2])
            for client in (stalled, lively)
        ]
        visitors = [stack.enter_context(visit(ports[0])) for _ in range(count)]
        for conn in visitors:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        before = server.program.rss_bytes()
        stalled.send(signal.SIGSTOP)
        sent = [0] * count
        rounds = 0

        def all_wait() -> bool:
            """Send on until nobody takes any more."""
            nonlocal rounds
            more = [fill_more(at) for at in range(count)]
            rounds = 0 if any(more) else rounds + 1
            return rounds >= 10

        def fill_more(at: int) -> int:
            size = fill(visitors[at], SENT_BYTES - sent[at])
            sent[at] += size
            return size

        eventually(all_wait, "every visitor waits", 60)
        growth = server.program.rss_bytes() - before
        with visit(ports[1]) as other:
            other.sendall(b"still there")
            assert other.recv(100) == b"still there"
        stalled.send(signal.SIGCONT)
        want = hashlib.sha256(bytes(SENT_BYTES)).digest()
        answers = shared_out(range(count), lambda at: finish(visitors[at], sent[at]))
        figures(f"{count} uploads to a stalled client: {growth / 1e6:.0f} MB more")
        assert answers == [want] * count
        assert growth < GROWTH_BYTES + count * VISITOR_BYTES
        assert "RESOURCE" not in server.program.errors()
