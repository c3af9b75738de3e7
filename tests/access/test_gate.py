from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.access.gate import (
    EARLY_DROP_FROM,
    FAILURE_BURST,
    FAILURE_REFILL_S,
    KEPT_FOR_KNOWN,
    KNOWN_S,
    MAX_PER_ADDRESS,
    MAX_REMEMBERED,
    MAX_UNPROVEN,
    Gate,
)

HOME = "192.0.2.1"
LOOPBACK = ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")
UNIX = ("", "-", "/run/tunnel.sock", "@tunnel", "\0tunnel")


def stranger(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def lucky() -> float:
    return 0.999_999


def unlucky() -> float:
    return 0.0


def filled(count: int) -> Gate:
    """A gate with ``count`` strangers inside, each from an address of its own."""
    gate = Gate(lucky)
    assert all(gate.enter(stranger(number), 0) for number in range(count))
    return gate


def failing(address: str, count: int = FAILURE_BURST) -> Gate:
    gate = Gate(lucky)
    for _ in range(count):
        gate.failed(address, 0)
    return gate


def test_the_last_places_are_not_for_strangers() -> None:
    gate = filled(MAX_UNPROVEN - KEPT_FOR_KNOWN)
    assert not gate.enter(HOME, 0)


def test_an_address_that_authenticated_lately_gets_a_kept_place() -> None:
    gate = filled(MAX_UNPROVEN - KEPT_FOR_KNOWN)
    gate.succeeded(HOME, 0)
    assert gate.enter(HOME, KNOWN_S - 1)


def test_an_address_that_authenticated_long_ago_is_a_stranger() -> None:
    gate = filled(MAX_UNPROVEN - KEPT_FOR_KNOWN)
    gate.succeeded(HOME, 0)
    assert not gate.enter(HOME, KNOWN_S)


def test_a_full_room_is_full_for_the_known_too() -> None:
    gate = filled(MAX_UNPROVEN - KEPT_FOR_KNOWN)
    for number in range(KEPT_FOR_KNOWN + 1):
        gate.succeeded(f"192.0.2.{number}", 0)
    answers = [gate.enter(f"192.0.2.{n}", 0) for n in range(KEPT_FOR_KNOWN + 1)]
    assert answers == [True] * KEPT_FOR_KNOWN + [False]


def test_no_chance_is_drawn_before_early_drop_begins() -> None:
    gate = Gate(lambda: pytest.fail("drawn"))
    for number in range(EARLY_DROP_FROM):
        assert gate.enter(stranger(number), 0)


@pytest.mark.parametrize("inside", [33, 40, 47])
def test_the_chance_of_early_drop_grows_linearly(inside: int) -> None:
    chance = (inside - 32) / 32
    draws = iter([1.0] * (inside - EARLY_DROP_FROM) + [chance - 1e-9, chance])
    gate = Gate(lambda: next(draws))
    for number in range(inside):
        assert gate.enter(stranger(number), 0)
    assert not gate.enter(HOME, 0)
    assert gate.enter(HOME, 0)


def test_a_known_address_is_never_dropped_early() -> None:
    gate = Gate(unlucky)
    for number in range(EARLY_DROP_FROM):
        gate.enter(stranger(number), 0)
    gate.succeeded(HOME, 0)
    assert [gate.enter(HOME, 0) for _ in range(3)] == [True] * 3
    assert not gate.enter(stranger(99), 0)


def test_one_address_takes_no_more_than_its_share() -> None:
    gate = Gate(lucky)
    assert all(gate.enter(HOME, 0) for _ in range(MAX_PER_ADDRESS))
    assert not gate.enter(HOME, 0)
    assert gate.enter("192.0.2.2", 0)


def test_who_left_makes_room_for_one() -> None:
    gate = Gate(lucky)
    for _ in range(MAX_PER_ADDRESS):
        gate.enter(HOME, 0)
    gate.leave(HOME)
    assert gate.enter(HOME, 0)
    assert not gate.enter(HOME, 0)


def test_who_was_refused_takes_no_place() -> None:
    gate = Gate(lucky)
    for _ in range(MAX_PER_ADDRESS + 100):
        gate.enter(HOME, 0)
    for _ in range(MAX_PER_ADDRESS):
        gate.leave(HOME)
    with pytest.raises(KeyError):
        gate.leave(HOME)


def test_leaving_without_having_entered_is_an_error() -> None:
    with pytest.raises(KeyError):
        Gate(lucky).leave(HOME)


@pytest.mark.parametrize("address", ["192.0.2.1:7443", "example.org", "[::1]"])
def test_what_is_no_address_is_not_let_in_as_a_local_one(address: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        Gate(lucky).enter(address, 0)


def test_ipv6_is_counted_per_64() -> None:
    gate = Gate(lucky)
    for number in range(MAX_PER_ADDRESS):
        assert gate.enter(f"2001:db8:0:1::{number:x}", 0)
    assert not gate.enter("2001:db8:0:1:ffff:ffff:ffff:ffff", 0)
    assert gate.enter("2001:db8:0:2::", 0)


def test_a_zone_makes_no_new_address() -> None:
    gate = failing("fe80::1%eth0")
    assert not gate.may_try("fe80::2", 0)


def test_ipv4_in_ipv6_clothes_is_the_same_address() -> None:
    gate = failing("::ffff:192.0.2.1")
    assert not gate.may_try(HOME, 0)
    assert gate.may_try("::ffff:192.0.2.2", 0)


@pytest.mark.parametrize("address", LOOPBACK + UNIX)
def test_many_clients_of_this_machine_may_enter_at_once(address: str) -> None:
    gate = Gate(lucky)
    places = MAX_UNPROVEN - KEPT_FOR_KNOWN
    assert all(gate.enter(address, 0) for _ in range(places))
    assert not gate.enter(address, 0)
    for _ in range(places):
        gate.leave(address)


@pytest.mark.parametrize("address", LOOPBACK + UNIX)
def test_this_machine_never_gets_the_kept_places(address: str) -> None:
    gate = filled(MAX_UNPROVEN - KEPT_FOR_KNOWN)
    gate.succeeded(address, 0)
    assert not gate.enter(address, 0)


@pytest.mark.parametrize("address", [HOME, "2001:db8::1", *LOOPBACK, *UNIX])
def test_too_many_failures_must_wait(address: str) -> None:
    gate = failing(address, FAILURE_BURST - 1)
    assert gate.may_try(address, 0)
    gate.failed(address, 0)
    assert not gate.may_try(address, 0)
    assert not gate.may_try(address, FAILURE_REFILL_S - 1)
    assert gate.may_try(address, FAILURE_REFILL_S)


def test_each_refill_forgives_one_failure() -> None:
    gate = failing(HOME)
    gate.failed(HOME, FAILURE_REFILL_S)
    assert not gate.may_try(HOME, FAILURE_REFILL_S)
    assert gate.may_try(HOME, 2 * FAILURE_REFILL_S)


def test_after_a_quiet_minute_the_whole_burst_is_back() -> None:
    gate = failing(HOME)
    later = FAILURE_BURST * FAILURE_REFILL_S
    for _ in range(FAILURE_BURST):
        assert gate.may_try(HOME, later)
        gate.failed(HOME, later)
    assert not gate.may_try(HOME, later)


def test_failures_beyond_the_burst_add_no_wait() -> None:
    gate = failing(HOME, 10 * FAILURE_BURST)
    assert gate.may_try(HOME, FAILURE_REFILL_S)


def test_asking_and_succeeding_cost_nothing() -> None:
    gate = Gate(lucky)
    for _ in range(1_000):
        assert gate.may_try(HOME, 0)
        gate.succeeded(HOME, 0)
    assert gate.may_try(HOME, 0)


def test_a_success_forgives_no_failure() -> None:
    gate = failing(HOME)
    gate.succeeded(HOME, 0)
    assert not gate.may_try(HOME, 0)


def test_failures_of_one_address_do_not_hinder_another() -> None:
    assert failing(HOME).may_try("192.0.2.2", 0)


def test_the_oldest_failing_address_is_forgotten() -> None:
    gate = failing(HOME)
    each = MAX_REMEMBERED // 2
    for number in range(each - 1):
        gate.failed(stranger(number), 1)
    assert not gate.may_try(HOME, 1)
    gate.failed(stranger(each), 1)
    assert gate.may_try(HOME, 1)


def test_an_address_that_fails_again_is_not_the_oldest() -> None:
    gate = failing(HOME)
    for number in range(MAX_REMEMBERED):
        gate.failed(stranger(number), 1)
        gate.failed(HOME, 1)
    assert not gate.may_try(HOME, 1)


def test_any_number_of_failures_forgets_no_known_address() -> None:
    gate = filled(MAX_UNPROVEN - KEPT_FOR_KNOWN)
    gate.succeeded(HOME, 0)
    for number in range(2 * MAX_REMEMBERED):
        gate.failed(stranger(number), 1)
    assert gate.enter(HOME, 1)


def test_memory_is_bounded_whatever_comes() -> None:
    gate = Gate(lucky)
    for number in range(2 * MAX_REMEMBERED):
        gate.failed(stranger(number), number)
        gate.succeeded(stranger(number), number)
    assert len(gate._forgiven_at) + len(gate._authenticated_at) == MAX_REMEMBERED


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 30), st.booleans()), max_size=300
    ),
    seed=st.integers(0, 2**32),
)
def test_the_caps_hold_and_nothing_stays_behind(
    steps: list[tuple[bool, int, bool]], seed: int
) -> None:
    gate = Gate(random.Random(seed).random)
    inside: list[str] = []
    for enters, number, known in steps:
        address = stranger(number)
        if known:
            gate.succeeded(address, 0)
        if enters and gate.enter(address, 0):
            inside.append(address)
        elif address in inside:
            inside.remove(address)
            gate.leave(address)
        assert len(inside) <= MAX_UNPROVEN
        assert inside.count(address) <= MAX_PER_ADDRESS
    for address in inside:
        gate.leave(address)
    assert not gate._unproven
    assert gate._total == 0
