"""What a peer hears when a link is given up, and its session is not or in peace."""

from __future__ import annotations

from contextlib import suppress

import trio
import trio.testing
from support import frames
from support.wires import TARGET, raw_peer, resumable_session

from tunnel.errors import Code, LocalLinkError
from tunnel.link.link import FLUSH_S, LINGER_S, Link
from tunnel.link.transport import PlainTransport


async def test_a_link_that_another_replaces_hears_superseded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        await peer.heard()
        peer.link.abandon(LocalLinkError(Code.SUPERSEDED, "a newer link took over"))
        assert await peer.read() == frames.go_away(int(Code.SUPERSEDED))
        # Bytes of ours that were on their way do not turn its last word into a RST.
        await peer.wire.send_all(b"late")
        await peer.wire.aclose()
        await peer.link.gone.wait()
        assert peer.reason is not None
        assert peer.reason.code is Code.SUPERSEDED


async def test_a_replaced_link_waits_2_s_for_a_peer_that_does_not_leave(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        await peer.heard()
        peer.link.abandon(LocalLinkError(Code.SUPERSEDED, "a newer link took over"))
        await peer.link.gone.wait()
        assert LINGER_S <= peer.ended_at < LINGER_S + 0.1


async def test_a_link_given_up_for_silence_says_so_and_waits_for_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        await peer.link.gone.wait()
        assert peer.ended_at == 30
        said = await peer.read()
        assert said == frames.ping() + frames.go_away(int(Code.SILENT))


async def test_a_peer_that_confirms_nothing_hears_a_normal_goodbye_after_5_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    session = resumable_session()
    wire, stream = trio.testing.memory_stream_pair()
    link = Link(session, PlainTransport(stream))
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        nursery.start_soon(link.run)
        await session.open_now(TARGET).aclose()
        link.close(Code.NORMAL)
        said = b""
        while piece := await wire.receive_some():
            said += piece
        assert said.endswith(frames.go_away(0))
        assert trio.current_time() == FLUSH_S
        await wire.send_eof()
        await link.gone.wait()
        assert trio.current_time() == FLUSH_S


async def test_a_word_is_never_said_in_the_middle_of_a_frame(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(bytes(100_000))
        await trio.testing.wait_all_tasks_blocked()
        peer.link.abandon(LocalLinkError(Code.SUPERSEDED, "a newer link took over"))
        await peer.link.gone.wait()
        said = b""
        with suppress(trio.BrokenResourceError):
            said = await peer.read()
        assert frames.go_away(int(Code.SUPERSEDED)) not in said
