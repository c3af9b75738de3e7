"""An app is connected in two steps, and watched only when that takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.far import Far, open_nothing, read, read_to_end

from tunnel.addresses import Address
from tunnel.errors import Code, RemoteStreamError
from tunnel.front.attempt import UNWATCHED_S, reach
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import handle_app
from tunnel.net.listen import open_listener
from tunnel.net.sockets import FastSocket
from tunnel.net.virtual_connection import OPEN_DEADLINE_S
from tunnel.proto.frames import TcpTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.proto.frames import Target

TARGET = TcpTarget(Address("a", 80))
REQUEST = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x01a\x00\x50"
SUCCESS = b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)


class Begun(Far):
    """A connection that is open when ``wait`` returns."""

    def __init__(self, wait: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._wait = wait
        self.waits = 0

    async def wait_open(self) -> None:
        self.waits += 1
        await self._wait()

    def begin(self, target: Target) -> Begun:
        assert target == TARGET
        return self

    @property
    def dialer(self) -> Dialer:
        return Dialer(open_nothing, begin=self.begin)


async def fail() -> None:
    await trio.lowlevel.checkpoint()
    raise RemoteStreamError(Code.REFUSED, "said the exit")


async def test_who_answers_soon_costs_no_second_task(autojump_clock: object) -> None:
    async def answer() -> None:
        nurseries.append(list(trio.lowlevel.current_task().child_nurseries))
        await trio.sleep(UNWATCHED_S / 2)

    nurseries = [list(trio.lowlevel.current_task().child_nurseries)]
    app, ours = trio.testing.memory_stream_pair()
    far = Begun(answer)
    assert await reach(ours, bytearray(), far.dialer, TARGET) is far
    assert (far.waits, far.resets) == (1, [])
    assert nurseries[0] == nurseries[1]
    await app.aclose()


async def test_early_bytes_arrive_however_long_it_takes() -> None:
    connected = trio.Event()
    far = Begun(connected.wait)
    app, ours = trio.testing.memory_stream_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle_app, ours, far.dialer)
            await app.send_all(REQUEST + b"one ")
            while far.waits < 2:
                await trio.testing.wait_all_tasks_blocked(UNWATCHED_S)
            await app.send_all(b"two")
            await app.send_eof()
            await trio.testing.wait_all_tasks_blocked()
            connected.set()
            assert await read(app, len(SUCCESS)) == SUCCESS
            assert await read_to_end(far.far) == b"one two"
            await far.far.send_eof()
            assert await read_to_end(app) == b""


@pytest.mark.parametrize("after_s", [0, 2 * UNWATCHED_S])
async def test_a_refusal_is_told_whenever_it_comes(
    after_s: float, autojump_clock: object
) -> None:
    async def refuse() -> None:
        await trio.sleep_until(refused_at)
        await fail()

    refused_at = trio.current_time() + after_s
    far = Begun(refuse)
    app, ours = trio.testing.memory_stream_pair()
    with pytest.raises(RemoteStreamError) as caught:
        await reach(ours, bytearray(), far.dialer, TARGET)
    assert caught.value.code is Code.REFUSED
    assert far.resets == [Code.RESET]
    await app.aclose()


async def test_who_never_answers_is_given_up(autojump_clock: object) -> None:
    far = Begun(trio.sleep_forever)
    app, ours = trio.testing.memory_stream_pair()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_app, ours, far.dialer)
        await app.send_all(REQUEST)
        reply = await read_to_end(app)
        await app.aclose()
    assert reply[2:4] == b"\x05\x06"
    assert trio.current_time() - began == pytest.approx(OPEN_DEADLINE_S)
    assert far.resets == [Code.RESET]


async def test_an_app_that_resets_takes_what_was_begun_with_it() -> None:
    far = Begun(trio.sleep_forever)
    (listener,) = await open_listener("127.0.0.1", 0)
    async with listener:
        app = await trio.open_tcp_stream(*listener.socket.getsockname())
        ours = await listener.accept()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                while far.waits < 2:
                    await trio.testing.wait_all_tasks_blocked(UNWATCHED_S)
                FastSocket.of(app.socket).reset()

            nursery.start_soon(leave)
            assert await reach(ours, bytearray(), far.dialer, TARGET) is None
    assert far.resets == [Code.RESET]
    ours.close()


async def test_cancelled_it_leaves_nothing_open() -> None:
    far = Begun(trio.sleep_forever)
    _app, ours = trio.testing.memory_stream_pair()
    with trio.move_on_after(0) as scope:
        await reach(ours, bytearray(), far.dialer, TARGET)
    assert scope.cancelled_caught
    assert far.resets == [Code.RESET]


async def test_without_a_link_it_is_waited_for() -> None:
    far = Far()

    async def open_target(target: Target) -> Far:
        await trio.lowlevel.checkpoint()
        return far

    _app, ours = trio.testing.memory_stream_pair()
    dialer = Dialer(open_target, begin=lambda _target: None)
    assert await reach(ours, bytearray(), dialer, TARGET) is far
