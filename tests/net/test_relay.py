from __future__ import annotations

import math
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.virtuals import ReadingVirtual, ScriptedVirtual

from tunnel.errors import Code
from tunnel.net import carried
from tunnel.net.relay import RelayResult, Traffic, relay, reset_socket
from tunnel.net.sockets import FastSocket
from tunnel.net.timeouts import TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(params=["a task reads", "the session reads"])
def virtual(request: pytest.FixtureRequest, nursery: trio.Nursery) -> ScriptedVirtual:
    if request.param == "a task reads":
        return ScriptedVirtual()
    return ReadingVirtual(nursery)


class Run:
    result: RelayResult | None = None


async def sockets() -> tuple[FastSocket, FastSocket]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname())
        theirs = await listener.accept()
        return FastSocket.of(ours.socket), FastSocket.of(theirs.socket)


@asynccontextmanager
async def joined(
    virtual: ScriptedVirtual,
) -> AsyncIterator[tuple[FastSocket, Run]]:
    """A relay between a real socket, whose other end is yielded, and ``virtual``."""
    visitor, local = await sockets()
    run = Run()

    async def go() -> None:
        run.result = await relay(local, virtual)

    async with visitor:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                yield visitor, run
    assert local.socket.fileno() == -1
    assert virtual.closed
    if isinstance(virtual, ReadingVirtual):
        assert virtual._call is None, "it would hold the relay, which holds it"


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


async def read_to_reset(stream: FastSocket) -> bytes:
    data = b""
    try:
        while piece := await stream.receive_some():
            data += piece
    except trio.BrokenResourceError:
        return data
    pytest.fail("a FIN where a RST is due")


async def test_half_closes_pass_and_both_ends_make_a_normal_end(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (visitor, run):
        await visitor.send_all(b"question")
        await visitor.send_eof()
        await virtual.until_sent(8)
        virtual.say.send_nowait(b"answer")
        virtual.say.send_nowait(b"")
        assert await read_all(visitor) == b"answer"
    assert run.result == RelayResult(8, 6, Code.NORMAL)
    assert virtual.eof
    assert virtual.resets == []


async def test_a_half_close_from_the_far_side_leaves_the_upload_running(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (visitor, run):
        virtual.say.send_nowait(b"")
        assert await read_all(visitor) == b""
        await visitor.send_all(b"more")
        await virtual.until_sent(4)
        await visitor.send_eof()
    assert run.result == RelayResult(4, 0, Code.NORMAL)
    assert virtual.resets == []
    assert not virtual.eof  # the close stands for it


async def test_a_reset_visitor_resets_the_virtual_connection(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (visitor, run):
        await visitor.send_all(b"x")
        await virtual.until_sent(1)
        await reset_socket(visitor)
    assert run.result == RelayResult(1, 0, Code.RESET)
    assert virtual.resets == [Code.RESET]
    assert not virtual.eof


async def test_a_broken_virtual_connection_is_a_rst_after_its_bytes(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (visitor, run):
        virtual.say.send_nowait(b"tail" * 50_000)
        virtual.say.send_nowait(Code.LINK_LOST)
        assert await read_to_reset(visitor) == b"tail" * 50_000
    assert run.result == RelayResult(0, 200_000, Code.LINK_LOST)
    assert virtual.resets == []


async def test_a_refusal_is_a_rst(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (visitor, run):
        virtual.say.send_nowait(Code.REFUSED)
        assert await read_to_reset(visitor) == b""
    assert run.result is not None
    assert run.result.code is Code.REFUSED


async def test_a_visitor_that_writes_all_before_it_reads_hears_an_early_answer(
    virtual: ScriptedVirtual,
) -> None:
    virtual.refuses = Code.NORMAL
    async with joined(virtual) as (visitor, run):
        await visitor.send_all(b"u" * 20_000_000)
        virtual.say.send_nowait(b"413")
        virtual.say.send_nowait(b"")
        await visitor.send_eof()
        assert await read_all(visitor) == b"413"
    assert run.result == RelayResult(0, 3, Code.NORMAL)


async def test_a_visitor_that_never_stops_writing_is_left_after_the_grace(
    virtual: ScriptedVirtual,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carried, "GRACE_S", 0.05)
    virtual.refuses = Code.NORMAL
    virtual.say.send_nowait(b"413")
    virtual.say.send_nowait(b"")
    async with joined(virtual) as (visitor, run):
        with suppress(trio.BrokenResourceError):
            while True:
                await visitor.send_all(b"u" * 1000)
    assert run.result == RelayResult(0, 3, Code.NORMAL)


async def test_a_peer_that_reads_no_more_may_go_on_to_send_for_as_long_as_it_likes(
    virtual: ScriptedVirtual,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carried, "GRACE_S", 0.02)
    async with joined(virtual) as (visitor, run):
        virtual.refuses = Code.NORMAL
        await visitor.send_all(b"unwanted")
        for _ in range(3):
            await trio.sleep(2 * 0.02)  # it is the time itself that must not matter
            virtual.say.send_nowait(b"more")
            assert await visitor.receive_some() == b"more"
        virtual.say.send_nowait(b"")
        assert await visitor.receive_some() == b""
    assert run.result == RelayResult(0, 12, Code.NORMAL)


async def test_what_a_stalled_visitor_takes_is_counted_once_however_it_is_carried(
    virtual: ScriptedVirtual,
) -> None:
    size, taken = 12_000_000, 0
    virtual.say.send_nowait(bytes(size))
    virtual.say.send_nowait(b"")
    async with joined(virtual) as (visitor, run):
        while taken < 6_000_000:  # so that a part of what waited has gone
            taken += len(await visitor.receive_some())
        await trio.testing.wait_all_tasks_blocked()
        virtual.refuses = Code.NORMAL  # the peer reads no more: another task carries
        await visitor.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert taken + len(await read_all(visitor)) == size
    assert run.result is not None
    assert run.result.received_bytes == size


async def test_a_stalled_visitor_does_not_hold_a_reset_for_ever(
    virtual: ScriptedVirtual,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carried, "GRACE_S", 0.05)
    async with joined(virtual) as (visitor, run):
        virtual.say.send_nowait(bytes(30_000_000))
        await trio.testing.wait_all_tasks_blocked()
        virtual.refuses = Code.LINK_LOST
        await visitor.send_all(b"x")
    assert run.result is not None
    assert run.result.code is Code.LINK_LOST


async def test_a_write_to_a_dead_socket_resets_and_never_looks_like_an_end(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (visitor, run):
        await visitor.send_all(b"last words")
        await virtual.until_sent(10)
        await reset_socket(visitor)
        virtual.say.send_nowait(b"too late")
        virtual.say.send_nowait(b"too late")
    assert run.result is not None
    assert run.result.code is Code.RESET
    assert virtual.resets == [Code.RESET]
    assert not virtual.eof


async def test_bytes_that_a_dead_socket_still_holds_are_carried_before_the_reset(
    virtual: ScriptedVirtual,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visitor, local = await sockets()
    await visitor.send_all(b"413")
    await reset_socket(visitor)
    with pytest.raises(OSError, match="reset"):  # the error is reported once, to us
        local.socket.send(b"x")
    virtual.say.send_nowait(b"upload")
    with trio.fail_after(5):
        result = await relay(local, virtual)
    assert virtual.sent == b"413"
    assert result.code is Code.RESET


async def test_a_socket_that_dies_after_its_own_end_is_a_plain_close(
    virtual: ScriptedVirtual,
) -> None:
    async with joined(virtual) as (visitor, run):
        await visitor.send_all(b"whole answer")
        await visitor.send_eof()
        while not virtual.eof:
            await virtual.activity.wait()
        await reset_socket(visitor)
        for _ in range(3):
            virtual.say.send_nowait(b"unwanted")
    assert run.result is not None
    assert run.result.code is Code.RESET
    assert virtual.resets == []


async def test_cancellation_resets_both_sides(
    virtual: ScriptedVirtual,
) -> None:
    visitor, local = await sockets()
    async with visitor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, local, virtual)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await read_to_reset(visitor) == b""
    assert virtual.resets == [Code.RESET]
    assert local.socket.fileno() == -1


async def test_a_fault_comes_out_after_both_sides_were_reset() -> None:
    class Faulty(ScriptedVirtual):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise ZeroDivisionError

    virtual = Faulty()
    visitor, local = await sockets()
    async with visitor:
        with pytest.RaisesGroup(ZeroDivisionError):
            await relay(local, virtual)
        assert await read_to_reset(visitor) == b""
    assert virtual.resets == [Code.RESET]


async def test_early_bytes_go_first_and_counters_move_at_once(
    virtual: ScriptedVirtual,
) -> None:
    visitor, local = await sockets()
    traffic = Traffic()

    async def go() -> None:
        await relay(local, virtual, early=b"early ", traffic=traffic)

    async with visitor, trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await visitor.send_all(b"late")
        await virtual.until_sent(10)
        await trio.testing.wait_all_tasks_blocked()
        assert (traffic.sent, traffic.received) == (10, 0)
        await visitor.send_eof()
        virtual.say.send_nowait(b"")
    assert virtual.sent == b"early late"


@pytest.mark.parametrize("idle_s", [math.inf, 7_200])
async def test_a_relay_is_silent_for_as_long_as_its_command_allows(
    idle_s: float, virtual: ScriptedVirtual, autojump_clock: trio.testing.MockClock
) -> None:
    visitor, local = trio.testing.memory_stream_pair()
    TIMEOUTS.set(Timeouts(idle_s))
    codes: list[Code] = []

    async def go() -> None:
        codes.append((await relay(local, virtual)).code)

    async with visitor, trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await trio.sleep(7_100)
        await visitor.send_all(b"x")
        await trio.sleep(7_100)
        assert codes == []
        await trio.sleep(80_000)
        assert codes == ([] if idle_s == math.inf else [Code.IDLE])
        nursery.cancel_scope.cancel()


async def test_an_idle_relay_ends_not_before_its_time(
    virtual: ScriptedVirtual,
    autojump_clock: trio.testing.MockClock,
) -> None:
    visitor, local = trio.testing.memory_stream_pair()
    ends: list[tuple[float, Code]] = []

    async def go() -> None:
        result = await relay(local, virtual, idle_s=100)
        ends.append((trio.current_time(), result.code))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        for _ in range(5):
            await trio.sleep(90)
            await visitor.send_all(b"x")
        await trio.sleep(99)
        assert ends == []
    ((when, code),) = ends
    assert 550 <= when - start <= 551.1
    assert code is Code.IDLE
    assert virtual.resets == [Code.IDLE]


async def test_a_stream_that_is_no_socket_ends_with_its_writing_half(
    virtual: ScriptedVirtual,
) -> None:
    near, _kept = trio.testing.memory_stream_one_way_pair()
    broken, far = trio.testing.memory_stream_one_way_pair()
    await far.aclose()
    local = trio.StapledStream(broken, _kept)
    virtual.say.send_nowait(b"x")
    result = await relay(local, virtual)
    assert result.code is Code.RESET
    assert virtual.resets == [Code.RESET]
    await near.aclose()


async def test_reset_socket_works_on_a_closed_socket() -> None:
    visitor, local = await sockets()
    await visitor.aclose()
    await local.aclose()
    await reset_socket(local)
    assert local.socket.fileno() == -1


async def test_a_stream_that_is_no_socket_is_closed_by_a_reset() -> None:
    far, local = trio.testing.memory_stream_pair()
    await reset_socket(local)
    assert await far.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await local.send_all(b"x")
