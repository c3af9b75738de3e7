"""Whose session goes when there are too many, without a link or a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import trio

from tunnel.access.account import Account
from tunnel.access.limits import Limits
from tunnel.access.use import NOTHING, Use
from tunnel.center import sessions
from tunnel.center.sessions import NO_CLIENT_ID, Sessions
from tunnel.errors import Code

if TYPE_CHECKING:
    import pytest

    from tunnel.center.client_session import ClientSession


@dataclass
class Carried:
    streams: int = 0
    kept_bytes: int = 0


@dataclass
class Person:
    name: str


@dataclass(eq=False)
class Fake:
    """What ``Sessions`` looks at."""

    session_id: bytes
    client_id: bytes
    user: Person
    session: Carried
    limits: Limits
    elsewhere: Use = NOTHING
    ended: list[Code] = field(default_factory=list)
    departed: trio.Event = field(default_factory=trio.Event)

    @property
    def account(self) -> Account:
        account = Account(self.user.name, self.limits)
        account.have_elsewhere(self.elsewhere, "2031-05")
        return account

    def dismiss(self, code: Code, reason: str) -> None:
        assert reason
        self.ended.append(code)


class Crowd:
    """A table of sessions, and who was put into it."""

    def __init__(self, most: int = 9, most_waiting: int = 9) -> None:
        self.table = Sessions()
        self.most = most
        self.limits = Limits(waiting=most_waiting)
        self.elsewhere = NOTHING
        self.all: list[Fake] = []

    def add(
        self, user: str = "ann", *, streams: int = 0, kept: int = 0, waits: bool = True
    ) -> Fake:
        number = (len(self.all) + 1).to_bytes(2, "big")
        session = Fake(
            number,
            number * 8,
            Person(user),
            Carried(streams, kept),
            self.limits,
            self.elsewhere,
        )
        self.all.append(session)
        self.table.add(cast("ClientSession", session))
        if waits:
            self.table.waits(cast("ClientSession", session))
        return session

    def make_room(self, user: str) -> bool:
        elsewhere = self.elsewhere.sessions
        return self.table.make_room(user, self.most, elsewhere)

    def ended(self) -> list[int]:
        """Who had to go; why is always that there was no room."""
        assert all(one.ended in ([], [Code.RESOURCE]) for one in self.all)
        return [at for at, one in enumerate(self.all) if one.ended]


def test_what_has_no_connection_goes_first_then_the_longest_waiting() -> None:
    crowd = Crowd(most_waiting=3)
    for streams in (1, 1, 0):
        crowd.add(streams=streams)
    assert crowd.ended() == []
    crowd.add(streams=1)
    assert crowd.ended() == [2]
    crowd.add(streams=1)
    assert crowd.ended() == [0, 2]
    crowd.add(streams=0)  # who comes last without a connection goes at once
    assert crowd.ended() == [0, 2, 5]


def test_another_users_sessions_make_no_room() -> None:
    crowd = Crowd(most=2, most_waiting=2)
    crowd.add("bob")
    for _ in range(3):
        crowd.add("ann", streams=1)
    assert crowd.ended() == [1]
    assert not crowd.make_room("ann")
    assert crowd.ended() == [1]


def test_a_newcomer_takes_the_place_of_nobody_who_has_a_link_or_a_connection() -> None:
    crowd = Crowd(most=3)
    crowd.add(waits=False)
    crowd.add(streams=1)
    assert crowd.make_room("ann")
    idle = crowd.add(streams=0)
    assert crowd.make_room("ann")
    assert crowd.ended() == [2]
    assert idle.ended
    crowd.add(streams=2)
    assert not crowd.make_room("ann")
    assert crowd.ended() == [2]


def test_sessions_at_other_nodes_count_too_but_none_of_them_ends() -> None:
    crowd = Crowd(most=4, most_waiting=3)
    crowd.elsewhere = Use(sessions=2, waiting=2)
    crowd.add(streams=1)
    assert crowd.make_room("ann")
    crowd.add(streams=1)
    assert crowd.ended() == [0]
    crowd.add(waits=False)
    assert crowd.table.counts() == {"sessions": {"ann": 2}, "waiting": {"ann": 1}}
    assert not crowd.make_room("ann")


def test_who_has_a_link_again_counts_no_more_among_those_who_wait() -> None:
    crowd = Crowd(most_waiting=2)
    back = crowd.add(streams=1)
    crowd.add(streams=1)
    crowd.table.has_link(cast("ClientSession", back))
    crowd.add(streams=1)
    assert crowd.ended() == []
    crowd.table.waits(cast("ClientSession", back))
    assert crowd.ended() == [1]


def test_who_has_ended_leaves_nothing_behind() -> None:
    crowd = Crowd()
    for streams in range(3):
        crowd.add(streams=streams, kept=100)
    for session in crowd.all:
        crowd.table.remove(cast("ClientSession", session))
        crowd.table.remove(cast("ClientSession", session))
    left = [value for value in vars(crowd.table).values() if not isinstance(value, int)]
    assert not any(left)
    assert crowd.table._kept_bytes == 0


def test_what_is_kept_is_bounded_and_ends_the_idle_and_the_longest_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "MAX_KEPT_BYTES", 1_000)
    crowd = Crowd()
    crowd.add(streams=1, kept=400)
    crowd.add(streams=0, kept=0)  # gives nothing back
    crowd.add("bob", streams=0, kept=400)
    crowd.add(streams=1, kept=200)
    assert crowd.ended() == []
    crowd.add(streams=1, kept=300)
    assert crowd.ended() == [2]
    crowd.add(streams=1, kept=300)
    assert crowd.ended() == [0, 2]


def test_a_client_is_found_by_its_id_and_one_without_is_not() -> None:
    crowd = Crowd()
    first = crowd.add("ann")
    found = crowd.table.of_client("ann", first.client_id)
    assert found is cast("ClientSession", first)
    assert crowd.table.of_client("bob", first.client_id) is None
    nameless = Fake(b"n", NO_CLIENT_ID, Person("ann"), Carried(), Limits())
    crowd.table.add(cast("ClientSession", nameless))
    assert crowd.table.of_client("ann", NO_CLIENT_ID) is None


def test_who_is_elsewhere_counts_no_more_and_is_found_by_its_session_alone() -> None:
    crowd = Crowd(most=1)
    gone = crowd.add(streams=1)
    assert not crowd.table.make_room("ann", 1)
    for _ in range(2):
        crowd.table.depart(cast("ClientSession", gone))
    assert crowd.table.make_room("ann", 1)
    assert crowd.table.of_client("ann", gone.client_id) is None
    assert cast("Fake", crowd.table.find(gone.session_id)) is gone
    crowd.table.remove(cast("ClientSession", gone))
    assert not crowd.table.counts()["sessions"]
    assert crowd.table.find(gone.session_id) is None
