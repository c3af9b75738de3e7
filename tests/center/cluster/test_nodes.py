"""Nodes that act as one server: names, exits, clients and links at any of them."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import LOOPBACK, echo, status, target, user
from support.nodes import nodes, page, published, web

from tunnel.access.join import make_token
from tunnel.access.networks import Networks
from tunnel.addresses import Address
from tunnel.center.events import (
    LinkDown,
    LinkResumed,
    MappingReady,
    SessionLost,
)
from tunnel.center.mappings import mappings_of
from tunnel.center.trial import answer_mapping
from tunnel.errors import Code
from tunnel.front.http.places import State
from tunnel.ops.entries import Published, Service
from tunnel.proto.frames import MappingEntry, MappingOp, MappingType, ProtMapping
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from pathlib import Path

    from support.nodes import Node

    from tunnel.center.client_session import ClientSession


def _has_no_host(node: Node) -> bool:
    return not [*node.server.mappings.sites.hosts(MappingType.HTTP)]


def _has_no_client(node: Node) -> bool:
    return not node.server.clients


@pytest.mark.parametrize("tls", [True, False])
async def test_a_visitor_of_any_node_finds_the_name(tmp_path: Path, tls: bool) -> None:
    async with nodes(tmp_path, 3, tls=tls) as all_, target(page) as at:
        async with published(*all_.client(0), "shop", at) as code:
            assert code is Code.NORMAL
            for node in all_.all:
                assert await status(node.web, "shop.t.test") == 200
                assert await status(node.web, "other.t.test") == 404
        for node in all_.all:
            await node.until(partial(_has_no_host, node))


async def test_a_visitor_costs_no_question_in_the_steady_state(tmp_path: Path) -> None:
    async with (
        nodes(tmp_path) as all_,
        target(page) as at,
        published(*all_.client(0), "shop", at),
    ):
        for host in ("shop.t.test", "none.t.test"):
            await status(all_[1].web, host)
        before = all_[1].directory.asked
        for _ in range(20):
            assert await status(all_[1].web, "shop.t.test") == 200
            assert await status(all_[1].web, "none.t.test") == 404
        assert all_[1].directory.asked == before


async def test_who_asked_in_vain_hears_when_there_is_something(tmp_path: Path) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        assert await status(all_[1].web, "shop.t.test") == 404
        async with published(*all_.client(0), "shop", at):
            assert await status(all_[1].web, "shop.t.test") == 200


async def test_a_name_has_one_user_whatever_the_node(tmp_path: Path) -> None:
    other = user(make_token(), "other", "http:*")
    async with nodes(tmp_path, others=(other,)) as all_, target(page) as at:
        del other
        async with published(*all_.client(0), "shop", at) as code:
            assert code is Code.NORMAL
            async with published(*all_.client(1), "shop", at) as second:
                # Of the same user, and the first one answers.
                assert second is Code.TAKEN


async def test_a_link_that_comes_to_another_node_goes_on(tmp_path: Path) -> None:
    async with nodes(tmp_path) as all_, target(echo) as at:
        client, notices = all_.wandering()
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            stream = await client.open(str(at))
            await stream.send_all(b"before")
            assert await stream.receive_some() == b"before"
            for number, node in enumerate((1, 0, 1), 1):
                all_.balancer.to = all_[node].address
                all_.balancer.cut()
                await notices.next(LinkResumed, number)
                await stream.send_all(b"behind")
                assert await stream.receive_some() == b"behind"
            assert not notices.of(SessionLost)
            assert len(all_[0].server.clients) == 1
            assert not all_[1].server.clients
            await stream.aclose()
            client.stop()


async def test_a_link_whose_node_is_gone_begins_anew(tmp_path: Path) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        client, notices = all_.wandering()
        async with published(client, notices, "shop", at):
            assert await status(all_[1].web, "shop.t.test") == 200
            all_.balancer.to = all_[1].address
            all_[0].scope.cancel()
            await notices.next(LinkDown)
            await notices.next(MappingReady, 2)
            assert await status(all_[1].web, "shop.t.test") == 200


async def test_a_client_that_was_restarted_has_its_name_at_the_other_node(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        first, told = all_.client(0, b"i" * 16)
        async with trio.open_nursery() as nursery:
            await web("shop", at).start(first)
            await nursery.start(first.run)
            # Its machine is gone: nobody says goodbye.
            nursery.cancel_scope.cancel()
        del told
        async with published(*all_.client(1, b"i" * 16), "shop", at) as code:
            assert code is Code.NORMAL
            assert await status(all_[0].web, "shop.t.test") == 200
            assert not all_[0].server.clients


async def test_an_exit_is_reached_from_another_node(tmp_path: Path) -> None:
    async with nodes(tmp_path) as all_, target(echo) as at:
        leaving, _ = all_.client(0)
        asking, _ = all_.client(1)
        async with trio.open_nursery() as nursery:
            await leaving.be_exit("home", Networks.parse([f"{LOOPBACK}/32"]))
            await nursery.start(leaving.run)
            await nursery.start(asking.run)
            stream = await asking.open(str(at), exit_name="home")
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.aclose()
            leaving.stop()
            asking.stop()


async def test_what_is_known_is_served_without_the_directory(tmp_path: Path) -> None:
    async with (
        nodes(tmp_path) as all_,
        target(page) as at,
        published(*all_.client(0), "shop", at),
    ):
        assert await status(all_[1].web, "shop.t.test") == 200
        for node in all_.all:
            node.directory.is_away = True
        assert await status(all_[0].web, "shop.t.test") == 200
        assert await status(all_[1].web, "shop.t.test") == 200
        assert await status(all_[1].web, "unknown.t.test") == 503
        for node in all_.all:
            node.directory.is_away = False
        assert await status(all_[1].web, "unknown.t.test") == 404


async def test_all_who_ask_at_once_for_the_first_time_hear_the_same(
    tmp_path: Path,
) -> None:
    heard: list[int] = []

    async def visit(node: Node) -> None:
        heard.append(await status(node.web, "shop.t.test"))

    async with (
        nodes(tmp_path) as all_,
        target(page) as at,
        published(*all_.client(0), "shop", at),
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(visit, all_[1])
        assert heard == [200] * 20


async def test_of_two_that_want_one_name_at_once_one_has_it(tmp_path: Path) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        for number in range(10):
            codes: list[Code] = []
            has_both = trio.Event()

            async def want(
                home: int, name: str, codes: list[Code], both: trio.Event
            ) -> None:
                async with published(*all_.client(home), name, at) as code:
                    codes.append(code)
                    if len(codes) == 2:
                        both.set()
                    await both.wait()

            async with trio.open_nursery() as nursery:
                for home in (0, 1):
                    nursery.start_soon(want, home, f"n{number}", codes, has_both)
            assert sorted(codes) == [Code.NORMAL, Code.TAKEN]


async def test_all_of_a_domain_and_a_name_in_it_have_one_user(tmp_path: Path) -> None:
    token = make_token()
    alice = user(token, "alice", "http:*.x.test")
    async with (
        nodes(tmp_path, others=(alice,)) as all_,
        target(page) as at,
        published(*all_.client(0), "a.x.test", at) as code,
    ):
        assert code is Code.NORMAL
        client, notices = all_[1].client(name="alice", token=token)
        async with published(client, notices, "*.x.test", at) as second:
            assert second is Code.TAKEN


async def test_a_client_that_is_away_is_away_at_every_node(tmp_path: Path) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        client, notices = all_.wandering()
        async with published(client, notices, "shop", at):
            assert await status(all_[1].web, "shop.t.test") == 200
            nowhere = Address(LOOPBACK, 1)
            there, all_.balancer.to = all_.balancer.to, nowhere
            all_.balancer.cut()
            await notices.next(LinkDown)
            (session,) = all_[0].server.clients
            await all_[0].until(lambda: session.waiting)
            # A visitor waits for a link that was just lost, wherever it has come.
            async with trio.open_nursery() as nursery:
                codes: list[int] = []

                async def visit() -> None:
                    codes.append(await status(all_[1].web, "shop.t.test"))

                nursery.start_soon(visit)
                await trio.sleep(0.3)
                assert not codes
                all_.balancer.to = there
            assert codes == [200]
            all_.balancer.to = nowhere
            all_.balancer.cut()
            await all_[0].until(lambda: session.away)
            for node in all_.all:
                assert await status(node.web, "shop.t.test") == 503
            # From then on the other node knows it, and nobody waits there.
            site = all_[1].server.mappings.find(MappingType.HTTP, "shop.t.test")
            assert site is not None
            (mapping,) = site.mappings
            await all_[1].until(lambda: mapping.state is State.AWAY)
            all_.balancer.to = there
            await all_[1].until(lambda: mapping.state is State.READY)
            assert await status(all_[1].web, "shop.t.test") == 200


async def test_a_member_of_a_group_that_is_away_is_asked_at_no_node(
    tmp_path: Path,
) -> None:
    rules = Rules(group="blue")
    async with nodes(tmp_path) as all_, target(page) as at:
        stays = published(*all_.client(1), "shop", at, rules)
        client, notices = all_.wandering()
        async with stays, published(client, notices, "shop", at, rules):
            for _ in range(4):
                assert await status(all_[1].web, "shop.t.test") == 200
            all_.balancer.to = Address(LOOPBACK, 1)
            all_.balancer.cut()
            await notices.next(LinkDown)
            site = all_[1].server.mappings.find(MappingType.HTTP, "shop.t.test")
            assert site is not None
            await all_[1].until(lambda: any(one.owner.waiting for one in site.mappings))
            began = trio.current_time()
            for _ in range(4):
                assert await status(all_[1].web, "shop.t.test") == 200
            assert trio.current_time() - began < 1


async def test_a_name_whose_client_has_left_is_known_at_every_node(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        assert await status(all_[1].web, "shop.t.test") == 404
        for home in (0, 1):
            async with published(*all_.client(home), "shop", at) as code:
                assert code is Code.NORMAL
                for node in all_.all:
                    assert await status(node.web, "shop.t.test") == 200
            for node in all_.all:
                await node.until(partial(_has_no_host, node))
                assert await status(node.web, "shop.t.test") == 503
                assert await status(node.web, "other.t.test") == 404
        # Who takes its name back itself leaves nothing behind.
        client, notices = all_.client(0)
        async with published(client, notices, "shop", at):
            for mapping in mappings_of(all_[0].server.mappings, _only(all_[0])):
                gone = ProtMapping(MappingOp.REMOVE, [mapping.entry])
                await all_[0].server.mappings.apply(mapping.owner, gone)
            for node in all_.all:
                await node.until(partial(_has_no_host, node))
                assert await status(node.web, "shop.t.test") == 404


def _only(node: Node) -> ClientSession:
    (client,) = node.server.clients
    return client


async def test_an_entry_keeps_the_port_that_was_chosen_at_another_node(
    tmp_path: Path,
) -> None:
    ports = []
    async with nodes(tmp_path) as all_, target(echo) as at:
        for home in (0, 1, 0):
            client, notices = all_.client(home, b"i" * 16)
            wanted = MappingEntry(MappingType.TCP, "")
            async with trio.open_nursery() as nursery:
                await Published("tcp", wanted, Service(at)).start(client)
                await nursery.start(client.run)
                ports.append((await notices.next(MappingReady)).public.port)
                client.stop()
            await all_[home].until(partial(_has_no_client, all_[home]))
    assert len(set(ports)) == 1


async def test_an_entry_expires_at_every_node_and_begins_no_new_life(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        async with published(*all_.client(0), "shop", at, Rules(expires_s=2)):
            began = trio.current_time()
            assert await status(all_[1].web, "shop.t.test") == 200
            await trio.sleep(1)
        async with published(*all_.client(1), "shop", at, Rules(expires_s=2)):
            for node in all_.all:
                assert await status(node.web, "shop.t.test") == 200
            await trio.sleep_until(began + 2.1)
            for node in all_.all:
                assert await status(node.web, "shop.t.test") == 410


async def test_links_of_nodes_are_no_clients_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tunnel")
    async with (
        nodes(tmp_path) as all_,
        target(page) as at,
        published(*all_.client(0), "shop", at),
    ):
        assert await status(all_[1].web, "shop.t.test") == 200
        all_[1].scope.cancel()
        await all_[0].until(lambda: "peer.down" in caplog.text)
    said = [(one.levelno, one.message, vars(one)) for one in caplog.records]
    of_peers = [one for one in said if one[1].startswith("peer.")]
    assert {event for _, event, _ in of_peers} >= {"peer.up", "peer.down"}
    assert {level for level, _, _ in of_peers} == {logging.DEBUG}
    for _, event, about in said:
        if event.startswith("link."):
            assert "@" not in str(about)


async def test_a_client_may_ask_what_it_would_have_at_another_node(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path) as all_, target(page) as at:
        asker, _ = all_.client(1)
        async with (
            published(*all_.client(0, b"i" * 16), "shop", at),
            trio.open_nursery() as nursery,
        ):
            await nursery.start(asker.run)
            for client_id, code in ((b"i" * 16, Code.NORMAL), (b"j" * 16, Code.TAKEN)):
                entry = MappingEntry(MappingType.HTTP, "web", "shop")
                asked = ProtMapping(MappingOp.TRY, [entry], client_id=client_id)
                table = all_[1].server.mappings
                (answer,) = await answer_mapping(table, _only(all_[1]), asked)
                assert answer.code is code
            # Nothing was done.
            for node in all_.all:
                assert await status(node.web, "shop.t.test") == 200
            asker.stop()
