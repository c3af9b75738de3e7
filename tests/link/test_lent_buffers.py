"""What the wire has read is lent until the next read: nobody may look at it later.

The transports here hand out a buffer that is never used again, and spoil it as soon as
its reader comes for more. Whoever has kept a view of it finds other bytes there, on any
interpreter, and not only on one that is late to drop the view.
"""

from __future__ import annotations

import hashlib
import random
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.certs import tls_contexts
from support.wires import (
    Offers,
    fused_wires,
    open_one,
    session_pair,
    small_window,
    tls_pair,
)

from tunnel.link.transport import PlainTransport, Transport, send
from tunnel.net.relay import relay
from tunnel.net.sockets import FastSocket
from tunnel.proto.pace import Inflow, Meter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tunnel.link.session import Session
    from tunnel.link.transport import Buffer
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.events import Event

    Reader = Callable[["VirtualStream", "Digest"], Awaitable[None]]

SIZE = 3_000_000
SPOILT = 0xAA


class Spoiling(Transport):
    """A transport whose loans end on time."""

    def __init__(self, below: Transport) -> None:
        self._below = below
        self._lent = bytearray()
        self.loans = 0
        super().__init__(below._stream)
        self.encrypted = below.encrypted  # type: ignore[misc]

    def read_at_most(self, size: int) -> None:
        self._below.read_at_most(size)

    def _spoil(self) -> None:
        self._lent[:] = bytes([SPOILT]) * len(self._lent)

    async def receive_some(self) -> Buffer:
        self._spoil()
        self._lent = bytearray(await self._below.receive_some())
        self.loans += 1
        return memoryview(self._lent)

    def write(self, pieces: Sequence[Buffer]) -> None:
        # Unsent and unconfirmed bytes are kept by reference.
        assert all(memoryview(piece).readonly for piece in pieces)
        self._below.write(pieces)

    def owes_output(self) -> bool:
        return self._below.owes_output()

    async def flush(self) -> None:
        await self._below.flush()

    async def send_eof(self) -> None:
        await self._below.send_eof()

    async def aclose(self) -> None:
        self._spoil()
        await self._below.aclose()


async def spoiling(kind: str, split: int) -> tuple[Spoiling, Spoiling]:
    left, right, *_ = fused_wires(split=split)
    if kind == "plain":
        return Spoiling(PlainTransport(left)), Spoiling(PlainTransport(right))
    client, server = await tls_pair(left, right, tls_contexts())
    return Spoiling(client), Spoiling(server)


def content() -> bytes:
    return random.Random(20).randbytes(SIZE)


def local_pair() -> tuple[socket.socket, socket.socket]:
    far, near = socket.socketpair()
    for sock in (far, near):  # small, so that much has to wait here
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        sock.setblocking(False)
    return far, near


class Digest:
    """Of what a reader has taken."""

    def __init__(self) -> None:
        self.taken = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes | bytearray) -> None:
        self.taken += len(data)
        self._hash.update(data)

    def check(self) -> None:
        assert self.taken == SIZE
        assert self._hash.digest() == hashlib.sha256(content()).digest()


async def by_pieces(stream: VirtualStream, got: Digest) -> None:
    """Ask for odd sizes: the rest of a piece waits."""
    sizes = random.Random(6)
    while data := await stream.receive_some(sizes.randint(1, 40_000)):
        got.add(data)


async def lent_pieces(stream: VirtualStream, got: Digest) -> None:
    """Look at each piece as late as may be."""
    while piece := await stream.receive_piece():
        await trio.testing.wait_all_tasks_blocked()
        got.add(piece)


async def by_a_stalled_socket(stream: VirtualStream, got: Digest) -> None:
    """Let a program read only what is there when nothing else moves."""
    far, near = local_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, FastSocket(near), stream)
        with trio.socket.from_stdlib_socket(far) as program:
            while got.taken < SIZE:
                await trio.testing.wait_all_tasks_blocked()
                got.add(await program.recv(50_000))
            assert await program.recv(1) == b""


async def by_tasks(stream: VirtualStream, got: Digest) -> None:
    """Relay it into a stream that nobody carries."""
    far, near = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, near, stream)
        while data := await far.receive_some(30_000):
            got.add(data)
        await far.aclose()


async def by_a_sink(stream: VirtualStream, got: Digest) -> None:
    """Take a part of what comes at once, as a web answer's middle is taken."""

    def take(pieces: list[bytes | memoryview], size: int) -> int:
        part = b"".join(pieces)[: size // 2 + 1]
        got.add(part)
        return len(part)

    stream.sink = take
    while piece := await stream.receive_piece():
        got.add(piece)


READERS = (by_pieces, lent_pieces, by_a_stalled_socket, by_tasks, by_a_sink)


async def let_in_by_turns(session: Session) -> None:
    """Let in what comes at a rate: most of it waits."""

    def release(events: list[Event]) -> None:
        session.dispatch(events, paced=True)
        session.output.flush()

    meter = Meter(50_000_000, trio.current_time, lambda: None)
    session.inflow = Inflow(meter, release)
    while True:
        await trio.sleep(0.001)
        meter.tick()


@pytest.mark.parametrize("kind", ["plain", "TLS"])
@pytest.mark.parametrize("window", [20_000, 1 << 20])
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
async def test_no_reader_sees_a_byte_of_a_loan_that_is_over(
    kind: str, window: int, reader: Reader
) -> None:
    await carry(kind, window, reader)


@pytest.mark.parametrize("kind", ["plain", "TLS"])
async def test_what_waits_for_a_rate_is_no_loan(kind: str) -> None:
    await carry(kind, 1 << 20, by_pieces, at_a_rate=True)


async def carry(
    kind: str, window: int, reader: Reader, *, at_a_rate: bool = False
) -> None:
    offers, got = Offers(), Digest()
    # No border of a frame, nor of a record, is one of a read.
    ends = await spoiling(kind, split=70_001)
    async with session_pair(
        serve_server=offers, terms=small_window(window), transports=ends
    ) as sessions:
        left, right = await open_one(sessions, offers)

        async def send() -> None:
            await left.send_all(memoryview(content()))
            await left.send_eof()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                if at_a_rate:
                    nursery.start_soon(let_in_by_turns, sessions.server)
                nursery.start_soon(send)
                await reader(right, got)
                nursery.cancel_scope.cancel()
    got.check()
    assert ends[1].loans > 10


@pytest.mark.parametrize("kind", ["plain", "TLS"])
async def test_a_read_gives_what_came_though_its_size_was_changed_meanwhile(
    kind: str,
) -> None:
    left, right = await spoiling(kind, split=1 << 30)
    got: list[bytes] = []

    async def read() -> None:
        got.append(bytes(await right.receive_some()))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            right.read_at_most(4_096)
            await send(left, [b"question"])
    assert got == [b"question"]
