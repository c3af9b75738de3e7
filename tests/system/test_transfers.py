"""Bytes arrive whole, both ways, by every way in, over TLS and plain links."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.targets import Content, at_once, fetch
from support.world import WAYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.world import World


@pytest.fixture
def gigabyte(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Content]:
    """Put 1 GiB behind ``web`` for a while."""
    big = Content(tmp_path_factory.mktemp("content") / "gigabyte", 64)
    small, world.content.path = world.content.path, big.path
    yield big
    world.content.path = small
    big.path.unlink()


def rate(size: int, began: float) -> str:
    return f"{size / (time.monotonic() - began) / 1e6:.0f} MB/s"


def down(world: World, way: str, content: Content) -> None:
    command = world.curl(way, f"/0/{content.size}")
    assert world.machine.digest_of(*command, timeout_s=120) == content.digest()


def up(world: World, way: str, content: Content) -> None:
    command = world.curl(way, "/", "-T", str(content.path), "-H", "Expect:")
    done = world.machine.run(*command, timeout_s=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == content.digest()


@pytest.mark.parametrize("way", WAYS)
def test_curl_downloads_and_the_hash_is_equal(world: World, way: str) -> None:
    down(world, way, world.content)


@pytest.mark.parametrize("way", WAYS)
def test_curl_uploads_and_the_hash_is_equal(world: World, way: str) -> None:
    up(world, way, world.content)


@pytest.mark.parametrize("way", WAYS)
def test_many_transfers_at_once_arrive_whole_and_are_not_mixed_up(
    world: World, way: str
) -> None:
    many(world, way, 40, 200_000)


def many(world: World, way: str, count: int, size: int) -> None:
    # Each fetches another part: bytes of a wrong stream would change its hash.
    offsets = [1 + number * 40_009 for number in range(count)]
    assert offsets[-1] + size <= world.content.size

    def one(number: int) -> str:
        return fetch(world.visit(way, "web"), offsets[number], size)

    digests = at_once(count, one)
    assert digests == [world.content.digest(offset, size) for offset in offsets]


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_goes_both_ways_at_the_same_time(world: World, way: str) -> None:
    payload = bytes(range(256)) * 8192
    with world.visit(way, "echo") as conn:

        def side(number: int) -> bytes:
            if number:
                conn.sendall(payload)
                return b""
            data = bytearray()
            while len(data) < len(payload):
                data += conn.recv(65_536)
            return bytes(data)

        assert at_once(2, side)[0] == payload


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_a_gibibyte_arrives_whole_both_ways(
    world: World, way: str, gigabyte: Content, figures: Callable[[str], None]
) -> None:
    began = time.monotonic()
    down(world, way, gigabyte)
    figures(f"{way} down 1 GiB: {rate(gigabyte.size, began)}")
    began = time.monotonic()
    up(world, way, gigabyte)
    figures(f"{way} up 1 GiB: {rate(gigabyte.size, began)}")


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", WAYS)
def test_two_hundred_transfers_of_5_mb_at_once_arrive_whole(
    world: World, way: str, figures: Callable[[str], None]
) -> None:
    began = time.monotonic()
    many(world, way, 200, 5_000_000)
    figures(f"{way} 200 × 5 MB: {rate(1_000_000_000, began)}")
