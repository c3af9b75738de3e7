"""What is asked of an authority, and when: by examples, and whatever happens."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.center.acme.plan import (
    AUTHORITY,
    DAY_S,
    FIRST_RETRY_S,
    JITTER,
    MOST_AUTHORITY_S,
    MOST_RETRY_AFTER_S,
    MOST_RETRY_S,
    NEW_OF_ALL,
    NEW_OF_USER,
    WEEK_S,
    Held,
    Ledger,
    Plan,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_900_000_000.0
LIFE_S = 90 * DAY_S


def names(todo: Plan) -> list[str]:
    return [ask.name for ask in todo.asks]


def test_a_new_name_is_asked_for_at_once() -> None:
    todo = plan({"a.net": "alice"}, Ledger(), {}, NOW)
    assert [(ask.name, ask.user, ask.is_new) for ask in todo.asks] == [
        ("a.net", "alice", True)
    ]
    assert todo.look_at == math.inf


def test_nothing_wanted_is_nothing_to_do() -> None:
    held = {"a.net": Held(NOW - LIFE_S, NOW + 1)}
    todo = plan({}, Ledger(), held, NOW)
    assert (todo.asks, todo.limited, todo.look_at) == ((), {}, math.inf)


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    held = {"a.net": Held(NOW, NOW + LIFE_S)}
    wanted = {"a.net": "alice"}
    due = NOW + LIFE_S * 2 / 3
    assert not plan(wanted, Ledger(), held, due - 1).asks
    assert plan(wanted, Ledger(), held, NOW).look_at == pytest.approx(due)
    todo = plan(wanted, Ledger(), held, due + 1)
    assert [ask.is_new for ask in todo.asks] == [False]


def test_renewals_are_no_new_names_and_go_first() -> None:
    ledger = Ledger()
    for number in range(NEW_OF_USER):
        ledger.book(f"{number}.net", "alice", NOW)
    held = {"old.net": Held(NOW - LIFE_S, NOW + 60), "older.net": Held(0, NOW + 30)}
    wanted = {"new.net": "bob", "old.net": "alice", "older.net": "alice"}
    assert names(plan(wanted, ledger, held, NOW)) == [
        "older.net", "old.net", "new.net",
    ]  # fmt: skip


def test_a_certificate_that_has_ended_counts_as_a_new_name() -> None:
    held = {"a.net": Held(NOW - LIFE_S, NOW)}
    assert plan({"a.net": "alice"}, Ledger(), held, NOW).asks[0].is_new


def test_a_user_has_so_many_new_names_a_week() -> None:
    wanted = {f"{number}.net": "alice" for number in range(NEW_OF_USER + 2)}
    todo = plan(wanted | {"b.net": "bob"}, Ledger(), {}, NOW)
    assert len(todo.asks) == NEW_OF_USER + 1
    assert len(todo.limited) == 2
    assert todo.look_at == NOW + WEEK_S
    assert "this user" in next(iter(todo.limited.values())).why


def test_all_users_together_have_so_many() -> None:
    wanted = {f"{number}.net": f"user-{number}" for number in range(NEW_OF_ALL + 1)}
    todo = plan(wanted, Ledger(), {}, NOW)
    assert len(todo.asks) == NEW_OF_ALL
    assert "this user" not in next(iter(todo.limited.values())).why


def test_a_name_that_failed_is_asked_again_without_counting_again() -> None:
    ledger = Ledger()
    for number in range(NEW_OF_USER):
        ledger.book(f"{number}.net", "alice", NOW)
    again_at = ledger.failed("0.net", "why", NOW, 0.5)
    wanted = {"0.net": "alice"}
    assert not plan(wanted, ledger, {}, again_at - 1).asks
    assert plan(wanted, ledger, {}, NOW).look_at == again_at
    assert names(plan(wanted, ledger, {}, again_at)) == ["0.net"]


def test_pauses_grow_and_are_bounded() -> None:
    ledger, at, pauses = Ledger(), NOW, []
    for _ in range(60):
        again_at = ledger.failed("a.net", "why", at, 0.5)
        pauses.append(again_at - at)
        at = again_at
    assert pauses[0] == FIRST_RETRY_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_RETRY_S
    # Let's Encrypt locks a name out for an hour after five.
    assert sum(pauses[:5]) > 3_600


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_pauses_differ_by_chance(chance: float) -> None:
    pause = Ledger().failed("a.net", "why", NOW, chance) - NOW
    assert pause == FIRST_RETRY_S * (1 - JITTER + 2 * JITTER * chance)


def test_retry_after_is_believed_within_reason() -> None:
    assert Ledger().failed("a.net", "why", NOW, 0.5, 7_200) == NOW + 7_200
    assert Ledger().failed("a.net", "why", NOW, 0.5, 1) == NOW + FIRST_RETRY_S
    most = NOW + MOST_RETRY_AFTER_S
    assert Ledger().failed("a.net", "why", NOW, 0.5, math.inf) == most


def test_an_authority_that_fails_holds_back_all_names_until_it_answers() -> None:
    ledger = Ledger()
    again_at = ledger.failed(AUTHORITY, "it is away", NOW, 0.5)
    wanted = {"a.net": "alice", "b.net": "bob"}
    todo = plan(wanted, ledger, {}, NOW)
    assert (todo.asks, todo.look_at) == ((), again_at)
    assert names(plan(wanted, ledger, {}, again_at)) == ["a.net", "b.net"]
    ledger.succeeded("a.net")
    assert names(plan(wanted, ledger, {}, NOW)) == ["a.net", "b.net"]
    for _ in range(50):
        again_at = ledger.failed(AUTHORITY, "it is away", NOW, 0.5)
    assert again_at == NOW + MOST_AUTHORITY_S


def test_a_closed_ledger_lets_renewals_go_on() -> None:
    ledger = Ledger(closed_until=NOW + 100)
    wanted = {"a.net": "alice", "b.net": "alice"}
    held = {"b.net": Held(NOW - LIFE_S, NOW + 1)}
    todo = plan(wanted, ledger, held, NOW)
    assert names(todo) == ["b.net"]
    why = "what was asked this week is not known"
    assert todo.limited == {"a.net": (why, NOW + 100)}
    assert todo.look_at == NOW + 100


STEP = st.one_of(
    st.tuples(st.just("wait"), st.floats(1, 40 * DAY_S)),
    st.tuples(st.just("publish"), st.integers(0, 60), st.sampled_from("abc")),
    st.tuples(st.just("leave"), st.integers(0, 60)),
    st.tuples(st.just("fail"), st.floats(0, 1), st.booleans()),
    st.just(("get",)),
)


class World:
    """A server whose clock and authority the test has."""

    def __init__(self) -> None:
        self.now = NOW
        self.ledger = Ledger()
        self.held: dict[str, Held] = {}
        self.wanted: dict[str, str] = {}
        self.new: list[tuple[float, str, str]] = []

    def take(self, step: tuple[object, ...]) -> None:
        match step:
            case ("wait", float(seconds)):
                self.now += seconds
            case ("publish", int(number), str(user)):
                self.wanted.setdefault(f"{number}.net", user)
            case ("leave", int(number)):
                self.wanted.pop(f"{number}.net", None)
            case ("fail", float(chance), bool(everywhere)):
                self.ask(lambda name: self.fail(name, chance, everywhere))
            case _:
                self.ask(self.get)

    def fail(self, name: str, chance: float, everywhere: bool) -> None:
        failing = AUTHORITY if everywhere else name
        assert self.ledger.failed(failing, "", self.now, chance) > self.now

    def get(self, name: str) -> None:
        self.held[name] = Held(self.now, self.now + LIFE_S)
        self.ledger.succeeded(name)

    def ask(self, answer: Callable[[str], None]) -> None:
        todo = plan(self.wanted, self.ledger, self.held, self.now)
        assert todo.look_at > self.now
        asked = {ask.name for ask in todo.asks}
        assert asked <= self.wanted.keys()
        assert not asked & todo.limited.keys()
        for ask in todo.asks:
            held = self.held.get(ask.name)
            assert held is None or held.renew_at <= self.now
            fault = self.ledger.faults.get(ask.name)
            assert fault is None or fault.again_at <= self.now
        for ask in todo.asks[:1]:
            if ask.is_new:
                known = ask.name in self.ledger.asked
                self.ledger.book(ask.name, ask.user, self.now)
                if not known:
                    self.new.append((self.now, ask.name, ask.user))
            answer(ask.name)

    def most_in_a_week(self) -> int:
        most = 0
        for at, _, _ in self.new:
            most = max(most, sum(at <= one[0] < at + WEEK_S for one in self.new))
        return most

    def most_of_a_user(self) -> int:
        most = 0
        for at, _, _ in self.new:
            users = Counter(one[2] for one in self.new if at <= one[0] < at + WEEK_S)
            most = max(most, *users.values())
        return most


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=120))
def test_whatever_happens_no_week_has_more_than_its_new_names(
    steps: list[tuple[object, ...]],
) -> None:
    world = World()
    for step in steps:
        world.take(step)
    assert world.most_in_a_week() <= NEW_OF_ALL
    assert world.most_of_a_user() <= NEW_OF_USER
    assert len(world.ledger.asked) <= NEW_OF_ALL
