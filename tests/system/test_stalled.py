"""A visitor that stops reading costs the others nothing, and bounded memory."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final, TypeVar

import pytest
from support.processes import Machine
from support.targets import at_once, fetch, read_exactly
from support.world import MODES, WAYS, World

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from support.targets import Content
    from support.world import MakeWorld

GROWTH_BYTES: Final = 2_000_000
WARM_UP: Final = 4

T = TypeVar("T")


@pytest.fixture(scope="module")
def own_world(
    tmp_path_factory: pytest.TempPathFactory, content: Content
) -> Iterator[World]:
    """Memory of these two is looked at: other tests keep off."""
    made = World(Machine(tmp_path_factory.mktemp("stalled")), content)
    yield made
    made.close()


@pytest.mark.parametrize("way", WAYS)
def test_others_go_on_beside_a_visitor_that_does_not_read_and_memory_stays(
    own_world: World, way: str, figures: Callable[[str], None]
) -> None:
    beside_stalled(own_world, way, 20, 500_000, figures)


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_fifty_run_at_full_speed_beside_a_visitor_that_does_not_read(
    make_world: MakeWorld,
    way: str,
    mode: str,
    figures: Callable[[str], None],
) -> None:
    beside_stalled(make_world(*MODES[mode]), way, 50, 16_000_000, figures)


def beside_stalled(
    world: World, way: str, count: int, size: int, figures: Callable[[str], None]
) -> None:
    def round_s(size: int) -> float:
        want = world.content.digest(0, size)
        began = time.monotonic()
        digests = at_once(count, lambda _: fetch(world.visit(way, "web"), 0, size))
        assert digests == [want] * count
        return time.monotonic() - began

    for _ in range(6):
        round_s(size // 4)
    alone_s = round_s(size)

    def stall() -> socket.socket:
        stalled = world.visit(way, "flood")
        read_exactly(stalled, 1000)
        return stalled

    beside_s, growth = grown(world, stall, lambda: round_s(size))
    rate = count * size / 1e6
    figures(
        f"{way} {count} × {size / 1e6:g} MB: {rate / alone_s:.0f} MB/s alone, "
        f"{rate / beside_s:.0f} beside a stalled one, growth of server and client in "
        f"kB: {growth}"
    )


def grown(
    world: World, stall: Callable[[], socket.socket], do: Callable[[], T]
) -> tuple[T, list[list[int]]]:
    """Do it beside a stalled connection until memory stays; fail when it never does.

    What is in flight differs from time to time, and the allocator keeps the largest of
    it: that is warming up. What is kept for somebody stalled, or forgotten, grows each
    time.
    """
    programs = (world.server.program, world.client)
    growth: list[list[int]] = []
    for _ in range(WARM_UP):
        before = [running.rss_bytes() for running in programs]
        with stall():
            result = do()
            after = [running.rss_bytes() for running in programs]
        growth.append([(b - a) // 1000 for a, b in zip(before, after, strict=True)])
        if max(growth[-1]) * 1000 < GROWTH_BYTES:
            return result, growth
    pytest.fail(f"memory grows: kB of server and client {growth}")


def test_many_that_do_not_read_leave_the_link_to_the_others(world: World) -> None:
    stalled = [world.visit(way, "flood") for way in WAYS for _ in range(10)]
    for conn in stalled:
        read_exactly(conn, 10)
    digests = [fetch(world.visit(way, "web"), 0, 1_000_000) for way in WAYS]
    for conn in stalled:
        conn.close()
    assert digests == [world.content.digest(0, 1_000_000)] * len(WAYS)


@pytest.mark.parametrize("way", WAYS)
def test_others_go_on_beside_a_target_that_does_not_read_and_memory_stays(
    own_world: World, way: str
) -> None:
    world = own_world
    want = world.content.digest(0, 1_000_000)

    def transfer() -> None:
        digests = at_once(10, lambda _: fetch(world.visit(way, "web"), 0, 1_000_000))
        assert digests == [want] * 10

    def fill_it() -> socket.socket:
        conn = world.visit(way, "deaf")
        conn.setblocking(False)
        fill(conn)
        return conn

    for _ in range(6):
        transfer()
    grown(world, fill_it, transfer)


def fill(conn: socket.socket) -> None:
    """Send until nothing more is taken: what is on the way stays below 50 MB."""
    sent = 0
    while select.select([], [conn], [], 0.2)[1]:
        sent += conn.send(bytes(65_536))
        assert sent < 50_000_000
