"""A reader that was given up for memory heard a clean end, or an error of trio's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.virtuals import ScriptedVirtual
from support.wires import Offers, SessionPair, open_one, session_pair

from tunnel.net.relay import relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.events import Event


def evict(sessions: SessionPair, stream: VirtualStream) -> None:
    """Do what the bytes of another session do when memory is short."""
    sessions.server.core.pools.held.forget(stream.conn)
    stream.conn.evict()


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """Have something happen while a stream's reader takes its turn of the scheduler."""
    checkpoint = trio.lowlevel.checkpoint

    def arrange(stream: VirtualStream, happen: Callable[[], None]) -> list[bool]:
        happened: list[bool] = []

        async def then_happen() -> None:
            if stream._receiving and not happened:
                happened.append(True)
                happen()
            await checkpoint()

        monkeypatch.setattr(trio.lowlevel, "checkpoint", then_happen)
        return happened

    return arrange


class Wrapped(trio.abc.HalfCloseableStream):
    """A stream above another, as TLS is: a relay knows nothing of what is below."""

    def __init__(self, stream: VirtualStream) -> None:
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.mark.parametrize("how", ["evicted", "closed"])
async def test_a_reader_that_is_given_up_in_its_turn_hears_no_end(
    autojump_clock: trio.testing.MockClock,
    meanwhile: Callable[..., list[bool]],
    how: str,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        await left.send_all(b"half of it")
        await trio.testing.wait_all_tasks_blocked()
        give_up = right.close if how == "closed" else partial(evict, sessions, right)
        happened = meanwhile(right, give_up)
        with (
            trio.fail_after(10),
            pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)),
        ):
            await right.receive_some()
        assert happened


async def test_a_truncated_upload_is_not_passed_on_as_complete(
    autojump_clock: trio.testing.MockClock, meanwhile: Callable[..., list[bool]]
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        await left.send_all(b"half of it")
        await trio.testing.wait_all_tasks_blocked()
        far = ScriptedVirtual()
        happened = meanwhile(right, partial(evict, sessions, right))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, Wrapped(right), far)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert happened
        assert not far.eof


@pytest.mark.parametrize("method", ["receive_some", "receive_piece"])
async def test_what_trio_has_handed_over_is_nobodys_after_an_eviction(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        dispatch = sessions.server.dispatch
        evicted: list[bool] = []

        def then_evict(events: list[Event]) -> None:
            dispatch(events)
            if right.unread_bytes and not evicted:
                evicted.append(True)
                evict(sessions, right)

        monkeypatch.setattr(sessions.server, "dispatch", then_evict)

        async def read() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await getattr(right, method)()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await left.send_all(bytes(20_000))
        assert evicted
        assert right.unread_bytes == 0
