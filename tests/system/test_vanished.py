"""Machines that vanish without a packet, and readers that only pause."""

from __future__ import annotations

import select
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import free_port
from support.vanishing import FAR, HERE, Wire

if TYPE_CHECKING:
    import socket

    from support.processes import Machine, Program

PIECE: Final = bytes(range(256)) * 256


class Tunnel:
    """Both ends of a tunnel ``HERE``, with an entry of each kind."""

    def __init__(
        self, machine: Machine, on: Wire, stack: ExitStack, *flags: str
    ) -> None:
        self._on, self._stack = on, stack
        self.target = self._keep(on.listen(HERE, "127.0.0.1"))
        self.far_target = self._keep(on.listen(FAR))
        here, there = (sock.getsockname()[1] for sock in (self.target, self.far_target))
        self.ports = {kind: free_port() for kind in ("tcp", "far", "reach", "http")}
        machine.command = on.inside(sys.executable, "-m", "tunnel")
        self.server: Program
        serve = machine.serve("--http", f"{HERE}:{self.ports['http']}", *flags)
        self.server = serve.program
        self.client = machine.up(
            serve.join,
            "--tcp", f"{HERE}:{self.ports['tcp']}=127.0.0.1:{here}",
            "--tcp", f"{HERE}:{self.ports['far']}={FAR}:{there}",
            "--reach", f"{HERE}:{self.ports['reach']}=127.0.0.1:{here}",
            "--http", f"a.test=127.0.0.1:{here}",
            *flags,
            ready=4,
        )  # fmt: skip

    def pair(self, kind: str, at: str) -> tuple[socket.socket, socket.socket]:
        """Give a visitor and its target: connected, and each has heard the other."""
        visitor = self._keep(self._on.connect(at, self.ports[kind]))
        target = self.far_target if kind == "far" else self.target
        first = (
            b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n" if kind == "http" else b"hello"
        )
        answer = b"HTTP/1.1 200 OK\r\n\r\nwait" if kind == "http" else b"hello"
        visitor.sendall(first)
        accepted = self._keep(target.accept()[0])
        while not accepted.recv(1_000):  # the client looks whether a web service is up
            accepted = self._keep(target.accept()[0])
        accepted.settimeout(20)
        accepted.sendall(answer)
        while answer[-4:] not in visitor.recv(1_000):
            pass
        return visitor, accepted

    def _keep(self, sock: socket.socket) -> socket.socket:
        return self._stack.enter_context(sock)


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken; give how many bytes were."""
    sock.settimeout(0.5)
    sent = 0
    try:
        while True:
            sent += sock.send(PIECE)
    except TimeoutError:
        return sent


def was_reset(sock: socket.socket, within_s: float) -> bool:
    """Wait for an end that was no clean one; False if there is none."""
    deadline = time.monotonic() + within_s
    poll = select.poll()
    poll.register(sock, select.POLLERR | select.POLLHUP)
    if not poll.poll(max(0.0, 1_000 * within_s)):
        return False
    try:
        sock.settimeout(max(1.0, deadline - time.monotonic()))
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize(
    ("flags", "dead_after_s"),
    [
        (("--dead-after", "5s"), 5.0),
        pytest.param((), 150.0, marks=[pytest.mark.deep, pytest.mark.timeout(600)]),
    ],
    ids=["5s", "usual"],
)
def test_who_vanished_is_found_and_who_pauses_lives(
    machine: Machine, flags: tuple[str, ...], dead_after_s: float
) -> None:
    within_s = 1.2 * dead_after_s + 5  # a look every fifth, and a busy machine
    on = Wire(machine)
    with ExitStack() as stack:
        tunnel = Tunnel(machine, on, stack, *flags)
        paused, its_target = tunnel.pair("tcp", HERE)
        waits_bytes = fill(its_target)
        still, its_own_target = tunnel.pair("tcp", HERE)
        _, idle = tunnel.pair("tcp", FAR)
        _, told = tunnel.pair("tcp", FAR)
        sending, unread = tunnel.pair("tcp", FAR)
        fill(sending)
        _, of_app = tunnel.pair("reach", FAR)
        _, of_web = tunnel.pair("http", FAR)
        visitor, _ = tunnel.pair("far", HERE)
        teller, _ = tunnel.pair("far", HERE)
        began = time.monotonic()
        on.vanish()
        told.sendall(b"are you there?")
        of_web.sendall(b"are you there?")
        teller.sendall(b"are you there?")
        found = {
            name: was_reset(sock, began + within_s - time.monotonic())
            for name, sock in (
                ("an idle visitor", idle),
                ("a visitor that was told something", told),
                ("a visitor whose target reads nothing", unread),
                ("an app of reach", of_app),
                ("a visitor of a name", of_web),
                ("an idle target", visitor),
                ("a target that was told something", teller),
            )
        }
        assert all(found.values()), found
        assert time.monotonic() - began >= dead_after_s - 1
        tunnel.server.err.wait("peer.vanished", 4)
        tunnel.client.err.wait("peer.vanished", 3)
        both = tunnel.server.err.all() + tunnel.client.err.all()
        lines = [line for line in both if "peer.vanished" in line]
        assert len(lines) == len(found)
        assert all(f"peer={FAR}:" in line for line in lines)
        assert {"acknowledges" in line for line in lines} == {True, False}
        # Who has paused meanwhile gets all of it, and who only waited goes on.
        time.sleep(max(0.0, began + 1.5 * dead_after_s - time.monotonic()))
        its_target.close()
        paused.settimeout(20)
        heard_bytes = 0
        while data := paused.recv(1 << 20):
            heard_bytes += len(data)
        assert heard_bytes == waits_bytes
        its_own_target.sendall(b"still here")
        assert still.recv(100) == b"still here"
