"""A rate for all sessions of a user: exact and fair, by a clock that a test turns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import Code
from tunnel.proto.conn import VirtualConn
from tunnel.proto.events import (
    CreditGranted,
    DataReceived,
    StreamClosed,
    StreamFinished,
)
from tunnel.proto.frames import SockMap
from tunnel.proto.limits import TokenBucket
from tunnel.proto.pace import (
    BURST_S,
    CATCH_UP_S,
    DEBT_S,
    LEAST_BURST_BYTES,
    Inflow,
    Meter,
    Outflow,
    Police,
)
from tunnel.proto.scheduler import SendQueue, SendScheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.proto.events import Event
    from tunnel.proto.scheduler import Buffer

RATE = 5_000_000
TICK_S = 0.02
TURN = 65_536


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.wanted = 0

    def __call__(self) -> float:
        return self.now

    def meter(self, rate: int = RATE) -> Meter:
        def wanted() -> None:
            self.wanted += 1

        return Meter(rate, self, wanted)

    def run(self, meter: Meter, seconds: float, each: Callable[[], None]) -> None:
        for _ in range(round(seconds / TICK_S)):
            each()
            self.now += TICK_S
            meter.tick()


class Sender:
    """A session whose connections always have more to send, and its quick line."""

    def __init__(self, meter: Meter, conns: int, first: int = 1) -> None:
        self.lanes = SendScheduler(65_528)
        self.flow = Outflow(meter, self.lanes, self.turns)
        self.queues = [SendQueue(first + at) for at in range(conns)]
        self.sent: Counter[int] = Counter()
        self.fill()

    def fill(self) -> None:
        for lane in self.queues:
            while lane.size < 262_144:
                self.lanes.push(lane, bytes(65_536))

    def turns(self) -> None:
        while self.lanes.waiting:
            before = {lane.sock_map: lane.size for lane in self.queues}
            out: list[Buffer] = []
            self.flow.take(TURN, out, [])
            for lane in self.queues:
                self.sent[lane.sock_map] += before[lane.sock_map] - lane.size
            self.fill()


def conn(number: int) -> VirtualConn:
    return VirtualConn(SockMap(number), 0, 1 << 20, lambda _: None)


def owes(meter: Meter) -> bool:
    return meter.overdrawn


def data(of: VirtualConn, payload: bytes) -> DataReceived:
    return DataReceived(of, [memoryview(payload)], len(payload))


# A rate ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1_000, 40_000, 5_000_000, 1_000_000_000])
def test_what_is_sent_is_what_the_rate_and_the_burst_allow(rate: int) -> None:
    clock = Clock()
    meter = clock.meter(rate)
    sender = Sender(meter, 8)
    clock.run(meter, 20, sender.turns)
    sent = sum(sender.sent.values())
    burst = max(rate * BURST_S, LEAST_BURST_BYTES)
    assert 0.98 * rate * 20 <= sent <= rate * 20 + 2 * burst + TURN


def test_connections_of_all_sessions_get_the_same() -> None:
    clock = Clock()
    meter = clock.meter()
    senders = [Sender(meter, 6), Sender(meter, 1, 100), Sender(meter, 1, 200)]

    def turns() -> None:
        for sender in senders:
            sender.turns()

    clock.run(meter, 10, turns)
    sent = [size for sender in senders for size in sender.sent.values()]
    assert len(sent) == 8
    assert min(sent) > 0.9 * max(sent)


def test_a_late_clock_costs_nothing_and_a_rest_saves_no_more_than_a_burst() -> None:
    clock = Clock()
    meter = clock.meter()
    sender = Sender(meter, 2)
    sender.turns()
    before = sum(sender.sent.values())
    clock.now += CATCH_UP_S
    meter.tick()
    assert sum(sender.sent.values()) - before == pytest.approx(
        RATE * CATCH_UP_S, abs=70_000
    )
    idle = clock.meter()
    clock.now += 60
    assert idle.grab(1 << 40) == RATE * BURST_S


def test_another_rate_holds_from_now_on() -> None:
    clock = Clock()
    meter = clock.meter()
    sender = Sender(meter, 4)
    clock.run(meter, 1, sender.turns)
    before = sum(sender.sent.values())
    meter.set_rate(RATE // 10)
    clock.run(meter, 2, sender.turns)
    assert sum(sender.sent.values()) - before == pytest.approx(RATE // 5, rel=0.1)


def test_without_a_rate_any_more_all_that_waits_is_let_through() -> None:
    clock = Clock()
    meter = clock.meter(1_000)
    sender = Sender(meter, 4)
    sender.turns()
    assert sender.lanes.parked
    assert meter.waiting
    woken: list[bool] = []
    sender.flow._wake = lambda: woken.append(True)
    sender.flow.end()
    assert not sender.lanes.parked
    assert not meter.waiting
    assert len(sender.lanes.waiting) == 4
    assert woken == [True]


def test_a_small_rate_cuts_small_frames_so_that_all_move() -> None:
    clock = Clock()
    meter = clock.meter(10_000)
    sender = Sender(meter, 8)
    clock.run(meter, 4, sender.turns)
    sent = list(sender.sent.values())
    assert min(sent) > 3_000
    assert max(sent) - min(sent) <= 4_096


def test_one_tick_is_asked_for_when_something_begins_to_wait() -> None:
    clock = Clock()
    meter = clock.meter(1_000)
    sender = Sender(meter, 1)
    sender.turns()
    assert clock.wanted == 1
    sender.lanes.waiting.extend(())
    meter.wait(sender.flow)
    assert clock.wanted == 1


# What comes in -----------------------------------------------------------------------


class Receiver:
    def __init__(self, meter: Meter) -> None:
        self.events: list[Event] = []
        self.flow = Inflow(meter, self.events.extend)

    def come(self, *events: Event) -> None:
        self.events += self.flow.admit(list(events))

    def bytes_of(self, of: VirtualConn) -> bytes:
        return b"".join(
            event.payload
            for event in self.events
            if isinstance(event, DataReceived) and event.conn is of
        )


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9_000)), max_size=40),
    st.integers(1_000, 200_000),
)
def test_every_byte_comes_once_in_order_with_its_fin_behind_it(
    pieces: list[tuple[int, int]], rate: int
) -> None:
    clock = Clock()
    meter = clock.meter(rate)
    receiver = Receiver(meter)
    conns = [conn(2 * at + 1) for at in range(4)]
    sent = [bytearray() for _ in conns]
    for at, size in pieces:
        payload = bytes((len(sent[at]) + n) % 251 for n in range(size))
        sent[at] += payload
        receiver.come(data(conns[at], payload))
        clock.now += 0.001
    for one in conns:
        receiver.come(StreamFinished(one))
    for _ in range(100_000):
        if not meter.waiting:
            break
        clock.now += TICK_S
        meter.tick()
    for one, wanted in zip(conns, sent, strict=True):
        assert receiver.bytes_of(one) == wanted
        of_one = [
            event
            for event in receiver.events
            if isinstance(event, DataReceived | StreamFinished) and event.conn is one
        ]
        assert of_one.index(StreamFinished(one)) == len(of_one) - 1
    for event in receiver.events:
        if isinstance(event, DataReceived):
            assert event.size == len(event.payload)


def test_what_comes_in_is_let_through_at_the_rate_and_fairly() -> None:
    clock = Clock()
    meter = clock.meter()
    receiver = Receiver(meter)
    conns = [conn(2 * at + 1) for at in range(8)]

    def come() -> None:
        for one in conns:
            held = receiver.flow._held.get(one)
            if held is None or held.size < 65_536:
                receiver.come(data(one, bytes(65_536)))

    clock.run(meter, 2, come)
    sizes = [len(receiver.bytes_of(one)) for one in conns]
    assert sum(sizes) == pytest.approx(RATE * 2, rel=0.04)
    assert min(sizes) > 0.9 * max(sizes)


def test_a_close_is_not_held_back_and_what_waited_for_it_is_owed() -> None:
    clock = Clock()
    meter = clock.meter(10_000)
    receiver = Receiver(meter)
    one, other = conn(1), conn(3)
    receiver.come(data(one, bytes(60_000)), data(other, b"x" * 3_000))
    assert len(receiver.bytes_of(one)) == LEAST_BURST_BYTES
    receiver.come(StreamFinished(one), StreamClosed(one, Code.NORMAL, ""))
    assert len(receiver.bytes_of(one)) == 60_000
    assert [type(event) for event in receiver.events[-2:]] == [
        StreamFinished,
        StreamClosed,
    ]
    assert owes(meter)
    clock.now += DEBT_S
    meter.tick()
    assert not receiver.bytes_of(other)  # which waits until that is paid
    clock.now += 6.2
    meter.tick()
    assert not owes(meter)
    assert receiver.bytes_of(other)


def test_what_an_eviction_or_its_user_gives_up_is_dropped() -> None:
    clock = Clock()
    meter = clock.meter(1_000)
    receiver = Receiver(meter)
    one, other = conn(1), conn(3)
    receiver.come(data(one, bytes(60_000)), data(other, bytes(60_000)))
    receiver.come(StreamClosed(one, Code.RESOURCE, "memory", local=True))
    receiver.flow.forget(other)
    clock.now += 10
    meter.tick()
    assert len(receiver.bytes_of(one)) + len(receiver.bytes_of(other)) <= 2_048
    assert not meter.waiting


def test_what_is_not_bytes_passes_at_once() -> None:
    receiver = Receiver(Clock().meter(1_000))
    one, other = conn(1), conn(3)
    receiver.come(data(one, bytes(60_000)), CreditGranted(one), StreamFinished(other))
    assert receiver.events[1:] == [CreditGranted(one), StreamFinished(other)]


def test_at_the_end_all_that_waits_can_be_read() -> None:
    meter = Clock().meter(1_000)
    receiver = Receiver(meter)
    one = conn(1)
    receiver.come(data(one, bytes(60_000)), StreamFinished(one))
    receiver.flow.end()
    assert len(receiver.bytes_of(one)) == 60_000
    assert receiver.events[-1] == StreamFinished(one)
    assert not meter.waiting


# Datagrams ---------------------------------------------------------------------------


def test_datagrams_above_a_rate_are_dropped_both_ways_together() -> None:
    clock = Clock()
    police = Police(TokenBucket(10, 10, clock.now), None, None, clock)
    passed = [police.lets_in(100) for _ in range(6)]
    passed += [police.lets_out(100) for _ in range(6)]
    assert passed == [True] * 10 + [False] * 2
    clock.now += 0.5
    assert [police.lets_in(1) for _ in range(6)] == [True] * 5 + [False]


def test_bytes_of_datagrams_count_for_the_rate_of_their_way() -> None:
    clock = Clock()
    up, down = clock.meter(100_000), clock.meter(100_000)
    police = Police(None, up, down, clock)
    passed = [police.lets_in(1_000) for _ in range(10)]
    assert passed == [True] * 5 + [False] * 5
    assert police.lets_out(1_000)
    clock.now += 10
    assert police.lets_in(65_535)  # larger than a burst: it is paid for
    assert not police.lets_in(1)
