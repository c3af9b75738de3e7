"""What is asked of visitors: addresses, rates, and who of a group is chosen."""

from __future__ import annotations

from http import HTTPStatus
from ipaddress import ip_network
from math import inf
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing

from tunnel.addresses import Address
from tunnel.front.http.pages import HttpError
from tunnel.front.http.places import SHUNNED_S, Place, Places, Rates, State
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tunnel.net.relay import ResettableStream

VISITOR: Final = Address("198.51.100.9", 4711)


class One:
    """A member that is never opened."""

    def __init__(self, state: State = State.READY, in_flight: int = 0) -> None:
        self.state = state
        self.in_flight = in_flight
        self.turn = 0
        self.shunned_until = 0.0
        self.when_lost: set[Callable[[], None]] = set()

    @property
    def key(self) -> Hashable:
        return self

    async def open(self, visitor: Address) -> ResettableStream:
        raise AssertionError(visitor)


def place(*members: One, rules: Rules | None = None, expires_at: float = inf) -> Place:
    return Place("a.test", rules or Rules(), expires_at, list(members))


def refusal(there: Place, host: str) -> int:
    """Give the status that a visitor gets; 0 for none."""
    try:
        there.admit(Address(host, 1), Rates())
    except HttpError as error:
        return int(error.status)
    return 0


@pytest.mark.parametrize(
    ("host", "status"),
    [("198.51.100.7", 0), ("198.51.100.8", 403), ("203.0.113.1", 403),
     ("::ffff:198.51.100.7", 0), ("::ffff:198.51.100.8", 403),
     ("2001:db8::1", 0), ("2001:db9::1", 403), ("-", 403), ("", 403)],
)  # fmt: skip
async def test_an_address_is_allowed_where_it_is_and_not_denied(
    host: str, status: int
) -> None:
    rules = Rules(
        allow=(ip_network("198.51.100.0/24"), ip_network("2001:db8::/32")),
        deny=(ip_network("198.51.100.8/32"),),
    )
    assert refusal(place(rules=rules), host) == status


async def test_who_has_no_address_is_denied_nothing() -> None:
    assert refusal(place(rules=Rules(deny=(ip_network("0.0.0.0/0"),))), "-") == 0


async def test_what_has_expired_is_gone_for_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    there = place(expires_at=trio.current_time() + 2)
    assert refusal(there, VISITOR.host) == 0
    await trio.sleep(2)
    assert refusal(there, VISITOR.host) == 410


async def test_requests_pass_as_fast_as_is_asked_and_so_many_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    rates = Rates()

    def wait_s(host: str = "198.51.100.9", name: str = "a") -> float:
        return rates.wait_s(name, host, 10, 1)[0]

    assert [wait_s() for _ in range(10)] == [0.0] * 10
    assert wait_s() == pytest.approx(0.1)
    assert wait_s(name="b") == 0
    assert wait_s("198.51.100.10") == 0
    await trio.sleep(0.11)
    assert wait_s() == 0
    assert wait_s() > 0
    passed = 0
    for _ in range(300):
        await trio.sleep(0.01)
        passed += not wait_s()
    assert 29 <= passed <= 31


async def test_ipv6_is_counted_by_its_64_and_a_first_refusal_is_news() -> None:
    rates = Rates()
    assert rates.wait_s("a", "2001:db8::1", 1, 60) == (0.0, False)
    assert rates.wait_s("a", "2001:db8::ffff:2", 1, 60)[1] is True
    assert rates.wait_s("a", "2001:db8::3", 1, 60)[1] is False
    assert rates.wait_s("a", "2001:db8:0:1::1", 1, 60) == (0.0, False)
    assert rates.wait_s("a", "198.51.100.9", 1, 60) == (0.0, False)
    assert rates.wait_s("a", "::ffff:198.51.100.9", 1, 60)[0] > 0


async def test_of_too_many_addresses_the_one_that_came_longest_ago_is_forgotten() -> (
    None
):
    rates = Rates(most=2)
    for host in ("198.51.100.1", "198.51.100.2", "198.51.100.3"):
        assert rates.wait_s("a", host, 1, 60)[0] == 0
    assert len(rates._given_back) == 2
    assert rates.wait_s("a", "198.51.100.3", 1, 60)[0] > 0
    assert rates.wait_s("a", "198.51.100.2", 1, 60)[0] > 0
    assert rates.wait_s("a", "198.51.100.1", 1, 60)[0] == 0


def test_the_one_with_the_fewest_requests_is_chosen_and_of_equals_each_in_turn() -> (
    None
):
    busy, one, other = One(in_flight=2), One(), One()
    there = place(busy, one, other)
    chosen = [there.member(None, VISITOR) for _ in range(4)]
    assert chosen == [one, other, one, other]
    one.in_flight = other.in_flight = 3
    assert there.member(None, VISITOR) is busy


def test_who_has_the_visitors_connection_is_asked_while_it_can_be() -> None:
    busy, idle = One(in_flight=9), One()
    there = place(busy, idle)
    assert there.member((busy, VISITOR.host), VISITOR) is busy
    assert there.member((busy, "198.51.100.10"), VISITOR) is idle
    busy.state = State.WAITING
    assert there.member((busy, VISITOR.host), VISITOR) is idle


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ((State.OUT, State.OUT), "does not answer"),
        ((State.AWAY, State.AWAY), "is not connected"),
        ((State.AWAY, State.OUT), "is not connected"),
    ],
)
def test_where_nobody_can_be_asked_a_page_says_why(
    states: tuple[State, ...], words: str
) -> None:
    with pytest.raises(HttpError) as caught:
        place(*map(One, states)).member(None, VISITOR)
    assert caught.value.status is HTTPStatus.SERVICE_UNAVAILABLE
    assert words in caught.value.words
    assert dict(caught.value.headers)["Retry-After"] == "5"


def test_who_may_come_back_at_once_is_waited_for_if_there_is_nobody_else() -> None:
    lost, out = One(State.WAITING), One(State.OUT)
    assert place(lost, out).member(None, VISITOR) is lost


async def test_who_took_no_connection_is_asked_last_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refusing, busy = One(), One(in_flight=3)
    there = place(refusing, busy)
    refusing.shunned_until = trio.current_time() + SHUNNED_S
    assert there.member(None, VISITOR) is busy
    assert there.other([busy]) is refusing
    assert there.other([busy, refusing]) is None
    await trio.sleep(SHUNNED_S)
    assert there.member(None, VISITOR) is refusing


async def test_a_connection_that_passes_through_is_led_to_a_member_or_refused() -> None:
    one = One()
    rules = Rules(allow=(ip_network("198.51.100.0/24"),))
    places = Places([place(one, rules=rules)], Rates())
    assert places.admit_connection(VISITOR) is one
    with pytest.raises(HttpError, match="403"):
        places.admit_connection(Address("203.0.113.1", 1))
