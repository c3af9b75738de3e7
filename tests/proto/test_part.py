"""A part of a rate: what passes, what waits, and what a debt is worth."""

from __future__ import annotations

import pytest

from tunnel.proto.pace import Share
from tunnel.proto.part import PartBucket, PartMeter

RATE = 1_000_000
TICK_S = 0.02


class Waiting(Share):
    """Connections that want all there is."""

    weight = 3

    def __init__(self, meter: PartMeter) -> None:
        super().__init__(meter)
        self.passed = 0

    def release(self, size: int) -> None:
        self.passed += size
        self.meter.wait(self)


class Clock:
    now = 7.0

    def __call__(self) -> float:
        return self.now

    def run(self, meter: PartMeter, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            meter.tick()


def metered() -> tuple[Clock, PartMeter]:
    clock = Clock()
    return clock, PartMeter(RATE, clock, lambda: None)


def rests(meter: PartMeter) -> bool:
    return meter.rests


def owes(meter: PartMeter) -> bool:
    return meter.overdrawn


@pytest.mark.parametrize("part", [1.0, 0.5, 0.01])
def test_a_meter_fills_with_its_part(part: float) -> None:
    clock, meter = metered()
    share = Waiting(meter)
    meter.grab(RATE)
    meter.set_part(part)
    meter.wait(share)
    meter.look()
    clock.run(meter, 2)
    assert share.passed == pytest.approx(2 * RATE * part, rel=0.03)
    looked = meter.look()
    assert looked.size == pytest.approx(share.passed, rel=0.01)
    assert looked.waiting == 3


def test_another_rate_is_divided_as_the_one_before() -> None:
    _, meter = metered()
    meter.set_part(0.25)
    assert meter.rate == RATE // 4
    meter.set_rate(2 * RATE)
    assert (meter.whole, meter.rate) == (2 * RATE, RATE // 2)
    meter.set_part(1.0)
    assert meter.rate == 2 * RATE


def test_what_passes_and_is_given_back_is_seen_once() -> None:
    clock, meter = metered()
    assert rests(meter)
    assert meter.passes(10_000)
    assert not rests(meter)
    assert meter.grab(5_000) == 5_000
    meter.pay(-1_000)
    assert meter.look() == (14_000, 0)
    clock.now += 60
    assert rests(meter)
    assert meter.available() == meter.burst
    assert not rests(meter), "bytes may have passed before it was filled up"
    assert meter.look() == (0, 0)
    meter.pay(3_000)
    meter.set_rate(RATE // 2)
    assert meter.look() == (3_000, 0)


def test_a_peak_in_a_meter_that_has_enough_is_no_want() -> None:
    clock, meter = metered()
    share = Waiting(meter)
    meter.grab(RATE)
    meter.wait(share)
    clock.run(meter, 0.1)
    meter.leave(share)
    clock.now += 0.4
    looked = meter.look()
    assert looked.size == pytest.approx(150_000, rel=0.05)
    assert looked.waiting == 0


def test_a_debt_stays_and_is_held_against_the_whole_rate() -> None:
    clock, meter = metered()
    meter.set_part(0.01)
    meter.pay(RATE)
    meter.set_part(0.02)
    assert not owes(meter)
    meter.pay(2 * RATE)
    assert owes(meter)
    clock.now += 1.5 / 0.02
    assert not owes(meter)


def test_a_bucket_lets_its_part_pass_and_counts_what_is_asked() -> None:
    bucket = PartBucket(100, 0.0)
    assert [bucket.allow(0.0) for _ in range(101)].count(True) == 100
    bucket.set_part(0.1, 0.0)
    passed = [bucket.allow(at / 100) for at in range(1, 501)].count(True)
    assert passed == pytest.approx(50, abs=1)
    assert bucket.asked == 601


def test_of_a_small_part_one_passes_at_last() -> None:
    bucket = PartBucket(1, 0.0)
    bucket.set_part(0.01, 0.0)
    assert bucket.allow(0.0)
    assert not bucket.allow(99.0)
    assert bucket.allow(100.1)
