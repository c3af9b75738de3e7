"""A TCP relay that loses what it is told to lose: the bad network of a test.

In a trio test it is ``Lossy``. For programs that are processes it is one too: this file
as a script, told what to do on stdin, a line at a time, each answered on stdout.
"""

from __future__ import annotations

import argparse
import math
import socket
import struct
import sys
from contextlib import suppress
from typing import Final, Literal

import trio

READ_BYTES: Final = 262_144
QUEUED_READS: Final = 1_024
"""What is on its way at most; more than any line here holds."""
ROUTER_S: Final = 0.05
"""What a line with a rate queues before it slows its sender."""

Cut = Literal["rst", "fin", "hole", "change"]
CUTS: Final = ("rst", "fin", "hole", "change")


class _Wire:
    """One connection through the relay: ``near`` came in, ``far`` was dialled."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.near = near
        self.far = far
        self.lost = False
        """Whether what still comes in goes nowhere."""
        self.deaf: trio.SocketStream | None = None
        """The end that gets nothing any more, and may still speak."""
        self.scope = trio.CancelScope()

    def reset(self) -> None:
        self.lost = True
        self.scope.cancel()
        _reset(self.near)
        _reset(self.far)


class Lossy:
    """Relays TCP connections to ``host:port``, each way as badly as it is told.

    Args:
        host, port: where to.
        delay_s: how long each byte takes, one way.
        bytes_per_s: what the line carries each way; 0 means any amount.
        piece_bytes: into what sizes the bytes are split; 0 leaves them together.

    ``delay_s``, ``bytes_per_s`` and ``piece_bytes`` hold for later connections,
    everything else at once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        delay_s: float = 0.0,
        bytes_per_s: float = 0.0,
        piece_bytes: int = 0,
    ) -> None:
        self.to = (host, port)
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self.piece_bytes = piece_bytes
        self.port = 0
        self.accepts = True
        """New connections are reset while this is false."""
        self.source: str | None = None
        """The address that later connections come from, as their target sees them."""
        self.accepted = 0
        self._wires: set[_Wire] = set()
        self._stalled: trio.Event | None = None
        self._passed = 0
        self._news = trio.Event()

    async def run(
        self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Relay until cancelled; started, with the port, when it listens."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            task_status.started(self.port)

    @property
    def wires(self) -> int:
        """Connections that bytes go through."""
        return sum(not wire.lost for wire in self._wires)

    def cut(self, how: Cut) -> int:
        """Cut every connection; give how many.

        ``rst`` and ``fin`` tell both ends. ``hole`` tells nobody: sockets stay open and
        bytes vanish. ``change`` resets the near end and tells the far end nothing, as
        when a laptop moves to another network.
        """
        wires = [wire for wire in self._wires if not wire.lost]
        for wire in wires:
            wire.lost = True
            if how == "rst":
                wire.reset()
            elif how == "fin":
                for end in (wire.near, wire.far):
                    with suppress(OSError):
                        end.socket.shutdown(socket.SHUT_WR)
            elif how == "change":
                _reset(wire.near)
        return len(wires)

    def deafen(self, which: Literal["near", "far"]) -> None:
        """Let nothing more through to one end of every connection."""
        for wire in self._wires:
            wire.deaf = wire.near if which == "near" else wire.far

    def stall(self) -> None:
        """Let no byte through until ``go_on``."""
        self._stalled = self._stalled or trio.Event()

    def go_on(self) -> None:
        """End a stall; what was held goes on."""
        if self._stalled is not None:
            self._stalled.set()
            self._stalled = None

    async def passed(self, more_bytes: int) -> None:
        """Wait until so many more bytes went through, all connections together."""
        until = self._passed + more_bytes
        while self._passed < until:
            await self._news.wait()

    def _count(self, size: int) -> None:
        self._passed += size
        self._news.set()
        self._news = trio.Event()

    async def _serve(self, near: trio.SocketStream) -> None:
        if not self.accepts:
            return _reset(near)
        try:
            far = await trio.open_tcp_stream(*self.to, local_address=self.source)
        except OSError:
            return _reset(near)
        self.accepted += 1
        wire = _Wire(near, far)
        self._wires.add(wire)
        try:
            async with near, far:
                with wire.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._carry, wire, near, far)
                        nursery.start_soon(self._carry, wire, far, near)
        finally:
            self._wires.discard(wire)

    async def _carry(
        self, wire: _Wire, source: trio.SocketStream, sink: trio.SocketStream
    ) -> None:
        """Carry one direction to its end; lost bytes are read and forgotten."""
        try:
            if self.delay_s or self.bytes_per_s:
                await self._carry_slowly(wire, source, sink)
            else:
                while data := await source.receive_some(READ_BYTES):
                    await self._pass(wire, sink, data)
            if not wire.lost:
                await sink.send_eof()
        except* trio.BrokenResourceError:
            if not wire.lost:
                wire.reset()
        except* trio.ClosedResourceError:
            pass  # cut, and told so

    async def _pass(self, wire: _Wire, sink: trio.SocketStream, data: bytes) -> None:
        while self._stalled is not None:
            await self._stalled.wait()
        size = self.piece_bytes or len(data)
        try:
            for at in range(0, len(data), size):
                if wire.lost or wire.deaf is sink:
                    return
                await sink.send_all(data[at : at + size])
                self._count(len(data[at : at + size]))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # What is lost is still read: the other end must not notice.
            if not wire.lost:
                raise

    async def _carry_slowly(
        self, wire: _Wire, source: trio.SocketStream, sink: trio.SocketStream
    ) -> None:
        put, take = trio.open_memory_channel[tuple[float, bytes]](QUEUED_READS)

        async def deliver() -> None:
            async for due, data in take:
                await trio.sleep_until(due)
                await self._pass(wire, sink, data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            through = -math.inf
            with put:
                while data := await source.receive_some(16_384):
                    now = trio.current_time()
                    through = max(now, through)
                    if self.bytes_per_s:
                        through += len(data) / self.bytes_per_s
                    await put.send((through + self.delay_s, bytes(data)))
                    if through - now > ROUTER_S:
                        await trio.sleep(through - now - ROUTER_S)


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


# As a process ------------------------------------------------------------------------


def obey(relay: Lossy, line: str) -> None:
    """Do what a line says."""
    word, *rest = line.split()
    match word:
        case "rst" | "fin" | "hole" | "change":
            relay.cut(word)
        case "deafen":
            relay.deafen("near" if rest == ["near"] else "far")
        case "stall":
            relay.stall()
        case "go":
            relay.go_on()
        case "refuse":
            relay.accepts = False
        case "accept":
            relay.accepts = True
        case "source":
            relay.source = rest[0]
        case "split":
            relay.piece_bytes = int(rest[0])
        case "delay":
            relay.delay_s = float(rest[0]) / 1000
        case "count":
            pass
        case _:
            raise ValueError(line)


async def serve(relay: Lossy) -> None:
    """Run a relay until stdin ends."""
    async with trio.open_nursery() as nursery:
        print("listening", await nursery.start(relay.run), flush=True)
        commands = trio.wrap_file(sys.stdin)
        async for line in commands:
            obey(relay, line)
            print("done", line.strip(), relay.wires, flush=True)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--mbit", type=float, default=0.0)
    parser.add_argument("--piece", type=int, default=0)
    given = parser.parse_args()
    relay = Lossy(
        given.host,
        given.port,
        delay_s=given.delay_ms / 1000,
        bytes_per_s=given.mbit * 125_000,
        piece_bytes=given.piece,
    )
    trio.run(serve, relay)


if __name__ == "__main__":
    main()
