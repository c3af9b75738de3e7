"""Machines that vanish without a packet, and readers that only pause."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from support.vanishing import FAR, HERE, Tunnel, Wire

if TYPE_CHECKING:
    from support.processes import Machine

PIECE: Final = bytes(range(256)) * 256
TCP_RTO_MAX_MS: Final = 44
PROXIES: Final = ("socks", "connect", "absolute")
PAUSE: Final = 0.3
"""Of the time after which one is dead: the kernel doubles the time between two
questions, so that it would ask too rarely from here on, unless it is told."""


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


def may_ask_often() -> bool:
    """Say whether this kernel can be told to ask for room more often: Linux 6.15."""
    with socket.socket() as sock:
        try:
            sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS)
        except OSError:
            return False
    return True


def was_cut_short(sock: socket.socket, within_s: float) -> bool:
    """Wait for the end of an answer in chunks; False if there is none, or it is whole.

    Its missing end says so; a RST could destroy what came of it.
    """
    sock.settimeout(max(1.0, within_s))
    heard = b""
    try:
        while piece := sock.recv(1_000):
            heard += piece
    except TimeoutError:
        return False
    return not heard.endswith(b"0\r\n\r\n")


def was_found(kind: str, sock: socket.socket, within_s: float) -> bool:
    """Wait for the end that a ``kind`` has whose other machine vanished."""
    is_answer = kind == "a target of absolute"
    return (was_cut_short if is_answer else was_reset)(sock, within_s)


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
        of_paused = [tunnel.pair("tcp", FAR)[1]] if may_ask_often() else []
        for sock in of_paused:
            fill(sock)
        # The kernel asks for room ever more rarely; it must not have become rare.
        time.sleep(PAUSE * dead_after_s)
        still, its_own_target = tunnel.pair("tcp", HERE)
        _, idle = tunnel.pair("tcp", FAR)
        _, told = tunnel.pair("tcp", FAR)
        sending, unread = tunnel.pair("tcp", FAR)
        fill(sending)
        _, of_app = tunnel.pair("reach", FAR)
        _, of_web = tunnel.pair("http", FAR)
        visitor, _ = tunnel.pair("far", HERE)
        teller, _ = tunnel.pair("far", HERE)
        of_proxy = {kind: tunnel.pair(kind, FAR)[1] for kind in PROXIES}
        by_proxy = {kind: tunnel.pair(kind, HERE)[0] for kind in (*PROXIES, "exit")}
        began = time.monotonic()
        on.vanish()
        told.sendall(b"are you there?")
        of_web.sendall(b"are you there?")
        teller.sendall(b"are you there?")
        found = {
            name: was_found(name, sock, began + within_s - time.monotonic())
            for name, sock in (
                ("an idle visitor", idle),
                ("a visitor that was told something", told),
                ("a visitor whose target reads nothing", unread),
                ("an app of reach", of_app),
                ("a visitor of a name", of_web),
                ("an idle target", visitor),
                ("a target that was told something", teller),
                *(("a visitor that had paused", sock) for sock in of_paused),
                *((f"an app of {kind}", sock) for kind, sock in of_proxy.items()),
                *((f"a target of {kind}", sock) for kind, sock in by_proxy.items()),
            )
        }
        assert all(found.values()), found
        assert time.monotonic() - began >= dead_after_s - 1
        # Visitors, and targets of apps; targets of visitors, and apps.
        tunnel.server.err.wait("peer.vanished", 4 + len(of_paused) + 3)
        tunnel.client.err.wait("peer.vanished", 3 + 3 + 1)
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
