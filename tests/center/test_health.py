"""A client's check of its own target."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import LOOPBACK, target

from tunnel.addresses import Address
from tunnel.center import health
from tunnel.center.health import FAILURES, Check, is_well, keep_checking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[Address, list[bytes]]]:
    heard: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        heard.append(bytes(await stream.receive_some()))
        await stream.send_all(answer)

    async with target(serve) as at:
        yield at, heard


@pytest.mark.parametrize(
    ("answer", "well"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 302 Found\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False),
        (b"HTTP/1.1 503 Busy\r\n\r\n", False),
        (b"HTTP/1.1\r\n\r\n", False),
        (b"SSH-2.0-x 200\r\n", False),
        (b"x" * 20_000, False),
        (b"", False),
    ],
)
async def test_a_status_below_400_is_well(answer: bytes, well: bool) -> None:
    async with answering(answer) as (at, heard):
        assert await is_well(at, Check("/healthz?a=1")) is well
        (head,) = heard
    assert head.startswith(b"GET /healthz?a=1 HTTP/1.1\r\nHost: ")
    assert b"\r\nConnection: close\r\n" in head


async def test_without_a_path_a_connection_is_enough() -> None:
    async with answering(b"") as (at, _):
        assert await is_well(at, Check())
    with socket.socket() as nobody:
        nobody.bind((LOOPBACK, 0))
        assert not await is_well(Address(*nobody.getsockname()), Check())


async def test_a_target_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "EVERY_S", 0.1)

    async def mute(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with target(mute) as at:
        with trio.fail_after(5):
            assert not await is_well(at, Check("/"))


async def test_out_after_two_failures_and_back_after_one_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "EVERY_S", 0.001)
    results = [True, False, True, False, False, False, True, False, True]
    told: list[tuple[int, bool]] = []
    asked: list[bool] = []
    over = trio.Event()

    async def ask(*_: object) -> bool:
        await trio.lowlevel.checkpoint()
        if len(asked) == len(results):
            over.set()
            await trio.sleep_forever()
        asked.append(results[len(asked)])
        return asked[-1]

    async def tell(out: bool) -> None:
        await trio.lowlevel.checkpoint()
        told.append((len(asked), out))

    monkeypatch.setattr(health, "is_well", ask)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_checking, Address(LOOPBACK, 1), Check(), tell)
        with trio.fail_after(10):
            await over.wait()
        nursery.cancel_scope.cancel()
    assert FAILURES == 2
    assert told == [(5, True), (7, False)]
