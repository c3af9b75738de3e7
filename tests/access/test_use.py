"""What a user has at several nodes: added, written, read, and what it leaves."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.access.account import MONTH_STEP, Account
from tunnel.access.limits import parse_limits
from tunnel.access.together import Together
from tunnel.access.use import (
    LEAST_PART,
    MAX_ADDRESSES,
    NOTHING,
    Flow,
    Held,
    Use,
    asked_part,
    flow_part,
    less,
    total,
)
from tunnel.access.visitors import Visitors

MAY, JUNE = "2031-05", "2031-06"

counts = st.integers(0, 1 << 40)
flows = st.builds(Flow, counts, counts)
in_may = st.builds(
    Use, *[counts] * 9, flows, flows, st.just(MAY), counts,
    st.dictionaries(st.text(max_size=5), counts, max_size=3),
)  # fmt: skip


@given(in_may)
def test_a_use_is_read_as_it_was_written(use: Use) -> None:
    assert Use.from_json(json.loads(json.dumps(use.to_json()))) == use


def test_what_is_nothing_takes_no_room_and_news_of_later_versions_do_not_hurt() -> None:
    assert NOTHING.to_json() == {}
    assert Use.from_json({"links": 1, "thoughts": ["many"]}) == Use(links=1)


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "links",
        {"links": -1},
        {"links": True},
        {"links": 1.5},
        {"links": 1 << 63},
        {"up": 5},
        {"up": [1]},
        {"up": [1, None]},
        {"month": 5},
        {"month": "May"},
        {"visitors": [1]},
        {"visitors": {"198.51.100.7": "1"}},
    ],
)
def test_what_is_no_use_is_refused(said: object) -> None:
    with pytest.raises(ValueError, match="no "):
        Use.from_json(said)


@given(st.lists(in_may, min_size=1, max_size=4))
def test_a_total_has_what_all_have(uses: list[Use]) -> None:
    of_all = total(uses)
    for name in ("links", "sessions", "counted_ports", "opens", "month_bytes"):
        assert getattr(of_all, name) == sum(getattr(one, name) for one in uses)
    assert of_all.down.waiting == sum(one.down.waiting for one in uses)
    assert sum(of_all.visitors.values()) == sum(sum(u.visitors.values()) for u in uses)
    assert total([of_all, NOTHING]) == of_all


def test_bytes_of_two_months_are_not_added() -> None:
    old, new = Use(month=MAY, month_bytes=70), Use(month=JUNE, month_bytes=5)
    assert total([old, new, new]) == Use(month=JUNE, month_bytes=10)
    assert total([old, new]).bytes_in(MAY) == 0
    assert total([]) == NOTHING


def test_what_is_left_is_less_and_of_a_rate_all() -> None:
    limits = parse_limits(["links=5", "connections=3", "month=1MB", "rate=1MB/s"])
    use = Use(links=2, names=1, connections=4, month=MAY, month_bytes=400_000)
    left = less(limits, use, MAY)
    assert (left.links, left.names, left.connections) == (3, limits.names - 1, -1)
    assert (left.month, left.up) == (600_000, 1_000_000)
    assert less(limits, use, JUNE).month == 1_000_000
    assert less(parse_limits([]), use, MAY).connections is None


# Parts of rates ----------------------------------------------------------------------

RATE = 1_000


@given(st.lists(st.integers(1, 100), min_size=2, max_size=8))
def test_all_that_wait_have_the_rate_together(waiting: list[int]) -> None:
    whole = sum(waiting)
    parts = [flow_part(RATE, Flow(0, w), Flow(0, whole - w), w) for w in waiting]
    assert sum(parts) == pytest.approx(1, abs=LEAST_PART * len(parts) + 1e-9)
    for one, part in zip(waiting, parts, strict=True):
        assert part == pytest.approx(max(one / whole, LEAST_PART))


@given(st.integers(0, RATE), st.integers(1, 50), st.integers(1, 50))
@example(1_000, 1, 1)
def test_who_has_enough_keeps_it_and_the_others_share_the_rest(
    enough: int, one: int, other: int
) -> None:
    parts = [
        flow_part(RATE, Flow(0, one), Flow(enough, other), one),
        flow_part(RATE, Flow(0, other), Flow(enough, one), other),
    ]
    least = LEAST_PART * len(parts)
    assert sum(parts) + enough / RATE == pytest.approx(1, abs=least + 1e-9)


def test_who_is_alone_or_busy_alone_has_all() -> None:
    assert flow_part(RATE, Flow(0, 9), Flow(), 9) == 1
    assert flow_part(RATE, Flow(), Flow(), 0) == 1
    assert asked_part(RATE, 5_000, 0) == 1


def test_who_had_nothing_begins_with_what_its_connections_are_worth() -> None:
    assert flow_part(RATE, Flow(), Flow(0, 4), 0) == pytest.approx(1 / 5)
    assert flow_part(RATE, Flow(), Flow(0, 4), 4) == pytest.approx(1 / 2)
    assert flow_part(RATE, Flow(), Flow(2 * RATE, 0), 4) == LEAST_PART


@given(st.lists(st.integers(0, 5_000), min_size=2, max_size=6))
def test_of_what_is_asked_each_node_has_the_same_part(asked: list[int]) -> None:
    whole = sum(asked)
    parts = [asked_part(RATE, one, whole - one) for one in asked]
    granted = [min(part * RATE, one) for part, one in zip(parts, asked, strict=True)]
    assert sum(granted) <= max(min(whole, RATE), 0) * (1 + LEAST_PART * len(asked)) + 1
    if whole <= RATE:
        assert granted == pytest.approx(asked)
    else:
        assert sum(granted) == pytest.approx(RATE, rel=LEAST_PART * len(asked))


# What one node tells -----------------------------------------------------------------


def test_an_account_tells_what_a_limit_asks_for() -> None:
    held, most = Held(sessions=2, ports=3), parse_limits(["connections=9"])
    one = Account("ann", clock=lambda: 0.0)
    one.links = one.connections = 4
    assert one.use(held, MAY) == Use(4, 2, ports=3)
    one.limit(most)
    assert one.use(held, MAY).connections == 4


def test_bytes_of_the_month_are_told_in_steps_where_they_have_no_limit() -> None:
    one = Account("ann", clock=lambda: 0.0)
    one.month_bytes = MONTH_STEP - 1
    assert one.use(Held(), MAY) == NOTHING
    one.month_bytes = 2 * MONTH_STEP + 5
    assert one.use(Held(), MAY) == Use(month=MAY, month_bytes=2 * MONTH_STEP)
    one.limit(parse_limits(["month=1TB"]))
    assert one.use(Held(), MAY).month_bytes == 2 * MONTH_STEP + 5


def test_of_many_addresses_those_with_most_visitors_are_told() -> None:
    visitors = Visitors()
    for number in range(MAX_ADDRESSES + 5):
        for _ in range(2 if number < 5 else 1):
            visitors.enter(f"198.51.{100 + number // 256}.{number % 256}", 9)
    told = visitors.most(MAX_ADDRESSES)
    assert len(told) == MAX_ADDRESSES
    assert sorted(told.values())[-5:] == [2] * 5
    assert len(visitors.most(1_000)) == MAX_ADDRESSES + 5


# What all have told ------------------------------------------------------------------


def test_each_node_hears_what_the_others_have() -> None:
    every = Together()
    every.heard("a", {"ann": Use(links=1), "bob": Use(links=2)})
    every.heard("b", {"ann": Use(links=4)})
    every.heard("c", {"ann": Use(links=8)})
    assert every.elsewhere("a") == {"ann": Use(links=12)}
    assert every.elsewhere("b") == {"ann": Use(links=9), "bob": Use(links=2)}
    every.heard("b", {"ann": NOTHING})
    assert every.elsewhere("a") == {"ann": Use(links=8)}
    assert every.everywhere() == {"ann": Use(links=9), "bob": Use(links=2)}


def test_of_a_node_that_is_gone_its_bytes_of_the_month_stay() -> None:
    every = Together({"ann": Use(month=MAY, month_bytes=1_000)})
    use = Use(links=1, month=MAY, month_bytes=50)
    every.heard("a", {"ann": use, "bob": Use(links=1)})
    every.heard("b", {"ann": use})
    more = use._replace(month_bytes=1_050)
    assert every.elsewhere("b") == {"ann": more, "bob": Use(links=1)}
    every.gone("a")
    every.gone("a")
    kept = Use(month=MAY, month_bytes=1_050)
    assert every.elsewhere("b") == {"ann": kept}
    every.rename("ann", "anna")
    assert every.everywhere() == {"ann": use, "anna": kept}
    every.heard("b", {"ann": NOTHING, "anna": Use(month=JUNE, month_bytes=1)})
    assert every.everywhere() == {"anna": Use(month=JUNE, month_bytes=1)}
