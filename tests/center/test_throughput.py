"""How much passes (protocol.md#throughput), and what that may cost."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import center, running, user

from tunnel.access.join import make_token
from tunnel.center.exit import throughput
from tunnel.errors import Code, RemoteStreamError
from tunnel.proto.frames import ThroughputTarget
from tunnel.proto.throughput import REPORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.center import Center

    from tunnel.center.client import CenterClient
    from tunnel.link.session import Session
    from tunnel.link.virtual import VirtualStream

UP, DOWN = True, False


@asynccontextmanager
async def guest(*may: str) -> AsyncIterator[tuple[Center, CenterClient, Session]]:
    token = make_token()
    others = (user(token, "guest", *may, owner=False),)
    async with center(others=others) as where:
        client, _ = where.client(name="guest", token=token)
        async with running(client):
            assert client.session is not None
            yield where, client, client.session


async def read(stream: VirtualStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def test_it_needs_a_right_of_its_own() -> None:
    for right in ("ports:16", "reach:*:*"):
        async with guest(right) as (_where, _client, session):
            with pytest.raises(RemoteStreamError, match="guest has no right test"):
                await session.open(ThroughputTarget(DOWN, 100, 100))
    for right in ("test", "all"):
        async with guest(right) as (_where, _client, session):
            stream = await session.open(ThroughputTarget(DOWN, 5_000, 100))
            assert len(await read(stream)) == 100
            await stream.aclose()


async def read_to_the_end(stream: VirtualStream) -> bytes:
    """Read what came before an end of any kind."""
    got = b""
    with suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some():
            got += piece
    return got


@pytest.mark.parametrize("most_bytes", [0, 1, 65_536, 3_000_000])
async def test_as_many_bytes_as_were_asked_for_come_down(most_bytes: int) -> None:
    async with guest("test") as (_where, _client, session):
        stream = await session.open(ThroughputTarget(DOWN, 5_000, most_bytes))
        got = await read(stream)
        await stream.aclose()
        assert len(got) == most_bytes
        assert most_bytes < 100 or len(set(got)) > 50, "they cannot be compressed"


async def test_what_comes_up_is_counted_to_the_byte() -> None:
    async with guest("test") as (_where, _client, session):
        stream = await session.open(ThroughputTarget(UP, 5_000, 1 << 30))
        await stream.send_all(bytes(1_234_567))
        await stream.send_eof()
        reports = list(REPORT.iter_unpack(await read(stream)))
        await stream.aclose()
        assert reports[-1][1] == 1_234_567
        assert reports == sorted(reports)


@pytest.mark.parametrize("upload", [UP, DOWN])
async def test_its_time_is_bounded_by_the_server(
    upload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "MOST_MS", 200)
    async with guest("test") as (_where, _client, session):
        target = ThroughputTarget(upload, 0xFFFF_FFFF, 1 << 62)
        with trio.fail_after(5):
            stream = await session.open(target)
            if upload:
                with trio.move_on_after(2) as over:
                    while True:
                        await stream.send_all(bytes(65_536))
                        if reports := stream.take_piece():
                            last = list(REPORT.iter_unpack(reports))[-1]
                            if last[0] >= 200:
                                break
                assert not over.cancelled_caught
            else:
                assert await read(stream)
        await stream.aclose()


async def test_its_bytes_are_bounded_by_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "MOST_BYTES", 100_000)
    async with guest("test") as (_where, _client, session):
        stream = await session.open(ThroughputTarget(DOWN, 5_000, 1 << 62))
        assert len(await read(stream)) == 100_000
        await stream.aclose()
        stream = await session.open(ThroughputTarget(UP, 5_000, 1 << 62))
        await stream.send_all(bytes(100_000))
        assert list(REPORT.iter_unpack(await read(stream)))[-1][1] == 100_000
        await stream.aclose()


async def test_a_session_has_one_at_a_time_and_the_next_at_once() -> None:
    async with guest("test") as (_where, _client, session):
        for _ in range(20):
            first = await session.open(ThroughputTarget(DOWN, 5_000, 1 << 30))
            with pytest.raises(RemoteStreamError) as caught:
                await session.open(ThroughputTarget(UP, 5_000, 1 << 30))
            assert caught.value.code is Code.RESOURCE
            await first.receive_some()
            first.reset(Code.RESET)
        last = await session.open(ThroughputTarget(DOWN, 5_000, 10))
        assert len(await read(last)) == 10
        await last.aclose()


async def test_one_that_is_not_closed_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "GRACE_S", 0.1)
    async with guest("test") as (where, _client, session):
        stream = await session.open(ThroughputTarget(DOWN, 5_000, 10))
        (member,) = where.server.clients
        await where.until(lambda: not member.session.streams)
        assert len(await read_to_the_end(stream)) == 10


async def test_a_client_measures_nothing_for_its_server() -> None:
    async with guest("all") as (where, _client, _session):
        (member,) = where.server.clients
        with pytest.raises(RemoteStreamError) as caught:
            await member.session.open(ThroughputTarget(DOWN, 100, 100))
        assert caught.value.code is Code.UNSUPPORTED
