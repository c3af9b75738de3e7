"""Whatever came and went leaves nothing behind."""

from __future__ import annotations

import socket
import struct
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support.processes import eventually
from support.targets import (
    ask_socks,
    drain,
    read_exactly,
    read_to_end,
    shared_out,
    visit,
    visit_to_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world import MakeWorld, World


def clean(conn: socket.socket) -> None:
    conn.shutdown(socket.SHUT_WR)
    drain(conn)


def abrupt(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def at_once(_: socket.socket) -> None:
    """Close without a word more."""


def lives(world: World) -> list[Callable[[], None]]:
    """Ways in which a connection can come and go."""

    def talk(way: str, end: Callable[[socket.socket], None]) -> None:
        with world.visit(way, "echo") as conn:
            conn.sendall(b"hello")
            read_exactly(conn, 5)
            end(conn)

    def refused(way: str) -> None:
        visit_to_end(lambda: world.visit(way, "nobody"))

    def socks_refused() -> None:
        port = world.targets["nobody"].port
        _, app = ask_socks(world.port("C", "web"), "127.0.0.1", port)
        with app:
            read_to_end(app)

    def socks_broken_off() -> None:
        with visit(world.port("C", "web")) as app:
            app.sendall(b"\x05\x01\x00")

    def silent(way: str) -> None:
        with visit(world.port(way, "echo")):
            pass

    kinds: list[Callable[[], None]] = [
        partial(talk, way, end) for way in "ABC" for end in (clean, abrupt, at_once)
    ]
    kinds += [partial(refused, way) for way in "AB"]
    kinds += [partial(silent, way) for way in "AB"]
    return [*kinds, socks_refused, socks_broken_off]


def come_and_go(world: World, count: int, figures: Callable[[str], None]) -> None:
    programs = {"server": world.server.program, "client": world.client}
    kinds = lives(world)
    before = {name: running.descriptors() for name, running in programs.items()}
    began = time.monotonic()
    shared_out(range(count), lambda number: kinds[number % len(kinds)](), 16)
    took_s = time.monotonic() - began

    def counted() -> dict[str, int]:
        return {name: running.descriptors() for name, running in programs.items()}

    eventually(lambda: counted() == before, f"descriptors as before: {before}")
    figures(
        f"{count} connections in {took_s:.1f} s, {count / took_s:.0f}/s; descriptors "
        f"before {before}, after {counted()}; memory in MB: "
        + ", ".join(f"{n} {p.rss_bytes() / 1e6:.1f}" for n, p in programs.items())
    )
    assert world.client.stop() == 0
    down = world.server.program.err.wait("link.down")
    assert "connections=0" in down
    for running in programs.values():
        assert "Traceback" not in running.errors()


def test_a_thousand_connections_leave_no_descriptor_and_no_entry(
    make_world: MakeWorld, figures: Callable[[str], None]
) -> None:
    come_and_go(make_world(), 1000, figures)


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", [(), ("--plain",)], ids=["tls", "plain"])
def test_ten_thousand_connections_leave_no_descriptor_and_no_entry(
    make_world: MakeWorld,
    mode: tuple[str, ...],
    figures: Callable[[str], None],
) -> None:
    come_and_go(make_world(*mode), 10_000, figures)


def test_links_that_come_and_go_leave_no_descriptor(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    server = world.server
    before = server.program.descriptors()

    def begin(number: int) -> None:
        with visit(server.port) as conn:
            if number % 2:
                conn.sendall(b"nonsense" * number)
            if number % 3:
                conn.shutdown(socket.SHUT_WR)
                drain(conn)

    shared_out(range(200), begin)
    eventually(lambda: server.program.descriptors() == before, "descriptors as before")
    assert "Traceback" not in server.program.errors()
