"""A measuring PING was dated back to the last byte, and its link was lost too soon."""

from __future__ import annotations

import trio
import trio.testing
from support import frames
from support.wires import TARGET, raw_peer


async def test_a_late_reader_does_not_make_a_silent_peer_lost_before_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await peer.heard()
        await peer.wire.send_all(frames.accept(1) + 4 * frames.data(1, bytes(50_000)))
        await peer.heard()
        heard_at = trio.current_time()
        await trio.sleep(9)
        while stream.unread_bytes:
            await stream.receive_some()
        assert frames.ping() in await peer.heard()
        asked_at = trio.current_time()
        await trio.sleep(60)
        assert peer.ended_at - heard_at >= 28.9
        assert peer.ended_at - asked_at <= 20.1


async def test_a_round_trip_begins_when_the_question_goes_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await peer.heard()
        await peer.wire.send_all(frames.accept(1) + 4 * frames.data(1, bytes(50_000)))
        await peer.heard()
        await trio.sleep(9)
        while stream.unread_bytes:
            await stream.receive_some()
        assert frames.ping() in await peer.heard()
        await peer.wire.send_all(frames.ping(ack=True))
        await peer.heard()
        rtt_s = peer.session.core.liveness.rtt_s
        assert rtt_s is not None
        assert rtt_s < 0.1
