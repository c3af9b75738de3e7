"""Both ends tell what a connection waits for, under the same id."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.center import center, echo, running, target

from tunnel.access.identity import short_id
from tunnel.center import why as why_module
from tunnel.center.why import HELP, Known, Why
from tunnel.errors import UsageError
from tunnel.link.looks import MINUTE, Looks, Wait
from tunnel.ops.control.why_text import WORDS, why_line, why_lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.addresses import Address
    from tunnel.center.client import CenterClient


@asynccontextmanager
async def both(service: Address) -> AsyncIterator[tuple[CenterClient, Why, Why]]:
    """Run a server and a client that reaches ``service``; give what they tell."""
    async with center() as where:
        client, _ = where.client()
        async with running(client):
            here = Why(lambda: (
                [Known(short_id(client.client_id), "default", client.session)]
                if client.session else []
            ))  # fmt: skip
            there = Why(lambda: [
                Known(short_id(one.client_id), one.user.name, one.session)
                for one in where.server.clients
            ])  # fmt: skip
            yield client, here, there


async def told(why: Why, connection: str = "") -> list[dict[str, Any]]:
    answer = await why.handlers["why"]({"connection": connection}, "a test")
    answer = json.loads(json.dumps(answer))  # it crosses the control socket
    found = answer["found" if connection else "listed"]
    assert isinstance(found, list)
    return found


async def test_a_connection_has_one_id_at_both_ends_and_a_story_at_each() -> None:
    with trio.fail_after(20):
        async with (
            target(echo) as service,
            both(service) as (client, here, there),
            await client.open(str(service)) as stream,
        ):
            await stream.send_all(b"?")
            assert await stream.receive_some() == b"?"
            for why in (here, there):
                await why.sampler.look()
            (ours,) = await told(here)
            (theirs,) = await told(there)
            assert ours["id"] == theirs["id"]
            assert ours["id"] == f"{short_id(client.client_id)}-1"
            (ours,) = await told(here, ours["id"])
            (theirs,) = await told(there, ours["id"])
    assert (ours["end"], theirs["end"]) == ("opener", "exit")
    assert theirs["target"] == theirs["local"] == str(service)
    assert theirs["mostly"] == "program"
    assert (ours["sent_bytes"], theirs["received_bytes"]) == (1, 1)
    assert theirs["line"]["rtt_ms"] > 0
    assert theirs["local_line"]["mss_bytes"] > 500
    for one in (ours, theirs):
        lines = list(why_lines(one, "up-1"))
        assert one["id"] in lines[0]
        assert "up-1" in lines[0]
        assert one["help"] in lines[-1] or one["elsewhere"] in lines[-1]
        assert one["id"] in why_line(one, "up-1")


async def test_those_that_wait_most_are_listed_first_and_not_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(why_module, "MOST_LISTED", 3)
    monkeypatch.setattr(why_module, "AT_ONCE", 2)
    with trio.fail_after(20):
        async with (
            target(echo) as service,
            both(service) as (client, here, _),
            AsyncExitStack() as stack,
        ):
            waited = [0, 3, 1, 0, 5, 2]
            for looks in waited:
                stream = await client.open(str(service))
                await stack.enter_async_context(stream)
                stream.looks = Looks(0, 0)
                for wait in [Wait.LINE] * looks + [Wait.PROGRAM] * (6 - looks):
                    stream.looks.add(wait, MINUTE)
            listed = await told(here)
    name = short_id(client.client_id)
    # The numbers of a client are odd, in the order in which they were opened.
    assert [one["id"] for one in listed] == [f"{name}-9", f"{name}-3", f"{name}-11"]
    assert listed[0]["minute"] == {"line": 83.3, "program": 16.7}


async def test_who_asks_for_what_is_not_there_is_told_what_to_do() -> None:
    with trio.fail_after(20):
        async with target(echo) as service, both(service) as (client, here, there):
            assert await told(here) == []
            for id_ in ("nonsense", f"{short_id(client.client_id)}-1"):
                with pytest.raises(UsageError, match=id_) as caught:
                    await told(there, id_)
                assert caught.value.fix


async def test_associations_of_udp_wait_for_nothing_and_are_not_listed() -> None:
    with trio.fail_after(20):
        async with target(echo) as service, both(service) as (client, here, there):
            association = await client.associate()
            for why in (here, there):
                await why.sampler.look()
                assert await told(why) == []
            await association.aclose()


@pytest.mark.parametrize("wait", Wait)
def test_each_wait_has_a_sentence_and_words(wait: Wait) -> None:
    assert HELP[wait].endswith(".")
    assert WORDS[wait.word]
