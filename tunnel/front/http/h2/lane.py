"""One stream of HTTP/2, and the connection of HTTP/1.1 that it is to the engine."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.front.http.bodies import BodyReader
from tunnel.front.http.h2.messages import answer_fields, trailer_fields
from tunnel.front.http.heads import NO_BODY, end_of_answer, read_answer
from tunnel.net.notify import Notify

if TYPE_CHECKING:
    from tunnel.front.http.h2.messages import Fields, Request
    from tunnel.front.http.heads import AnswerHead
    from tunnel.platform.sockets import Buffer

READ_BYTES: Final = 65_536
"""Lent to the engine at once."""
_ANY_FIELDS: Final = 1_000_000
"""The engine has counted them."""


class Wire(Protocol):
    """What a stream needs of its connection: ``visitor.VisitorConnection``."""

    def took(self, stream: Stream, size: int) -> None:  # pragma: no cover
        """Give so much of the windows back."""
        ...

    def say_head(
        self, stream: Stream, fields: Fields, *, end: bool
    ) -> None:  # pragma: no cover
        """Send a head or trailers; BrokenResourceError: the stream is over."""
        ...

    async def say_body(
        self, stream: Stream, data: bytes, *, end: bool
    ) -> None:  # pragma: no cover
        """Send of a body, as the windows allow; BrokenResourceError as above."""
        ...

    def answered(self, lane: Lane, stream: Stream) -> None:  # pragma: no cover
        """Take that the answer is whole."""
        ...

    def left(self, lane: Lane) -> None:  # pragma: no cover
        """Take that the engine closed a lane."""
        ...


class Stream:
    """One request, as HTTP/1.1 has it, and where its answer is."""

    __slots__ = (
        "_answer", "_buffer", "_pieces", "body", "broken", "came_at", "done", "ended",
        "held", "lane", "number", "request", "taken",
    )  # fmt: skip

    def __init__(self, number: int, request: Request, *, ended: bool) -> None:
        self.number = number
        self.request = request
        self.ended = ended
        """All of the request has come."""
        self.broken = False
        """The visitor gave it up, or its connection did."""
        self.done = False
        """Its answer is whole."""
        self.taken = False
        """The engine has begun to read it."""
        self.held = 0
        """Bytes of its body that wait here, as the windows count them."""
        self.came_at = trio.current_time()
        self.lane: Lane | None = None
        self.body = BodyReader(NO_BODY)
        self._answer: AnswerHead | None = None
        self._buffer = bytearray()
        self._pieces: deque[tuple[bytes, int]] = deque([(request.head, 0)])

    @property
    def has_answered(self) -> bool:
        """The final answer has begun."""
        return self._answer is not None

    def add(self, data: bytes, held: int) -> None:
        """Take what came, which counts ``held`` in the windows."""
        self._pieces.append((data, held))
        self.held += held
        if self.lane is not None:
            self.lane.ring()

    def take(self) -> tuple[bytes, int]:
        """Return bytes for the engine, and their part of the windows; maybe none."""
        pieces, size, held = list[bytes](), 0, 0
        while self._pieces and size < READ_BYTES:
            data, part = self._pieces.popleft()
            pieces.append(data)
            size += len(data)
            held += part
        self.held -= held
        return b"".join(pieces), held

    def drop(self) -> int:
        """Forget what was not taken; return its part of the windows."""
        held, self.held = self.held, 0
        self._pieces.clear()
        return held

    async def answer(self, wire: Wire, data: bytes) -> None:
        """Send what the engine answers."""
        if self._answer is None:
            data = self._read_heads(wire, data)
            if self._answer is None:
                return
        while data and not self.done:
            pieces, data = self.body.feed(data)
            piece = b"".join(pieces)
            trailers = self.body.trailers
            end = self.body.done and not trailers
            if piece or end:
                await wire.say_body(self, piece, end=end)
            if self.body.done:
                if trailers:
                    wire.say_head(self, trailer_fields(trailers), end=True)
                self.done = True

    def _read_heads(self, wire: Wire, data: bytes) -> bytes:
        while True:
            self._buffer += data
            size = end_of_answer(self._buffer, 0)
            if not size:
                return b""
            raw, data = bytes(self._buffer[:size]), bytes(self._buffer[size:])
            self._buffer.clear()
            head = read_answer(raw, self.request.method, _ANY_FIELDS)
            if head.status >= 200:
                self._answer = head
                self.body = BodyReader(head.body)
                wire.say_head(self, answer_fields(head), end=self.body.done)
                self.done = self.body.done
                return data
            wire.say_head(self, answer_fields(head), end=False)
            if not data:
                return b""

    @property
    def is_last(self) -> bool:
        """The engine has said that it takes no other on this lane."""
        return self._answer is None or b"close" in self._answer.connection


class Lane(trio.abc.HalfCloseableStream):
    """What the engine takes for a visitor's connection: one stream after the other."""

    def __init__(self, wire: Wire) -> None:
        self.stream: Stream | None = None
        self.authority = b""
        """That was asked for last: its target may be kept."""
        self.is_over = False
        """It takes no other stream."""
        self._wire = wire
        self._news = Notify()

    def ring(self) -> None:
        """Have the engine look."""
        self._news.ring()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes of a request; nothing when no other comes.

        Raises:
            trio.BrokenResourceError: the visitor gave up what is answered.
        """
        del max_bytes
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            stream = self.stream
            if stream is not None:
                if stream.broken:
                    raise trio.BrokenResourceError("the visitor gave this up")
                data, held = stream.take()
                if data:
                    stream.taken = True
                    if held:
                        self._wire.took(stream, held)
                    return data
            if self.is_over:
                return b""
            await self._news.wait()

    async def send_all(self, data: Buffer) -> None:
        """Send of an answer; return when the visitor's connection takes it.

        Raises:
            trio.BrokenResourceError: the visitor gave it up.
        """
        stream = self.stream
        if stream is None or stream.broken:
            raise trio.BrokenResourceError("nobody waits for this")
        await stream.answer(self._wire, bytes(data))
        if stream.done:
            self.is_over = self.is_over or stream.is_last
            self.stream = None
            self._wire.answered(self, stream)

    async def wait_send_all_might_not_block(self) -> None:
        """Do not wait: ``send_all`` does."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Take no other stream."""
        self._leave()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Take no other stream, and give up the one that has no whole answer."""
        self._leave()
        await trio.lowlevel.checkpoint()

    def _leave(self) -> None:
        self.is_over = True
        self._wire.left(self)
        self.ring()
