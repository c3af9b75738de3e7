"""What a user has, held against its limits: by a clock that a test turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnel.access.account import SAY_EVERY_S, Account
from tunnel.access.limits import Limits, parse_limits
from tunnel.access.visitors import THIS_MACHINE, address_key
from tunnel.errors import Code, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def account(*words: str, clock: Callable[[], float] | None = None) -> Account:
    return Account("ann", parse_limits(words), clock or Clock())


def test_without_limits_nothing_is_refused_metered_or_dropped() -> None:
    one = account()
    one.connections = 1_000_000
    assert one.refuses_connection() == ""
    assert (one.up, one.down, one.police) == (None, None, None)
    assert not one.waits
    assert not one.month_is_used_up


def test_connections_at_once_are_refused_by_what_is_there() -> None:
    one = account("connections=2")
    for _ in range(2):
        assert one.refuses_connection() == ""
        one.connections += 1
    assert one.refuses_connection() == "limit of user ann: 2 connections at once"
    one.connections -= 1
    assert one.refuses_connection() == ""


def test_opens_per_second_come_back_with_time() -> None:
    clock = Clock()
    one = account("opens=3/s", clock=clock)
    refused = [bool(one.refuses_connection()) for _ in range(5)]
    assert refused == [False] * 3 + [True] * 2
    clock.now += 1 / 3
    assert one.refuses_connection() == ""
    assert "3 connections opened per second" in one.refuses_connection()


def test_what_is_refused_for_another_reason_takes_no_open() -> None:
    one = account("opens=1/s", "connections=1")
    one.connections = 1
    assert "at once" in one.refuses_connection()
    one.connections = 0
    assert one.refuses_connection() == ""


def test_a_used_up_month_and_a_large_debt_refuse_all_that_is_new() -> None:
    one = account("month=1MB", "up=1KB/s")
    one.month_bytes = 999_999
    assert one.refuses_connection() == ""
    one.month_bytes = 1_000_000
    assert "this month" in one.refuses_connection()
    one.month_bytes = 0
    assert one.up is not None
    one.up.pay(5_000)
    assert "bytes per second" in one.refuses_connection()


def test_links_beyond_the_limit_are_refused() -> None:
    one = account("links=2")
    one.links = 2
    assert one.refuses_link() == ""
    one.links = 3
    assert one.refuses_link() == "limit of user ann: 2 links at once"


def test_visitors_of_one_address_are_counted_as_everywhere() -> None:
    one = account("visitors=1")
    assert address_key("127.0.0.1") is THIS_MACHINE
    assert all(one.admit_visitor("127.0.0.1") for _ in range(5))
    assert one.admit_visitor("2001:db8::1")
    with pytest.raises(LimitError) as caught:
        one.admit_visitor("2001:db8::2")  # the same customer
    assert caught.value.code is Code.RESOURCE
    assert caught.value.of_address
    assert one.admit_visitor("198.51.100.7")
    one.visitor_left("2001:db8::1")
    assert one.admit_visitor("2001:db8::2")
    assert not account().admit_visitor("198.51.100.7")


def test_meters_that_go_on_keep_what_waits_in_them() -> None:
    one = account("rate=5MB/s")
    up, down = one.up, one.down
    one.limit(parse_limits(["rate=1MB/s"]))
    assert (one.up, one.down) == (up, down)
    assert up is not None
    assert up.rate == 1_000_000
    one.limit(parse_limits(["up=1MB/s"]))
    assert one.up is up
    assert one.down is None
    assert one.police is not None
    one.limit(Limits())
    assert [one.up, one.down, one.police].count(None) == 3


def test_what_is_refused_is_one_line_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    one = account("connections=1", clock=clock)
    one.connections = 1
    for _ in range(100):
        one.refuses_connection()
    clock.now += SAY_EVERY_S
    one.refuses_connection()
    said = [record for record in caplog.records if record.name == "tunnel.limits"]
    assert len(said) == 2
