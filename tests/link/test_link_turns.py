"""A link lets the others run between the turns of what one read brought."""

from __future__ import annotations

from itertools import pairwise

import trio
import trio.testing
from support import frames
from support.wires import Offers, raw_peer

from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.frames import HEADER_BYTES
from tunnel.proto.input import TURN_WORK

HERE = frames.ipv4(127, 0, 0, 1, 80)
SMALL = HEADER_BYTES + 1


async def test_others_run_between_the_turns_of_a_flood() -> None:
    async with raw_peer(client=False) as peer:
        await peer.wire.send_all(frames.create_tcp(1, HERE))
        await trio.testing.wait_all_tasks_blocked()
        core = peer.session.core
        at, seen = core.received, [0]
        await peer.wire.send_all(frames.data(1, b"x") * (20 * TURN_WORK))
        while seen[-1] < 20 * TURN_WORK:
            await trio.lowlevel.checkpoint()
            seen.append((core.received - at) // SMALL)
        # Who runs first in a step of the scheduler is chance: two turns at the most.
        assert max(b - a for a, b in pairwise(seen)) <= 2 * TURN_WORK


async def test_what_came_before_the_end_is_all_taken_and_a_goodbye_behind_it() -> None:
    offers = Offers()
    async with raw_peer(client=False, serve=offers) as peer:
        await peer.wire.send_all(
            frames.create_tcp(1, HERE)
            + frames.data(1, b"x") * (10 * TURN_WORK)
            + frames.go_away(0, 0, "enough")
        )
        await peer.wire.send_eof()
        stream = await offers.taken.receive()
        got = b""
        while len(got) < 10 * TURN_WORK:
            got += await stream.receive_some()
        await peer.link.gone.wait()
        assert isinstance(peer.reason, RemoteSessionError)
        assert "enough" in str(peer.reason)


async def test_a_link_that_is_given_up_takes_nothing_more_and_frees_its_buffer() -> (
    None
):
    async with raw_peer(client=False) as peer:
        await peer.wire.send_all(frames.create_tcp(1, HERE))
        await trio.testing.wait_all_tasks_blocked()
        core = peer.session.core
        await peer.wire.send_all(frames.data(1, b"x") * (20 * TURN_WORK))
        while not core.has_input():
            await trio.lowlevel.checkpoint()
        at = core.received
        peer.link.close(Code.CALM)
        await peer.wire.send_eof()
        await peer.link.gone.wait()
        assert core.received == at
        assert not core.has_input()


async def test_what_was_to_be_sent_at_the_end_is_given_back_when_the_wire_breaks() -> (
    None
):
    offers = Offers()
    async with raw_peer(client=False, serve=offers, lockstep=True) as peer:
        with trio.fail_after(5):
            await peer.wire.send_all(frames.create_tcp(1, HERE))
        stream = await offers.taken.receive()
        await stream.send_all(bytes(100_000))
        stream.close()
        peer.link.close(Code.NORMAL)
        pools = peer.session.core.pools
        assert pools.unsent.taken_bytes + pools.control.taken_bytes > 0
        await peer.wire.aclose()
        await peer.link.gone.wait()
        assert pools.unsent.taken_bytes == pools.control.taken_bytes == 0
