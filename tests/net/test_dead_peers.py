"""Who has vanished, by what the kernel says of it."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.processes import eventually

from tunnel.net import dead_peers
from tunnel.net.dead_peers import LOOKS_A_TURN, Signs, reset_the_dead, signs_of
from tunnel.net.descriptors import DESCRIPTORS, PRESENT, Arrivals
from tunnel.net.listen import open_listener
from tunnel.net.sockets import TAILS, FastSocket, tune_local
from tunnel.net.timeouts import TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

RTO_MAX_MS = 44
ALIVE = Signs(is_closed=False, repeats=0, questions=0, silent_s=1.0)
DEAD = Signs(is_closed=False, repeats=9, questions=0, silent_s=200.0)
PAUSES = Signs(is_closed=False, repeats=0, questions=1, silent_s=9.0, ever_rarer=True)


@pytest.mark.parametrize(
    ("signs", "why"),
    [
        (ALIVE, ""),
        (Signs(False, 0, 0, 9_999.0), ""),  # nobody has asked it
        (Signs(False, 5, 0, 149.0), ""),
        (Signs(False, 1, 0, 150.0), "it acknowledges nothing"),
        (Signs(False, 0, 7, 149.0), ""),
        (Signs(False, 0, 4, 150.0), "it does not answer"),
        (Signs(False, 0, 3, 350.0), ""),  # it has paused, and questions got lost
        (Signs(True, 0, 0, 149.0), ""),  # was reset just now: whoever reads hears it
        (Signs(True, 0, 0, 181.0), "the kernel gave it up"),
    ],
)
def test_dead_is_who_was_asked_and_is_silent_for_too_long(
    signs: Signs, why: str
) -> None:
    assert signs.why_dead(150.0) == why


def read_to_end(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


@contextmanager
def connected() -> Iterator[tuple[FastSocket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        ours = FastSocket(listener.accept()[0])
    with far:
        yield ours, far
        ours.close()


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: not Linux")
def test_the_kernel_says_how_a_connection_is() -> None:
    with connected() as (ours, far):
        signs = signs_of(ours.socket)
        assert signs is not None
        assert (signs.is_closed, signs.repeats, signs.questions) == (False, 0, 0)
        assert signs.silent_s < 60
        ours.write_now(b"unread")
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *bytes(7)]))
        far.close()
        signs = signs_of(ours.socket)
        assert signs is not None
        assert signs.is_closed


def test_what_is_not_tcp_says_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert signs_of(one) is None


def keepalive(sock: socket.socket) -> tuple[int, ...]:
    tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)
    on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return (on, *(sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp))


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: not Linux")
async def test_the_kernel_asks_whoever_comes_in_and_whoever_is_dialled() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    TIMEOUTS.set(Timeouts(dead_after_s=5))
    with socket.create_connection(listener.socket.getsockname()) as far:
        visitor = await listener.accept()
        tune_local(far)
        assert keepalive(visitor.socket) == (1, 60, 15)
        assert keepalive(far) == (1, 2, 1)
        visitor.close()
    await listener.aclose()


class Fake:
    """What the kernel says, as the test wants it."""

    def __init__(self) -> None:
        self.dead: set[socket.socket] = set()
        self.paused: set[socket.socket] = set()

    def signs_of(self, sock: socket.socket) -> Signs:
        if sock in self.dead:
            return DEAD
        return PAUSES if sock in self.paused else ALIVE


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(dead_peers, "signs_of", made.signs_of)
    return made


@pytest.mark.parametrize("waits", ["to read", "to write"])
async def test_whoever_waits_for_the_dead_hears_it(
    waits: str, kernel: Fake, autojump_clock: trio.testing.MockClock
) -> None:
    arrivals, scope = Arrivals(), trio.CancelScope()
    with connected() as (ours, far), connected() as (alive, _):
        arrivals.add(ours)
        arrivals.add(alive)
        while ours.write_now(bytes(65_536)):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_the_dead, scope)

            async def go() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await (
                        ours.receive_some() if waits == "to read" else ours.put(b"x")
                    )
                scope.cancel()

            nursery.start_soon(go)
            await trio.testing.wait_all_tasks_blocked()
            kernel.dead.add(ours.socket)
        assert 0 < trio.current_time() <= 30
        assert DESCRIPTORS.leaving == 1
        ours.reset()
        arrivals.left(ours)
        arrivals.left(alive)
        assert not alive.given_up
        assert DESCRIPTORS.leaving == 0
        assert not PRESENT
        with pytest.raises(ConnectionResetError):
            read_to_end(far)


async def test_what_carries_a_socket_is_told_once(
    kernel: Fake, autojump_clock: trio.testing.MockClock
) -> None:
    class Carrier:
        told = 0

        def vanished(self) -> None:
            self.told += 1
            arrivals.left(ours)

    arrivals, carrier, scope = Arrivals(), Carrier(), trio.CancelScope()
    with connected() as (ours, _):
        arrivals.add(ours, 0)
        PRESENT[ours] = carrier
        kernel.dead.add(ours.socket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_the_dead, scope)
            await trio.sleep(100)
            scope.cancel()
        assert carrier.told == 1
        assert not PRESENT


class Turns(trio.abc.Instrument):
    """How many looks there were in each turn of the loop."""

    def __init__(self) -> None:
        self.looks = [0]

    def before_io_wait(self, timeout: float) -> None:
        self.looks.append(0)

    def signs_of(self, _sock: socket.socket) -> Signs:
        self.looks[-1] += 1
        return ALIVE


async def test_a_look_at_thousands_gives_others_their_turns(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    turns, arrivals, scope = Turns(), Arrivals(), trio.CancelScope()
    monkeypatch.setattr(dead_peers, "signs_of", turns.signs_of)
    one, other = socket.socketpair()
    with one, other:
        everybody = [FastSocket(one) for _ in range(4 * LOOKS_A_TURN)]
        for stream in everybody:
            arrivals.add(stream)
        trio.lowlevel.add_instrument(turns)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_the_dead, scope)
            await trio.sleep(31)
            scope.cancel()
        trio.lowlevel.remove_instrument(turns)
        for stream in everybody:
            arrivals.left(stream)
    assert sum(turns.looks) == 4 * LOOKS_A_TURN
    assert max(turns.looks) == LOOKS_A_TURN


def asks_every_ms(sock: socket.socket) -> int:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, RTO_MAX_MS)
    except OSError:
        pytest.skip("NOT TESTED: this kernel cannot be told how often to ask")


@pytest.mark.parametrize(
    ("dead_after_s", "every_ms"), [(150.0, 25_000), (5.0, 1_000), (43_200.0, 120_000)]
)
async def test_who_pauses_is_asked_often_enough_and_nobody_else_costs_anything(
    dead_after_s: float,
    every_ms: int,
    kernel: Fake,
    autojump_clock: trio.testing.MockClock,
) -> None:
    TIMEOUTS.set(Timeouts(dead_after_s=dead_after_s))
    arrivals, scope = Arrivals(), trio.CancelScope()
    with connected() as (pauses, _), connected() as (reads, _):
        before_ms = asks_every_ms(reads.socket)
        for stream in (pauses, reads):
            arrivals.add(stream)
        kernel.paused.add(pauses.socket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_the_dead, scope)
            await trio.sleep(dead_after_s * 0.21)
            scope.cancel()
        assert asks_every_ms(pauses.socket) == every_ms
        assert asks_every_ms(reads.socket) == before_ms
        for stream in (pauses, reads):
            arrivals.left(stream)


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: not Linux")
def test_the_kernel_says_who_pauses() -> None:
    with connected() as (ours, _):
        signs = signs_of(ours.socket)
        assert signs is not None
        assert not signs.ever_rarer
        while ours.write_now(bytes(65_536)):
            pass
        eventually(
            lambda: (found := signs_of(ours.socket)) is not None and found.ever_rarer,
            "the kernel asks for room",
        )


class Tail:
    """A connection that was closed while its reader paused, and is looked at."""

    def __init__(self, far: socket.socket, number: int, size: int) -> None:
        self.far = far
        self.number = number
        self.size = size
        self.kept = next(iter(TAILS.kept), None)


@asynccontextmanager
async def tail(kernel: Fake) -> AsyncIterator[Tail]:
    arrivals, scope, size = Arrivals(), trio.CancelScope(), 0
    with connected() as (ours, far):
        asks_every_ms(ours.socket)
        while taken := ours.write_now(bytes(65_536)):
            size += taken
        arrivals.add(ours)
        kernel.paused.add(ours.socket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_the_dead, scope)
            await trio.sleep(31)
            number = ours.number()
            ours.close()
            arrivals.left(ours)
            yield Tail(far, number, size)
            scope.cancel()
    assert not TAILS.kept


async def test_who_pauses_at_the_end_gets_the_tail_when_it_reads_on(
    kernel: Fake, autojump_clock: trio.testing.MockClock
) -> None:
    async with tail(kernel) as closed:
        await trio.sleep(3_600)
        assert TAILS.kept
        heard = 0
        while data := closed.far.recv(1 << 20):
            heard += len(data)
        assert heard == closed.size
        await trio.sleep(31)
        assert not TAILS.kept
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(closed.number)


async def test_who_vanishes_behind_the_end_of_its_connection_is_reset(
    kernel: Fake, autojump_clock: trio.testing.MockClock
) -> None:
    async with tail(kernel) as closed:
        assert closed.kept is not None
        kernel.dead.add(closed.kept)
        await trio.sleep(31)
        assert not TAILS.kept
        with pytest.raises(ConnectionResetError):
            read_to_end(closed.far)


async def test_many_tails_leave_the_oldest_to_the_kernel(
    kernel: Fake,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dead_peers, "MOST_TAILS", 1)
    async with tail(kernel) as first, tail(kernel) as second:
        assert list(TAILS.kept) == [second.kept]
        assert first.kept is not second.kept
        read_to_end(first.far)


async def test_who_was_given_up_while_it_paused_is_reset_and_has_no_tail(
    kernel: Fake, autojump_clock: trio.testing.MockClock
) -> None:
    with connected() as (ours, far):
        while ours.write_now(bytes(65_536)):
            pass
        ours.asked_often = True
        tune_local(ours.socket)
        ours.give_up()
        ours.close()
        assert not TAILS.kept
        with pytest.raises(ConnectionResetError):
            read_to_end(far)
