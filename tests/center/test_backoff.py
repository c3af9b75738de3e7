from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.center.backoff import FIRST_S, MOST_S, STEADY_S, WAITING_MOST_S, Backoff


def test_it_doubles_from_200_ms_to_20_s_and_stays_there() -> None:
    backoff = Backoff(lambda: 1.0)  # the longest
    waits = [backoff.next_s() / 1.5 for _ in range(9)]
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8] + [20 / 1.5] * 2)


def test_while_connections_wait_it_stays_within_3_s() -> None:
    backoff = Backoff(lambda: 1.0)
    waits = [backoff.next_s(waiting=True) for _ in range(6)]
    assert waits == pytest.approx([0.3, 0.6, 1.2, 2.4, 3, 3])
    for _ in range(10):
        backoff.next_s()
    assert backoff.next_s(waiting=True) == pytest.approx(3)


def test_a_long_attempt_shortens_the_wait_but_not_to_nothing() -> None:
    backoff = Backoff(lambda: 0.5)
    waits = [backoff.next_s(took_s=1.0) for _ in range(5)]
    assert waits == pytest.approx([0.2, 0.2, 0.2, 0.6, 2.2])


def test_a_link_that_was_lost_begins_again() -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(5):
        backoff.next_s()
    backoff.carried(0.1, failed=False)
    assert backoff.next_s() == FIRST_S


def test_sessions_that_fail_one_after_the_other_are_failed_attempts() -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(5):
        backoff.next_s()
    waits = []
    for _ in range(4):
        backoff.carried(0.1, failed=True)
        waits.append(backoff.next_s())
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6])
    backoff.carried(STEADY_S, failed=True)
    assert backoff.next_s() == FIRST_S
    backoff.carried(STEADY_S - 1, failed=True)
    assert backoff.next_s() == FIRST_S, "the first one behind a good one"
    backoff.carried(STEADY_S - 1, failed=True)
    assert backoff.next_s() == pytest.approx(2 * FIRST_S)


def test_jitter_spreads_by_half_to_both_sides_at_the_longest_too() -> None:
    assert Backoff(lambda: 0.0).next_s() == FIRST_S / 2
    assert Backoff(lambda: 1.0).next_s() == pytest.approx(FIRST_S * 1.5)
    chance = 0.0
    backoff = Backoff(lambda: chance)
    for _ in range(20):
        backoff.next_s()
    shortest, chance = backoff.next_s(), 1.0
    assert backoff.next_s() == pytest.approx(3 * shortest)


@given(
    st.lists(
        st.one_of(st.none(), st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 9)))
    )
)
def test_no_wait_is_zero_or_longer_than_the_longest(
    steps: list[tuple[float, bool, float] | None],
) -> None:
    chance = 0.0
    backoff = Backoff(lambda: chance)
    for step in steps:
        if step is None:
            backoff.carried(1, failed=False)
            continue
        chance, waiting, took_s = step
        wait_s = backoff.next_s(waiting=waiting, took_s=took_s)
        most_s = WAITING_MOST_S if waiting else MOST_S
        assert FIRST_S / 2 <= wait_s <= most_s + 1e-9
