"""Machines that vanish without a packet, and readers that only pause."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from support.processes import eventually
from support.vanishing import FAR, HERE, Tunnel, Wire

if TYPE_CHECKING:
    from support.processes import Machine, Program

PIECE: Final = bytes(range(256)) * 256
TCP_RTO_MAX_MS: Final = 44
DEAD_AFTER_S: Final = 150.0
PAUSE: Final = 0.3
"""Of the time after which one is dead: the kernel doubles the time between two
questions, so that it would ask too rarely from here on, unless it is told."""


class EndpointType(NamedTuple):
    """A connection with one end at the machine that vanishes."""

    name: str
    by: str
    at: str
    """Where its visitor is."""
    fills: str = ""
    """Which end sends before until nothing more is taken."""
    told: bool = False
    """The end that stays sends behind it."""


PAUSED: Final = (
    EndpointType("a visitor that had paused", "tcp", FAR, fills=HERE),
    EndpointType("a target that had paused", "far", HERE, fills=HERE),
)
KINDS: Final = (
    EndpointType("an idle visitor", "tcp", FAR),
    EndpointType("a visitor that was told something", "tcp", FAR, told=True),
    EndpointType("a visitor whose target reads nothing", "tcp", FAR, fills=FAR),
    EndpointType("an app of reach", "reach", FAR),
    EndpointType("a visitor of a name", "http", FAR, told=True),
    EndpointType("an idle target", "far", HERE),
    EndpointType("a target that was told something", "far", HERE, told=True),
    EndpointType("an app of SOCKS", "socks", FAR),
    EndpointType("an app of CONNECT", "connect", FAR),
    EndpointType("an app of a web proxy", "absolute", FAR),
    EndpointType("a target of SOCKS", "socks", HERE),
    EndpointType("a target of CONNECT", "connect", HERE),
    EndpointType("a target of a web proxy", "absolute", HERE),
    EndpointType("a target of SOCKS at the server", "exit", HERE),
)


class Pair:
    """One connection through a tunnel."""

    def __init__(self, kind: EndpointType, tunnel: Tunnel) -> None:
        self.kind = kind
        visitor, target = tunnel.pair(kind.by, kind.at)
        self._far, self._stays = visitor, target
        if kind.at == HERE:
            self._far, self._stays = target, visitor
        if kind.fills:
            fill(self._far if kind.fills == FAR else self._stays)

    def tell(self) -> None:
        """Say something to who vanished, in the kinds that do."""
        if self.kind.told:
            self._stays.sendall(b"are you there?")

    def was_found(self, within_s: float) -> bool:
        """Wait for the end that such a one has whose other machine vanished."""
        is_answer = self.kind.by == "absolute" and self.kind.at == HERE
        return (was_cut_short if is_answer else was_reset)(self._stays, within_s)


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


def made(tunnel: Tunnel, dead_after_s: float, each: int = 1) -> list[Pair]:
    """Connect so many of each kind, and wait until it matters that some pause."""
    pairs: list[Pair] = []
    if may_ask_often():
        pairs += [Pair(kind, tunnel) for kind in PAUSED for _ in range(each)]
    until = time.monotonic() + PAUSE * dead_after_s
    pairs += [Pair(kind, tunnel) for kind in KINDS for _ in range(each)]
    time.sleep(max(0.0, until - time.monotonic()))
    return pairs


def found_of(pairs: list[Pair], on: Wire, dead_after_s: float) -> Counter[str]:
    """Have their machine vanish; give how many of each kind were found in time."""
    within_s = 1.2 * dead_after_s + 5  # a look every fifth, and a busy machine
    until = time.monotonic() + within_s
    on.vanish()
    for pair in pairs:
        pair.tell()
    found = Counter({pair.kind.name: 0 for pair in pairs})
    for pair in pairs:
        found[pair.kind.name] += pair.was_found(until - time.monotonic())
    return found


@pytest.mark.parametrize(
    ("flags", "dead_after_s"),
    [
        (("--dead-after", "5s"), 5.0),
        pytest.param(
            (), DEAD_AFTER_S, marks=[pytest.mark.deep, pytest.mark.timeout(600)]
        ),
    ],
    ids=["5s", "usual"],
)
def test_who_vanished_is_found_and_who_pauses_lives(
    machine: Machine, flags: tuple[str, ...], dead_after_s: float
) -> None:
    on = Wire(machine)
    with ExitStack() as stack:
        tunnel = Tunnel(machine, on, stack, *flags)
        paused, its_target = tunnel.pair("tcp", HERE)
        waits_bytes = fill(its_target)
        still, its_own_target = tunnel.pair("tcp", HERE)
        pairs = made(tunnel, dead_after_s)
        began = time.monotonic()
        found = found_of(pairs, on, dead_after_s)
        assert all(found.values()), found
        assert time.monotonic() - began >= dead_after_s - 1
        for end in (tunnel.server, tunnel.client):  # half of the kinds at each
            end.err.wait("peer.vanished", len(pairs) // 2)
        both = tunnel.server.err.all() + tunnel.client.err.all()
        lines = [line for line in both if "peer.vanished" in line]
        assert len(lines) == len(pairs)
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


def has_only(end: Program, descriptors: int) -> bool:
    return end.descriptors() <= descriptors


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_hundreds_that_vanish_at_once_are_all_found(machine: Machine) -> None:
    each = 400 // len(PAUSED + KINDS)
    on = Wire(machine)
    with ExitStack() as stack:
        tunnel = Tunnel(machine, on, stack)
        ends = (tunnel.server, tunnel.client)
        before = [end.descriptors() for end in ends]
        pairs = made(tunnel, DEAD_AFTER_S, each)
        for end, number in zip(ends, before, strict=True):
            assert end.descriptors() >= number + len(pairs)
        found = found_of(pairs, on, DEAD_AFTER_S)
        assert set(found.values()) == {each}, found
        for end, number in zip(ends, before, strict=True):
            eventually(
                partial(has_only, end, number), "their descriptors are given back"
            )
            end.stop()
            assert not end.err.count("event=draining"), "connections are left"
