"""A request that a target answers, on a connection that is kept for the next one.

The visitor's task sends the request, and goes on reading; the carrier, a task of the
target's connection, brings the answer. So either side may speak first, and end first.

    target closes between two requests      the next one opens anew
    target closes at a safe request         asked once more, on a new connection
    target closes at any other              the visitor's connection is closed
    answer before the request's end         passed on with "Connection: close"
    answer breaks off                       its end is missing, and then closed
    nothing was done, and others are there  the caller may ask one of them
"""

from __future__ import annotations

import math
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import trio

from tunnel.errors import CODES, Code
from tunnel.front.http.answer import AnswerReader
from tunnel.front.http.bodies import BodyError, BodyReader, framed, last_chunk
from tunnel.front.http.fields import answer_lines, logs_in, trailers
from tunnel.front.http.heads import (
    HeadError,
)
from tunnel.front.http.limits import KEPT_S
from tunnel.front.http.observer import end_observation
from tunnel.front.http.pages import HttpError
from tunnel.front.http.server import (
    AHEAD_BYTES,
    READ_BYTES,
    Visit,
    VisitorGoneError,
)
from tunnel.front.http.upstream import Upstream, sink_of
from tunnel.net.sockets import wait_beside
from tunnel.net.virtual_connection import HasSink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from tunnel.front.http.heads import AnswerHead
    from tunnel.net.relay import ResettableStream

_REPEATABLE: Final = (b"GET", b"HEAD", b"OPTIONS")


class Words(NamedTuple):
    """What a front end says in place of an answer that there is not."""

    refusal: Callable[[Code], HttpError]
    """The target's connection ended like this."""
    fault: Callable[[str], HttpError]
    """The target "answered something that is not HTTP", and the like."""


class UnservedError(Exception):
    """A request was not answered, and does no harm when it is asked elsewhere."""

    def __init__(self, failure: HttpError, *, lost: bool) -> None:
        super().__init__(failure.words)
        self.failure = failure
        """The page, if there is nobody else."""
        self.lost = lost
        """The link was, and not the target."""


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
        self.failure = ""
        """What the target did in place of a whole answer."""
        self.has_others = False
        """Somebody else can be asked, if this one does nothing."""
        self.is_over = False
        self.switched = False
        """Both sides have left HTTP, and ``Visit.tunnel`` is to be relayed."""
        self.upstream: Upstream
        self._visit = visit
        self._request = visit.request
        self._head = head
        self._words = words
        self._failure: HttpError | None = None
        self._broke = False
        """The target's connection did, or ended, in place of an answer."""
        self._undone = False
        """The target got nothing of the request."""
        self._lost = False
        """The link to the target was lost, and others are there."""
        self._held: bytearray | None = bytearray()
        """The request's body so far, as it came; None when it became too long."""
        self._told = False
        """The target knows that the visitor has ended its direction."""
        self._passing = False
        """The visitor's connection takes something at this moment."""
        self._reused = False
        self._heard = False
        """The target has said something."""
        self._listens = True
        """The target takes the request."""
        self._answer = AnswerReader(visit, visit.request, lines)
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
            UnservedError: others may be asked.
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
        if not self._lost and self._may_repeat():
            self._failure, self.failure = None, ""
            self.is_over = self._reused = self._broke = self._told = False
            self._listens = True
            await self._connect(key, open_one)
            await self._ask()
            await self._wait()
        if self._lost or self._undone:
            self._pass_over()
        self._conclude()

    async def _connect(
        self, key: Hashable, open_one: Callable[[], Awaitable[ResettableStream]]
    ) -> None:
        visit = self._visit
        visit.drop_upstream()
        virtual = await open_one()
        if visit.line is not None:
            visit.line.connected(virtual)
        if visit.observer is not None:
            visit.observer.connected()
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
        if not self._listens:
            return
        visit = self._visit
        try:
            if visit.idle_s == math.inf:
                await self.upstream.virtual.put(data)
                return
            with trio.move_on_after(visit.idle_s) as limit:
                await self.upstream.virtual.put(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The carrier knows why, and may still bring an answer.
            self._listens = False
            return
        if limit.cancelled_caught:
            self._listens = False
            self._fail(self._words.refusal(Code.IDLE))

    async def _send_body(self, head: bytes) -> None:
        """Send the head and what comes of the body, to its end or the answer's."""
        visit, body = self._visit, self._visit.body
        chunked = self._request.body.chunked
        if not visit.waiting:
            await self._send(head)
            head = b""
        while not self.is_over:
            data = bytes(visit.waiting[:READ_BYTES])
            del visit.waiting[:READ_BYTES]
            try:
                pieces = self._take_body(data)
            except BodyError as error:
                self._fail(HttpError(error.status, error.words, close=True))
                return
            output = [head, *framed(pieces, chunked=chunked)]
            head = b""
            if body.done and chunked:
                output.append(last_chunk(trailers(body.trailers)))
            await self._send(b"".join(output))
            visit.moved()
            if body.done:
                return
            if visit.waiting:
                await trio.lowlevel.checkpoint()
            else:
                await self._more_body()

    def _take_body(self, data: bytes) -> list[bytes]:
        """Return the pieces of the body in what the visitor has sent."""
        visit = self._visit
        pieces, rest = visit.body.feed(data)
        if self.has_others and self._held is not None:
            self._held += data[: len(data) - len(rest)]
            if len(self._held) > AHEAD_BYTES:
                self._held = None
        if rest:
            visit.waiting[:0] = rest
        elif visit.ended and not visit.waiting:
            visit.body.end()
        if visit.observer is not None:
            visit.observer.asked(pieces)
        return pieces

    async def _wait(self) -> None:
        """Wait for the end of the answer, and notice a visitor that leaves."""
        visit = self._visit
        while not self.is_over:
            # Not while a request waits: it may go on this connection.
            if visit.ended and not (self._told or visit.waiting):
                self._told = True
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    self.upstream.virtual.finish()
            await self._more()

    async def _more_body(self) -> None:
        """Do as ``_more`` does, for as long as a body may pause."""
        visit = self._visit
        body_s = visit.limits.body_s
        if body_s == math.inf:
            await self._more()
            return
        with trio.move_on_after(body_s) as pause:
            await self._more()
        if pause.cancelled_caught:
            status, words = HTTPStatus.REQUEST_TIMEOUT, "did not come in time"
            self._fail(HttpError(status, f"the request's body {words}", close=True))

    async def _more(self) -> None:
        """Wait for bytes of the visitor, or news of the answer."""
        visit = self._visit
        if self.is_over:  # while the last bytes were sent
            return
        until = visit.moved_at + visit.idle_s if visit.idle_s < math.inf else math.inf
        if visit.ended or len(visit.waiting) >= AHEAD_BYTES:
            try:
                await wait_beside(visit.stream, visit.turn.wait, until)
            except trio.BrokenResourceError:
                visit.gone = True
                raise VisitorGoneError from None
        else:
            await visit.more(until)
        if until < math.inf and trio.current_time() >= visit.moved_at + visit.idle_s:
            self._fail(self._words.refusal(Code.IDLE))

    def _may_repeat(self) -> bool:
        return (
            self._broke
            and self._reused
            and not (self._heard or self._visit.gone)
            and self._request.method in _REPEATABLE
            and self._request.body.size == 0
        )

    def give_up(self) -> None:
        """Ask others, now that the link is lost, if it is safe (RFC 9110 §9.2.1).

        Else the answer comes when the link does.
        """
        upstream = self._visit.upstream
        if (
            isinstance(upstream, Upstream)
            and upstream.exchange is self
            and not (self._heard or self._visit.gone)
            and self._request.method in _REPEATABLE
            and self._request.body.size == 0
        ):
            self._lost = True
            self.broke(Code.LINK_LOST)

    def _pass_over(self) -> None:
        """Leave the request to others, with its body as it came.

        Raises:
            UnservedError: they may have it.
        """
        visit, failure, held = self._visit, self._failure, self._held
        if failure is None or failure.close or visit.gone or held is None:
            return
        if held:
            visit.waiting[:0] = held
            visit.body = BodyReader(self._request.body)
        raise UnservedError(failure, lost=self._lost) from None

    def _conclude(self) -> None:
        """Say how it has ended."""
        visit = self._visit
        if visit.gone:
            raise VisitorGoneError
        if self._failure is None:
            return
        if not visit.answering:
            cut = self._broke and self._reused and not self._heard
            if cut and not self._failure.close:
                visit.may_go_on = False  # whether it was served, only the target knows
                return
            if self._passing:  # a part of something is out
                raise VisitorGoneError
            self._raise_failure()
        visit.may_go_on = False
        answer = self._answer.head
        if self._request.http_1_0 and (answer is None or answer.body.size is None):
            raise VisitorGoneError

    def _raise_failure(self) -> NoReturn:
        failure, self._failure = self._failure, None
        assert failure is not None  # noqa: S101 - looked at before
        try:
            raise failure
        finally:  # it holds this frame, and must not be held by it
            del failure

    # The carrier's task --------------------------------------------------------------

    async def hear(self, data: bytes) -> None:
        """Take what the target says."""
        self._heard = True
        self._visit.moved()
        answer, output = self._answer, list[bytes]()
        try:
            if answer.head is None:
                data = answer.read_heads(data, output)
                self.status, self.switched = answer.status, answer.switched
                if self.status < HTTPStatus.OK:
                    await self._pass(output)
                    if self.switched and not self.is_over:
                        self._leave_http()
                    return
                self._lend()
            rest = answer.read_body(data, output)
            while rest and not answer.body.done:  # there are many small chunks
                await self._pass(output)
                await trio.lowlevel.checkpoint()
                if self.is_over:
                    return
                output = []
                rest = answer.read_body(rest, output)
        except HeadError as error:
            self._fault(error.words)
            return
        await self._pass(output)
        if answer.body.done and not self.is_over:
            self._finish(rest)

    def _lend(self) -> None:
        """Have the middle of a large body passed on without the carrier."""
        virtual, body = self.upstream.virtual, self._answer.body
        if body.certain > READ_BYTES and isinstance(virtual, HasSink):
            virtual.sink, self._sinks = sink_of(self._visit, body), virtual

    def _leave_http(self) -> None:
        upstream, visit = self.upstream, self._visit
        visit.tunnel, visit.upstream = upstream.virtual, None
        upstream.exchange = None  # they held each other
        self.is_over = True
        visit.poke()

    async def hear_end(self) -> None:
        """Take the end of what the target says."""
        output: list[bytes] = []
        if self._answer.head is None:
            if self._heard:
                self._fault("broke off within its answer's head")
            else:
                self.broke(Code.NORMAL)
            return
        try:
            self._answer.end(output)
        except BodyError:
            self._fault("broke off within its answer")
            return
        await self._pass(output)
        if not self.is_over:
            self._finish(b"")

    async def _pass(self, output: list[bytes]) -> None:
        data = output[0] if len(output) == 1 else b"".join(output)
        if not data:
            return
        self._passing = True
        try:
            await self._visit.put(data)
        except trio.BrokenResourceError:
            self._visit.gone = True
            self._fail(self._words.refusal(Code.RESET))
            return
        self._passing = False

    def broke(self, code: Code) -> None:
        """Take that the target's connection is no more."""
        if self.is_over:
            return
        self._broke = True
        self._undone = (
            self.has_others
            and CODES[code].retry_safe
            and not (self._reused or self._heard)
        )
        failure = self._words.refusal(code)
        self.failure = failure.words
        self._fail(failure)

    def _fault(self, words: str) -> None:
        if not self.is_over:
            self.failure = words
            self._fail(self._words.fault(words))

    def _fail(self, failure: HttpError) -> None:
        if self.is_over:
            return
        self._failure = failure
        if self._visit.observer is not None:
            self._visit.observer.failed(failure.words)
        self.upstream.drop()
        self._end()

    def _finish(self, behind: bytes) -> None:
        """Keep the target's connection if it can be kept."""
        upstream, visit, answer = self.upstream, self._visit, self._answer.head
        assert answer is not None  # noqa: S101 - its body has ended
        if visit.body.done:
            upstream.exchange = None  # else its end is a reset
        kept = (
            visit.body.done
            and answer.keeps_connection
            and not (behind or self._told)
            and not (visit.shared and logs_in((*self._request.fields, *answer.fields)))
        )
        if kept and visit.may_go_on:
            visit.idle_since = trio.current_time()
            upstream.idle_until = visit.idle_since + KEPT_S
        else:
            upstream.drop()
        if visit.observer is not None:
            end_observation(visit, visit.observer)
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
