from __future__ import annotations

import random
import socket
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.engines import needs_epoll
from support.wires import TARGET, Offers, SessionPair, open_one, session_pair

from tunnel.errors import Code, LocalLinkError, StreamError
from tunnel.proto.frames import Terms
from tunnel.proto.output import STREAM_QUEUE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.link.virtual import VirtualStream


class Opener:
    """Makes pairs of virtual streams, each pair over a link of its own."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack

    async def pair(self) -> tuple[VirtualStream, VirtualStream]:
        offers = Offers()
        sessions = await self.stack.enter_async_context(
            session_pair(serve_server=offers)
        )
        left = await sessions.client.open(TARGET)
        return left, await offers.taken.receive()

    async def clogged(self) -> tuple[VirtualStream, VirtualStream]:
        left, right = await self.pair()
        for stream in (left, right):
            with trio.move_on_after(0) as scope:
                await stream.send_all(bytes(10_000_000))
            assert scope.cancelled_caught
        return left, right


async def test_it_keeps_the_promises_of_a_half_closeable_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with AsyncExitStack() as stack:
        await trio.testing.check_half_closeable_stream(Opener(stack).pair, None)


async def test_it_keeps_them_when_clogged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def clogged() -> tuple[VirtualStream, VirtualStream]:
        offers = Offers()
        sessions = await stack.enter_async_context(session_pair(serve_server=offers))
        left = await sessions.client.open(TARGET)
        right = await offers.taken.receive()
        for stream in (left, right):
            with trio.move_on_after(1):
                await stream.send_all(bytes(10_000_000))
        return left, right

    async with AsyncExitStack() as stack:
        await trio.testing.check_half_closeable_stream(Opener(stack).pair, clogged)


def code_of(error: BaseException) -> Code:
    assert isinstance(error.__cause__, StreamError)
    return error.__cause__.code


async def test_closing_with_bytes_unread_is_a_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        await left.send_all(b"unread")
        await trio.testing.wait_all_tasks_blocked()
        await right.aclose()
        with pytest.raises(trio.BrokenResourceError) as raised:
            await left.receive_some()
        assert code_of(raised.value) is Code.RESET


async def test_a_cancelled_close_is_a_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        await trio.aclose_forcefully(right)
        with pytest.raises(trio.BrokenResourceError) as raised:
            await left.receive_some()
        assert code_of(raised.value) is Code.RESET


async def test_close_delivers_what_was_sent_and_then_breaks_the_writer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        await right.send_all(b"answer")
        await right.aclose()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError) as raised:
            await left.send_all(b"too late")
        assert code_of(raised.value) is Code.NORMAL
        assert await left.receive_some() == b"answer"
        assert await left.receive_some() == b""


async def test_a_lost_link_resets_and_never_ends_cleanly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        await left.send_all(b"half of it")
        await trio.testing.wait_all_tasks_blocked()
        sessions.cut()
        assert await right.receive_some() == b"half of it"
        with pytest.raises(trio.BrokenResourceError) as raised:
            await right.receive_some()
        assert code_of(raised.value) is Code.LINK_LOST
        with pytest.raises(trio.BrokenResourceError):
            await left.receive_some()


async def test_small_pieces_are_joined_while_they_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        for _ in range(1000):
            await left.send_all(b"ab")
        await trio.testing.wait_all_tasks_blocked()
        assert await right.receive_some() == b"ab" * 1000


class Slow:
    """A socket that says nothing, and takes only ``room`` bytes."""

    def __init__(self, room: int) -> None:
        self.near, self.program = socket.socketpair()
        self.room = room
        self.took = b""
        self.heard = trio.Event()
        self.is_idle = self.is_ended = False

    def number(self) -> int:
        return self.near.fileno()

    def read(self, most: int) -> None:
        return None

    def news(self) -> None:
        self.heard.set()

    def ended(self) -> None:
        self.is_ended = True
        self.heard.set()

    def idle(self) -> None:
        self.is_idle = True

    def write(self, *pieces: bytes | bytearray | memoryview) -> int:
        data = b"".join(pieces)
        taken = min(self.room, len(data))
        self.room -= taken
        self.took += bytes(data[:taken])
        return taken


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow(room=100)
    with slow.near, slow.program:
        yield slow


@needs_epoll
async def test_what_a_socket_does_not_take_comes_in_order_behind_it(
    slow: Slow, autojump_clock: trio.testing.MockClock
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        slow.room = 25_000
        blob = random.Random(3).randbytes(300_000)
        rest = b""

        async def send() -> None:
            at = 0
            for size in (1, 9_999, 20_000, 5, 70_000, 199_995):
                await left.send_all(blob[at : at + size])
                at += size
                await trio.sleep(1)
            await left.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            take = right.carry(slow, 100)
            assert take is not None
            while (piece := take()) != b"":
                if piece is None:
                    await slow.heard.wait()
                    slow.heard = trio.Event()
                else:
                    rest += piece
                    await trio.sleep(1.5)
        assert slow.took == blob[:25_000]
        assert rest == blob[25_000:]
        assert right.unread_bytes == 0


@needs_epoll
async def test_a_socket_is_given_nothing_while_a_rest_waits(
    slow: Slow, autojump_clock: trio.testing.MockClock
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        await left.send_all(b"first")
        assert await right.receive_some(1) == b"f"
        take = right.carry(slow, 100)
        assert take is not None
        assert take() == b"irst"
        await left.send_all(b"second")
        await trio.sleep(1)
        assert slow.took == b""
        assert right.unread_bytes == 6
        assert take() == b"second"
        assert take() is None
        await left.send_all(b"third")
        await trio.sleep(1)
        assert slow.took == b"third"


@needs_epoll
@pytest.mark.parametrize("held", ["all is written", "a piece waits", "one is lent"])
async def test_an_end_overtakes_nothing_that_was_sent_before_it(
    slow: Slow, held: str, autojump_clock: trio.testing.MockClock
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        slow.room = 5 if held == "all is written" else 4
        take = right.carry(slow, 100)
        assert take is not None
        await left.send_all(b"first")
        await trio.sleep(1)
        if held == "one is lent":
            assert take() == b"t"
        await left.send_eof()
        await trio.sleep(1)
        assert slow.is_ended == (held == "all is written")
        if held == "a piece waits":
            assert take() == b"t"
        if not slow.is_ended:
            assert take() == b""


async def test_a_piece_is_held_until_the_next_is_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        held = sessions.server.core.pools.held
        await left.send_all(b"piece")
        assert await right.receive_piece() == b"piece"
        assert held.held_bytes == 5
        await left.send_eof()
        assert await right.receive_piece() == b""
        assert held.held_bytes == 0


@needs_epoll
async def test_a_carried_socket_hears_when_nothing_passed_for_long(
    slow: Slow, autojump_clock: trio.testing.MockClock
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        assert right.carry(slow, 360) is not None
        for _ in range(5):
            await trio.sleep(350)
            await left.send_all(b"x")
        assert not slow.is_idle
        await trio.sleep(350)
        assert not slow.is_idle
        await trio.sleep(90)
        assert slow.is_idle


@needs_epoll
async def test_time_without_a_link_is_not_counted_as_rest(
    slow: Slow, autojump_clock: trio.testing.MockClock
) -> None:
    sessions = SessionPair(Terms(), Offers(), Offers(), resume_s=7200)
    async with trio.open_nursery() as nursery:
        await nursery.start(sessions.client.run)
        await nursery.start(sessions.server.run)
        async with trio.open_nursery() as first:
            first.start_soon(sessions.run_links)
            stream = await sessions.client.open(TARGET)
            assert stream.carry(slow, 360) is not None
            first.cancel_scope.cancel()
        await trio.sleep(1000)
        sessions.resume()
        nursery.start_soon(sessions.run_links)
        idle = []
        for seconds in (300, 150):
            await trio.sleep(seconds)
            idle.append(slow.is_idle)
        assert idle == [False, True]
        nursery.cancel_scope.cancel()


async def test_a_stalled_reader_holds_its_window_and_stops_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        stalled, _unread = await open_one(sessions, offers)
        left, right = await open_one(sessions, offers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stalled.send_all, bytes(4_000_000))
            nursery.start_soon(left.send_all, bytes(4_000_000))
            got = 0
            while got < 4_000_000:
                got += len(await right.receive_some())
            assert sessions.server.core.pools.held.held_bytes == 262_144
            nursery.cancel_scope.cancel()


async def test_nothing_is_left_when_streams_are_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    offers.hold.set()

    async def echo(stream: VirtualStream) -> None:
        stream.accept()
        async for data in stream:
            await stream.send_all(data)
        await stream.aclose()

    async with session_pair(serve_server=echo) as sessions:

        async def once() -> None:
            async with await sessions.client.open(TARGET) as stream:
                await stream.send_all(b"x")
                await stream.send_eof()
                assert await stream.receive_some() == b"x"
                assert await stream.receive_some() == b""

        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(once)
        await trio.testing.wait_all_tasks_blocked()
        for session in (sessions.client, sessions.server):
            assert session.streams == 0
            assert session.core.conns == 0
            assert session.core.offered == 0
            assert not session.core.has_output()


class Local:
    """A socket that a session reads, and the program at its other end."""

    def __init__(self) -> None:
        self.program, self.near = socket.socketpair()
        self.near.setblocking(False)
        self.reads = 0
        self.heard = 0
        self.gone = trio.Event()

    def read(self, most: int) -> bytes | None:
        assert not self.gone.is_set()
        self.reads += 1
        try:
            data = self.near.recv(most)
        except BlockingIOError:
            return None
        if not data:
            self.gone.set()
        return data

    def number(self) -> int:
        return self.near.fileno()

    def write(self, *pieces: bytes | bytearray | memoryview) -> int:
        raise NotImplementedError

    def news(self) -> None:
        self.heard += 1

    def ended(self) -> None:
        raise NotImplementedError

    def idle(self) -> None:
        raise NotImplementedError

    def take_part_in(self, stream: VirtualStream) -> None:
        assert stream.carry(self, 3600) is not None

    async def fill(self) -> bytes:
        """Send until nobody takes anything any more; give what was sent."""
        self.program.setblocking(False)
        sent = b""
        with trio.move_on_after(10) as scope:
            while True:
                piece = random.randbytes(65_536)
                try:
                    sent += piece[: self.program.send(piece)]
                    scope.deadline = trio.current_time() + 0.3
                except BlockingIOError:
                    await trio.sleep(0.01)
        return sent


@pytest.fixture
def local() -> Iterator[Local]:
    local = Local()
    with local.program, local.near:
        yield local


async def read_to_end(stream: VirtualStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


@needs_epoll
async def test_a_socket_is_read_by_the_session_to_its_end(local: Local) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        local.take_part_in(left)
        local.program.sendall(b"one ")
        assert await right.receive_some() == b"one "
        local.program.sendall(b"two")
        assert await right.receive_some() == b"two"
        local.program.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked()
        assert local.gone.is_set()
        left.finish()
        assert await right.receive_some() == b""


@needs_epoll
async def test_what_a_socket_held_before_goes_out_at_once(local: Local) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        local.program.sendall(b"banner")
        await trio.testing.wait_all_tasks_blocked()
        local.take_part_in(left)
        with trio.fail_after(5):
            assert await right.receive_some() == b"banner"


@needs_epoll
async def test_a_socket_is_not_read_without_credit_and_costs_nothing_meanwhile(
    local: Local,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        local.take_part_in(left)
        with trio.fail_after(20):
            sent = await local.fill()
        reads, unsent = local.reads, left.conn.lane.size
        assert unsent <= STREAM_QUEUE_BYTES
        assert right.unread_bytes <= Terms().initial_window
        began_s, used_s = time.perf_counter(), time.process_time()
        await trio.sleep(0.3)
        used_s, took_s = time.process_time() - used_s, time.perf_counter() - began_s
        assert local.reads == reads
        assert used_s < took_s / 2, "it asks again and again"
        local.program.shutdown(socket.SHUT_WR)
        got = b""
        with trio.fail_after(20):
            while len(got) < len(sent):
                got += await right.receive_some()
            assert got == sent
            await local.gone.wait()


@needs_epoll
@pytest.mark.parametrize(
    "how", ["closed here", "closed by the peer", "reset by the peer", "session over"]
)
async def test_no_socket_is_read_after_its_connection(local: Local, how: str) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        local.take_part_in(left)
        if how == "closed here":
            left.close()
        elif how == "closed by the peer":
            right.close()
        elif how == "reset by the peer":
            right.reset(Code.RESET)
        else:
            sessions.client.end(LocalLinkError(Code.LINK_LOST, "test"))
        await trio.testing.wait_all_tasks_blocked()
        reads = local.reads
        local.program.sendall(b"too late")
        await trio.sleep(0.05)
        assert local.reads == reads


@needs_epoll
async def test_what_waits_is_not_the_links_buffer(
    slow: Slow, autojump_clock: trio.testing.MockClock
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        _, right = await open_one(sessions, offers)
        buffer = bytearray(b"onetwo")
        take = right.carry(slow, 100)
        assert take is not None
        for room in (0, 1):
            slow.room = room
            view = memoryview(buffer)
            right.conn.recv.received += 6
            right.deliver([view[:3], view[3:]], 6)
            buffer[:] = b"......"
            assert take() == b"onetwo"[room:]
            assert take() is None
            buffer[:] = b"onetwo"


async def test_a_sink_is_asked_first_while_nothing_waits_or_is_held() -> None:
    async with AsyncExitStack() as stack:
        left, right = await Opener(stack).pair()
        asked: list[bytes] = []

        def sink(pieces: list[bytes | memoryview], size: int) -> int:
            asked.append(b"".join(pieces))
            assert size == len(asked[-1])
            return min(size, 3)

        right.sink = sink
        with trio.fail_after(5):
            await left.send_all(b"abcde")
            assert await right.receive_piece() == b"de"  # what the sink has left
            await left.send_all(b"fgh")  # "de" is held: not for the sink
            while not right.unread_bytes:  # noqa: ASYNC110 - nothing rings
                await trio.sleep(0.001)
            assert await right.receive_piece() == b"fgh"
            assert right.take_piece() is None
            await left.send_all(b"ijk")
            while len(asked) < 2:  # noqa: ASYNC110 - nothing rings
                await trio.sleep(0.001)
            right.sink = None
            await left.send_all(b"l")
            assert await right.receive_piece() == b"l"
        assert asked == [b"abcde", b"ijk"]
