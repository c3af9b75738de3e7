"""TLS's own bytes after a rest were taken for a turn that had lasted all the while."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from support import frames
from support.wires import Offers, raw_peer

from tunnel.link.output import MIN_TURN_BYTES
from tunnel.link.transport import PlainTransport

if TYPE_CHECKING:
    import pytest


async def test_output_of_the_transport_itself_says_nothing_about_the_line(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_peer() as peer:
        peer.session.core.ping(trio.current_time())
        peer.session.output.wake()
        await peer.heard()
        before = peer.session.output.sizer.turn_bytes
        await trio.sleep(5)
        assert isinstance(peer.link.transport, PlainTransport)
        monkeypatch.setattr(peer.link.transport, "_rest", b"a key update, say")
        peer.session.output.wake()
        assert await peer.heard() == b"a key update, say"
        assert peer.session.output.sizer.turn_bytes == before


async def test_it_says_nothing_behind_a_turn_that_was_one_either(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = Offers()
    async with raw_peer(serve=offers) as peer:
        await peer.wire.send_all(frames.create_tcp(2, frames.ipv4(127, 0, 0, 1, 80)))
        stream = await offers.taken.receive()
        await stream.send_all(bytes(MIN_TURN_BYTES))
        await peer.heard()
        before = peer.session.output.sizer.turn_bytes
        await trio.sleep(5)
        monkeypatch.setattr(peer.link.transport, "_rest", b"a key update, say")
        peer.session.output.wake()
        assert await peer.heard() == b"a key update, say"
        assert peer.session.output.sizer.turn_bytes == before
