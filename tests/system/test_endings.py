"""How a connection ends on one side is how it ends on the other."""

from __future__ import annotations

import signal
import socket
import struct
import threading
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from support.processes import program
from support.targets import (
    END,
    RESET,
    TOO_LARGE,
    ask_socks,
    drain,
    read_exactly,
    read_to_end,
    visit,
    visit_to_end,
)
from support.world import WAYS

if TYPE_CHECKING:
    from support.world import MakeWorld, World

SOCKS_REFUSED = 5
SOCKS_HOST_UNREACHABLE = 4


def reset(conn: socket.socket) -> None:
    """Close with a RST, as a crashed program does."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_a_server_that_answers_only_at_end_of_file_gives_its_whole_answer(
    world: World, way: str, size: int
) -> None:
    payload = bytes(size)
    with world.visit(way, "answer_at_end") as conn:
        conn.sendall(payload)
        conn.shutdown(socket.SHUT_WR)
        answer, end = read_to_end(conn)
    assert answer == sha256(payload).hexdigest().encode() + bytes(1 << 20)
    assert end == END
    assert world.targets["answer_at_end"].next_seen() == END


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_in_the_middle_of_an_upload_is_heard(world: World, way: str) -> None:
    with world.visit(way, "answer_early") as conn:

        def upload() -> None:
            try:
                while True:
                    conn.sendall(bytes(65_536))
            except OSError:
                return

        uploading = threading.Thread(target=upload)
        uploading.start()
        answer, _ = read_to_end(conn)
        uploading.join(20)
        assert not uploading.is_alive()
    assert answer == TOO_LARGE


@pytest.mark.parametrize("way", WAYS)
def test_curl_hears_a_refusal_in_the_middle_of_its_upload(
    world: World, way: str
) -> None:
    early = world.targets["answer_early"].port
    url = f"http://127.0.0.1:{early}/"
    if way != "C":
        url = f"http://127.0.0.1:{world.port(way, 'answer_early')}/"
    proxy = ("--socks5-hostname", f"127.0.0.1:{world.port('C', 'web')}")
    command = (
        program("curl"), "-q", "--silent", "--output", "/dev/null", "--write-out",
        "%{http_code}", "-H", "Expect:", "-T", str(world.content.path),
        *(proxy if way == "C" else ()), url,
    )  # fmt: skip
    # Where its own write meets the reset first, curl does not read what came before it:
    # on a busy machine one time in twenty, without a tunnel too.
    heard, tries = b"000", 10
    while heard == b"000" and tries:
        heard, tries = world.machine.run(*command).stdout, tries - 1
    assert heard == b"413"


@pytest.mark.parametrize("way", WAYS)
def test_a_target_that_resets_midway_is_a_reset_for_the_visitor(
    world: World, way: str
) -> None:
    with world.visit(way, "reset_midway") as conn:
        conn.sendall(b"1")
        read_exactly(conn, 100_000)
        conn.sendall(b"2")
        assert read_to_end(conn) == (b"", RESET)


@pytest.mark.parametrize("way", WAYS)
def test_a_visitor_that_resets_is_a_reset_for_the_target(
    world: World, way: str
) -> None:
    conn = world.visit(way, "watched")
    conn.sendall(b"hello")
    read_exactly(conn, 5)
    reset(conn)
    assert world.targets["watched"].next_seen() == RESET


@pytest.mark.parametrize("way", ["A", "B"])
def test_a_visitor_of_a_target_that_refuses_gets_a_reset(
    world: World, way: str
) -> None:
    assert visit_to_end(lambda: world.visit(way, "nobody")) == (b"", RESET)


def test_an_app_whose_target_refuses_gets_socks_reply_5(world: World) -> None:
    proxy = world.port("C", "web")
    reply, app = ask_socks(proxy, "127.0.0.1", world.targets["nobody"].port)
    with app:
        assert reply == SOCKS_REFUSED
        assert read_to_end(app) == (b"", END)


def test_an_app_that_names_an_unknown_host_gets_socks_reply_4(world: World) -> None:
    reply, app = ask_socks(world.port("C", "web"), "no-such-host.invalid", 80)
    with app:
        assert reply == SOCKS_HOST_UNREACHABLE


# Lost links --------------------------------------------------------------------------


def test_a_client_that_is_killed_resets_the_visitors_of_its_ports(
    make_world: MakeWorld,
) -> None:
    world = make_world("--resume", "0")
    with world.visit("A", "flood") as conn, world.visit("A", "echo") as quiet:
        quiet.sendall(b"hello")
        read_exactly(quiet, 5)
        read_exactly(conn, 1000)
        world.client.send(signal.SIGKILL)
        assert drain(conn)[1] == RESET
        assert read_to_end(quiet) == (b"", RESET)


@pytest.mark.parametrize("way", ["B", "C"])
def test_a_server_that_is_killed_resets_the_apps_at_its_clients(
    make_world: MakeWorld, way: str
) -> None:
    world = make_world("--resume", "0")
    with world.visit(way, "flood") as conn, world.visit(way, "echo") as quiet:
        quiet.sendall(b"hello")
        read_exactly(quiet, 5)
        read_exactly(conn, 1000)
        world.server.program.send(signal.SIGKILL)
        assert drain(conn)[1] == RESET
        assert read_to_end(quiet) == (b"", RESET)


def test_a_server_that_is_killed_is_a_reset_for_targets_at_its_clients(
    make_world: MakeWorld,
) -> None:
    world = make_world("--resume", "0")
    with world.visit("A", "watched") as conn:
        conn.sendall(b"hello")
        read_exactly(conn, 5)
        world.server.program.send(signal.SIGKILL)
        assert world.targets["watched"].next_seen() == RESET


def test_without_a_link_a_visitor_of_a_local_port_is_refused_at_once(
    make_world: MakeWorld,
) -> None:
    world = make_world("--resume", "0")
    world.server.program.stop(signal.SIGKILL)
    assert visit_to_end(lambda: world.visit("B", "echo")) == (b"", RESET)


def test_a_port_of_a_client_that_left_is_not_listened_on(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    port = world.port("A", "echo")
    assert world.client.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        visit(port)
