"""A session that waited for another link kept the buffers of the one it had lost."""

from __future__ import annotations

import gc
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing
from support.wires import resumable_session

from tunnel.errors import Code, LocalLinkError
from tunnel.link.link import Link
from tunnel.link.transport import PlainTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.link.session import Session


@asynccontextmanager
async def resumable() -> AsyncIterator[tuple[Session, trio.Nursery]]:
    session = resumable_session()
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        yield session, nursery
        nursery.cancel_scope.cancel()


async def test_a_lost_link_is_forgotten_while_its_session_waits() -> None:
    async with resumable() as (session, _):
        wire, stream = trio.testing.memory_stream_pair()
        link = Link(session, PlainTransport(stream))
        transport = weakref.ref(link.transport)
        await wire.aclose()
        session.link_lost(await link.run())
        del link
        gc.collect()
        assert session.ended is None
        assert transport() is None


async def test_a_link_that_was_superseded_before_it_ran_takes_nothing_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with resumable() as (session, nursery):
        wires = [trio.testing.memory_stream_pair() for _ in range(2)]
        late, link = (Link(session, PlainTransport(stream)) for _, stream in wires)
        late.abandon(LocalLinkError(Code.SUPERSEDED, "a newer link took over"))
        nursery.start_soon(link.run)
        await trio.testing.wait_all_tasks_blocked()
        await late.run()
        session.core.ping(0.0)
        session.output.wake()
        assert not session.core.has_output()  # written at once
