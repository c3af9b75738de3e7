"""The rate of one entry: what its connections may send, and what they grant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.pair import TARGET, CorePair

from tunnel.proto.entry_pace import AHEAD_BYTES, EntryPace, let_go
from tunnel.proto.events import CreditGranted, DataReceived, StreamOffered

if TYPE_CHECKING:
    from support.pair import End

    from tunnel.proto.conn import VirtualConn

RATE = 1_000_000
"""Bytes per second."""
TICKS = 50
"""A second of them."""


def opened(pair: CorePair, count: int) -> tuple[list[VirtualConn], list[VirtualConn]]:
    """Open connections from the client; give both ends of each."""
    ours = [pair.client.core.open(TARGET, pair.now) for _ in range(count)]
    pair.settle()
    theirs = [one.conn for one in pair.server.heard_of(StreamOffered)]
    for conn in theirs:
        pair.server.core.accept(conn)
    pair.settle()
    return ours, theirs


def fill(end: End, conns: list[VirtualConn]) -> None:
    """Send on each connection what it takes now."""
    for conn in conns:
        while room := end.core.send_room(conn):
            end.core.send_data(conn, bytes(room))


def read(end: End) -> int:
    """Take all that came, as a program does that reads at once."""
    came = 0
    for event in end.hear():
        if isinstance(event, DataReceived):
            end.core.consumed(event.conn, event.size)
            came += event.size
    return came


@pytest.mark.parametrize("way", ["out", "in"])
def test_all_connections_of_an_entry_together_keep_to_the_rate(way: str) -> None:
    pair = CorePair()
    ours, theirs = opened(pair, 3)
    pace = EntryPace(RATE, lambda: pair.now)
    sender, conns = (pair.client, ours) if way == "out" else (pair.server, theirs)
    reader = pair.other(sender)
    passed = []
    for _ in range(4 * TICKS):
        pace.tick(pair.client.core, ours)
        fill(sender, conns)
        pair.settle()
        passed.append(read(reader))
        pair.now += 1 / TICKS
    # What was granted before the rate began passes in its first second.
    steady = sum(passed[TICKS:])
    assert 3 * RATE * 0.9 < steady < 3 * RATE + 3 * AHEAD_BYTES
    counts = [conn.send.taken for conn in conns]
    assert max(counts) - min(counts) < 3 * AHEAD_BYTES


def test_no_more_is_granted_than_the_window_has_room_for() -> None:
    pair = CorePair()
    ours, theirs = opened(pair, 1)
    pace = EntryPace(1_000 * RATE, lambda: pair.now)
    window = ours[0].recv.size
    for _ in range(TICKS):
        pace.tick(pair.client.core, ours)
        fill(pair.server, theirs)
        pair.settle()  # and nobody reads at the client
        pair.now += 1 / TICKS
    assert ours[0].recv.received == window
    assert ours[0].recv.limit == window


def test_a_connection_is_as_before_when_its_rate_is_lifted() -> None:
    pair = CorePair()
    (conn,), _theirs = opened(pair, 1)
    core = pair.client.core
    before = conn.send.room(), conn.recv.limit
    EntryPace(RATE, lambda: pair.now).tick(core, [conn])
    core.send_data(conn, bytes(core.send_room(conn)))
    assert core.send_room(conn) == 0
    sent = conn.send.taken
    pair.settle()
    let_go(core, conn)
    assert any(isinstance(one, CreditGranted) for one in core.take_notices())
    assert (conn.send.room() + sent, conn.recv.limit) == before
    let_go(core, conn)  # harmless a second time
    assert (conn.send.room() + sent, conn.recv.limit) == before
