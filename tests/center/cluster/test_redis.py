"""A directory on a Redis that is slow, stops, dies, forgets, or is somebody else's."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trustme
from support import logs
from support.processes import Machine, free_port
from support.redis_server import HOST, RedisServer, Way

from tunnel.center.cluster import redis as redis_module
from tunnel.center.cluster.directory import (
    NOBODY,
    Change,
    ClaimedError,
    DirectoryAwayError,
)
from tunnel.center.cluster.redis import RedisDirectory
from tunnel.center.cluster.redis_link import Times, read_redis_url
from tunnel.center.cluster.seals import Purpose, Seals, join_words, pack_claim
from tunnel.errors import UsageError
from tunnel.redaction import redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SECRET: Final = b"a secret of the cluster's own..."
OTHER: Final = b"a secret of somebody else......."
SHORT: Final = Times(lease=0.8, renew=0.2, reply=0.5, call=0.7, sweep=0.3)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunnel")


def made(
    url: str, name: str, secret: bytes = SECRET, times: Times | None = None
) -> RedisDirectory:
    return RedisDirectory(url, name, f"{name}.test:1", secret, times=times)


async def eventually(holds: Callable[[], bool]) -> None:
    with trio.fail_after(8):
        while not holds():  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.02)


async def until(
    changes: AsyncIterator[list[Change]], holds: Callable[[list[Change]], bool]
) -> list[Change]:
    with trio.fail_after(8):
        async for some in changes:
            if holds(some):
                return some
    raise AssertionError


def nothing(some: list[Change]) -> bool:
    """Some changes may have been missed."""
    return not some


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [line for line in logs.lines(caplog) if line.startswith(f"{name} ")]


# Leases -------------------------------------------------------------------------------


async def test_a_node_that_is_cut_off_is_gone_for_others_and_claims_again(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    way = Way(redis.port)
    await nursery.start(way.run)
    one = made(way.url, "one", times=SHORT)
    other = made(redis.url, "other", times=SHORT)
    await nursery.start(one.run)
    await nursery.start(other.run)
    async with one.changes() as mine, other.changes() as theirs:
        first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
        way.stop()
        began = trio.current_time()
        await until(theirs, lambda _: "one" not in other.nodes)
        assert SHORT.lease / 2 < trio.current_time() - began < 3 * SHORT.lease
        # Its member stays until somebody claims the key; after a while it is swept.
        await until(theirs, lambda some: Change("a") in some)
        assert await other.look_up(["a"]) == {"a": NOBODY}
        with pytest.raises(DirectoryAwayError):
            await one.look_up(["a"])
        way.go_on()
        await until(mine, nothing)
        again = await one.claim("one/1", {"a": b"1"}, {"a": 0})
        assert again["a"].fence > first["a"].fence
        await until(theirs, lambda _: "one" in other.nodes)
    nursery.cancel_scope.cancel()


async def test_what_a_living_node_has_claimed_is_not_swept(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    one = made(redis.url, "one", times=SHORT)
    await nursery.start(one.run)
    says = {f"a{number}": b"1" for number in range(1_100)}
    claims = await one.claim("one/1", says, dict.fromkeys(says, 0))
    redis.ask("SET", "{tunnel}:c:rubbish", "rubbish")
    await eventually(lambda: not redis.ask("EXISTS", "{tunnel}:c:rubbish"))
    assert await one.look_up(says) == claims
    nursery.cancel_scope.cancel()


async def test_a_node_in_peace_costs_one_question_a_renewal(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    one = made(redis.url, "one", times=SHORT)
    await nursery.start(one.run)
    says = {f"a{number}": b"1" for number in range(2_000)}
    await one.claim("one/1", says, dict.fromkeys(says, 0))
    await trio.sleep(2 * SHORT.sweep)
    before = redis.calls()
    await trio.sleep(1.0)
    after = redis.calls()
    made_calls = {name: count - before.get(name, 0) for name, count in after.items()}
    asked = made_calls.pop("evalsha")
    del made_calls["info"]
    assert 3 <= asked <= 6
    inside = ("time", "zremrangebyscore", "zadd")  # of the script
    assert {k: n for k, n in made_calls.items() if n} == dict.fromkeys(inside, asked)
    nursery.cancel_scope.cancel()


# Away ---------------------------------------------------------------------------------


async def test_a_redis_that_dies_is_away_and_one_that_comes_back_empty_is_filled_again(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = made(redis.url, "one"), made(redis.url, "other")
    await nursery.start(one.run)
    await nursery.start(other.run)
    async with one.changes() as mine, other.changes() as theirs:
        first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
        await until(theirs, lambda some: Change("a", first["a"]) in some)
        redis.kill()
        for node in (one, other):
            began = trio.current_time()
            with pytest.raises(DirectoryAwayError):
                await node.look_up(["a"])
            assert trio.current_time() - began < 3.1
        await trio.sleep(0.5)
        began = trio.current_time()
        with pytest.raises(DirectoryAwayError):
            await one.claim("one/1", {"b": b"1"}, {"b": 0})
        assert trio.current_time() - began < 0.1
        assert one.nodes.keys() == {"one", "other"}
        redis.start()
        await until(mine, nothing)
        await until(theirs, nothing)
        assert await one.look_up(["a"]) == {"a": NOBODY}
        again = await one.claim("one/1", {"a": b"1"}, {"a": 0})
        assert again["a"].fence > first["a"].fence
        await until(theirs, lambda some: Change("a", again["a"]) in some)
        await trio.sleep(0.1)
        assert one.nodes == other.nodes
        assert one.nodes.keys() == {"one", "other"}
    assert len(events(caplog, "directory.away")) == 2
    assert len(events(caplog, "directory.back")) == 2
    assert not events(caplog, "directory.refused")
    nursery.cancel_scope.cancel()


async def test_fences_grow_on_when_all_is_lost_and_a_new_node_is_first(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    async with trio.open_nursery() as life:
        one = made(redis.url, "one", times=SHORT)
        await life.start(one.run)
        first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
        life.cancel_scope.cancel()
    redis.ask("FLUSHALL")
    other = made(redis.url, "other", times=SHORT)
    await nursery.start(other.run)
    second = await other.claim("other/1", {"a": b"1"}, {"a": 0})
    assert second["a"].fence > first["a"].fence
    nursery.cancel_scope.cancel()


async def test_a_node_whose_clock_is_behind_still_fences_above_what_it_finds(
    redis: RedisServer, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made(redis.url, "one")
    await nursery.start(one.run)
    first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    await one.release("one/1", ["a"])
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    other = made(redis.url, "other")
    await nursery.start(other.run)
    second = await other.claim("other/1", {"a": b"1"}, {"a": 0})
    assert second["a"].fence > first["a"].fence
    assert await one.look_up(["a"]) == second
    nursery.cancel_scope.cancel()


async def test_data_that_is_lost_while_the_connection_lasts_is_noticed(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    one = made(redis.url, "one", times=SHORT)
    await nursery.start(one.run)
    async with one.changes() as mine:
        redis.ask("FLUSHALL")
        await until(mine, nothing)
        assert redis.ask("ZCARD", "{tunnel}:nodes") == 1
    nursery.cancel_scope.cancel()


async def test_a_redis_that_stops_for_seconds_is_away_and_back(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one")
    await nursery.start(one.run)
    async with one.changes() as mine:
        redis.pause()
        try:
            began = trio.current_time()
            with pytest.raises(DirectoryAwayError):
                await one.look_up(["a"])
            assert trio.current_time() - began < 3.1
            with pytest.raises(DirectoryAwayError):
                await one.look_up(["a"])
            assert trio.current_time() - began < 6.2
        finally:
            redis.go_on()
        await until(mine, nothing)
        made_ = await one.claim("one/1", {"a": b"1"}, {"a": 0})
        assert await one.look_up(["a"]) == made_
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer_s", [0.3, pytest.param(1.0, marks=pytest.mark.deep)])
async def test_a_redis_that_is_slow_works(
    redis: RedisServer,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    answer_s: float,
) -> None:
    way = Way(redis.port, answer_s / 2)
    await nursery.start(way.run)
    one, other = made(way.url, "one"), made(way.url, "other")
    async with trio.open_nursery() as both:
        for node in (one, other):
            both.start_soon(partial(nursery.start, node.run))
    await eventually(lambda: one.nodes.keys() == {"one", "other"})
    first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    seen = {"a": first["a"].fence}
    second = await other.claim("other/1", {"a": b"1"}, seen, ["one/1"])
    assert await one.look_up(["a"]) == second
    assert not events(caplog, "directory.away")
    nursery.cancel_scope.cancel()


async def test_a_redis_that_became_a_replica_is_away_until_it_is_none(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one", times=SHORT)
    await nursery.start(one.run)
    async with one.changes() as mine:
        redis.ask("REPLICAOF", HOST, free_port())
        with pytest.raises(DirectoryAwayError):
            await one.claim("one/1", {"a": b"1"}, {"a": 0})
        await eventually(lambda: bool(events(caplog, "directory.away")))
        assert "read only replica" in events(caplog, "directory.away")[0]
        redis.ask("REPLICAOF", "NO", "ONE")
        await until(mine, nothing)
    assert (await one.claim("one/1", {"a": b"1"}, {"a": 0}))["a"].members
    nursery.cancel_scope.cancel()


async def test_a_redis_without_memory_takes_no_claims_and_keeps_its_nodes(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one", times=SHORT)
    await nursery.start(one.run)
    await one.claim("one/1", {"a": b"1", "b": b"1"}, {"a": 0, "b": 0})
    redis.ask("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(DirectoryAwayError) as caught:
        await one.claim("one/1", {"c": b"1"}, {"c": 0})
    assert "maxmemory" in caught.value.cause
    await one.release("one/1", ["a"])
    await trio.sleep(2 * SHORT.lease)
    assert redis.ask("ZCARD", "{tunnel}:nodes") == 1
    assert not events(caplog, "directory.away")
    nursery.cancel_scope.cancel()


async def test_a_redis_that_has_forgotten_the_scripts_is_told_them_again(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one")
    await nursery.start(one.run)
    first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    redis.ask("SCRIPT", "FLUSH")
    await one.claim("one/1", {"a": b"2"}, {"a": first["a"].fence})
    assert not events(caplog, "directory.away")
    nursery.cancel_scope.cancel()


@pytest.mark.deep
async def test_redis_dies_again_and_again_and_nobody_loses_or_leaks(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    nodes = [made(redis.url, f"n{number}", times=SHORT) for number in range(3)]
    names = {
        node.name: {f"{node.name}-{n}": b"1" for n in range(200)} for node in nodes
    }

    async def own(node: RedisDirectory) -> None:
        """Claim anew whenever something may have been missed."""
        async with node.changes() as changes:
            await claim_all(node)
            async for some in changes:
                if not some:
                    await claim_all(node)

    async def claim_all(node: RedisDirectory) -> None:
        says = names[node.name]
        while True:
            try:
                now = await node.look_up(says)
                seen = {key: claim.fence for key, claim in now.items()}
                await node.claim(f"{node.name}/1", says, seen)
            except (DirectoryAwayError, ClaimedError):
                await trio.sleep(0.1)
            else:
                return

    for node in nodes:
        await nursery.start(node.run)
        nursery.start_soon(own, node)
    open_files = 0
    highest = 0
    for number in range(12):
        await trio.sleep(1.2)
        (redis.kill if number % 2 else partial(redis.process.stop))()
        await trio.sleep(0.1 * (number % 5))
        redis.start()
        await eventually(lambda: redis.ask("DBSIZE") == 600 + 3)
        claims = await nodes[0].look_up(
            [key for says in names.values() for key in says]
        )
        assert all(len(claim.members) == 1 for claim in claims.values())
        assert min(claim.fence for claim in claims.values()) > highest
        highest = max(claim.fence for claim in claims.values())
        now_open = len(list(Path("/proc/self/fd").iterdir()))
        open_files = open_files or now_open
        assert now_open <= open_files
    nursery.cancel_scope.cancel()


async def test_a_node_ends_within_seconds_whatever_redis_does(
    redis: RedisServer,
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(made(redis.url, "one").run)
        redis.pause()
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    redis.go_on()
    assert trio.current_time() - began < 2.0


async def test_a_node_starts_without_redis_and_finds_it_later(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    redis.kill()
    one = made(redis.url, "one")
    await nursery.start(one.run)
    with pytest.raises(DirectoryAwayError):
        await one.recall("port")
    async with one.changes() as mine:
        redis.start()
        await until(mine, nothing)
    assert await one.recall("port") == b""
    assert len(events(caplog, "directory.away")) == 1
    assert len(events(caplog, "directory.back")) == 1
    nursery.cancel_scope.cancel()


# Who can write to Redis ---------------------------------------------------------------


async def test_a_value_that_somebody_made_up_is_nothing_and_can_be_replaced(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one")
    await nursery.start(one.run)
    forged = Seals(OTHER).seal(Purpose.CLAIM, "a", pack_claim(9, {"evil/1": b""}))
    claims = await one.claim("one/1", {"b": b"1"}, {"b": 0})
    moved = redis.ask("GET", "{tunnel}:c:b")
    assert isinstance(moved, bytes)
    bad = {"a": forged, "c": moved, "d": b"", "e": b"rubbish", "f": moved[:-1] + b"x"}
    for key, value in bad.items():
        redis.ask("SET", f"{{tunnel}}:c:{key}", value)
    redis.ask("RPUSH", "{tunnel}:c:g", "a list")
    keys = [*bad, "g"]
    for _ in range(2):
        assert await one.look_up(keys) == dict.fromkeys(keys, NOBODY)
    for key in bad:
        assert (
            events(caplog, "directory.refused").count(
                f"directory.refused key={key} reason=forged"
            )
            == 1
        )
    says = dict.fromkeys(keys, b"2")
    claims |= await one.claim("one/1", says, dict.fromkeys(keys, 0))
    assert await one.look_up([*keys, "b"]) == claims
    nursery.cancel_scope.cancel()


async def test_an_old_value_that_is_put_back_is_nothing(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = made(redis.url, "one"), made(redis.url, "other")
    await nursery.start(one.run)
    await nursery.start(other.run)
    first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    old = redis.ask("GET", "{tunnel}:c:a")
    assert isinstance(old, bytes)
    seen = {"a": first["a"].fence}
    second = await other.claim("other/1", {"a": b"2"}, seen, ["one/1"])
    assert await one.look_up(["a"]) == second
    redis.ask("SET", "{tunnel}:c:a", old)
    for node in (one, other):
        for _ in range(2):
            assert await node.look_up(["a"]) == {"a": NOBODY}
    line = "directory.refused key=a reason=replayed"
    assert events(caplog, "directory.refused") == [line] * 2  # one by each node
    with pytest.raises(ClaimedError) as caught:
        await one.claim("one/1", {"a": b"3"}, {"a": second["a"].fence})
    assert caught.value.claims == {"a": NOBODY}
    third = await one.claim("one/1", {"a": b"3"}, {"a": 0})
    assert third["a"].members == {"one/1": b"3"}
    assert third["a"].fence > second["a"].fence
    nursery.cancel_scope.cancel()


async def test_a_message_that_somebody_made_up_or_kept_is_not_passed_on(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one")
    await nursery.start(one.run)
    async with one.changes() as mine:
        first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
        old = redis.ask("GET", "{tunnel}:c:a")
        assert isinstance(old, bytes)
        await one.release("one/1", ["a"])
        forged = Seals(OTHER).seal(Purpose.CLAIM, "b", pack_claim(9, {"evil/1": b""}))
        for message in (
            join_words(b"a", old), join_words(b"b", forged), b"rubbish",
            join_words(b"odd"), b"\xff\xff\xff\xff", join_words(b"", b"", b"\xff", b""),
        ):  # fmt: skip
            redis.ask("PUBLISH", "{tunnel}:changes", message)
        last = await one.claim("one/1", {"last": b"1"}, {"last": 0})
        found: list[Change] = []
        with trio.fail_after(5):
            while Change("last", last["last"]) not in found:
                found += await anext(mine)
    assert {change.key for change in found} == {"a", "last"}
    assert found.count(Change("a", first["a"])) <= 1
    assert found[-2] == Change("a")
    assert len(events(caplog, "directory.refused")) == 4
    nursery.cancel_scope.cancel()


async def test_a_node_that_somebody_made_up_does_not_live(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one")
    await nursery.start(one.run)
    words = join_words(b"evil", b"evil.test:1")
    record = Seals(OTHER).seal(Purpose.NODE, "", words)
    redis.ask("ZADD", "{tunnel}:nodes", 9 * 10**15, record)
    redis.ask("ZADD", "{tunnel}:nodes", 9 * 10**15, "rubbish")
    other = made(redis.url, "other")
    await nursery.start(other.run)
    await eventually(lambda: "other" in one.nodes)
    assert one.nodes.keys() == other.nodes.keys() == {"one", "other"}
    refused = "directory.refused key=node reason=forged"
    assert events(caplog, "directory.refused") == [refused] * 2  # one by each node
    nursery.cancel_scope.cancel()


async def test_a_fence_cannot_be_driven_to_the_end(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    redis.ask("SET", "{tunnel}:fence", b"\xff" * 24)
    one = made(redis.url, "one")
    await nursery.start(one.run)
    first = await one.claim("one/1", {"a": b"1"}, {"a": 0})
    assert first["a"].fence < 2 * time.time_ns() // 1_000_000
    assert len(events(caplog, "directory.refused")) == 1
    nursery.cancel_scope.cancel()


async def test_a_node_with_another_secret_does_not_start_and_believes_nothing(
    redis: RedisServer, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(redis.url, "one")
    await nursery.start(one.run)
    await one.claim("one/1", {"a": b"1"}, {"a": 0})
    await one.remember("port", b"1")
    other = made(redis.url, "other", OTHER)
    with pytest.raises(UsageError, match="another secret"):
        await other.run()
    redis.ask("DEL", "{tunnel}:cluster")
    await nursery.start(other.run)
    async with other.changes() as theirs:
        assert await other.look_up(["a"]) == {"a": NOBODY}
        assert await other.recall("port") == b""
        assert other.nodes.keys() == {"other"}
        await one.claim("one/1", {"b": b"1"}, {"b": 0})
        made_ = await other.claim("other/1", {"c": b"1"}, {"c": 0})
        assert await until(theirs, bool) == [Change("c", made_["c"])]
    assert await one.look_up(["c"]) == {"c": NOBODY}
    assert one.nodes.keys() == {"one"}
    nursery.cancel_scope.cancel()


# Getting there ------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://192.0.2.1:6379/0", "redis://:secret@redis.lan/0", "http://127.0.0.1",
        "redis://", "redis://127.0.0.1:x", "redis://127.0.0.1/x", "127.0.0.1:6379",
        "redis://127.0.0.1/0?ssl_cert_reqs=none",
    ],
)  # fmt: skip
def test_what_is_no_url_or_not_encrypted_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(url, "one")
    assert (
        "secret" not in f"{caught.value.what} {caught.value.cause} {caught.value.fix}"
    )


def test_what_a_url_says() -> None:
    read = read_redis_url("rediss://us%40er:pass%2Fword@redis.lan/3")
    assert (read.host, read.port, read.db, read.user) == ("redis.lan", 6379, 3, "us@er")
    assert read.password.reveal() == "pass/word"
    assert str(read) == "rediss://redis.lan:6379/3"
    assert "word" not in repr(read).replace("password", "")
    assert str(read_redis_url("redis://[::1]:1")) == "redis://[::1]:1/0"
    assert "pass" not in redact("rediss://user:password@redis.lan/3")
    assert "pass" not in redact("rediss://:password@redis.lan/3")


async def test_a_password_is_used_and_never_said(
    machine: Machine, tmp_path: Path, nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    redis = RedisServer(machine, tmp_path, "--requirepass", "s3cret-word")
    with pytest.raises(UsageError, match="does not let us in") as caught:
        await made(redis.url.replace("//", "//:wr0ng-word@"), "one").run()
    with pytest.raises(UsageError, match="does not let us in"):
        await made(redis.url, "one").run()
    assert "wr0ng" not in f"{caught.value.what} {caught.value.cause}"
    one = made(redis.url.replace("//", "//:s3cret-word@"), "one", times=SHORT)
    await nursery.start(one.run)
    assert await one.recall("port") == b""
    redis.kill()
    with pytest.raises(DirectoryAwayError) as away:
        await one.recall("port")
    await trio.sleep(0.5)
    said = caplog.text + logs.text(caplog) + repr(away.value) + away.value.cause
    assert "s3cret" not in said
    assert "wr0ng" not in said
    nursery.cancel_scope.cancel()


async def test_a_user_who_may_no_more_than_is_written_is_enough(
    redis: RedisServer, nursery: trio.Nursery
) -> None:
    words = re.search(r"ACL SETUSER ((?:[^\n]+\n)+)", redis_module.__doc__ or "")
    assert words
    redis.ask("ACL", "SETUSER", *words[1].split())
    url = redis.url.replace("//", "//tunnel:PASSWORD@")
    one = made(url, "one", times=SHORT)
    await nursery.start(one.run)
    await one.claim("one/1", {"a": b"1"}, {"a": 0})
    await one.release("one/1", ["a"])
    await one.remember("port", b"1")
    assert await one.recall("port") == b"1"
    await trio.sleep(2 * SHORT.sweep)
    assert await one.look_up(["a"]) == {"a": NOBODY}
    redis.ask("ACL", "SETUSER", "tunnel", "-evalsha")
    with pytest.raises(UsageError, match="does not let us in"):
        await made(url, "other").run()
    nursery.cancel_scope.cancel()


async def test_tls_is_verified(
    machine: Machine, tmp_path: Path, nursery: trio.Nursery
) -> None:
    ca, other = trustme.CA(), trustme.CA()
    leaf = ca.issue_cert(HOST)
    for name, pem in (("ca", ca.cert_pem), ("other", other.cert_pem)):
        pem.write_to_path(tmp_path / f"{name}.pem")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "leaf.pem")
    leaf_pem = str(tmp_path / "leaf.pem")
    redis = RedisServer(
        machine, tmp_path, "--tls-cert-file", leaf_pem, "--tls-key-file", leaf_pem,
        "--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-auth-clients", "no",
        "--port", "0", "--tls-port", "{port}",
    )  # fmt: skip
    url = f"rediss://{HOST}:{redis.port}/0"
    one = RedisDirectory(url, "one", "x:1", SECRET, ca=tmp_path / "ca.pem")
    await nursery.start(one.run)
    await one.remember("port", b"1")
    assert await one.recall("port") == b"1"
    bad = RedisDirectory(url, "one", "x:1", SECRET, ca=tmp_path / "other.pem")
    with pytest.raises(UsageError, match="is not trusted"):
        await bad.run()
    named = url.replace(HOST, "localhost")  # the certificate is for the address
    bad = RedisDirectory(named, "one", "x:1", SECRET, ca=tmp_path / "ca.pem")
    with pytest.raises(UsageError, match="is not trusted"):
        await bad.run()
    nursery.cancel_scope.cancel()


def test_a_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / "no.pem"))):
        RedisDirectory(
            "rediss://redis.lan", "one", "x:1", SECRET, ca=tmp_path / "no.pem"
        )
    with pytest.raises(UsageError, match="is no prefix"):
        RedisDirectory("redis://localhost", "one", "x:1", SECRET, prefix="a*")


def test_who_has_no_cluster_loads_no_client_of_redis() -> None:
    words = (
        "import sys, tunnel.center.server, tunnel.ops.cli\n"
        "import tunnel.center.cluster.machine\n"
        "sys.exit('coredis' in sys.modules or 'anyio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


# Size ---------------------------------------------------------------------------------


async def test_a_claim_is_small_in_redis(
    redis: RedisServer, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    one = made(redis.url, "one-0123456789abcdef")
    await nursery.start(one.run)
    before, count = redis.used_bytes(), 4_000
    for begin in range(0, count, 500):
        says = {f"name-{n}.example.net": bytes(40) for n in range(begin, begin + 500)}
        await one.claim(f"{one.name}/1a2b3c4d", says, dict.fromkeys(says, 0))
    each = (redis.used_bytes() - before) / count
    with capsys.disabled():
        print(f"\na claim with one member: {each:.0f} bytes in Redis")
    assert each < 400
    nursery.cancel_scope.cancel()
