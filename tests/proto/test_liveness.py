from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnel.proto.limits import TokenBucket
from tunnel.proto.liveness import HURRY_S, Due, Liveness


def test_nothing_is_due_while_bytes_come() -> None:
    link = Liveness(0.0)
    for now in range(9, 1_000, 9):
        assert link.due(float(now)) is Due.NOTHING
        link.heard(float(now))


def test_a_ping_is_due_after_ten_silent_seconds() -> None:
    link = Liveness(100.0)
    assert link.next_wakeup() == 110.0
    assert link.due(109.9) is Due.NOTHING
    assert link.due(110.0) is Due.PING


def test_a_ping_is_due_until_it_was_asked() -> None:
    link = Liveness(0.0)
    assert link.due(10.0) is Due.PING
    assert link.due(10.1) is Due.PING
    link.asked(10.1)
    assert link.due(10.2) is Due.NOTHING


def test_a_link_is_lost_twenty_seconds_after_the_question() -> None:
    link = Liveness(0.0)
    link.asked(10.0)
    assert link.next_wakeup() == 30.0
    assert link.due(29.9) is Due.NOTHING
    assert link.due(30.0) is Due.LOST


def test_any_byte_after_the_question_proves_life() -> None:
    link = Liveness(0.0)
    link.asked(10.0)
    link.heard(29.0)
    assert link.due(38.9) is Due.NOTHING
    assert link.due(39.0) is Due.PING


def test_a_link_of_a_machine_that_slept_is_lost_in_a_hurry() -> None:
    link = Liveness(0.0)
    link.asked(1.0, slept=True)
    assert link.next_wakeup() == 1.0 + HURRY_S
    assert link.due(1.0 + HURRY_S - 0.1) is Due.NOTHING
    assert link.due(1.0 + HURRY_S) is Due.LOST


def test_a_byte_ends_the_hurry() -> None:
    link = Liveness(0.0)
    link.asked(1.0, slept=True)
    link.heard(2.0)
    assert link.sooner
    link.sooner = False
    link.heard(3.0)
    assert not link.sooner
    link.asked(13.0)
    assert link.due(13.0 + HURRY_S) is Due.NOTHING


def test_the_question_of_a_machine_that_slept_measures_the_round_trip_too() -> None:
    link = Liveness(0.0)
    link.asked(1.0, slept=True)
    link.answered(1.5)
    assert link.rtt_s == 0.5


def test_the_answer_to_several_questions_counts_from_the_first() -> None:
    link = Liveness(0.0)
    link.asked(1.0)
    link.asked(2.0)
    link.answered(2.5)
    assert link.rtt_s == 1.5
    link.answered(9.0)
    assert link.rtt_s == 1.5


def test_an_answer_gives_the_smallest_round_trip() -> None:
    link = Liveness(0.0)
    for start, took in ((1.0, 0.25), (2.0, 0.125), (3.0, 0.5)):
        link.asked(start)
        link.answered(start + took)
    assert link.rtt_s == 0.125


def test_an_answer_that_nobody_asked_for_measures_nothing() -> None:
    link = Liveness(0.0)
    link.answered(5.0)
    assert link.rtt_s is None


def test_the_times_are_those_that_were_given() -> None:
    link = Liveness(0.0, idle_s=1.0, grace_s=2.0)
    assert link.due(1.0) is Due.PING
    link.asked(1.0)
    assert link.due(3.0) is Due.LOST


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.001, 9.0)), max_size=40),
)
def test_a_silent_link_is_lost_within_thirty_seconds_of_its_last_byte(
    steps: list[tuple[bool, float]],
) -> None:
    now = 0.0
    link = Liveness(now)
    for heard, later in steps:
        now += later
        if heard:
            link.heard(now)
        if link.due(now) is Due.PING:
            link.asked(now)
        if link.due(now) is Due.LOST:
            break
        assert link.next_wakeup() > now
    last = link.heard_at
    while link.due(now) is not Due.LOST:
        now = max(now, link.next_wakeup())
        if link.due(now) is Due.PING:
            link.asked(now)
    # A wake-up that came late (a step of up to 9 s above) delays the question, and
    # another one the verdict.
    assert now <= last + 10.0 + 9.0 + 20.0 + 9.0 + 1e-6


def test_a_meter_lets_a_burst_pass_and_then_its_rate() -> None:
    meter = TokenBucket(per_s=2.0, burst=3.0, filled_at=0.0)
    assert [meter.allow(0.0) for _ in range(4)] == [True, True, True, False]
    assert not meter.allow(0.25)
    assert meter.allow(0.5)
    assert not meter.allow(0.5)


def test_a_meter_saves_no_more_than_a_burst() -> None:
    meter = TokenBucket(per_s=2.0, burst=3.0, filled_at=0.0)
    assert meter.allow(1_000.0, cost=3.0)
    assert not meter.allow(1_000.0)


def test_a_refused_cost_is_not_taken() -> None:
    meter = TokenBucket(per_s=1.0, burst=3.0, filled_at=0.0)
    assert not meter.allow(0.0, cost=4.0)
    assert meter.allow(0.0, cost=3.0)


@given(st.lists(st.floats(0.0, 2.0), max_size=60))
def test_a_meter_never_gives_more_than_burst_and_rate(waits: list[float]) -> None:
    meter = TokenBucket(per_s=5.0, burst=4.0, filled_at=0.0)
    now = 0.0
    passed = 0
    for wait in waits:
        now += wait
        passed += meter.allow(now)
        assert passed <= 4.0 + 5.0 * now + 1e-6
