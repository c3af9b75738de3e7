"""Each lost link left its buffers to the garbage collector, in a cycle with its error.

With the collector looking seldom, a session that lost its link often held one set of
buffers for each.
"""

from __future__ import annotations

import gc
import tracemalloc

import trio
import trio.testing
from support.certs import tls_contexts
from support.wires import TARGET, resumable_session, tls_pair

from tunnel.link.link import Link

LINKS = 10


async def test_what_a_lost_link_buffered_is_free_without_the_collector() -> None:
    session = resumable_session()
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        contexts = tls_contexts()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(LINKS):
                ends = trio.testing.memory_stream_pair()
                ours, peer = await tls_pair(*ends, contexts)
                await peer.aclose()
                session.open_now(TARGET)  # a write meets the loss
                session.link_lost(await Link(session, ours).run())
                del ours, peer, ends
                session.resume(0)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        nursery.cancel_scope.cancel()
    assert kept < LINKS * 100_000
