from __future__ import annotations

from ipaddress import ip_network

import pytest

from tunnel.access.guesses import BURST, REFILL_S, SHARED, Guesses
from tunnel.access.visitors import Visitors
from tunnel.addresses import Address

PROXIES = Visitors([ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")])
PEER = Address("10.0.0.1", 1)
ANNA, BERTA = Address("198.51.100.1", 5), Address("198.51.100.2", 6)


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("10.9.9.9", True),
        ("::ffff:10.9.9.9", True),
        ("2001:db8:1::7", True),
        ("11.0.0.1", False),
        ("2001:db8:2::7", False),
        ("local", False),
        ("", False),
    ],
)
def test_a_proxy_is_trusted_by_its_network(host: str, trusted: bool) -> None:
    assert PROXIES.trusts(host) is trusted
    assert not Visitors().trusts(host)


@pytest.mark.parametrize(
    ("peer", "hops", "found"),
    [
        (ANNA, [BERTA], 1),  # who is no proxy of ours is believed nothing
        (PEER, [], 0),
        (PEER, [ANNA], 0),
        (PEER, [BERTA, ANNA], 1),  # what Anna sent is not believed
        (PEER, [ANNA, PEER], 0),
        (PEER, [BERTA, ANNA, PEER, PEER], 1),
        (PEER, [PEER, PEER], 0),
    ],
)
def test_the_visitor_is_the_last_hop_that_is_not_trusted(
    peer: Address, hops: list[Address], found: int
) -> None:
    assert PROXIES.visitor(peer, hops) == found


def test_an_address_has_no_more_visitors_than_its_share() -> None:
    visitors = Visitors([ip_network("10.0.0.0/8")])
    assert [visitors.enter("198.51.100.1", 2) for _ in range(3)] == [True, True, False]
    assert visitors.enter("198.51.100.2", 2)
    visitors.leave("198.51.100.1")
    assert visitors.enter("::ffff:198.51.100.1", 2)
    assert [visitors.enter(f"2001:db8::{n}", 2) for n in range(3)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "local", "10.0.0.1"])
def test_who_stands_for_others_has_no_share(host: str) -> None:
    visitors = Visitors([ip_network("10.0.0.0/8")])
    assert all(visitors.enter(host, 2) for _ in range(10))
    for _ in range(10):
        visitors.leave(host)


def test_who_guesses_is_heard_a_burst_and_then_now_and_then() -> None:
    guesses = Guesses()
    heard, now = 0, 100.0
    while now < 160.0:
        if not guesses.wait_s("198.51.100.1", now):
            guesses.failed("198.51.100.1", now)
            heard += 1
        now += 0.01
    assert BURST <= heard <= BURST + 60 / REFILL_S
    assert not guesses.wait_s("198.51.100.2", now)
    assert guesses.wait_s("198.51.100.1", now) <= REFILL_S
    assert not guesses.wait_s("198.51.100.1", now + REFILL_S)


def test_an_ipv6_customer_is_one_guesser() -> None:
    guesses = Guesses()
    for number in range(BURST):
        guesses.failed(f"2001:db8::{number}", 0.0)
    assert guesses.wait_s("2001:db8::ffff", 0.0) == REFILL_S
    assert not guesses.wait_s("2001:db8:0:1::", 0.0)


def test_this_machine_may_be_wrong_more_often() -> None:
    guesses = Guesses()
    for _ in range(BURST * SHARED - 1):
        guesses.failed("127.0.0.1", 0.0)
    assert not guesses.wait_s("local", 0.0)
    guesses.failed("::1", 0.0)
    assert guesses.wait_s("127.0.0.1", 0.0)


def test_guessers_without_number_are_not_all_remembered() -> None:
    guesses = Guesses()
    for number in range(5_000):
        for _ in range(BURST):
            guesses.failed(f"2001:db8:{number:x}::", 0.0)
    assert not guesses.wait_s("2001:db8:0::", 0.0)
    assert guesses.wait_s("2001:db8:1387::", 0.0)
