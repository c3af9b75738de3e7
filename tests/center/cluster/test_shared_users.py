"""The users of all nodes are one text with a version, whoever changes it."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.watched_directory import WatchedDirectory

from tunnel.center.cluster import users as users_module
from tunnel.center.cluster.store import Store
from tunnel.center.cluster.users import (
    KEY,
    SharedUsers,
    Version,
    names_of,
)
from tunnel.errors import StateError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from tunnel.center.cluster.directory import Claim


class Folder:
    """What a node has in its state folder."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.kept = Version()
        self.fault = ""

    async def version(self) -> Version:
        await trio.lowlevel.checkpoint()
        return Version(self.kept.number, self.text)

    async def is_changed(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.text != self.kept.text

    async def keep(self, version: Version) -> None:
        await trio.lowlevel.checkpoint()
        self.kept = version

    async def take(self, version: Version) -> None:
        await trio.lowlevel.checkpoint()
        if self.fault:
            raise StateError(self.fault)
        self.kept, self.text = version, version.text


class Node:
    """A node that hears of changes."""

    def __init__(self, store: Store, name: str, text: str = "") -> None:
        self.directory = WatchedDirectory(store, name)
        self.folder = Folder(text)
        self.users = SharedUsers(self.directory, self.folder)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.directory.run)
            async with self.directory.changes() as news:
                nursery.start_soon(self.users.run)
                task_status.started()
                async for changes in news:
                    for change in changes:
                        if change.key:
                            self.users.heard(change)
                        else:
                            self.users.nodes_changed()

    async def change(self, text: str) -> list[str]:
        """Do as a command does."""

        async def make() -> bool:
            await trio.lowlevel.checkpoint()
            self.folder.text = text
            return True

        return await self.users.change(make)


@asynccontextmanager
async def nodes(*texts: str) -> AsyncIterator[list[Node]]:
    store = Store()
    all_ = [Node(store, f"n{at}.1", text) for at, text in enumerate(texts)]
    async with trio.open_nursery() as nursery:
        for one in all_:
            await nursery.start(one.run)
            await trio.testing.wait_all_tasks_blocked()
        yield all_
        nursery.cancel_scope.cancel()


def texts(all_: list[Node]) -> set[str]:
    return {one.folder.text for one in all_}


async def test_what_one_changes_all_have_before_it_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with nodes("ann", "", "") as all_:
        assert texts(all_) == {"ann"}  # the first one's, before anything is asked
        began = trio.current_time()
        assert await all_[1].change("ann bob") == []
        assert texts(all_) == {"ann bob"}
        assert await all_[2].change("bob") == []
        assert texts(all_) == {"bob"}
        assert trio.current_time() - began < 0.1
        assert {one.folder.kept.number for one in all_} == {3}


async def test_of_all_that_change_at_once_each_has_its_way_on_the_newest(
    autojump_clock: MockClock,
) -> None:
    async with nodes("ann", "", "") as all_:

        async def add(node: Node, name: str) -> None:
            async def make() -> bool:
                before = node.folder.text
                await trio.sleep(0.01)
                assert node.folder.text == before  # nothing comes between
                node.folder.text = f"{before} {name}"
                return True

            assert await node.users.change(make) == []

        async with trio.open_nursery() as nursery:
            for number, one in enumerate(all_):
                nursery.start_soon(add, one, f"n{number}")
        (text,) = texts(all_)
        assert sorted(text.split()) == ["ann", "n0", "n1", "n2"]


async def test_a_key_that_is_lost_while_it_is_changed_erases_nobody(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that fails on nothing at all is no newer version."""
    async with nodes("ann") as all_:
        (one,) = all_
        await one.change("ann bob")
        claim, times = one.directory.claim, 0

        async def lose_it(*args: Any) -> dict[str, Claim]:  # noqa: ANN401
            nonlocal times
            times += KEY in args[1]
            if times == 1 and KEY in args[1]:
                for member in one.directory._store.look_up([KEY])[KEY].members:
                    one.directory._store.release(member, [KEY])
            return await claim(*args)

        monkeypatch.setattr(one.directory, "claim", lose_it)
        assert await one.change("ann bob eve") == []
        assert one.folder.text == "ann bob eve"
        assert times >= 2


async def test_who_is_never_the_first_gives_up(autojump_clock: MockClock) -> None:
    async with nodes("ann", "") as all_:
        one, other = all_
        tries = 0

        async def make() -> bool:
            nonlocal tries
            tries += 1
            one.folder.text = f"ann, bob {tries}"
            assert await other.change(f"ann, eve {tries}") == [one.directory.name]
            return True

        with pytest.raises(UsageError):
            await one.users.change(make)
        assert tries == users_module.TRIES
        await trio.sleep(1)
        assert texts(all_) == {f"ann, eve {tries}"}


async def test_who_does_not_hear_is_named(autojump_clock: MockClock) -> None:
    async with nodes("ann", "", "") as all_:
        all_[2].directory.is_away = True
        began = trio.current_time()
        assert await all_[0].change("") == ["n2.1"]
        assert trio.current_time() - began == pytest.approx(users_module.HEARD_S)
        assert all_[1].folder.text == ""
        assert all_[2].folder.text == "ann"
        all_[2].directory.is_away = False
        await trio.sleep(users_module.AGAIN_S + 0.1)
        assert all_[2].folder.text == ""
        assert names_of(["n2.1", "n0.7", "alone"]) == ["alone", "n0", "n2"]


async def test_what_was_changed_while_nobody_could_be_told_is_told_later(
    autojump_clock: MockClock,
) -> None:
    async with nodes("ann", "") as all_:
        for one in all_:
            one.directory.is_away = True
        assert await all_[0].change("bob") == ["n1.1"]
        assert all_[1].folder.text == "ann"
        for one in all_:
            one.directory.is_away = False
        await all_[0].users.look_again()
        await trio.sleep(2)
        assert texts(all_) == {"bob"}


async def test_a_directory_that_is_empty_again_gets_the_newest(
    autojump_clock: MockClock,
) -> None:
    async with nodes("ann", "") as all_:
        await all_[0].change("bob")
        store = all_[0].directory._store
        claim = store.look_up([KEY])[KEY]
        for member in claim.members:
            store.release(member, [KEY])
        for one in reversed(all_):
            await one.users.look_again()
        await trio.sleep(1)
        assert texts(all_) == {"bob"}
        (value,) = store.look_up([KEY])[KEY].members.values()
        assert int.from_bytes(value[:8], "big") == 2


async def test_what_is_older_than_what_a_node_has_is_not_taken(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes("ann", "") as all_:
        store = all_[0].directory._store
        old = store.look_up([KEY])[KEY]
        await all_[0].change("bob")
        now = store.look_up([KEY])[KEY]
        # Somebody puts back what was there before.
        store.claim("eve/1", {KEY: next(iter(old.members.values()))}, {}, now.members)
        await trio.sleep(1)
        assert texts(all_) == {"bob"}
        (value,) = store.look_up([KEY])[KEY].members.values()
        assert int.from_bytes(value[:8], "big") == 2
    assert "users.overruled" not in caplog.text


async def test_a_node_that_was_changed_while_it_was_away_is_overruled_and_says_so(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with nodes("ann", "") as all_:
        all_[1].directory.is_away = True
        assert await all_[0].change("bob") == ["n1.1"]
        all_[1].folder.text = "ann eve"
        all_[1].directory.is_away = False
        await trio.sleep(users_module.AGAIN_S + 0.1)
        assert texts(all_) == {"bob"}
    assert caplog.text.count("users.overruled") == 1


async def test_a_text_that_a_node_cannot_read_leaves_it_as_it_was(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes("ann", "") as all_:
        all_[1].folder.fault = "a key of a newer program"
        assert await all_[0].change("bob") == ["n1.1"]
        assert all_[1].folder.text == "ann"
        assert "users.not_shared" in caplog.text
        all_[1].folder.fault = ""
        assert await all_[0].change("eve") == []
        assert texts(all_) == {"eve"}
