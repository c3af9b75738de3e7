"""The public UDP port: one association for each visitor, and none for ever."""

from __future__ import annotations

import socket
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.addresses import Address
from tunnel.errors import AddressError, Code, LocalStreamError
from tunnel.front.udp import open_udp_port, serve_udp_port, visitor_of
from tunnel.net.timeouts import TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ANNA, BERTA, CARLA = (("198.51.100.1", port) for port in (1_001, 1_002, 1_003))
NOWHERE = Address("0.0.0.0", 0)


class FakeSocket:
    """A UDP socket of which the test is the network."""

    def __init__(self) -> None:
        self._bell, self._hammer = socket.socketpair()
        self._came: deque[tuple[bytes, tuple[str, int]]] = deque()
        self.said: list[tuple[bytes, tuple[str, int]]] = []
        self.fails = 0

    @property
    def closed(self) -> bool:
        return self.fileno() < 0

    async def come(self, *datagrams: tuple[tuple[str, int], bytes]) -> None:
        for source, payload in datagrams:
            self._came.append((payload, source))
            self._hammer.send(b"!")
        await trio.testing.wait_all_tasks_blocked()

    def fileno(self) -> int:
        return self._bell.fileno()

    def recvfrom(self, most: int) -> tuple[bytes, tuple[str, int]]:
        assert most >= 65_507
        if self.fails:
            self.fails -= 1
            raise ConnectionRefusedError
        if not self._came:
            raise BlockingIOError
        self._bell.recv(1)
        return self._came.popleft()

    def sendto(self, payload: bytes, where: tuple[str, int]) -> None:
        if payload == b"too large":
            raise OSError(90, "Message too long")
        self.said.append((payload, where))

    def close(self) -> None:
        if not self.closed:
            trio.lowlevel.notify_closing(self._bell)
        self._bell.close()
        self._hammer.close()


class FakeDatagrams:
    """An association of which the test is the far side."""

    passed = 0, 0

    def __init__(self, waiting: list[tuple[FakeDatagrams, bytes]]) -> None:
        self.sent: list[bytes] = []
        self.closed = False
        self.lost = 0
        self._waiting = waiting
        """What was put into any of them, until one of them is flushed."""

    def put(self, address: Address, payload: bytes) -> None:
        assert address == NOWHERE
        self._waiting.append((self, payload))

    def flush(self) -> None:
        for one, payload in self._waiting:
            one.sent.append(payload)
        self._waiting.clear()

    def deliver_to(
        self, take: Callable[[Address, bytes], bool], over: Callable[[], None]
    ) -> None:
        self._take, self._over = take, over

    async def answer(self, payload: bytes) -> None:
        self.lost += not self._take(NOWHERE, payload)
        await trio.testing.wait_all_tasks_blocked()

    async def end(self) -> None:
        self._over()
        await trio.testing.wait_all_tasks_blocked()

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.close()


class Bench:
    """A port being served."""

    socket: FakeSocket

    def __init__(self) -> None:
        self.opened: list[tuple[Address, FakeDatagrams]] = []
        self.refuse = False
        self.over = False
        self._waiting: list[tuple[FakeDatagrams, bytes]] = []

    def open(self, visitor: Address) -> FakeDatagrams:
        if self.refuse:
            raise LocalStreamError(Code.LINK_LOST, "no link")
        datagrams = FakeDatagrams(self._waiting)
        self.opened.append((visitor, datagrams))
        return datagrams

    @property
    def closed(self) -> list[bool]:
        return [datagrams.closed for _, datagrams in self.opened]


@asynccontextmanager
async def bench(most: int = 10, idle_s: float = 180) -> AsyncIterator[Bench]:
    made = Bench()
    made.socket = FakeSocket()
    TIMEOUTS.set(Timeouts(udp_idle_s=idle_s))

    async def run() -> None:
        sockets = [made.socket]
        await serve_udp_port(
            sockets,  # type: ignore[arg-type]
            made.open,
            max_associations=most,
        )
        made.over = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield made
        nursery.cancel_scope.cancel()


async def test_each_visitor_has_an_association_of_its_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench() as port:
        await port.socket.come((ANNA, b"one"))
        await port.socket.come((BERTA, b"two"))
        await port.socket.come((ANNA, b"three"))
        assert [visitor for visitor, _ in port.opened] == [
            Address(*ANNA),
            Address(*BERTA),
        ]
        (_, anna), (_, berta) = port.opened
        assert (anna.sent, berta.sent) == ([b"one", b"three"], [b"two"])
        await berta.answer(b"for berta")
        await anna.answer(b"")
        assert port.socket.said == [(b"for berta", BERTA), (b"", ANNA)]
    assert port.closed == [True, True]
    assert port.socket.closed


async def test_what_comes_at_once_from_many_leaves_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench() as port:
        port.socket.fails = 1
        await port.socket.come((ANNA, b"1"), (BERTA, b"2"), (ANNA, b"3"))
        (_, anna), (_, berta) = port.opened
        assert (anna.sent, berta.sent) == ([b"1", b"3"], [b"2"])
        many = [(ANNA, bytes([number])) for number in range(200)]
        await port.socket.come(*many)
        assert anna.sent[2:] == [payload for _, payload in many]


async def test_silence_ends_an_association_and_a_later_datagram_begins_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench(idle_s=2) as port:
        await port.socket.come((ANNA, b"one"))
        await trio.sleep(1.9)
        assert port.closed == [False]
        await trio.sleep(0.2)
        assert port.closed == [True]
        await port.socket.come((ANNA, b"two"))
        assert port.opened[1][1].sent == [b"two"]


async def test_who_was_never_answered_is_silent_for_a_minute_at_most(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench(idle_s=180) as port:
        await port.socket.come((ANNA, b"one"))
        await port.socket.come((BERTA, b"one"))
        await port.opened[1][1].answer(b"for berta")
        await trio.sleep(61)
        assert port.closed == [True, False]
        await trio.sleep(118)
        assert port.closed == [True, False]
        await trio.sleep(2)
        assert port.closed == [True, True]


@pytest.mark.parametrize("way", ["in", "out"])
async def test_a_datagram_of_either_way_is_life(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with bench(idle_s=2) as port:
        await port.socket.come((ANNA, b"one"))
        for _ in range(5):
            await trio.sleep(1.5)
            if way == "in":
                await port.socket.come((ANNA, b"more"))
            else:
                await port.opened[0][1].answer(b"more")
        assert port.closed == [False]


async def test_a_newcomer_ends_the_one_that_was_silent_longest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench(most=2) as port:
        await port.socket.come((ANNA, b"first"))
        await port.socket.come((BERTA, b"second"))
        await port.opened[0][1].answer(b"anna lives")
        await port.socket.come((CARLA, b"third"))
        assert port.closed == [False, True, False]
        await port.opened[0][1].answer(b"still")
        assert port.socket.said[-1] == (b"still", ANNA)


async def test_the_far_sides_end_closes_it_and_the_next_datagram_tries_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench() as port:
        await port.socket.come((ANNA, b"one"))
        await port.opened[0][1].end()
        assert port.closed == [True]
        await port.socket.come((ANNA, b"two"))
        assert port.opened[1][1].sent == [b"two"]


async def test_who_is_refused_is_dropped_and_said_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tunnel")
    async with bench() as port:
        port.refuse = True
        for _ in range(5):
            await port.socket.come((ANNA, b"lost"))
        assert len(caplog.records) == 1
        port.refuse = False
        await port.socket.come((ANNA, b"heard"))
        assert port.opened[0][1].sent == [b"heard"]


async def test_what_the_kernel_will_not_send_is_lost_and_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench() as port:
        port.socket.fails = 3
        await port.socket.come((ANNA, b"one"))
        await port.opened[0][1].answer(b"too large")
        await port.opened[0][1].answer(b"fits")
        assert port.socket.said == [(b"fits", ANNA)]
        assert port.opened[0][1].lost == 1


async def test_a_port_that_is_closed_ends_its_associations(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench() as port:
        await port.socket.come((ANNA, b"one"))
        port.socket.close()
        await trio.testing.wait_all_tasks_blocked()
        assert port.over
        assert port.closed == [True]


# Real sockets ------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_said_so() -> None:
    (sock,) = await open_udp_port("127.0.0.1", 0)
    with sock:
        port = sock.getsockname()[1]
        with pytest.raises(AddressError, match="already in use"):
            await open_udp_port("127.0.0.1", port)


async def test_closing_a_real_port_ends_its_server() -> None:
    (sock,) = await open_udp_port("127.0.0.1", 0)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp_port, [sock], Bench().open)
            await trio.testing.wait_all_tasks_blocked()
            sock.close()


async def test_a_port_of_ipv6_answers_there() -> None:
    if not socket.has_ipv6:
        pytest.skip("NOT TESTED: no IPv6 on this machine")
    (sock,) = await open_udp_port("::1", 0)
    made = Bench()
    with trio.fail_after(10), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp_port, [sock], made.open)
            app.sendto(b"six", sock.getsockname()[:2])
            while not made.opened:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.005)
            await made.opened[0][1].answer(b"answer")
            assert await trio.to_thread.run_sync(app.recv, 100) == b"answer"
            assert made.opened[0][0] == Address("::1", app.getsockname()[1])
            nursery.cancel_scope.cancel()


def test_a_visitors_address_says_nothing_about_this_machine() -> None:
    assert visitor_of(("fe80::1%eth0", 9)) == Address("fe80::1", 9)
