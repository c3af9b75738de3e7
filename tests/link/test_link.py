from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import frames
from support.certs import tls_contexts
from support.wires import (
    TARGET,
    Offers,
    SessionPair,
    fused_wires,
    open_one,
    raw_peer,
    resumable_session,
    session_pair,
    small_window,
    tls_pair,
)

from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalSessionError,
    LocalStreamError,
    RemoteSessionError,
    StreamError,
)
from tunnel.link.link import FLUSH_S, LINGER_BYTES, Link
from tunnel.link.output import MIN_TURN_BYTES
from tunnel.link.transport import PlainTransport
from tunnel.proto.frames import Terms
from tunnel.proto.resend import STATE_AFTER_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from support.wires import Fuse

    from tunnel.link.transport import Transport
    from tunnel.link.virtual import VirtualStream

PING = frames.ping()
PONG = frames.ping(ack=True)


def code_of(error: BaseException) -> Code:
    assert isinstance(error.__cause__, StreamError)
    return error.__cause__.code


async def end_of(stream: VirtualStream) -> tuple[bytes, Code | None]:
    """Read to the end; None is a clean one."""
    data = b""
    try:
        async for piece in stream:
            data += piece
    except trio.BrokenResourceError as error:
        return data, code_of(error)
    return data, None


# Liveness ----------------------------------------------------------------------------


async def test_a_silent_peer_is_asked_after_10_s_and_lost_after_30(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        assert (await peer.heard())[3] == frames.CREATE
        await trio.sleep(9.99)
        assert await peer.heard() == b""
        await trio.sleep(0.02)
        assert await peer.heard() == PING
        # The open was not answered in time, long before the link is given up.
        assert await end_of(stream) == (b"", Code.TIMEOUT)
        assert trio.current_time() == 12
        await trio.sleep(20)
        assert peer.ended_at == 30
        assert peer.reason is not None
        assert peer.reason.code is Code.SILENT


async def test_an_answered_ping_keeps_an_idle_link_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_pair() as pair:
        await trio.sleep(3 * 3600)
        assert pair.reasons == {}


async def test_one_byte_of_a_frame_that_never_ends_proves_life(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        for byte in frames.go_away(0)[:7]:
            await trio.sleep(29)
            assert peer.reason is None
            await peer.wire.send_all(bytes((byte,)))
        await trio.sleep(29.9)
        assert peer.reason is None
        await trio.sleep(0.2)
        assert peer.reason is not None


async def test_an_announced_shorter_idle_time_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    terms = small_window(65_536)
    terms = type(terms)(idle_ping_s=2)
    async with raw_peer(terms=terms) as peer:
        await trio.sleep(7)
        assert peer.ended_at == 6


async def test_a_peer_whose_reader_is_slow_but_speaks_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(bytes(100_000))
        for _ in range(20):  # it takes nothing, but answers
            await trio.sleep(15)
            with trio.move_on_after(1):
                await peer.wire.send_all(PONG)
        assert peer.reason is None


# Ends --------------------------------------------------------------------------------


async def test_a_link_says_when_it_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        await trio.testing.wait_all_tasks_blocked()
        assert not peer.link.gone.is_set()
        await peer.wire.aclose()
        await peer.link.gone.wait()
        with pytest.raises(trio.ClosedResourceError):
            await peer.stream.receive_some()


async def test_a_link_whose_session_has_ended_before_still_says_goodbye(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        peer.session.end(LocalSessionError(Code.GENERAL, "over"))
        assert await peer.heard() == b""
        peer.link.close(Code.GENERAL, "over")
        assert (await peer.heard())[3] == frames.GO_AWAY


@contextlib.asynccontextmanager
async def resumable() -> AsyncIterator[tuple[SessionPair, Offers]]:
    offers = Offers()
    pair = SessionPair(Terms(), Offers(), offers, resume_s=60)
    async with trio.open_nursery() as nursery:
        await nursery.start(pair.client.run)
        await nursery.start(pair.server.run)
        nursery.start_soon(pair.run_links)
        yield pair, offers
        nursery.cancel_scope.cancel()


async def test_a_normal_end_waits_for_what_the_peer_confirms_and_no_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with resumable() as (pair, offers):
        stream, _ = await open_one(pair, offers)
        await stream.send_all(bytes(1_000))
        await stream.aclose()
        began = trio.current_time()
        pair.client_link.close(Code.NORMAL)
        await pair.client_link.gone.wait()
        assert pair.client.kept_bytes == 0
        assert trio.current_time() - began <= 2 * STATE_AFTER_S


async def test_what_came_is_confirmed_in_time_however_far_the_clock_was_set(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with resumable() as (pair, offers):
        stream, _ = await open_one(pair, offers)
        await trio.sleep(1)
        assert pair.client.kept_bytes == 0
        await stream.send_all(b"word")
        assert pair.client.kept_bytes > 0
        await trio.sleep(1.5 * STATE_AFTER_S)
        assert pair.client.kept_bytes == 0


async def test_a_peer_that_takes_nothing_does_not_put_the_end_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(bytes(100_000))
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        peer.link.close(Code.NORMAL)
        await peer.link.gone.wait()
        assert trio.current_time() == FLUSH_S


class FastLine(PlainTransport):
    """Takes everything at once, and notes who else had a turn before each write."""

    def __init__(self) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self.ticks = 0
        self.written_at: list[int] = []

    def write(self, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        self.written_at.append(self.ticks)

    async def tick(self) -> None:
        while True:
            self.ticks += 1
            await trio.lowlevel.checkpoint()


async def test_a_line_that_takes_everything_leaves_a_turn_to_the_others() -> None:
    line = FastLine()
    session = resumable_session()
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        for stream in [session.open_now(TARGET) for _ in range(12)]:
            nursery.start_soon(stream.send_all, bytes(200_000))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(line.tick)
        nursery.start_soon(Link(session, line).run)
        while len(line.written_at) < 5:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    # Who runs first in a round is chance: two writes may fall between two ticks.
    assert all(
        a < b for a, b in zip(line.written_at, line.written_at[2:], strict=False)
    )


class SlowLine(PlainTransport):
    """Carries nothing anywhere, so many bytes a second, and notes each turn."""

    def __init__(self, bytes_per_s: float) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self.turns: list[int] = []
        self._bytes_per_s = bytes_per_s
        self._waiting = 0

    def write(self, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        self._waiting += sum(map(len, pieces))
        if pieces:
            self.turns.append(self._waiting)

    def owes_output(self) -> bool:
        return bool(self._waiting)

    async def flush(self) -> None:
        await trio.sleep(self._waiting / self._bytes_per_s)
        self._waiting = 0


async def test_turns_become_small_on_a_slow_line(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line = SlowLine(1_000_000)
    session = resumable_session()
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        nursery.start_soon(Link(session, line).run)
        for stream in [session.open_now(TARGET) for _ in range(2)]:
            nursery.start_soon(stream.send_all, bytes(65_536))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert sum(line.turns) > 2 * 65_536
    assert max(line.turns) > 2 * MIN_TURN_BYTES
    assert line.turns[-1] <= MIN_TURN_BYTES


# Garbage -----------------------------------------------------------------------------

GARBAGE = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(64),
    "an unknown kind": frames.frame(0x42),
    "the seed's login": frames.frame(frames.TOKEN, b"root\0secret"),
    "DATA on no connection": frames.data(2, b"x"),
    "CREATE on a number of ours": frames.create_tcp(1, frames.ipv4(1, 2, 3, 4, 5)),
    "a short CREATE": frames.frame(frames.CREATE, b"", 0, 2),
    "HELLO again": frames.hello(),
    "CLOSE on no connection": frames.close(2),
    "WINDOW on no connection": frames.window(2, 1 << 20),
    "an answer to no MAPPING": frames.mapping_answers(),
    "a frame that is too long": frames.header(frames.PING, 9),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_ends_the_session_with_a_go_away(
    garbage: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await peer.heard()
        await peer.wire.send_all(garbage)
        said = await peer.read()
        assert said[3] == frames.GO_AWAY
        assert len(said) == 8 + int.from_bytes(said[:3], "big"), "more than GO_AWAY"
        assert await end_of(stream) == (b"", Code.LINK_LOST)
        await trio.sleep(3)
        assert isinstance(peer.reason, RemoteSessionError)
        # What the peer hears is what went wrong.
        assert int.from_bytes(said[8:10], "big") == peer.reason.code
        assert peer.reason.code in (Code.PROTOCOL, Code.AUTH)
        # It is over for good: nothing can be opened.
        with pytest.raises(LocalStreamError):
            peer.session.open_now(TARGET)


async def test_frames_before_the_garbage_have_their_effect(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await peer.wire.send_all(frames.accept(1) + frames.data(1, b"whole"))
        await trio.testing.wait_all_tasks_blocked()
        await peer.wire.send_all(frames.frame(0x42))
        assert await end_of(stream) == (b"whole", Code.LINK_LOST)


async def test_a_garbler_that_does_not_leave_is_cut_after_2_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        peer.session.open_now(TARGET)  # the writer is stuck with it
        await peer.wire.send_all(frames.frame(0x42))
        await trio.sleep(1.99)
        assert peer.reason is None
        await trio.sleep(0.02)
        assert peer.ended_at == 2


async def test_what_comes_behind_the_garbage_is_not_looked_at(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with raw_peer(serve=offers) as peer:
        await peer.wire.send_all(frames.frame(0x42))
        await peer.wire.send_all(frames.create_tcp(2, frames.ipv4(1, 2, 3, 4, 5)))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            offers.taken.receive_nowait()


async def test_bytes_that_came_behind_the_handshake_are_taken() -> None:
    offers = Offers()
    create = frames.create_tcp(2, frames.ipv4(1, 2, 3, 4, 5))
    async with raw_peer(serve=offers, early=create + b"\0\0") as peer:
        await peer.wire.send_all(frames.data(2, b"hello")[2:])
        stream = await offers.taken.receive()
        assert await stream.receive_some() == b"hello"


# The conversation cut at every byte --------------------------------------------------

UP = [b"a" * 40, b"b" * 7, b"c" * 90]
DOWN = [b"x" * 30, b"y" * 50]


class Conversation:
    """Two streams at once; who heard what, and how it ended."""

    def __init__(self) -> None:
        self.heard: dict[str, tuple[bytes, Code | None]] = {}

    async def say(self, stream: VirtualStream, pieces: list[bytes]) -> None:
        try:
            for piece in pieces:
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass

    async def both(self, name: str, stream: VirtualStream, pieces: list[bytes]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.say, stream, pieces)
            self.heard[name] = await end_of(stream)
        await stream.aclose()

    async def serve(self, stream: VirtualStream) -> None:
        stream.accept()
        await self.both("server", stream, DOWN)

    async def run(self, pair: SessionPair) -> None:
        try:
            stream = pair.client.open_now(TARGET)
        except StreamError:
            return
        await self.both("client", stream, UP)

    def check(self, where: str) -> None:
        """A clean end is a whole one; anything else says so."""
        for name, said in (("client", DOWN), ("server", UP)):
            data, code = self.heard.get(name, (b"", Code.LINK_LOST))
            if code is None:
                assert data == b"".join(said), f"{name} believes a part: {where}"
            else:
                assert b"".join(said).startswith(data), where
                assert code is Code.LINK_LOST, where


async def converse(
    make: Callable[[float, float], Awaitable[tuple[tuple[Transport, Transport], int]]],
    up: float = 1e9,
    down: float = 1e9,
) -> Conversation:
    conversation = Conversation()
    transports, _ = await make(up, down)
    async with session_pair(
        serve_server=conversation.serve, transports=transports
    ) as pair:
        await conversation.run(pair)
        pair.client_link.close(Code.NORMAL)
        await pair.server.wait_gone()
    conversation.check(f"cut at {up} and {down}")
    return conversation


async def test_a_conversation_cut_at_any_byte_never_looks_complete(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fuses: list[Fuse] = []

    async def plain(up: float, down: float) -> tuple[tuple[Transport, Transport], int]:
        left, right, *both = fused_wires(up, down)
        fuses[:] = both
        return (PlainTransport(left), PlainTransport(right)), 0

    whole = await converse(plain)
    assert whole.heard["client"] == (b"".join(DOWN), None)
    assert whole.heard["server"] == (b"".join(UP), None)
    up, down = (fuse.passed for fuse in fuses)
    assert up > 150
    assert down > 100
    for cut in range(up):
        await converse(plain, up=cut)
    for cut in range(down):
        await converse(plain, down=cut)


async def test_a_tls_conversation_cut_at_any_byte_never_looks_complete(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fuses: list[Fuse] = []
    contexts = tls_contexts()

    async def tls(up: float, down: float) -> tuple[tuple[Transport, Transport], int]:
        left, right, *both = fused_wires()
        pair = await tls_pair(left, right, contexts)
        fuses[:] = both
        for fuse, most in zip(both, (up, down), strict=True):
            fuse.passed, fuse.left = 0, most
        if up <= 0 or down <= 0:
            fuses[0].blow()
        return pair, 0

    await converse(tls)
    up, down = (fuse.passed for fuse in fuses)
    for cut in range(0, up, 11):
        await converse(tls, up=cut)
    for cut in range(0, down, 11):
        await converse(tls, down=cut)


@pytest.mark.parametrize("split", [1, 2, 7, 8, 9, 61])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_conversation_is_whole_however_it_is_split(
    split: int, tls: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async def make(_up: float, _down: float) -> tuple[tuple[Transport, Transport], int]:
        left, right, _, _ = fused_wires(split=split)
        if tls:
            return await tls_pair(left, right, tls_contexts()), 0
        return (PlainTransport(left), PlainTransport(right)), 0

    whole = await converse(make)
    assert whole.heard["client"] == (b"".join(DOWN), None)
    assert whole.heard["server"] == (b"".join(UP), None)


# The end of a session ----------------------------------------------------------------


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_goodbye_ends_both_sides_and_resets_what_runs(
    who: str, autojump_clock: trio.testing.MockClock
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        left = await pair.client.open(TARGET)
        right = await offers.taken.receive()
        link = pair.client_link if who == "client" else pair.server_link
        link.close(Code.NORMAL, "enough")
        assert await end_of(left) == (b"", Code.LINK_LOST)
        assert await end_of(right) == (b"", Code.LINK_LOST)
        await trio.testing.wait_all_tasks_blocked()
        other = "server" if who == "client" else "client"
        assert isinstance(pair.reasons[who], LocalSessionError)
        assert isinstance(pair.reasons[other], RemoteSessionError)
        assert pair.reasons[other].code is Code.NORMAL
        assert "enough" in str(pair.reasons[other])
        assert trio.current_time() == 0, "somebody waited for a deadline"


async def test_goodbyes_that_cross_end_both_sides_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_pair() as pair:
        pair.client_link.close(Code.NORMAL)
        pair.server_link.close(Code.INTERNAL)
        pair.server_link.close(Code.NORMAL)  # the first counts
        await trio.testing.wait_all_tasks_blocked()
        assert pair.reasons["client"].code is Code.NORMAL
        assert pair.reasons["server"].code is Code.INTERNAL
        assert trio.current_time() == 0


async def test_a_peers_words_cannot_forge_a_line(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        await peer.wire.send_all(frames.go_away(0, 0, "bye\nERROR all is lost\x1b[2J"))
        await trio.testing.wait_all_tasks_blocked()
        assert str(peer.reason) == "the peer ended the link: bye?ERROR all is lost?[2J"


async def test_a_peer_that_ignores_the_goodbye_is_cut_after_2_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        peer.link.close(Code.NORMAL)
        await trio.sleep(3)
        assert peer.ended_at == 2


async def test_of_a_flood_behind_the_goodbye_no_more_is_read_than_was_on_its_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        peer.link.close(Code.CALM)
        assert await peer.wire.receive_some() == frames.go_away(int(Code.CALM))
        taken, piece = 0, bytes(1 << 20)
        with contextlib.suppress(trio.BrokenResourceError):
            while taken < 4 * LINGER_BYTES:
                await peer.wire.send_all(piece)
                taken += len(piece)
        assert LINGER_BYTES <= taken <= LINGER_BYTES + len(piece)
        await peer.link.gone.wait()
        assert peer.ended_at == 2


async def test_a_goodbye_gets_past_no_stuck_writer_but_ends_in_5_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(bytes(100_000))
        await trio.sleep(1)
        peer.link.close(Code.NORMAL)
        assert await end_of(stream) == (b"", Code.LINK_LOST)
        await trio.sleep(6)
        assert peer.ended_at == 6


async def test_what_a_closed_stream_has_left_goes_before_a_normal_goodbye(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(b"the tail")
        await stream.aclose()
        peer.link.close(Code.NORMAL)
        said = await peer.read()
        assert b"the tail" in said
        assert said.endswith(frames.close(1) + frames.go_away(0))


async def test_nothing_follows_a_goodbye(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(b"unsent")
        peer.link.close(Code.INTERNAL)
        await stream.aclose()
        assert await peer.session.ping(1) is None
        await trio.testing.wait_all_tasks_blocked()
        assert await peer.read() == frames.go_away(2)


async def test_a_cancelled_link_closes_its_wire_and_says_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        await trio.testing.wait_all_tasks_blocked()
        peer.session.open_now(TARGET)
        peer.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert peer.scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await peer.stream.send_all(b"x")
        assert await peer.read() == b""


async def test_a_lost_wire_says_so_to_writer_and_reader(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await peer.wire.aclose()
        assert await end_of(stream) == (b"", Code.LINK_LOST)
        assert isinstance(peer.reason, LocalLinkError)
        assert peer.reason.code is Code.LINK_LOST


# Drain -------------------------------------------------------------------------------


async def test_a_drain_lets_run_what_runs_and_takes_nothing_new(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        left = await pair.client.open(TARGET)
        right = await offers.taken.receive()
        pair.server.core.drain()
        pair.server.output.wake()
        crossed = pair.client.open_now(TARGET)  # before the client has heard of it
        with pytest.raises(StreamError) as refused:
            await crossed.wait_open()
        assert refused.value.code is Code.DRAINING
        with pytest.raises(LocalStreamError) as here:
            pair.client.open_now(TARGET)
        assert here.value.code is Code.DRAINING
        await left.send_all(b"goes on")
        assert await right.receive_some() == b"goes on"
        assert pair.reasons == {}


async def test_a_drain_is_over_when_the_last_connection_has_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        left = await pair.client.open(TARGET)
        right = await offers.taken.receive()
        over = trio.Event()

        async def wait() -> None:
            await pair.client.wait_idle()
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not over.is_set()
            await left.aclose()
            await right.aclose()
            await over.wait()


# Writer and reader -------------------------------------------------------------------


async def test_the_reader_goes_on_while_the_writer_is_stuck(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        assert (await peer.wire.receive_some())[3] == frames.CREATE
        await peer.wire.send_all(frames.accept(1))
        await stream.send_all(bytes(100_000))
        await trio.testing.wait_all_tasks_blocked()  # nobody takes it
        for size in range(1, 100):
            await peer.wire.send_all(frames.data(1, b"x" * size))
        got = 0
        while got < 4_950:
            got += len(await stream.receive_some())


async def test_pings_that_meet_a_stuck_writer_get_one_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        peer.session.open_now(TARGET)
        for _ in range(500):
            await peer.wire.send_all(PING)
        said = b""
        with trio.move_on_after(1):
            while True:
                said += await peer.wire.receive_some()
        assert said.count(PONG) == 1


async def test_a_bulk_sender_fills_the_wire_with_what_has_credit_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        with trio.move_on_after(1) as scope:
            await stream.send_all(bytes(10_000_000))
        assert scope.cancelled_caught
        said = await peer.heard()
        assert 262_144 <= len(said) < 262_144 + 1_000


async def test_a_hash_of_megabytes_is_the_same_through_tls_both_ways(
    autojump_clock: trio.testing.MockClock,
) -> None:
    data = hashlib.shake_128(b"seed").digest(3_000_000)

    async def echo(stream: VirtualStream) -> None:
        stream.accept()
        async for piece in stream:
            await stream.send_all(piece)
        await stream.aclose()

    left, right, _, _ = fused_wires()
    transports = await tls_pair(left, right, tls_contexts())
    async with session_pair(serve_server=echo, transports=transports) as pair:
        stream = pair.client.open_now(TARGET)

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await end_of(stream) == (data, None)
        await stream.aclose()
        await pair.client.wait_idle()
        assert pair.client.core.conns == 0
