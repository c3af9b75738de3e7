"""What a stalled local socket had not taken was held, but counted as read."""

from __future__ import annotations

import trio
import trio.testing
from support import frames
from support.wires import TARGET, raw_peer

from tunnel.net.relay import relay


class Deaf(trio.abc.HalfCloseableStream):
    """A local program that neither reads nor writes."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.sleep_forever()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()

    async def send_eof(self) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_what_waits_for_a_stalled_reader_is_counted_as_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer, trio.open_nursery() as nursery:
        stream = peer.session.open_now(TARGET)
        nursery.start_soon(relay, Deaf(), stream)
        await peer.heard()
        whole = 4 * frames.data(1, bytes(60_000))
        await peer.wire.send_all(frames.accept(1) + whole)
        assert await peer.heard() == b""  # no grant for what nobody took
        assert peer.session.core.pools.held.held_bytes == 240_000
        nursery.cancel_scope.cancel()
