"""DatagramStream over two sessions: loses rather than waits, and ends honestly."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.wires import SessionPair, session_pair

from tunnel.addresses import Address
from tunnel.errors import Code, StreamError
from tunnel.link.datagrams import DatagramStream
from tunnel.proto.datagrams import ASSOCIATION_BYTES
from tunnel.proto.frames import CAN_MAP, CAN_UDP, Terms, UdpTarget

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream

UDP = replace(Terms(), capabilities=CAN_MAP | CAN_UDP)
TO = Address("192.0.2.53", 53)


class Associations:
    """Accepts every association and gives it to the test."""

    def __init__(self) -> None:
        self._put, self.taken = trio.open_memory_channel[DatagramStream](10)

    async def __call__(self, stream: VirtualStream) -> None:
        datagrams = DatagramStream(stream)
        stream.accept(Address("127.0.0.1", 4_000))
        self._put.send_nowait(datagrams)
        await stream.wait_closed()


def associate(pair: SessionPair) -> DatagramStream:
    return DatagramStream(pair.client.open_now(UdpTarget()))


async def end_of(datagrams: DatagramStream) -> Code:
    with pytest.raises(trio.BrokenResourceError) as caught:
        await datagrams.receive()
    assert isinstance(caught.value.__cause__, StreamError)
    return caught.value.__cause__.code


async def test_datagrams_pass_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    served = Associations()
    async with session_pair(terms=UDP, serve_server=served) as pair:
        ours = associate(pair)
        ours.send(TO, b"before the answer")
        theirs = await served.taken.receive()
        assert await theirs.receive() == (TO, b"before the answer")
        theirs.send(TO, b"answer")
        theirs.send(TO, b"")
        assert await ours.receive() == (TO, b"answer")
        assert await ours.receive() == (TO, b"")
        assert ours.stream.bound == Address("127.0.0.1", 4_000)
        assert (ours.sent, ours.received, ours.dropped) == (1, 2, 0)
        assert "sent=1 received=2 dropped=0" in repr(ours)


async def test_what_is_put_leaves_together_and_is_given_as_it_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    served = Associations()
    heard: list[bytes] = []
    ends: list[None] = []

    def take(address: Address, payload: bytes) -> bool:
        assert address == TO
        heard.append(payload)
        return payload != b"lost"

    async with session_pair(terms=UDP, serve_server=served) as pair:
        ours, other = associate(pair), associate(pair)
        theirs, others = [await served.taken.receive() for _ in range(2)]
        ours.send(TO, b"early")
        await trio.testing.wait_all_tasks_blocked()
        for one in (theirs, others):
            one.deliver_to(take, lambda: ends.append(None))
        assert heard == [b"early"]
        for payload in (b"one", b"lost", b"two"):
            ours.put(TO, payload)
            other.put(TO, payload + b" too")
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [b"early"]
        other.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert heard[1:] == [
            b"one",
            b"one too",
            b"lost",
            b"lost too",
            b"two",
            b"two too",
        ]
        assert (ours.sent, other.sent) == (4, 3)
        assert theirs.received + others.received == 7
        assert theirs.dropped + others.dropped == 1
        await ours.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert len(ends) == 1
        await theirs.aclose()
        await others.aclose()
        assert len(ends) == 1


async def test_one_that_is_over_before_it_is_delivered_says_so_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    served = Associations()
    heard: list[bytes] = []
    ends: list[None] = []
    async with session_pair(terms=UDP, serve_server=served) as pair:
        ours = associate(pair)
        theirs = await served.taken.receive()
        ours.send(TO, b"last words")
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        await trio.testing.wait_all_tasks_blocked()

        def take(_address: Address, payload: bytes) -> bool:
            heard.append(payload)
            return True

        theirs.deliver_to(take, lambda: ends.append(None))
        assert (heard, len(ends)) == ([b"last words"], 1)


async def test_a_reader_who_takes_nothing_loses_the_oldest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    served = Associations()
    async with session_pair(terms=UDP, serve_server=served) as pair:
        ours = associate(pair)
        theirs = await served.taken.receive()
        for number in range(500):
            ours.send(TO, number.to_bytes(2, "big") * 500)
            await trio.testing.wait_all_tasks_blocked()
        assert ours.dropped == 0
        first = int.from_bytes((await theirs.receive())[1][:2], "big")
        assert first == theirs.dropped > 0
        assert (500 - first) * 1_000 < ASSOCIATION_BYTES


async def test_a_close_ends_the_other_side_behind_what_has_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    served = Associations()
    async with session_pair(terms=UDP, serve_server=served) as pair:
        ours = associate(pair)
        theirs = await served.taken.receive()
        ours.send(TO, b"last words")
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await theirs.receive() == (TO, b"last words")
        assert await end_of(theirs) is Code.NORMAL
        theirs.send(TO, b"to nobody")
        assert theirs.dropped == 1
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive()
        await ours.aclose()
        await theirs.aclose()
        await pair.client.wait_idle()
        await pair.server.wait_idle()


async def test_a_waiting_reader_hears_its_own_close(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_pair(terms=UDP, serve_server=Associations()) as pair:
        ours = associate(pair)

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ours.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await ours.aclose()


async def test_a_refusal_has_its_code(autojump_clock: trio.testing.MockClock) -> None:
    async def refuse(stream: VirtualStream) -> None:
        stream.reset(Code.RESOURCE, "no descriptor")

    async with session_pair(terms=UDP, serve_server=refuse) as pair:
        assert await end_of(associate(pair)) is Code.RESOURCE


async def test_a_lost_session_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    served = Associations()
    async with session_pair(terms=UDP, serve_server=served) as pair:
        ours = associate(pair)
        theirs = await served.taken.receive()
        pair.cut()
        assert await end_of(ours) is Code.LINK_LOST
        assert await end_of(theirs) is Code.LINK_LOST


async def test_an_association_that_is_over_when_it_is_made_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    served = Associations()
    async with session_pair(terms=UDP, serve_server=served) as pair:
        stream = pair.client.open_now(UdpTarget())
        theirs = await served.taken.receive()
        theirs.close(Code.IDLE)
        await trio.testing.wait_all_tasks_blocked()
        assert await end_of(DatagramStream(stream)) is Code.IDLE


async def test_what_nobody_took_is_no_room_lost_to_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    served = Associations()
    async with session_pair(terms=UDP, serve_server=served) as pair:
        for _ in range(2):
            ours = associate(pair)
            theirs = await served.taken.receive()
            for _ in range(4):
                ours.send(TO, bytes(60_000))
            await trio.testing.wait_all_tasks_blocked()
            await theirs.receive()
            await theirs.aclose()
            assert theirs.dropped == 3
            await ours.aclose()
            room = pair.server.deliver_to(theirs.stream.conn, lambda _to, _data: None)
            assert room.held_bytes == 0


async def test_an_association_that_was_closed_is_freed_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_pair(terms=UDP, serve_server=Associations()) as pair:
        ours = associate(pair)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        kept = weakref.ref(ours)
        gc.disable()
        try:
            del ours
            assert kept() is None
        finally:
            gc.enable()
