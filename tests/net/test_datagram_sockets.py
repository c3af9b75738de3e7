"""Datagrams are read many a turn, and each turn ends."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.net.datagrams import (
    TURN_BYTES,
    TURN_DATAGRAMS,
    DatagramSocket,
    make_room,
    read_turn,
    when_readable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def pair() -> Iterator[tuple[DatagramSocket, socket.socket]]:
    """Give a socket to read, and one that is connected to it."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    make_room(raw)
    raw.bind(("127.0.0.1", 0))
    with (
        DatagramSocket.of(raw) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        peer.connect(sock.getsockname())
        yield sock, peer


def turn_of(sock: DatagramSocket) -> list[bytes]:
    found: list[bytes] = []
    read_turn(sock, lambda payload, _source: found.append(payload))
    return found


async def test_a_turn_reads_all_that_waits_and_no_more_than_a_turn() -> None:
    with pair() as (sock, peer):
        assert turn_of(sock) == []
        said = [bytes([number]) for number in range(TURN_DATAGRAMS + 3)]
        for payload in said:
            peer.send(payload)
        assert turn_of(sock) == said[:TURN_DATAGRAMS]
        assert turn_of(sock) == said[TURN_DATAGRAMS:]


async def test_a_turn_of_large_ones_is_bounded_in_bytes() -> None:
    with pair() as (sock, peer):
        half = TURN_BYTES // 2
        for _ in range(3):
            peer.send(bytes(half))
        assert turn_of(sock) == [bytes(half)] * 2
        assert turn_of(sock) == [bytes(half)]


async def test_what_an_earlier_datagram_met_is_told_and_reading_goes_on() -> None:
    failures: list[None] = []
    with pair() as (sock, peer), pair() as (gone, _):
        nobody = gone.getsockname()
        gone.close()
        sock.connect(nobody)
        sock.send(b"to nobody")
        read_turn(sock, lambda *_: pytest.fail("heard"), lambda: failures.append(None))
        assert len(failures) == 1
        sock.connect(peer.getsockname())
        peer.send(b"heard")
        assert turn_of(sock) == [b"heard"]


async def test_a_socket_that_is_closed_in_its_turn_is_read_no_more() -> None:
    found: list[bytes] = []
    with pair() as (sock, peer):
        peer.send(b"one")
        peer.send(b"two")

        def take(payload: bytes, _source: object) -> None:
            found.append(payload)
            sock.close()

        with trio.fail_after(10):
            await when_readable(sock, lambda: read_turn(sock, take))
    assert found == [b"one"]


async def test_a_close_ends_who_waits_for_it() -> None:
    with trio.fail_after(10), pair() as (sock, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(when_readable, sock, lambda: None)
            await trio.testing.wait_all_tasks_blocked()
            sock.close()
            sock.close()
