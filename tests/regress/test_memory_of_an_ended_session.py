from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from support import frames
from support.wires import raw_peer

if TYPE_CHECKING:
    import trio.testing


async def test_bytes_that_came_with_garbage_are_not_counted_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The pool is the process's: what a dead session leaves in it, others miss."""
    async with raw_peer() as peer:
        create = frames.create_tcp(2, frames.ipv4(1, 2, 3, 4, 5))
        hostile = create + frames.data(2, bytes(1_000)) + frames.frame(0x42)
        await peer.wire.send_all(hostile)
        assert (await peer.read())[3] == frames.GO_AWAY
        pool = peer.session.core.pools.held
        assert pool.held_bytes == 0
        assert not pool._holders
