"""What users have at other nodes counts here: two and more, by a clock of the test."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import center, user
from support.nodes import nodes
from support.uses import TELL_S, Load, Nodes

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.access.use import NOTHING, Use
from tunnel.center import admission
from tunnel.center.accounts import Accounts
from tunnel.center.events import LinkDown, LinkUp
from tunnel.errors import Code, LimitError
from tunnel.proto.frames import MappingEntry, MappingOp, MappingType
from tunnel.proto.pace import Meter
from tunnel.proto.part import PartMeter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.uses import Node

    from tunnel.access.account import Account
    from tunnel.center.client import CenterClient
    from tunnel.proto.frames import MappingAnswer

RATE = 5_000_000
SECOND = 1.0


# What is counted ---------------------------------------------------------------------


def test_links_count_together_and_the_reason_says_so() -> None:
    of = Nodes("links=3")
    here, there = of["a"].account(), of["b"].account()
    there.links = 2
    here.links = 2
    assert here.refuses_link() == "", "it has not heard yet"
    of.run(SECOND)
    why = "limit of user ann: 3 links at once, at all servers together"
    assert here.refuses_link() == why
    there.links = 1
    of.run(SECOND)
    assert here.refuses_link() == ""
    of.run(SECOND)
    there.links = 0
    of.run(SECOND)
    here.links = 4
    assert here.refuses_link() == "limit of user ann: 3 links at once"


def test_connections_count_together() -> None:
    of = Nodes("connections=10", names="abc")
    a, b, c = (node.account() for node in of.all.values())
    a.connections, b.connections, a.links = 4, 5, 1
    of.run(SECOND)
    assert c.refuses_connection() == ""
    c.connections += 1
    of.run(SECOND)
    for one in (a, b, c):
        why = one.refuses_connection()
        assert why == (
            "limit of user ann: 10 connections at once, at all servers together"
        )
    a.connections -= 1
    of.run(SECOND)
    assert not b.refuses_connection()


def test_visitors_of_an_address_count_together() -> None:
    of = Nodes("visitors=2")
    here, there = of["a"].account(), of["b"].account()
    here.links = there.links = 1
    assert there.admit_visitor("2001:db8::1")
    assert here.admit_visitor("2001:db8::1:1"), "of the same customer"
    of.run(SECOND)
    for one in (here, there):
        with pytest.raises(LimitError):
            one.admit_visitor("2001:db8::2")
    assert here.admit_visitor("198.51.100.7")
    there.visitor_left("2001:db8::1")
    of.run(SECOND)
    assert here.admit_visitor("2001:db8::2")


def test_what_is_counted_in_tables_is_told() -> None:
    of = Nodes()
    of["a"].account()
    of["b"].account()
    of["a"].tables.of = {
        "sessions": {"ann": 7, "bob": 1},
        "waiting": {"ann": 3},
        "ports": {"ann": 5},
        "names": {"ann": 0},
        "counted_ports": {"ann": 2},
    }
    of.run(SECOND)
    told = Use(sessions=7, waiting=3, ports=5, counted_ports=2)
    there = of["b"].account()
    assert there.elsewhere == told
    assert there.here.sessions == there.limits.sessions - 7
    assert there.here.waiting == there.limits.waiting - 3
    assert there.here.ports == there.limits.ports - 5
    assert there.here.names == there.limits.names


def test_only_what_changed_is_told_and_what_is_over() -> None:
    of = Nodes(users="ann bob")
    accounts = of["a"].accounts
    of["a"].account("ann").links = 1
    of["a"].account("bob").links = 1
    assert accounts.changed_uses() == {"ann": Use(1), "bob": Use(1)}
    assert accounts.changed_uses() == {}
    of["a"].account("bob").links = 0
    assert accounts.changed_uses() == {"bob": NOTHING}
    assert accounts.uses() == {"ann": Use(1)}
    assert accounts.changed_uses() == {}


def test_who_comes_to_a_node_later_is_held_to_what_was_told_before() -> None:
    of = Nodes("links=1")
    of["a"].account().links = 1
    of.run(SECOND)
    late = of["b"].account()
    late.links = 1
    assert "at all servers" in late.refuses_link()


def test_a_node_that_leaves_takes_its_part_along() -> None:
    of = Nodes("links=1", "down=5MB/s", "month=1GB")
    b = of["b"]
    session = b.session()
    b.account().links = 1
    load = of["a"].load()
    b.load()
    session.passes(400_000_000)
    of.run(3)
    here = of["a"].account()
    here.links = 1
    assert here.refuses_link()
    of.leave("b")
    before = load.passed
    of.run(SECOND)
    assert here.refuses_link() == ""
    of.run(3)
    assert (load.passed - before) / 4 == pytest.approx(RATE, rel=0.1)
    # But what has passed has passed.
    assert here.elsewhere == Use(month="2031-05", month_bytes=400_000_000)


# The month ---------------------------------------------------------------------------


def test_the_month_is_used_up_by_all_together() -> None:
    of = Nodes("month=100MB")
    one, other = of["a"].session(), of["b"].session()
    one.passes(60_000_000)
    of.run(SECOND)
    assert other.account.refuses_connection() == ""
    other.passes(39_999_999)
    of.run(SECOND)
    assert not one.why
    other.passes(1)
    of.run(SECOND)
    for session in (one, other):
        why = "limit of user ann: the bytes of this month, at all servers together"
        assert session.why == session.account.refuses_connection() == why


def test_each_node_begins_the_month_when_its_own_clock_does() -> None:
    of = Nodes("month=100MB")
    one, other = of["a"].session(), of["b"].session()
    one.passes(60_000_000)
    other.passes(60_000_000)
    of.run(SECOND)
    assert opens(one.account)() is False
    of.month = "2031-06"
    of["a"].count()
    assert opens(one.account)() is True
    one.passes(70_000_000)
    of["a"].count()
    of.tell()  # the other is still in May, for which this is nothing
    assert other.account.month_bytes == 60_000_000
    assert one.account.here.month == 100_000_000
    of["b"].count()
    assert opens(other.account)() is True
    other.passes(29_999_999)
    of.run(SECOND)
    assert other.account.here.month == 30_000_000
    assert opens(other.account)() is True
    other.passes(1)
    of.run(SECOND)
    assert other.account.month_is_used_up
    assert one.account.month_is_used_up


# Rates -------------------------------------------------------------------------------


def shares(of: Nodes, seconds: float) -> list[float]:
    return [rate / RATE for rate in of.rates(seconds)]


def test_two_under_load_have_the_rate_together_by_their_connections() -> None:
    of = Nodes("down=5MB/s")
    of["a"].load()
    of["b"].load(connections=3)
    of.run(2)
    assert shares(of, 1) == pytest.approx([0.25, 0.75], rel=0.02)


def test_many_nodes_have_the_rate_together_within_a_second() -> None:
    of = Nodes("down=5MB/s", names="abcdefgh")
    for at, node in enumerate(of.all.values(), 1):
        node.load(connections=at)
    of.run(1)
    assert sum(shares(of, 0.5)) == pytest.approx(1, rel=0.05)


def test_who_comes_later_gets_as_much_as_who_was_there() -> None:
    of = Nodes("down=5MB/s")
    of["a"].load()
    of["b"].account()
    of.run(3)
    of["b"].load()
    of.run(1)
    assert shares(of, 1) == pytest.approx([0.5, 0.5], rel=0.02)


def test_one_idle_and_one_busy_the_busy_has_all() -> None:
    of = Nodes("down=5MB/s")
    of["a"].load()
    of["b"].load(0)
    of.run(1)
    assert shares(of, 1) == pytest.approx([1, 0], rel=0.01)
    meter = of["a"].account().down
    assert meter is not None
    assert meter.rate == RATE


@pytest.mark.parametrize("wants", [0.05, 0.2, 0.4])
def test_who_wants_less_than_its_part_has_it_and_the_other_the_rest(
    wants: float,
) -> None:
    of = Nodes("down=5MB/s")
    of["a"].load()
    of["b"].load(wants * RATE)
    of.run(2)
    assert shares(of, 2) == pytest.approx([1 - wants, wants], rel=0.03)


def test_who_wants_more_than_its_connections_are_worth_waits_with_the_others() -> None:
    of = Nodes("down=5MB/s")
    of["a"].load(connections=9)
    of["b"].load(0.6 * RATE)
    of.run(2)
    assert shares(of, 2) == pytest.approx([0.9, 0.1], rel=0.03)


def test_what_one_gives_up_the_other_has_after_a_second() -> None:
    of = Nodes("down=5MB/s")
    of["a"].load()
    other = of["b"].load()
    of.run(3)
    of["b"].loads.remove(other)
    other.meter.leave(other)
    of.run(1)
    assert shares(of, 1) == pytest.approx([1], rel=0.05)


def test_what_comes_and_goes_leaves_the_sum_near_the_rate() -> None:
    of = Nodes("down=5MB/s")
    of["a"].load()
    pages = of["b"].load(0)

    def come_and_go(_: float) -> None:
        pages.wants = 0.8 * RATE if math.floor(of.now / 0.5) % 2 else 0

    of["b"].each.append(come_and_go)
    of.run(2)
    assert sum(shares(of, 10)) == pytest.approx(1, rel=0.08)


class Asker:
    """Asks so often per second, and counts what is granted."""

    def __init__(self, per_s: float, asked: Callable[[], bool]) -> None:
        self.per_s, self.asked = per_s, asked
        self.granted = 0
        self._due = 0.0

    def __call__(self, seconds: float) -> None:
        self._due += self.per_s * seconds
        while self._due >= 1:
            self._due -= 1
            self.granted += self.asked()


def opens(account: Account) -> Callable[[], bool]:
    return lambda: not account.refuses_connection()


def datagrams(account: Account) -> Callable[[], bool]:
    assert account.police is not None
    police = account.police
    return lambda: police.lets_in(100)


@pytest.mark.parametrize("what", [opens, datagrams])
@pytest.mark.parametrize(
    ("asked", "granted"),
    [((300, 300), (50, 50)), ((900, 100), (90, 10)), ((60, 30), (60, 30)),
     ((500, 0), (100, 0))],
)  # fmt: skip
def test_of_what_begins_in_a_second_each_node_has_its_part(
    what: Callable[[Account], Callable[[], bool]],
    asked: tuple[int, ...],
    granted: tuple[int, ...],
) -> None:
    of = Nodes("opens=100/s", "datagrams=100/s")
    askers = []
    for node, per_s in zip(of.all.values(), asked, strict=True):
        node.account().links = 1
        askers.append(Asker(per_s, what(node.account())))
        node.each.append(askers[-1])
    of.run(2)
    before = [one.granted for one in askers]
    of.run(4)
    now = [one.granted - was for one, was in zip(askers, before, strict=True)]
    assert [one / 4 for one in now] == pytest.approx(granted, rel=0.05, abs=1)


def test_limits_that_change_are_divided_at_once() -> None:
    of = Nodes("down=5MB/s", "opens=50/s")
    one, other = of["a"].load(), of["b"].load()
    of.run(2)
    limits = parse_limits(["down=1MB/s", "links=7"])
    for node in of.all.values():
        changed = replace(of.users["ann"], limits=limits)
        node.users.replace({"ann": changed})
        account = node.account()
        assert account.here.links == 7
        assert account.down is not None
    of.run(1)
    before = one.passed, other.passed
    of.run(2)
    passed = one.passed - before[0] + other.passed - before[1]
    assert passed / 2 == pytest.approx(1_000_000, rel=0.05)


# Users that change -------------------------------------------------------------------


def test_who_was_revoked_is_told_no_more() -> None:
    of = Nodes("links=1")
    node = of["a"]
    session = node.session()
    account = node.account()
    account.links = 1
    of.run(SECOND)
    assert of["b"].account().elsewhere.links == 1
    for one in of.all.values():
        one.users.replace({})
    account.links = 0
    node.accounts.end(session)  # type: ignore[arg-type]
    of.run(SECOND)
    assert of.together.everywhere() == {}
    assert not [*node.accounts]


def test_who_was_renamed_has_what_it_had() -> None:
    of = Nodes("month=1MB", "links=3")
    one, other = of["a"].session(), of["b"].session()
    one.account.links = other.account.links = 2
    one.passes(600_000)
    other.passes(300_000)
    of.run(SECOND)
    assert other.account.refuses_link()

    def rename(node: Node) -> None:
        node.accounts.rename("ann", "anna")
        node.users.replace({"anna": replace(of.users["ann"], name="anna")})

    rename(of["a"])
    assert of["a"].account("anna").elsewhere.links == 2
    rename(of["b"])
    of.together.rename("ann", "anna")
    of.run(SECOND)
    for session in (one, other):
        assert session.account.name == "anna"
        assert session.account.elsewhere.links == 2
        assert session.account.refuses_link()
    assert other.account.here.month == 400_000
    assert [*of.together.everywhere()] == ["anna"]


# What it costs -----------------------------------------------------------------------


def test_a_server_that_is_alone_has_meters_that_know_nothing_of_this() -> None:
    of = Nodes("down=5MB/s", names="a")
    assert isinstance(of["a"].account().down, PartMeter)
    account = Accounts(of.users, of.users["ann"].limits, clock=lambda: 0.0).of(
        of.users["ann"]
    )
    assert type(account.down) is Meter
    assert account.here is account.limits


def test_who_is_steady_tells_nothing_new() -> None:
    of = Nodes("down=5MB/s")
    of["a"].load()
    of["b"].load(0.2 * RATE)
    of.run(3)
    before = of.told_bytes
    of.run(10)
    assert of.told_bytes - before < 10 / TELL_S * 20


# With clients ------------------------------------------------------------------------


async def ask(client: CenterClient, *entries: MappingEntry) -> list[MappingAnswer]:
    assert client.session is not None
    return await client.session.ask_mapping(MappingOp.ADD, list(entries))


async def test_sessions_elsewhere_leave_less_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "RETRY_AFTER_S", 1)
    token = make_token()
    ann = replace(user(token, "ann"), limits=parse_limits(["sessions=2"]))
    async with center(others=(ann,)) as where, trio.open_nursery() as nursery:
        where.server.accounts.have_elsewhere({"ann": Use(sessions=2)})
        client, heard = where.client(b"a" * 16, name="ann", token=token)
        nursery.start_soon(client.run)
        down = await heard.next(LinkDown)
        assert down.reason.code is Code.CALM
        where.server.accounts.have_elsewhere({"ann": Use(sessions=1)})
        await heard.next(LinkUp)
        client.stop()


async def test_ports_and_names_elsewhere_leave_less_room(ports: range) -> None:
    token = make_token()
    ann = user(token, "ann", "ports:2", "be-exit:x", owner=False)
    ann = replace(ann, limits=parse_limits(["ports=9", "names=2"]))
    async with center(others=(ann,), ports=ports) as where:
        client, _ = where.client(b"a" * 16, name="ann", token=token)
        accounts = where.server.accounts
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            tcp = MappingEntry(MappingType.TCP, "one", "", 0)
            accounts.have_elsewhere({"ann": Use(counted_ports=2)})
            (answer,) = await ask(client, tcp)
            assert (answer.code, answer.reason) == (
                Code.RESOURCE,
                "ann has no right ports:3",
            )
            accounts.have_elsewhere({"ann": Use(ports=9)})
            (answer,) = await ask(client, tcp)
            why = "limit of user ann: 9 public ports, at all servers together"
            assert (answer.code, answer.reason) == (Code.RESOURCE, why)
            accounts.have_elsewhere({"ann": Use(ports=8, counted_ports=1)})
            (answer,) = await ask(client, tcp)
            assert answer.code is Code.NORMAL
            accounts.have_elsewhere({"ann": Use(names=2)})
            (answer,) = await ask(client, MappingEntry(MappingType.EXIT, "x", "x"))
            assert "2 names, at all servers together" in answer.reason
            client.stop()


async def test_a_server_tells_what_its_clients_have(tmp_path: Path) -> None:
    async with nodes(tmp_path) as of, trio.open_nursery() as nursery:
        client, _ = of.client(0)
        await nursery.start(client.run)
        answers = await ask(
            client,
            MappingEntry(MappingType.TCP, "one", "", 0),
            MappingEntry(MappingType.HTTP, "shop", "shop"),
        )
        assert {one.code for one in answers} == {Code.NORMAL}
        accounts = of[0].server.accounts
        assert accounts.uses() == {"default": Use(1, 1, ports=1, names=1)}
        of[0].server.clients[0].lose_link(Code.SILENT, "a test")
        await of[0].until(lambda: accounts.uses()["default"].waiting == 1)
        await of[0].until(lambda: accounts.uses()["default"].waiting == 0)
        assert of[1].server.accounts.uses() == {}
        client.stop()


def test_a_load_is_what_a_session_is() -> None:
    # Of the simulation itself: alone, it passes what the rate lets.
    of = Nodes("down=5MB/s", names="a")
    load = of["a"].load()
    assert isinstance(load, Load)
    of.run(4)
    assert load.passed / 4 == pytest.approx(RATE, rel=0.03)
