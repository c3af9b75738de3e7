"""What would be answered (protocol.md#try): as in earnest, and nothing has changed."""

from __future__ import annotations

import logging
import os
import random
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio
from support import logs
from support.center import LOOPBACK, center, running, user
from support.ports import in_a_row

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.addresses import Address
from tunnel.center import sites
from tunnel.center.endpoints import PublicName
from tunnel.center.names import NameOptions
from tunnel.errors import Code
from tunnel.proto.frames import (
    CAN_TRY,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
)
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest
    from support.center import Center

    from tunnel.center.client import CenterClient

NAMES = NameOptions(Address(LOOPBACK, 0), Address(LOOPBACK, 0), "t.example")
OLD = b"the running one!"


def tcp(port: int, name: str = "", count: int = 1) -> MappingEntry:
    return MappingEntry(MappingType.TCP, name or f"t{port}", "", port, count)


def http(host: str, rules: Rules | None = None) -> MappingEntry:
    return MappingEntry(MappingType.HTTP, host, host, rules=rules)


async def ask(
    client: CenterClient,
    op: MappingOp,
    *entries: MappingEntry,
    place: bytes = bytes(16),
) -> list[MappingAnswer]:
    assert client.session is not None
    id_ = place if op is MappingOp.TRY else b""
    return await client.session.ask_mapping(op, list(entries), id_)


def codes(answers: list[MappingAnswer]) -> list[str]:
    return [answer.code.name for answer in answers]


@asynccontextmanager
async def two(
    *may: str, ports: range | None = None, limits: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Center, CenterClient, CenterClient]]:
    """A server, the client that runs, and one that asks for the same user."""
    token = make_token()
    anna = user(token, "anna", *may, owner=False)
    anna = replace(anna, limits=parse_limits(limits, "")) if limits else anna
    async with center(names=NAMES, others=(anna,), ports=ports) as where:
        old, _ = where.client(OLD, name="anna", token=token)
        new, _ = where.client(os.urandom(16), name="anna", token=token)
        async with running(old), running(new):
            yield where, old, new


async def test_a_server_says_that_it_would_answer() -> None:
    async with two("ports:1") as (_where, _old, new):
        assert new.session is not None
        assert new.session.core.theirs.capabilities & CAN_TRY


async def test_what_is_tried_is_not_there_afterwards(ports: range) -> None:
    async with two("all", ports=ports) as (where, _old, new):
        entries = tcp(ports[0]), tcp(0), http("shop")
        tried = await ask(new, MappingOp.TRY, *entries)
        assert codes(tried) == ["NORMAL"] * 3
        assert tried[1].port in ports[1:], "it is another than the first entry's"
        assert tried[2].host == "shop.t.example"
        assert not len(where.server.mappings)
        for port in ports:
            with socket.create_server((LOOPBACK, port)):
                pass
        assert await ask(new, MappingOp.ADD, *entries) == tried


async def test_the_names_of_the_client_in_whose_place_it_is_are_free(
    ports: range,
) -> None:
    async with two("ports:3", "names:anna", ports=ports) as (where, old, new):
        entries = tcp(ports[0]), tcp(0), tcp(0, "more"), http("anna")
        given = await ask(old, MappingOp.REPLACE, *entries)
        assert codes(given) == ["NORMAL"] * 4
        # All ports of the server, and all of the user's, are the running client's.
        assert (
            codes(await ask(new, MappingOp.TRY, *entries, place=OLD)) == ["NORMAL"] * 4
        )
        alone = await ask(new, MappingOp.TRY, *entries)
        assert codes(alone) == ["TAKEN", "TAKEN", "TAKEN", "TAKEN"]
        assert len(where.server.mappings) == 4
        again = await ask(old, MappingOp.ADD, entries[0], entries[3])
        assert again == [given[0], given[3]], "it has them still"


async def test_a_name_is_given_as_the_running_client_has_it(ports: range) -> None:
    async with two("all", ports=ports) as (_where, old, new):
        (given,) = await ask(old, MappingOp.ADD, tcp(0, "one"))
        (tried,) = await ask(new, MappingOp.TRY, tcp(0, "other"), place=OLD)
        assert tried.code is Code.NORMAL
        (same,) = await ask(new, MappingOp.TRY, tcp(given.port), place=OLD)
        assert same == given


async def test_each_refusal_is_that_of_an_earnest_question(ports: range) -> None:
    async with two("ports:2", "names:anna", ports=ports) as (where, _old, new):
        boss, _ = where.client()
        async with running(boss):
            assert boss.session is not None
            theirs = tcp(ports[0]), http("anna-shop")
            assert codes(await ask(boss, MappingOp.ADD, *theirs)) == ["NORMAL"] * 2
            with socket.create_server((LOOPBACK, ports[1])):
                wanted = (
                    tcp(ports[0]),
                    tcp(ports[1]),
                    tcp(22),
                    tcp(0, count=3),
                    http("anna-shop"),
                    http("bob"),
                    http("anna", Rules(group="a")),
                    MappingEntry(99, "odd"),
                    MappingEntry(MappingType.TCP, ""),
                    MappingEntry(MappingType.EXIT, "e", "home"),
                )
                tried = await ask(new, MappingOp.TRY, *wanted)
                earnest = await ask(new, MappingOp.ADD, *wanted)
                assert tried == earnest
                assert set(codes(tried)) > {"TAKEN", "NOT_ALLOWED", "UNSUPPORTED"}


async def test_in_worlds_by_chance_both_questions_are_answered_alike() -> None:
    """A client that has something, another user's names, a program's port, limits."""
    chance = random.Random(20_261_128)
    ports = in_a_row(8)
    names = [f"anna-{letter}" for letter in "abc"] + ["bob", "carl"]
    codes_seen: set[str] = set()
    limits = "ports=6", "names=3"
    async with two("ports:4", f"tcp:{ports[0]}-{ports[3]}", "names:anna", "http:bob",
                   ports=ports, limits=limits) as (where, _old, new):  # fmt: skip
        boss, _ = where.client()
        async with running(boss):
            with socket.create_server((LOOPBACK, ports[5])):
                for _ in range(60):
                    taken = chance.sample(range(8), 2), chance.sample(names, 1)
                    await ask(boss, MappingOp.REPLACE, *some(ports, *taken))
                    had = chance.sample(range(8), 2), chance.sample(names, 2)
                    await ask(new, MappingOp.REPLACE, *some(ports, *had))
                    wanted = some(
                        ports,
                        chance.sample(range(8), chance.randrange(6)),
                        chance.sample(names, chance.randrange(4)),
                    )
                    wanted += [tcp(0, f"any{n}") for n in range(chance.randrange(4))]
                    tried = await ask(new, MappingOp.TRY, *wanted)
                    earnest = await ask(new, MappingOp.REPLACE, *wanted)
                    assert codes(tried) == codes(earnest), (wanted, tried, earnest)
                    codes_seen.update(codes(tried))
    assert codes_seen == {"NORMAL", "TAKEN", "NOT_ALLOWED", "RESOURCE"}


def some(ports: range, which: list[int], hosts: list[str]) -> list[MappingEntry]:
    return [*(tcp(ports[at]) for at in which), *map(http, hosts)]


async def test_the_entries_of_one_question_count_together(ports: range) -> None:
    async with two("ports:2", ports=ports) as (_where, _old, new):
        entries = [tcp(0, name) for name in "abc"]
        tried = await ask(new, MappingOp.TRY, *entries)
        assert codes(tried) == ["NORMAL", "NORMAL", "RESOURCE"]
        # And not with those of the question before.
        assert await ask(new, MappingOp.TRY, *entries) == tried
    async with two("all", limits=("ports=1",), ports=ports) as (_where, _old, new):
        tried = await ask(new, MappingOp.TRY, *entries)
        assert codes(tried) == ["NORMAL", "RESOURCE", "RESOURCE"]


async def test_entries_of_one_question_stand_in_each_others_way() -> None:
    async with two("all", limits=("names=2",)) as (where, _old, new):
        for wanted, expected in (
            # Two of a group with other rules; without a group the later holds.
            ((web("a", group="g"), web("b", group="g", max_body=1)), ["TAKEN"]),
            ((web("a"), web("b", group="g")), ["TAKEN"]),
            ((web("a", group="g"), web("b")), ["NORMAL"]),
            # And what it took the place of counts no more.
            ((web("a"), web("b"), web("c", path="/x")), ["NORMAL", "NORMAL"]),
            ((web("a", path="/a"), web("b", path="/b"), web("a", path="/c")),
             ["NORMAL", "NORMAL"]),
            ((web("a"), web("b", path="/b"), web("c", path="/c")),
             ["NORMAL", "RESOURCE"]),
        ):  # fmt: skip
            tried = await ask(new, MappingOp.TRY, *wanted)
            assert tried == await ask(new, MappingOp.REPLACE, *wanted)
            assert codes(tried) == ["NORMAL", *expected], wanted
            # Nor does an answer depend on what the client has by now.
            assert await ask(new, MappingOp.TRY, *wanted) == tried
        assert len(where.server.mappings) == 2


async def test_a_name_is_full_of_the_entries_of_one_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sites, "MAX_SITE_ENTRIES", 2)
    async with two("all") as (_where, _old, new):
        wanted = [web(one, path=f"/{one}") for one in "abc"]
        tried = await ask(new, MappingOp.TRY, *wanted)
        assert codes(tried) == ["NORMAL", "NORMAL", "RESOURCE"]
        assert codes(await ask(new, MappingOp.ADD, *wanted)) == codes(tried)


async def test_what_is_taken_over_counts_for_its_user_no_more(ports: range) -> None:
    async with two("all", limits=("ports=2",), ports=ports) as (where, old, new):
        await ask(old, MappingOp.ADD, tcp(ports[0]))
        (member,) = (one for one in where.server.clients if one.client_id == OLD)
        member.link = None  # as if it waited for another
        wanted = tcp(ports[0]), tcp(ports[1]), tcp(ports[2])
        tried = await ask(new, MappingOp.TRY, *wanted)
        assert codes(tried) == ["NORMAL", "NORMAL", "RESOURCE"]
        assert (
            where.server.mappings.owner(PublicName(MappingType.TCP, LOOPBACK, ports[0]))
            is member
        ), "and it has it still"
        assert codes(await ask(new, MappingOp.ADD, *wanted)) == codes(tried)


async def test_in_webs_by_chance_both_questions_are_answered_alike() -> None:
    chance = random.Random(20_261_129)
    codes_seen: set[str] = set()
    kinds: tuple[tuple[str, str, int | None], ...]
    kinds = ("", "", None), ("/a", "", None), ("/a", "g", None), ("", "g", None)
    kinds += ("", "g", 1), ("", "h", None)
    async with two("all", limits=("names=4",)) as (where, old, new):

        def some_webs(most: int) -> list[MappingEntry]:
            found = []
            for _ in range(chance.randrange(most)):
                path, group, max_body = chance.choice(kinds)
                name, host = chance.choice("abcd"), chance.choice("st")
                found.append(web(name, host, path=path, group=group, max_body=max_body))
            return found

        for _ in range(80):
            await ask(old, MappingOp.REPLACE, *some_webs(3))
            (member,) = (one for one in where.server.clients if one.client_id == OLD)
            link, wanted = member.link, some_webs(7)
            await ask(new, MappingOp.REPLACE, *some_webs(3))
            if chance.random() < 0.5:
                member.link = None
            tried = await ask(new, MappingOp.TRY, *wanted)
            earnest = await ask(new, MappingOp.REPLACE, *wanted)
            member.link = link
            where.server.mappings._lost.clear()
            assert tried == earnest, wanted
            codes_seen.update(codes(tried))
    assert codes_seen == {"NORMAL", "TAKEN", "RESOURCE"}


def web(
    name: str,
    host: str = "s",
    *,
    path: str = "",
    group: str = "",
    max_body: int | None = None,
) -> MappingEntry:
    rules = Rules(path=path, group=group, max_body=max_body)
    return MappingEntry(MappingType.HTTP, name, host, rules=rules)


async def test_a_client_of_another_user_is_nobodys_place(ports: range) -> None:
    async with two("all", ports=ports) as (where, old, _new):
        boss, _ = where.client()
        async with running(boss):
            await ask(old, MappingOp.ADD, tcp(ports[0]))
            tried = await ask(boss, MappingOp.TRY, tcp(ports[0]), place=OLD)
            assert codes(tried) == ["TAKEN"]


async def test_a_client_in_the_way_is_not_asked_and_loses_nothing(
    ports: range,
) -> None:
    async with two("all", ports=ports) as (where, old, new):
        await ask(old, MappingOp.ADD, tcp(ports[0]))
        (member,) = (one for one in where.server.clients if one.client_id == OLD)
        assert member.link is not None
        pings = member.session.core.liveness.heard_at
        with trio.fail_after(1):
            assert codes(await ask(new, MappingOp.TRY, tcp(ports[0]))) == ["TAKEN"]
        assert member.session.core.liveness.heard_at == pings
        member.link = None  # as if it waited for another
        assert codes(await ask(new, MappingOp.TRY, tcp(ports[0]))) == ["NORMAL"]
        assert where.server.mappings.owner is not None
        assert len(where.server.mappings) == 1, "and it has not lost it"


async def test_a_refusal_is_logged_as_what_it_is(
    ports: range, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    async with two("all", ports=ports) as (_where, old, new):
        await ask(old, MappingOp.ADD, tcp(ports[0]))
        await ask(new, MappingOp.TRY, tcp(ports[0]))
    lines = [line for line in logs.lines(caplog) if "mapping." in line]
    assert any("mapping.would_refuse" in line for line in lines)
    assert not any("mapping.refused" in line for line in lines)
