"""A reader that was given up for another session's bytes: its peer was not told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import frames
from support.wires import TARGET, raw_peer

from tunnel.proto.pools import Pools

if TYPE_CHECKING:
    import trio.testing


async def test_a_peer_hears_at_once_that_a_stalled_reader_was_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pools = Pools()
    pools.held.limit_bytes = 50_000
    async with raw_peer(pools=pools) as peer, raw_peer(pools=pools) as other:
        for each in (peer, other):
            each.session.open_now(TARGET)
            await each.heard()
        data = frames.accept(1) + frames.data(1, bytes(30_000))
        await peer.wire.send_all(data)
        assert await peer.heard() == b""
        await other.wire.send_all(data)
        assert await other.heard() == b""
        assert (await peer.heard())[3:4] == bytes((frames.CLOSE,))
