"""Limits, rates and months hold for all nodes: each tells what its users have."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import trio
from support.watched_directory import WatchedDirectory

from tunnel.access.use import NOTHING, Use
from tunnel.center.cluster import uses as uses_module
from tunnel.center.cluster.directory import Change, Claim
from tunnel.center.cluster.store import Store
from tunnel.center.cluster.uses import SharedUses

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tunnel.center.accounts import Accounts

MAY = "2031-05"
ENOUGH_S = 2 * uses_module.EVERY_S + 0.1


class Here:
    """The accounts of a node, as far as they are told."""

    def __init__(self) -> None:
        self.now: dict[str, Use] = {}
        self.told_uses: dict[str, Use] = {}
        self.elsewhere: dict[str, Use] = {}

    def changed_uses(self) -> dict[str, Use]:
        before, self.told_uses = self.told_uses, dict(self.now)
        changed = {n: use for n, use in self.now.items() if before.get(n) != use}
        gone = before.keys() - self.now.keys()
        return changed | dict.fromkeys(gone, NOTHING)

    def have_elsewhere(self, uses: dict[str, Use]) -> None:
        self.elsewhere = uses


class Node:
    """A node that hears what the others tell."""

    def __init__(self, store: Store, name: str) -> None:
        self.directory = WatchedDirectory(store, name)
        self.here = Here()
        self.uses = SharedUses(self.directory, cast("Accounts", self.here))
        self.scope = trio.CancelScope()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.directory.run)
                async with self.directory.changes() as news:
                    nursery.start_soon(self.uses.run)
                    task_status.started()
                    async for changes in news:
                        for change in changes:
                            self.uses.heard(change)
                            if not change.key:
                                self.uses.nodes_changed()


async def test_what_one_tells_the_others_have_within_a_second(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = Store()
    one, other = Node(store, "one.1"), Node(store, "other.1")
    await nursery.start(one.run)
    one.here.now = {"ann": Use(links=2, month=MAY, month_bytes=70)}
    await trio.sleep(5)
    await nursery.start(other.run)  # a node that comes is told all
    await trio.sleep(ENOUGH_S)
    assert other.here.elsewhere == one.here.now
    assert one.here.elsewhere == {}
    other.here.now = {"ann": Use(links=1), "bob": Use(sessions=4)}
    await trio.sleep(ENOUGH_S)
    assert one.here.elsewhere == other.here.now
    other.here.now = {"bob": Use(sessions=4)}
    await trio.sleep(ENOUGH_S)
    assert one.here.elsewhere == other.here.now
    asked = one.directory.asked + other.directory.asked
    await trio.sleep(20)
    assert one.directory.asked + other.directory.asked == asked  # nothing is new
    nursery.cancel_scope.cancel()


async def test_what_could_not_be_told_is_told_later_that_nothing_is_left_too(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = Store()
    one, other = Node(store, "one.1"), Node(store, "other.1")
    await nursery.start(one.run)
    await nursery.start(other.run)
    one.here.now = {"ann": Use(links=2)}
    await trio.sleep(ENOUGH_S)
    one.directory.is_away = True
    one.here.now = {}
    await trio.sleep(ENOUGH_S)
    assert other.here.elsewhere == {"ann": Use(links=2)}
    one.directory.is_away = False
    await trio.sleep(ENOUGH_S)
    assert other.here.elsewhere == {}
    nursery.cancel_scope.cancel()


async def test_bytes_of_the_month_outlive_a_node_and_count_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = Store()
    one, other = Node(store, "one.1"), Node(store, "other.1")
    await nursery.start(one.run)
    await nursery.start(other.run)
    other.here.now = {"ann": Use(links=3, month=MAY, month_bytes=500)}
    await trio.sleep(ENOUGH_S)
    other.scope.cancel()
    await trio.sleep(ENOUGH_S)
    passed = {"ann": Use(month=MAY, month_bytes=500)}
    assert one.here.elsewhere == passed
    again = Node(store, "other.2")
    again.here.now = dict(passed)  # as its folder has kept it
    await nursery.start(again.run)
    await trio.sleep(ENOUGH_S)
    assert one.here.elsewhere == passed
    again.here.now = {"ann": Use(month=MAY, month_bytes=501)}
    await trio.sleep(ENOUGH_S)
    assert one.here.elsewhere == again.here.now
    nursery.cancel_scope.cancel()


async def test_what_was_put_back_or_comes_from_nobody_counts_for_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = Store()
    one, other = Node(store, "one.1"), Node(store, "other.1")
    await nursery.start(one.run)
    await nursery.start(other.run)
    other.here.now = {"ann": Use(links=3)}
    await trio.sleep(ENOUGH_S)
    for node, fence in (("other.1", 1), ("eve.1", 1 << 60)):
        said = Claim(fence, {f"{node}/": b'{"ann": {"links": 90}}'})
        one.uses.heard(Change(f"uses:{node}", said))
    await trio.sleep(ENOUGH_S)
    assert one.here.elsewhere == other.here.now
    nursery.cancel_scope.cancel()
