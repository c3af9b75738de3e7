"""What every directory promises: one in the process, and one on Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.watched_directory import WatchedDirectory

from tunnel.center.cluster.directory import NOBODY, Change, Claim, ClaimedError
from tunnel.center.cluster.feed import MAX_WAITING, Feed
from tunnel.center.cluster.redis import RedisDirectory
from tunnel.center.cluster.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.redis_server import RedisServer

    from tunnel.center.cluster.directory import Directory

SECRET = b"a secret of the cluster's own..."


class Cluster:
    """Makes nodes of one kind: of the Redis at a URL, or of this process."""

    def __init__(self, nursery: trio.Nursery, url: str) -> None:
        self._nursery = nursery
        self._url = url
        self._store = Store()
        self._scopes: dict[str, trio.CancelScope] = {}
        self._ended: dict[str, trio.Event] = {}

    async def node(self, name: str) -> Directory:
        """Start a node; return its directory."""
        scope = self._scopes[name] = trio.CancelScope()
        ended = self._ended[name] = trio.Event()
        directory = self._made(name)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await directory.run(task_status=task_status)
            ended.set()

        await self._nursery.start(run)
        return directory

    async def end(self, name: str) -> None:
        self._scopes[name].cancel()
        await self._ended[name].wait()

    def _made(self, name: str) -> WatchedDirectory | RedisDirectory:
        if not self._url:
            return WatchedDirectory(self._store, name, f"{name}.test:1")
        return RedisDirectory(self._url, name, f"{name}.test:1", SECRET)


@pytest.fixture(params=["embedded", "redis"])
async def cluster(
    request: pytest.FixtureRequest, nursery: trio.Nursery
) -> AsyncIterator[Cluster]:
    url = ""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("shared_redis")
        server.ask("FLUSHALL")
        url = server.url
    yield Cluster(nursery, url)
    nursery.cancel_scope.cancel()


async def heard(changes: AsyncIterator[list[Change]], count: int) -> list[Change]:
    """Wait for so many changes of claims."""
    found: list[Change] = []
    with trio.fail_after(5):
        async for some in changes:
            found += [one for one in some if one.key]
            if len(found) >= count:
                return found
    raise AssertionError


async def test_who_has_claimed_a_key_is_found_at_every_node(cluster: Cluster) -> None:
    one, other = await cluster.node("one"), await cluster.node("other")
    assert await other.look_up(["a.test"]) == {"a.test": NOBODY}
    made = await one.claim("one/1", {"a.test": b"says"}, {"a.test": 0})
    assert made["a.test"].members == {"one/1": b"says"}
    assert made["a.test"].fence > 0
    assert await other.look_up(["a.test", "b.test"]) == made | {"b.test": NOBODY}


async def test_of_two_with_the_same_sight_the_second_hears_how_it_is(
    cluster: Cluster,
) -> None:
    one, other = await cluster.node("one"), await cluster.node("other")
    made = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    with pytest.raises(ClaimedError) as caught:
        await other.claim("other/1", {"a": b"2", "b": b"2"}, {"a": 0, "b": 0})
    assert caught.value.claims == {"a": made["a"], "b": NOBODY}
    assert await one.look_up(["a", "b"]) == {"a": made["a"], "b": NOBODY}
    assert set(await other.claim("other/1", {"b": b"2"}, {"b": 0})) == {"b"}


async def test_a_fence_that_is_only_looked_at_must_hold_too(cluster: Cluster) -> None:
    one = await cluster.node("one")
    made = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    with pytest.raises(ClaimedError):
        await one.claim("one/1", {"b": b"1"}, {"a": made["a"].fence - 1, "b": 0})
    with pytest.raises(ClaimedError):
        await one.claim("one/1", {}, {"a": 0})
    seen = {"a": made["a"].fence, "b": 0}
    assert set(await one.claim("one/1", {"b": b"1"}, seen)) == {"b"}


async def test_members_join_replace_what_they_said_and_drive_others_out(
    cluster: Cluster,
) -> None:
    one, other = await cluster.node("one"), await cluster.node("other")
    first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    second = await other.claim("other/1", {"a": b"2"}, {"a": first["a"].fence})
    assert second["a"].members == {"one/1": b"1", "other/1": b"2"}
    third = await one.claim("one/1", {"a": b"3"}, {"a": second["a"].fence})
    assert third["a"].members == {"one/1": b"3", "other/1": b"2"}
    seen = {"a": third["a"].fence}
    fourth = await one.claim("one/2", {"a": b"4"}, seen, ["one/1", "other/1", "x"])
    assert fourth["a"].members == {"one/2": b"4"}
    assert first["a"].fence < second["a"].fence < third["a"].fence < fourth["a"].fence


async def test_who_releases_is_out_and_what_nobody_has_is_new_again(
    cluster: Cluster,
) -> None:
    one, other = await cluster.node("one"), await cluster.node("other")
    made = await one.claim("one/1", {"a": b"1", "b": b"1"}, {"a": 0, "b": 0})
    both = await other.claim("other/1", {"a": b"2"}, {"a": made["a"].fence})
    await one.release("one/1", ["a", "b", "never"])
    await one.release("one/1", ["a"])
    now = await other.look_up(["a", "b"])
    assert now["b"] == NOBODY
    assert now["a"].members == {"other/1": b"2"}
    assert now["a"].fence > both["a"].fence
    await other.release("other/1", ["a"])
    again = await one.claim("one/1", {"a": b"5"}, {"a": 0})
    assert again["a"].fence > now["a"].fence


async def test_every_change_is_heard_in_order_at_every_node(cluster: Cluster) -> None:
    one, other = await cluster.node("one"), await cluster.node("other")
    async with one.changes() as mine, other.changes() as theirs:
        made = await one.claim("one/1", {"a": b"1", "b": b"1"}, {"a": 0, "b": 0})
        more = await other.claim("other/1", {"a": b"2"}, {"a": made["a"].fence})
        await one.release("one/1", ["b"])
        said = [
            Change("a", made["a"]), Change("b", made["b"]), Change("a", more["a"]),
            Change("b", NOBODY),
        ]  # fmt: skip
        assert await heard(theirs, 4) == said
        found = await heard(mine, 1)
        while len(found) < 4 and found[-1] != said[-1]:
            found += await heard(mine, 1)
    # What a call has returned before may be left out.
    assert [one for one in said if one in found] == found
    assert found[-1] == said[-1]


async def test_who_lives_is_known_and_who_has_ended_is_not_among_them(
    cluster: Cluster,
) -> None:
    one = await cluster.node("one")
    assert one.nodes == {"one": "one.test:1"}
    async with one.changes() as changes:
        other = await cluster.node("other")
        with trio.fail_after(5):
            while "other" not in one.nodes:
                assert Change("") in await anext(changes)
        assert one.nodes == other.nodes
        assert other.nodes["other"] == "other.test:1"
        await cluster.end("other")
        with trio.fail_after(5):
            while "other" in one.nodes:
                await anext(changes)
    assert one.nodes == {"one": "one.test:1"}


async def test_what_is_to_be_remembered_outlives_its_node(cluster: Cluster) -> None:
    one = await cluster.node("one")
    assert await one.recall("port") == b""
    await one.remember("port", b"7")
    await one.remember("port", b"8")
    await cluster.end("one")
    other = await cluster.node("other")
    assert await other.recall("port") == b"8"


async def test_two_nodes_race_for_a_key_and_exactly_one_has_it(
    cluster: Cluster,
) -> None:
    nodes = [await cluster.node("one"), await cluster.node("other")]
    for number in range(200):
        key = f"k{number}"
        won: list[str] = []

        async def race(node: Directory, key: str = key, won: list[str] = won) -> None:
            try:
                await node.claim(f"{node.name}/1", {key: b"1"}, {key: 0})
            except ClaimedError:
                return
            won.append(node.name)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(race, node)
        assert len(won) == 1
        assert [*(await nodes[0].look_up([key]))[key].members] == [f"{won[0]}/1"]


async def test_any_bytes_and_many_keys_come_back_as_they_were(
    cluster: Cluster,
) -> None:
    one = await cluster.node("one")
    says = {f"http \N{SNOWMAN} {n}.test": bytes(range(n % 256)) for n in range(1_200)}
    made = await one.claim("one/ü 1", says, dict.fromkeys(says, 0))
    assert {key: claim.members["one/ü 1"] for key, claim in made.items()} == says
    assert await one.look_up(says) == made
    await one.release("one/ü 1", says)
    assert await one.look_up(says) == dict.fromkeys(says, NOBODY)


async def test_who_does_not_listen_is_told_that_it_has_missed_some() -> None:
    feed = Feed()
    with feed.listen() as listener:
        feed.tell([Change("a", Claim(1, {"n/1": b""}))])
        feed.tell([Change("b")])
        assert [one.key for one in await anext(listener)] == ["a", "b"]
        feed.tell([Change("c")] * (MAX_WAITING + 1))
        assert await anext(listener) == []
        feed.tell([Change("d")])
        assert await anext(listener) == [Change("d")]
