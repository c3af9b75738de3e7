"""TLS's own bytes after a rest were taken for a turn that had lasted all the while."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from support.wires import raw_peer

from tunnel.link.transport import PlainTransport

if TYPE_CHECKING:
    import pytest


async def test_output_of_the_transport_itself_says_nothing_about_the_line(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_peer() as peer:
        peer.session.core.ping(trio.current_time())
        peer.session.wake()
        await peer.heard()
        before = peer.link._pace.turn_bytes
        await trio.sleep(5)
        assert isinstance(peer.link.transport, PlainTransport)
        monkeypatch.setattr(peer.link.transport, "_rest", b"a key update, say")
        peer.session.wake()
        assert await peer.heard() == b"a key update, say"
        assert peer.link._pace.turn_bytes == before
