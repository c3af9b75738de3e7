from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.access.gate import (
    FAILURE_BURST,
    FAILURE_REFILL_S,
    KNOWN_S,
    MAX_REMEMBERED,
    MAX_UNPROVEN,
    Gate,
    GatePlace,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HOME = "192.0.2.1"
LOOPBACK = ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")
UNIX = ("", "-", "local", "/run/tunnel.sock", "@tunnel", "\0tunnel")


def stranger(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


class Door:
    """A gate, and who was sent away from it."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.evicted: list[str] = []

    def enter(self, address: str, name: str = "", now: float = 0) -> GatePlace:
        return self.gate.enter(address, now, self._evict(name or address))

    def _evict(self, name: str) -> Callable[[], None]:
        return lambda: self.evicted.append(name)

    def fill(self, count: int = MAX_UNPROVEN) -> list[GatePlace]:
        return [self.enter(stranger(number)) for number in range(count)]


def test_nobody_is_sent_away_while_there_are_places() -> None:
    door = Door()
    door.fill()
    assert door.evicted == []


def test_the_oldest_of_equals_makes_room_for_a_newcomer() -> None:
    door = Door()
    first, *_ = door.fill()
    door.enter(HOME)
    assert door.evicted == [stranger(0)]
    assert first.taken


def test_who_was_sent_away_has_nothing_to_give_back() -> None:
    door = Door()
    first, second, *_ = door.fill()
    door.enter(HOME)
    door.gate.leave(first)
    door.enter(HOME)
    assert door.evicted == [stranger(0), stranger(1)]
    door.gate.leave(second)


def test_a_place_that_was_given_back_is_the_next_newcomers() -> None:
    door = Door()
    *_, last = door.fill()
    door.gate.leave(last)
    door.gate.leave(last)
    door.enter(HOME)
    assert door.evicted == []
    door.enter(HOME)
    assert len(door.evicted) == 1


def test_the_silent_go_before_those_who_said_something() -> None:
    door = Door()
    places = door.fill()
    for place in places[:-1]:
        place.heard = True
    door.enter(HOME)
    assert door.evicted == [stranger(MAX_UNPROVEN - 1)]


def test_an_address_with_a_crowd_gives_first() -> None:
    door = Door()
    door.fill(MAX_UNPROVEN - 2)
    door.enter(HOME, "crowd")
    door.enter(HOME, "crowd")
    door.enter(stranger(9_999))
    assert door.evicted == ["crowd"]


def test_a_crowd_behind_one_address_does_not_shut_out_who_lives_there_too() -> None:
    """64 silent sockets of one's own address, and any number of others'."""
    door = Door()
    for number in range(64):
        door.enter(HOME, f"silent {number}")
    for number in range(1_000):
        door.enter(stranger(number))
    mine = door.enter(HOME, "mine")
    mine.heard = True
    for number in range(MAX_UNPROVEN - 1):
        door.enter(stranger(number))
    assert not mine.taken


@pytest.mark.parametrize("later_s", [0.0, KNOWN_S - 1])
def test_links_of_known_addresses_go_last(later_s: float) -> None:
    door = Door()
    door.gate.succeeded(HOME, 0)
    door.gate.ended(HOME, 0)
    mine = door.enter(HOME, now=later_s)
    for number in range(2 * MAX_UNPROVEN):
        door.enter(stranger(number)).heard = True
    assert not mine.taken


def test_an_address_is_forgotten_an_hour_after_its_last_link() -> None:
    door = Door()
    for _ in range(2):
        door.gate.succeeded(HOME, 0)
    door.gate.ended(HOME, 10)
    assert door.enter(HOME, now=10 * KNOWN_S).known  # the other one lives
    door.gate.ended(HOME, 20)
    assert door.enter(HOME, now=20 + KNOWN_S - 1).known
    assert not door.enter(HOME, now=20 + KNOWN_S).known


def test_a_living_address_is_remembered_however_many_others_there_were() -> None:
    door = Door()
    door.gate.succeeded(HOME, 0)
    for number in range(MAX_REMEMBERED):
        door.gate.succeeded(stranger(number), 0)
        door.gate.ended(stranger(number), 0)
    assert door.enter(HOME).known
    assert not door.enter(stranger(0)).known
    assert door.enter(stranger(MAX_REMEMBERED - 1)).known


@pytest.mark.parametrize("address", LOOPBACK + UNIX)
def test_this_machine_never_becomes_known(address: str) -> None:
    door = Door()
    door.gate.succeeded(address, 0)
    assert not door.enter(address).known
    door.gate.ended(address, 0)
    assert not door.enter(address).known


@pytest.mark.parametrize("address", ["", "-", *LOOPBACK])
def test_this_machine_is_one_crowd(address: str) -> None:
    door = Door()
    door.fill(MAX_UNPROVEN - 2)
    door.enter("::1", "crowd")
    door.enter(address, "crowd")
    door.enter(HOME)
    assert door.evicted == ["crowd"]


def test_ipv6_counts_by_64_bits_and_ipv4_in_ipv6_as_ipv4() -> None:
    door = Door()
    door.gate.succeeded("2001:db8:0:1::1", 0)
    assert door.enter("2001:db8:0:1:ffff::9").known
    assert not door.enter("2001:db8:0:2::1").known
    door.gate.succeeded("::ffff:192.0.2.1", 0)
    assert door.enter(HOME).known


def test_what_is_no_address_is_a_fault() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        Door().enter("example.org")


# Failures ----------------------------------------------------------------------------


def failing(gate: Gate, count: int, name: str = "anna", address: str = HOME) -> float:
    return [gate.failed(address, name, 0) for _ in range(count)][-1]


def test_a_few_failures_are_answered_as_such() -> None:
    assert failing(Gate(), FAILURE_BURST) == 0


def test_more_are_told_to_stay_away_and_no_longer_than_one_takes() -> None:
    gate = Gate()
    assert failing(gate, FAILURE_BURST + 1) == FAILURE_REFILL_S
    assert failing(gate, 1_000) == FAILURE_REFILL_S


def test_failures_are_forgiven_one_by_one() -> None:
    gate = Gate()
    failing(gate, FAILURE_BURST + 1)
    assert gate.failed(HOME, "anna", FAILURE_REFILL_S) > 0
    assert gate.failed(HOME, "anna", 3 * FAILURE_REFILL_S) == 0
    later = (FAILURE_BURST + 3) * FAILURE_REFILL_S
    assert [gate.failed(HOME, "anna", later) for _ in range(FAILURE_BURST)][-1] == 0


@pytest.mark.parametrize(
    ("address", "name"), [(HOME, "berta"), ("192.0.2.2", "anna"), ("", "anna")]
)
def test_another_name_or_address_has_its_own_failures(address: str, name: str) -> None:
    gate = Gate()
    failing(gate, 100)
    assert gate.failed(address, name, 0) == 0


def test_failures_of_many_do_not_make_it_forget_its_users() -> None:
    door = Door()
    door.gate.succeeded(HOME, 0)
    door.gate.ended(HOME, 0)
    for number in range(MAX_REMEMBERED):
        door.gate.failed(stranger(number), "anna", 0)
    assert door.enter(HOME).known
    # The oldest were forgotten, so the table is bounded.
    assert failing(door.gate, FAILURE_BURST, address=stranger(0)) == 0


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans())))
def test_places_are_never_more_and_always_there(
    steps: list[tuple[int, bool, bool]],
) -> None:
    door = Door()
    inside: list[GatePlace] = door.fill(MAX_UNPROVEN - 5)
    for number, heard, leaves in steps:
        place = door.enter(stranger(number // 8))
        place.heard = heard
        inside.append(place)
        if leaves:
            door.gate.leave(inside.pop(number % len(inside)))
        assert sum(not one.taken for one in inside) <= MAX_UNPROVEN
        assert not place.taken or leaves
