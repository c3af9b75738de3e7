"""A PING came late where a byte had ended the wait for the answer to one before.

The clock was armed for the question's end, and nothing said that the next silence would
be over sooner.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from support.wires import raw_peer

from tunnel.proto.frames import ProtPing, Terms
from tunnel.proto.payloads import encode

EXTENSION = bytes((0, 0, 0, 0x80, 0, 0, 0, 0))


@pytest.mark.parametrize("said", [encode(ProtPing(bytes(8), ack=True)), EXTENSION])
@pytest.mark.parametrize("idle_s", [1, 2, 4, 5, 10])
async def test_a_ping_follows_each_silence(
    autojump_clock: trio.testing.MockClock, idle_s: int, said: bytes
) -> None:
    terms = replace(Terms(), idle_ping_s=idle_s)
    async with raw_peer(terms=terms) as peer:
        heard_at = trio.current_time()
        for _ in range(4):
            assert await peer.wire.receive_some()
            assert trio.current_time() - heard_at == pytest.approx(idle_s)
            await trio.sleep(0.5)
            await peer.wire.send_all(said)
            heard_at = trio.current_time()
