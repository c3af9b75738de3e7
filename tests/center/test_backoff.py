from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnel.center.backoff import FIRST_S, MOST_S, Backoff


def test_it_doubles_from_200_ms_to_20_s_and_stays_there() -> None:
    backoff = Backoff(lambda: 0.5)  # no jitter
    waits = [backoff.next_s() for _ in range(10)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0, 20.0]


def test_a_success_begins_again() -> None:
    backoff = Backoff(lambda: 0.5)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() == FIRST_S


def test_jitter_spreads_by_half_to_both_sides() -> None:
    assert Backoff(lambda: 0.0).next_s() == FIRST_S / 2
    assert Backoff(lambda: 1.0).next_s() == FIRST_S * 1.5


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=40))
def test_no_wait_is_zero_or_longer_than_the_longest(steps: list[float | None]) -> None:
    chance = 0.0
    backoff = Backoff(lambda: chance)
    for step in steps:
        if step is None:
            backoff.reset()
            continue
        chance = step
        assert FIRST_S / 2 <= backoff.next_s() <= MOST_S
