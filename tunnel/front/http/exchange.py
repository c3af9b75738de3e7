"""A request that a target answers, on a connection that is kept for the next one.

The visitor's task sends the request, and goes on reading; the carrier, a task of the
target's connection, brings the answer. So either side may speak first, and end first.

    target closes between two requests      the next one opens anew
    target closes at a safe request         asked once more, on a new connection
    target closes at any other              the visitor's connection is closed
    answer before the request's end         passed on with "Connection: close"
    answer breaks off                       its end is missing, and then closed
"""

from __future__ import annotations

import math
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.errors import Code, StreamError
from tunnel.front.http.bodies import BodyError, BodyReader, framed, last_chunk
from tunnel.front.http.fields import answer_lines, trailers
from tunnel.front.http.heads import (
    NO_BODY,
    HeadError,
    end_of_answer,
    read_answer,
    values,
)
from tunnel.front.http.server import (
    CHUNKED_READ_BYTES,
    HEAD_BYTES,
    READ_BYTES,
    HttpError,
    Visit,
    VisitorGoneError,
    head_bytes,
)
from tunnel.net.sockets import quick
from tunnel.net.virtual_connection import HasSink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from tunnel.front.http.heads import AnswerHead
    from tunnel.net.relay import ResettableStream
    from tunnel.net.virtual_connection import Sink

ANSWER_HEAD_BYTES: Final = 131_072
ANSWER_FIELDS: Final = 300
KEPT_S: Final = 4.0
"""A target's connection without a request: Node closes one after 5 s."""
_REPEATABLE: Final = (b"GET", b"HEAD", b"OPTIONS")


class Upstream:
    """A connection to a target, for one visitor's connection alone.

    Args:
        visit: the visitor.
        virtual: the connection; owned.
        key: what it may be used again for.
    """

    def __init__(self, visit: Visit, virtual: ResettableStream, key: Hashable) -> None:
        self.virtual = virtual
        self.key = key
        self.exchange: Exchange | None = None
        """What is being answered."""
        self.idle_until = math.inf
        self.is_over = False
        """It was closed, or has broken."""
        self._visit = visit

    def drop(self) -> None:
        """Close it, or reset it if something was under way."""
        if not self.is_over:
            self.is_over = True
            if self.exchange is None:
                self.virtual.close()
            else:
                self.virtual.reset(Code.RESET)

    async def carry(self) -> None:
        """Bring the answers, until it is over or has left HTTP."""
        try:
            while not self.is_over:
                piece = await self.virtual.receive_piece()
                exchange = self.exchange
                if exchange is None:  # its end, or bytes that nobody asked for
                    self.drop()
                    self._visit.poke()
                elif not piece:
                    await exchange.hear_end()
                    return
                else:
                    await exchange.hear(bytes(piece))
                    if exchange.switched:
                        return
                del piece, exchange  # until the next answer, they would be held here
        except trio.ClosedResourceError:
            pass  # dropped by the visitor's task
        except trio.BrokenResourceError as error:
            self.is_over = True
            if self.exchange is not None:
                self.exchange.broke(_code_of(error))
            else:
                self._visit.poke()


def _code_of(error: trio.BrokenResourceError) -> Code:
    cause = error.__cause__
    return cause.code if isinstance(cause, StreamError) else Code.RESET


def _sink(visit: Visit, body: BodyReader) -> Sink:
    """Return what passes on the middle of a body of known size as it comes.

    A turn of the carrier for each piece would cost as much as copying it. The first
    piece, the last, and what the visitor's socket does not take at once are the
    carrier's; while it has something, nothing comes here.
    """
    write_now = quick(visit.stream).write_now

    def take(pieces: list[bytes | memoryview], size: int) -> int:
        if size > body.certain:
            return 0
        taken = write_now(*pieces)
        body.skip(taken)
        visit.moved()
        return taken

    return take


class Words(NamedTuple):
    """What a front end says in place of an answer that there is not."""

    refusal: Callable[[Code], HttpError]
    """The target's connection ended like this."""
    fault: Callable[[str], HttpError]
    """The target "answered something that is not HTTP", and the like."""


class Exchange:
    """One request and its answer.

    Args:
        visit: the visitor, whose last request this is.
        head: of the request, as the target gets it.
        words: for pages of ours.
        lines: makes the fields of the answer that go on.
    """

    def __init__(
        self,
        visit: Visit,
        head: bytes,
        words: Words,
        lines: Callable[[AnswerHead], list[bytes]] = answer_lines,
    ) -> None:
        assert visit.request is not None  # noqa: S101 - it was read
        self.status = 0
        """Of the final answer, once it has begun."""
        self.is_over = False
        self.switched = False
        """Both sides have left HTTP, and ``Visit.tunnel`` is to be relayed."""
        self.upstream: Upstream
        self._visit = visit
        self._request = visit.request
        self._head = head
        self._words = words
        self._lines = lines
        self._failure: HttpError | None = None
        self._reused = False
        self._heard = False
        """The target has said something."""
        self._listens = True
        """The target takes the request."""
        self._buffer = bytearray()
        """Of an answer's head that is not whole."""
        self._answer: AnswerHead | None = None
        self._body = BodyReader(NO_BODY)
        self._chunked = False
        """The visitor gets the answer's body in chunks."""
        self._sinks: HasSink | None = None
        """The target's connection, while it passes on a large body by itself."""

    # The visitor's task --------------------------------------------------------------

    async def run(
        self, key: Hashable, open_one: Callable[[], Awaitable[ResettableStream]]
    ) -> None:
        """Return when the visitor has the whole answer, or both have left HTTP.

        Args:
            key: a kept connection is used again for the same one only.
            open_one: connects to the target; raises StreamError.

        Raises:
            StreamError: from ``open_one``.
            HttpError: there is no answer; this is ours.
            VisitorGoneError: the visitor left, or must not take the answer for whole.
        """
        visit = self._visit
        kept = visit.upstream
        self._reused = (
            isinstance(kept, Upstream) and not kept.is_over and kept.key == key
        )
        if not self._reused:
            await self._connect(key, open_one)
        await self._ask()
        await self._wait()
        if self._may_repeat():
            self._failure, self.is_over, self._reused = None, False, False
            await self._connect(key, open_one)
            await self._ask()
            await self._wait()
        self._conclude()

    async def _connect(
        self, key: Hashable, open_one: Callable[[], Awaitable[ResettableStream]]
    ) -> None:
        visit = self._visit
        visit.drop_upstream()
        virtual = await open_one()
        visit.upstream = upstream = Upstream(visit, virtual, key)
        assert visit.nursery is not None  # noqa: S101 - requests are answered in it
        visit.nursery.start_soon(upstream.carry)

    async def _ask(self) -> None:
        visit = self._visit
        assert isinstance(visit.upstream, Upstream)  # noqa: S101 - ``_connect``
        self.upstream = visit.upstream
        self.upstream.exchange = self
        self.upstream.idle_until = math.inf
        visit.moved()
        if visit.body.done:
            await self._send(self._head)
        else:
            await self._send_body(self._head)

    async def _send(self, data: bytes) -> None:
        if self._listens:
            try:
                await self.upstream.virtual.put(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The carrier knows why, and may still bring an answer.
                self._listens = False

    async def _send_body(self, head: bytes) -> None:
        """Send the head and what comes of the body, to its end or the answer's."""
        visit, body = self._visit, self._visit.body
        chunked = self._request.body.chunked
        most = CHUNKED_READ_BYTES if chunked else READ_BYTES
        if not visit.waiting:
            await self._send(head)
            head = b""
        while not self.is_over:
            data = bytes(visit.waiting[:most])
            del visit.waiting[:most]
            try:
                pieces, rest = body.feed(data)
                if visit.ended and not visit.waiting:
                    body.end()
            except BodyError as error:
                self._fail(HttpError(error.status, error.words, close=True))
                return
            output = [head, *framed(pieces, chunked=chunked)]
            head = b""
            if body.done:
                visit.waiting[:0] = rest
                if chunked:
                    output.append(last_chunk(trailers(body.trailers)))
            await self._send(b"".join(output))
            visit.moved()
            if body.done:
                return
            if visit.waiting:
                await trio.lowlevel.checkpoint()
            else:
                await self._more(most)

    async def _wait(self) -> None:
        """Wait for the end of the answer, and notice a visitor that leaves."""
        visit = self._visit
        is_told = False
        while not self.is_over:
            if visit.ended and not is_told:
                is_told = True
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    self.upstream.virtual.finish()
            await self._more(READ_BYTES)

    async def _more(self, most: int) -> None:
        """Wait for bytes of the visitor, or news of the answer."""
        visit = self._visit
        if self.is_over:  # while the last bytes were sent
            return
        until = visit.moved_at + visit.idle_s if visit.idle_s < math.inf else math.inf
        if visit.ended or len(visit.waiting) >= HEAD_BYTES:
            with trio.move_on_at(until):
                await visit.turn.wait()
        else:
            await visit.more(until, most)
        if until < math.inf and trio.current_time() >= visit.moved_at + visit.idle_s:
            self._fail(self._words.refusal(Code.IDLE))

    def _may_repeat(self) -> bool:
        return (
            self._failure is not None
            and self._reused
            and not (self._heard or self._visit.gone)
            and self._request.method in _REPEATABLE
            and self._request.body.size == 0
        )

    def _conclude(self) -> None:
        """Say how it has ended."""
        visit, failure = self._visit, self._failure
        self._failure = None  # raised, it would hold us
        if visit.gone:
            raise VisitorGoneError
        if failure is None:
            return
        if not visit.answering:
            if self._reused and not self._heard and not failure.close:
                visit.may_go_on = False  # whether it was served, only the target knows
                return
            raise failure
        visit.may_go_on = False
        if self._request.http_1_0 and not self._body_is_sized():
            raise VisitorGoneError

    def _body_is_sized(self) -> bool:
        return self._answer is not None and self._answer.body.size is not None

    # The carrier's task --------------------------------------------------------------

    async def hear(self, data: bytes) -> None:
        """Take what the target says."""
        self._heard = True
        self._visit.moved()
        output: list[bytes] = []
        try:
            if self._answer is None:
                data = self._read_heads(data, output)
                if self.status < HTTPStatus.OK:
                    await self._pass(output)
                    if self.switched:
                        self._visit.tunnel = self.upstream.virtual
                        self.is_over = True
                        self._visit.poke()
                    return
            rest = self._read_body(data, output)
        except HeadError as error:
            self._fail(self._words.fault(error.words))
            return
        await self._pass(output)
        if self._body.done and not self.is_over:
            self._finish(rest)

    def _read_heads(self, data: bytes, output: list[bytes]) -> bytes:
        """Read interim answers and the head of the final one; return what is behind."""
        buffer = self._buffer
        while True:
            seen = len(buffer)
            buffer += data
            size = end_of_answer(buffer, seen)
            if (size or len(buffer)) > ANSWER_HEAD_BYTES:
                raise HeadError(
                    HTTPStatus.BAD_GATEWAY,
                    f"answered with a head of more than {ANSWER_HEAD_BYTES} bytes",
                )
            if not size:
                return b""
            raw, data = bytes(buffer[:size]), bytes(buffer[size:])
            buffer.clear()
            head = read_answer(raw, self._request.method, ANSWER_FIELDS)
            if head.status >= HTTPStatus.OK:
                output.append(self._final(head))
                return data
            if head.status == HTTPStatus.SWITCHING_PROTOCOLS:
                output += [self._switch(head), data]
                return b""
            if not self._request.http_1_0:
                lines = answer_lines(head)
                output.append(head_bytes(head.status, head.reason, lines))
            if not data:
                return b""

    def _switch(self, head: AnswerHead) -> bytes:
        if not self._request.upgrade:
            raise HeadError(
                HTTPStatus.BAD_GATEWAY, "switched to a protocol that nobody asked for"
            )
        self.status = head.status
        self.switched = self._visit.answering = True
        upgrade = next(iter(values(head.fields, b"upgrade")), self._request.upgrade)
        lines = [
            *self._lines(head), b"Connection: Upgrade", b"Upgrade: " + upgrade
        ]  # fmt: skip
        return head_bytes(head.status, head.reason, lines)

    def _final(self, head: AnswerHead) -> bytes:
        self._answer, self._body = head, BodyReader(head.body)
        virtual = self.upstream.virtual
        if self._body.certain > READ_BYTES and isinstance(virtual, HasSink):
            virtual.sink, self._sinks = _sink(self._visit, self._body), virtual
        self.status = head.status
        lines = self._lines(head)
        self._chunked = head.body.size is None and not self._request.http_1_0
        if self._chunked:
            lines.append(b"Transfer-Encoding: chunked")
        return self._visit.head(head.status, lines, head.reason)

    def _read_body(self, data: bytes, output: list[bytes]) -> bytes:
        pieces, rest = self._body.feed(data)
        output += framed(pieces, chunked=self._chunked)
        if self._body.done and self._chunked:
            output.append(last_chunk(trailers(self._body.trailers)))
        return rest

    async def hear_end(self) -> None:
        """Take the end of what the target says."""
        if self._answer is None:
            if self._heard:
                self._fail(self._words.fault("broke off within its answer's head"))
            else:
                self.broke(Code.NORMAL)
            return
        try:
            self._body.end()
        except BodyError:
            self._fail(self._words.fault("broke off within its answer"))
            return
        if self._chunked:
            await self._pass([last_chunk([])])
        if not self.is_over:
            self._finish(b"")

    async def _pass(self, output: list[bytes]) -> None:
        data = output[0] if len(output) == 1 else b"".join(output)
        if not data:
            return
        try:
            await self._visit.put(data)
        except trio.BrokenResourceError:
            self._visit.gone = True
            self._fail(self._words.refusal(Code.RESET))

    def broke(self, code: Code) -> None:
        """Take that the target's connection is no more."""
        self._fail(self._words.refusal(code))

    def _fail(self, failure: HttpError) -> None:
        if self.is_over:
            return
        self._failure = failure
        self.upstream.drop()
        self._end()

    def _finish(self, behind: bytes) -> None:
        """Keep the target's connection if it can be kept."""
        upstream, visit, answer = self.upstream, self._visit, self._answer
        assert answer is not None  # noqa: S101 - its body has ended
        if visit.body.done:
            upstream.exchange = None  # else its end is a reset
        kept = visit.body.done and answer.keeps_connection and not behind
        if kept and visit.may_go_on:
            visit.idle_since = trio.current_time()
            upstream.idle_until = visit.idle_since + KEPT_S
        else:
            upstream.drop()
        self._end()

    def _end(self) -> None:
        self.is_over = True
        upstream, visit = self.upstream, self._visit
        upstream.exchange = None
        if self._sinks is not None:
            self._sinks.sink = None
        if upstream.is_over or visit.waiting or visit.ended:
            visit.poke()
        else:
            visit.look_until(upstream.idle_until)
