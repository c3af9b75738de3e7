from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pair import CorePair

from tunnel.proto.codec import FrameDecoder
from tunnel.proto.entry_pace import let_go, slow
from tunnel.proto.frames import ProtPing, ProtWindow, Terms
from tunnel.proto.pools import PROCESS_GROWTH_BYTES, HeldPool
from tunnel.proto.window import (
    FAR_S,
    GRANT_BYTES,
    IDLE_S,
    MAX_WINDOW_BYTES,
    PROBE_S,
    SESSION_GROWTH_BYTES,
    RecvWindow,
    WindowTuner,
)

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn

FIRST = 65_536
RTT_S = 0.1


def first() -> RecvWindow:
    return RecvWindow(FIRST, FIRST)


def growth(process: HeldPool | None = None) -> WindowTuner:
    return WindowTuner(FIRST, process or HeldPool())


def grant(own: WindowTuner, window: RecvWindow, now: float) -> int:
    """Have half of the window emptied, and grant; give its size."""
    half = (window.size + 1) // 2
    window.received += half
    window.consumed += half
    own.grant(window, now, RTT_S)
    return window.size


def grow_fully(own: WindowTuner, window: RecvWindow, now: float = 0.0) -> int:
    for step in range(12):
        grant(own, window, now + step * RTT_S)
    return window.size


def test_a_window_grows_while_half_of_it_lasts_less_than_two_round_trips() -> None:
    own, window = growth(), first()
    assert grant(own, window, 0.0) == FIRST
    assert grant(own, window, 1.9 * RTT_S) == 4 * FIRST
    assert grant(own, window, 3.8 * RTT_S) == 16 * FIRST
    assert grant(own, window, 5.9 * RTT_S) == 16 * FIRST


def test_a_window_of_a_short_line_only_doubles() -> None:
    own, window = growth(), first()
    grant(own, window, 0.0)
    window.consumed += FIRST // 2
    own.grant(window, 0.001, FAR_S * 0.9)
    assert window.size == 2 * FIRST


def test_grants_of_less_than_half_a_window_do_not_make_it_grow() -> None:
    own, window = growth(), first()
    grant(own, window, 0.0)
    window.consumed += FIRST // 2 - 1
    own.grant(window, 0.1 * RTT_S, RTT_S)
    assert window.size == FIRST
    window.consumed += 1
    own.grant(window, 1.9 * RTT_S, RTT_S)
    assert window.size == 4 * FIRST


def test_half_a_large_window_is_granted_in_parts_which_counts_as_one_emptying() -> None:
    own, window = growth(), RecvWindow(MAX_WINDOW_BYTES // 4, MAX_WINDOW_BYTES // 4)
    grant(own, window, 0.0)
    sizes = []
    for part in range(8):
        window.consumed += MAX_WINDOW_BYTES // 64
        own.grant(window, part * RTT_S / 4, RTT_S)
        sizes.append(window.size)
    assert sizes == [MAX_WINDOW_BYTES // 4] * 7 + [MAX_WINDOW_BYTES]


def test_a_window_grows_no_further_than_its_limit() -> None:
    assert grow_fully(growth(), first()) == MAX_WINDOW_BYTES


def test_without_a_round_trip_nothing_grows() -> None:
    own, window = growth(), first()
    for _ in range(2):
        window.consumed += FIRST // 2
        own.grant(window, 0.0, None)
    assert window.size == FIRST


def test_a_reader_that_lags_behind_gets_no_larger_window() -> None:
    own, window = growth(), first()
    grant(own, window, 0.0)
    window.received += FIRST // 2 + 1
    assert grant(own, window, RTT_S) == FIRST
    window.consume(1)
    assert grant(own, window, 2 * RTT_S) == 4 * FIRST


def test_nothing_grows_while_memory_is_scarce() -> None:
    process = HeldPool(limit_bytes=100)
    process.held_bytes = 26
    own, window = growth(process), first()
    grant(own, window, 0.0)
    assert grant(own, window, RTT_S) == FIRST


def test_a_session_pays_for_the_growth_of_all_its_windows() -> None:
    process = HeldPool()
    own, windows = growth(process), [first() for _ in range(8)]
    for window in windows:
        grow_fully(own, window)
    grown = sum(window.size - FIRST for window in windows)
    assert SESSION_GROWTH_BYTES // 2 < grown <= SESSION_GROWTH_BYTES
    assert process.grown_bytes == grown


def test_a_process_pays_for_the_growth_of_all_its_sessions() -> None:
    process = HeldPool()
    for _ in range(8):
        own = growth(process)
        for _ in range(8):
            grow_fully(own, first())
    assert PROCESS_GROWTH_BYTES // 2 < process.grown_bytes <= PROCESS_GROWTH_BYTES


def test_an_idle_window_has_its_first_size_again_and_pays_back() -> None:
    process = HeldPool()
    own, idle, busy = growth(process), first(), first()
    grow_fully(own, idle)
    grow_fully(own, busy, now=5.0)
    assert own.next_wakeup() == idle.measured_at + IDLE_S
    own.on_time(idle.measured_at + IDLE_S)
    assert idle.size == FIRST
    assert busy.size == MAX_WINDOW_BYTES
    assert process.grown_bytes == MAX_WINDOW_BYTES - FIRST
    own.forget(busy)
    assert process.grown_bytes == 0
    assert own.next_wakeup() == math.inf


def test_the_round_trip_is_probed_now_and_then_and_on_each_link() -> None:
    own = growth()
    assert own.probe_due(0.0)
    assert not own.probe_due(PROBE_S / 2)
    assert own.probe_due(PROBE_S)
    own.begin_link()
    assert own.probe_due(PROBE_S)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 2), st.booleans())))
def test_what_is_paid_is_what_windows_have_grown_by(
    acts: list[tuple[int, float, bool]],
) -> None:
    process, now = HeldPool(), 0.0
    own, windows = growth(process), [first() for _ in range(5)]
    for which, later, ends in acts:
        now += later
        own.on_time(now)
        if ends:
            own.forget(windows[which])
        else:
            grant(own, windows[which], now)
        assert process.grown_bytes == sum(window.size - FIRST for window in windows)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1), st.booleans())),
    st.integers(0, 20 * FIRST),
)
def test_what_a_session_may_grow_by_is_not_used_up_by_growing(
    acts: list[tuple[int, float, bool]], process_bytes: int
) -> None:
    process, now = HeldPool(growth_limit_bytes=process_bytes), 0.0
    own, windows = growth(process), [first() for _ in range(5)]
    for which, later, ends in acts:
        now += later
        own.on_time(now)
        if ends:
            own.forget(windows[which])
        else:
            grant(own, windows[which], now)
    for window in windows:
        own.forget(window)
    assert process.grown_bytes == 0
    assert own.next_wakeup() == math.inf
    process.growth_limit_bytes = PROCESS_GROWTH_BYTES
    grown = sum(grow_fully(own, first()) - FIRST for _ in range(8))
    assert grown == SESSION_GROWTH_BYTES  # to the last byte


def test_a_growth_that_the_process_refuses_costs_the_session_nothing() -> None:
    process = HeldPool(growth_limit_bytes=0)
    own = growth(process)
    for _ in range(3):
        assert grow_fully(own, first()) == FIRST
    process.growth_limit_bytes = PROCESS_GROWTH_BYTES
    window = first()
    grow_fully(own, window)
    own.forget(window)
    grown = sum(grow_fully(own, first()) - FIRST for _ in range(8))
    assert grown == SESSION_GROWTH_BYTES


# In the core -------------------------------------------------------------------------


def carry_bulk(
    pair: CorePair, rtt_s: float, seconds: float
) -> tuple[int, tuple[VirtualConn, VirtualConn]]:
    """Send as fast as credit allows for a while.

    Give the bytes that arrived, and both ends of what carried them.
    """
    ours, theirs = pair.opened()
    until, arrived = pair.now + seconds, 0
    while pair.now < until:
        while room := pair.client.core.send_room(ours):
            pair.client.core.send_data(ours, bytes(room))
            while pair.client.core.has_output():
                pair.flush(pair.client)
        pair.now += rtt_s / 2
        pair.deliver(pair.client)
        arrived += theirs.held_bytes
        pair.server.core.consumed(theirs, theirs.held_bytes)
        while pair.server.core.has_output():
            pair.flush(pair.server)
        pair.now += rtt_s / 2
        pair.deliver(pair.server)
    return arrived, (ours, theirs)


def test_a_long_line_is_filled_within_seconds() -> None:
    pair = CorePair(Terms(), Terms())
    arrived, _ = carry_bulk(pair, rtt_s=0.1, seconds=2.0)
    pair.settle()
    # 20 round trips of the first window would be 5 MB, of the largest 335 MB.
    assert arrived > 250_000_000


def test_a_grown_window_lets_all_but_one_grant_be_on_its_way() -> None:
    pair = CorePair(Terms(), Terms())
    ours, theirs = carry_bulk(pair, rtt_s=0.1, seconds=1.0)[1]
    pair.settle()
    window = theirs.recv
    assert window.size == MAX_WINDOW_BYTES
    # The most that the reader has taken and was not granted is less than a grant.
    room, granted = ours.send.room(), 0
    assert room > MAX_WINDOW_BYTES - GRANT_BYTES
    window.received += room
    while not pair.server.core.consumed(theirs, 65_536):
        granted += 65_536
    assert granted < GRANT_BYTES


def test_a_grant_asks_for_the_round_trip_once_in_a_while() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    asked = []
    for _ in range(3):
        pair.client.core.send_data(ours, bytes(131_072))
        pair.flush(pair.client)
        pair.deliver(pair.client)
        pair.server.core.consumed(theirs, 131_072)
        said = b""
        while pair.server.core.has_output():
            said += pair.flush(pair.server)
        frames = list(FrameDecoder().feed(said))
        assert any(type(frame) is ProtWindow for frame in frames)
        asked.append(any(type(frame) is ProtPing for frame in frames))
        pair.settle()
        pair.now += 1.1
    assert asked == [True, False, True]


def test_another_link_is_asked_for_its_round_trip_at_the_next_grant() -> None:
    pair = CorePair(replay_limit=1 << 20)
    ours, theirs = pair.opened()

    def asks_at_a_grant() -> bool:
        due = False
        while not due:
            pair.client.core.send_data(ours, bytes(pair.client.core.send_room(ours)))
            while pair.client.core.has_output():
                pair.flush(pair.client)
            pair.deliver(pair.client)
            assert theirs.held_bytes
            due = pair.server.core.consumed(theirs, theirs.held_bytes)
        said = b""
        while pair.server.core.has_output():
            said += pair.flush(pair.server)
        pair.settle()
        return any(type(frame) is ProtPing for frame in FrameDecoder().feed(said))

    assert asks_at_a_grant()
    assert not asks_at_a_grant()
    pair.cut()
    pair.resume()
    assert asks_at_a_grant()


def test_a_grown_window_has_a_time_that_may_come_before_all_others() -> None:
    patient = Terms(idle_ping_s=3_600)
    pair = CorePair(patient, patient)
    carry_bulk(pair, rtt_s=0.1, seconds=1.0)
    core = pair.server.core
    sooner = [core.liveness.sooner]
    assert core.next_wakeup() <= pair.now + IDLE_S
    sooner.append(core.liveness.sooner)
    assert sooner == [True, False]
    pair.wait(IDLE_S)
    assert pair.server.pool.grown_bytes == 0


@pytest.mark.parametrize("closer", ["the reader", "the writer"])
def test_a_close_pays_back_at_once_whatever_the_peer_says(closer: str) -> None:
    pair = CorePair()
    ours, theirs = carry_bulk(pair, rtt_s=0.1, seconds=1.0)[1]
    pair.settle()
    assert pair.server.pool.grown_bytes > 0
    if closer == "the reader":
        pair.server.core.close(theirs)
    else:
        pair.client.core.close(ours)
        pair.flush(pair.client)
        pair.deliver(pair.client)
    assert pair.server.pool.grown_bytes == 0


def test_a_connection_that_ends_pays_back_what_its_window_had_grown() -> None:
    pair = CorePair()
    carry_bulk(pair, rtt_s=0.1, seconds=1.0)
    assert pair.server.pool.grown_bytes > 0
    pair.server.core.end()
    assert pair.server.pool.grown_bytes == 0


def test_a_window_that_a_rate_takes_over_keeps_nothing_that_is_not_paid_for() -> None:
    pair = CorePair()
    _, theirs = carry_bulk(pair, rtt_s=0.1, seconds=1.0)[1]
    pair.settle()
    first = Terms().initial_window
    assert theirs.recv.size > first
    slow(pair.server.core, theirs)
    sizes = [theirs.recv.size]
    let_go(pair.server.core, theirs)
    assert [*sizes, theirs.recv.size] == [first, first]
    assert pair.server.pool.grown_bytes == 0
