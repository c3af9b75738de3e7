"""A node that drains: its clients go elsewhere, and what runs over them runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from support.center import echo, status, target
from support.nodes import nodes, page, published

from tunnel.center.events import LinkDown, LinkUp, MappingReady, SessionLost

if TYPE_CHECKING:
    from pathlib import Path

    from support.nodes import Node, Nodes

DRAIN_S = 20.0


async def drained(all_: Nodes, at: int = 0) -> None:
    """Drain a node as its process does; return when it is over."""
    await all_[at].server.drain(DRAIN_S)


async def moved(node: Node) -> None:
    """Wait until a client is at a node."""
    await node.until(lambda: bool(node.server.clients))


async def test_no_visitor_is_refused_and_what_runs_ends_whole(tmp_path: Path) -> None:
    async with nodes(tmp_path) as all_, target(page) as at, target(echo) as back:
        client, notices = all_.wandering(b"c" * 16)
        async with (
            published(client, notices, "shop", at),
            trio.open_nursery() as nursery,
        ):
            held = await client.open(str(back))
            await held.send_all(b"one")
            assert await held.receive_some() == b"one"
            codes: list[int] = []
            stopped: list[Node] = []

            async def ask(node: Node) -> None:
                while node not in stopped:
                    codes.append(await status(node.web, "shop.t.test"))
                stopped.remove(node)

            nursery.start_soon(ask, all_[0])
            nursery.start_soon(ask, all_[1])
            await all_[0].until(lambda: len(codes) > 20)
            all_.balancer.to = all_[1].address
            over = trio.Event()

            async def drain() -> None:
                await drained(all_)
                over.set()

            nursery.start_soon(drain)
            await moved(all_[1])
            await notices.next(MappingReady, 2)
            later = await client.open(str(back))
            for stream in (held, later):
                await stream.send_all(b"two")
                assert await stream.receive_some() == b"two"
            seen = len(codes)
            await all_[0].until(lambda: len(codes) > seen + 20)
            stopped += all_.all
            await all_[0].until(lambda: not stopped)
            assert set(codes) == {200}
            assert not over.is_set()  # a connection lives
            await all_[0].until(lambda: client.connections == 2)
            await held.send_eof()
            assert await held.receive_some() == b""
            await held.aclose()
            with trio.fail_after(3):
                await over.wait()
            assert client.connections == 1
            sent, received = client.traffic  # that of the session that is over too
            assert min(sent, received) > 9
            await later.send_all(b"three")
            assert await later.receive_some() == b"three"
            assert client.traffic == (sent + 5, received + 5)
            await later.aclose()
            assert not notices.of(SessionLost)
            assert not notices.of(LinkDown)
            assert await status(all_[1].web, "shop.t.test") == 200


async def test_a_session_that_is_sent_away_resumes_on_another_link(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path) as all_, target(echo) as back:
        client, notices = all_.wandering(b"c" * 16)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            held = await client.open(str(back))
            all_.balancer.to = all_[1].address
            nursery.start_soon(drained, all_)
            await moved(all_[1])
            await notices.next(LinkUp, 2)
            all_.balancer.cut()  # both: each session goes on
            await held.send_all(b"still")
            assert await held.receive_some() == b"still"
            await all_[1].until(lambda: client.link is not None)
            assert len(all_[1].server.clients) == 1
            await held.aclose()
            client.stop()


async def test_a_server_that_is_alone_sends_nobody_away(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as all_, target(echo) as back:
        client, notices = all_.wandering(b"c" * 16)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            held = await client.open(str(back))
            nursery.start_soon(drained, all_)
            await all_[0].until(lambda: client._away_at < float("inf"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(notices.of(LinkUp)) == 1
            assert all_.balancer.came == 1
            await held.aclose()
            await notices.next(LinkDown)
            client.stop()
            nursery.cancel_scope.cancel()
