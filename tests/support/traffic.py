"""Connections that talk at random in both directions, and know what arrived."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import trio

BLOCK: Final = random.Random(7).randbytes(1 << 20)
INDEX_BYTES: Final = 4


@dataclass
class Side:
    """What one end of a connection sent and got."""

    sent: str = ""
    got: str = ""
    sent_bytes: int = 0


@dataclass
class Traffic:
    """Random pieces at random moments on any number of connections, till ``over``.

    Args:
        seed: of what is sent and when.
        most_bytes: the largest piece.
        pause_s: the longest pause between two pieces.
    """

    seed: int
    most_bytes: int = 20_000
    pause_s: float = 0.1
    over: trio.Event = field(default_factory=trio.Event)
    broken: list[str] = field(default_factory=list)
    visitors: dict[int, Side] = field(default_factory=dict)
    targets: dict[int, Side] = field(default_factory=dict)

    async def visit(self, index: int, stream: trio.abc.HalfCloseableStream) -> None:
        """Be the visitor of connection ``index`` to its end; owns the stream."""
        async with stream:
            side = self.visitors[index] = Side()
            try:
                await stream.send_all(index.to_bytes(INDEX_BYTES, "big"))
                await self._talk(stream, random.Random(f"{self.seed}v{index}"), side)
            except* trio.BrokenResourceError:
                self.broken.append(f"visitor {index}")

    async def serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Be the target of a connection to its end; owns the stream."""
        async with stream:
            head = b""
            while len(head) < INDEX_BYTES:
                data = await stream.receive_some(INDEX_BYTES - len(head))
                if not data:
                    return
                head += bytes(data)
            index = int.from_bytes(head, "big")
            side = self.targets[index] = Side()
            try:
                await self._talk(stream, random.Random(f"{self.seed}t{index}"), side)
            except* trio.BrokenResourceError:
                self.broken.append(f"target {index}")

    async def _talk(
        self, stream: trio.abc.HalfCloseableStream, rng: random.Random, side: Side
    ) -> None:
        async def send() -> None:
            sent = sha256()
            while not self.over.is_set():
                at = rng.randrange(len(BLOCK))
                piece = BLOCK[at : at + rng.randint(1, self.most_bytes)]
                sent.update(piece)
                side.sent_bytes += len(piece)
                await stream.send_all(piece)
                with trio.move_on_after(rng.uniform(0, self.pause_s)):
                    await self.over.wait()
            side.sent = sent.hexdigest()
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got = sha256()
            async for data in stream:
                got.update(data)
            side.got = got.hexdigest()

    async def settled(self) -> None:
        """Wait until every target has had its visitor's end, or broke."""
        while not all(side.got for side in self.targets.values()) and not self.broken:  # noqa: ASYNC110
            await trio.sleep(0.02)

    def check(self, connections: int) -> int:
        """Fail unless every byte arrived once and in order; give how many did."""
        assert not self.broken
        assert len(self.visitors) == len(self.targets) == connections
        for index, visitor in self.visitors.items():
            target = self.targets[index]
            assert visitor.sent == target.got, f"to target {index}"
            assert target.sent == visitor.got, f"to visitor {index}"
        return self.sent_bytes()

    def sent_bytes(self) -> int:
        """Give how many bytes both ends of all connections have sent so far."""
        sides = (*self.visitors.values(), *self.targets.values())
        return sum(side.sent_bytes for side in sides)
