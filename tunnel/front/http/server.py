"""One visitor's HTTP/1 connection: strict requests in, whole answers out.

One task reads what the visitor says, request by request. While a target answers,
another one carries its answer (``exchange``), and the first goes on reading: so it
notices a visitor that leaves, and has the next request as soon as it is its turn.

This module routes nothing and knows nobody but the visitor.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import Code
from tunnel.front.http.access_line import RequestLine, new_line
from tunnel.front.http.bodies import BodyReader
from tunnel.front.http.heads import (
    HTTP_2,
    NO_BODY,
    OPEN,
    HeadError,
    RequestHead,
    end_of_request,
    read_request,
    tokens,
)
from tunnel.front.http.limits import BETWEEN_S, HEAD_S, LIMITS, LINGER_S, PAGE_S
from tunnel.front.http.observer import Guarded, Tapped, request_over
from tunnel.front.http.pages import HttpError, bad_request, head_bytes, page
from tunnel.front.http.request import by_name
from tunnel.net.carry import carry
from tunnel.net.notify import Notify
from tunnel.net.relay import GRACE_S, reset_socket
from tunnel.net.sockets import quick
from tunnel.net.timeouts import TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from tunnel.addresses import Address
    from tunnel.front.http.kept import Kept
    from tunnel.front.http.observer import Watch
    from tunnel.front.http.request import Request
    from tunnel.net.relay import ResettableStream

AHEAD_BYTES: Final = 65_536
"""Read of the requests behind one that is being answered, to notice who leaves."""
READ_BYTES: Final = 65_536


class VisitorGoneError(Exception):
    """The visitor's connection is dead, or must not seem to have ended well."""


class Visit:
    """A visitor and what it asks, request by request.

    Args:
        stream: the caller closes it, best with ``leave``.
        peer: the visitor's address.
        secure: it came over TLS.
        early: was read from the stream before.
        head_s: for the head of each request.
        keep_alive_s: between two requests.
        read: makes a request of its head; raises HttpError.
        http_2: serves a visitor that speaks it; None: none may.
        watch: looks at the requests.
    """

    __slots__ = (
        "_head_s",
        "_keep_alive_s",
        "_last",
        "_read",
        "_reading",
        "_served",
        "answering",
        "body",
        "ended",
        "ends",
        "gone",
        "host",
        "http_2",
        "idle_s",
        "idle_since",
        "left",
        "limits",
        "line",
        "made",
        "may_go_on",
        "moved_at",
        "nursery",
        "observer",
        "peer",
        "put",
        "refused",
        "request",
        "secure",
        "shared",
        "stream",
        "tunnel",
        "turn",
        "upstream",
        "waiting",
        "watch",
    )

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        peer: Address,
        *,
        secure: bool = False,
        early: bytes = b"",
        head_s: float = HEAD_S,
        keep_alive_s: float = BETWEEN_S,
        read: Callable[[RequestHead], Request] | None = None,
        http_2: Callable[[Visit], Awaitable[None]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.stream, self.peer, self.secure, self.http_2 = stream, peer, secure, http_2
        self.host = ""
        """That was asked for last; for the log."""
        self.shared = False
        """A proxy that is trusted may bring several people on this connection."""
        self.ends = False  # with the next answer: it is to come to another process
        self.waiting = bytearray(early)
        """What the visitor has sent behind what was used so far."""
        self.ended = False
        """The visitor's direction has ended."""
        self.gone = False
        """Its connection is dead."""
        self.request: RequestHead | None = None
        """The last one, once its head was read."""
        self.body = BodyReader(NO_BODY)  # of that request
        self.line: RequestLine | None = None  # of the last request
        self.observer: Guarded | None = None  # of the last request
        self.answering = False
        """A part of the final answer is out."""
        self.may_go_on = True
        """The last answer said that another request may follow."""
        self.upstream: Kept | None = None
        """The target's connection that is kept."""
        self.refused = ""
        """Why the visitor was shown out before its request reached a front end."""
        self.tunnel: ResettableStream | None = None
        """To be relayed from here on: both sides have left HTTP."""
        self.left: Callable[[], None] | None = None
        """Called when what is relayed has ended."""
        self.nursery: trio.Nursery | None = None
        """Where the carrier of answers runs."""
        self.idle_since: float | None = None
        """When the last answer ended; None while there is one."""
        self.moved_at = 0.0
        """When bytes last passed; kept only where that ends an exchange."""
        self.idle_s = TIMEOUTS.get().idle_s
        self.limits = LIMITS.get()
        self.put = quick(stream).put
        self.turn = Notify()
        self._read, self.watch = read or by_name, watch
        self._last: tuple[bytes, Request] | None = None
        """The last request, and its bytes: many ask for the same again."""
        self.made: tuple[Request, Hashable, bytes, Address] | None = None
        """What a front end made of a request: for whom, the head, and the visitor."""
        self._reading: trio.CancelScope | None = None
        self._head_s, self._keep_alive_s = head_s, keep_alive_s
        self._served = False

    # Hearing -------------------------------------------------------------------------

    async def more(self, deadline: float = math.inf) -> None:
        """Wait for bytes, the end, the deadline or ``poke``; the fields tell which.

        Raises:
            VisitorGoneError: the visitor's connection is dead.
        """
        with trio.CancelScope(deadline=deadline) as self._reading:
            try:
                data = await self.stream.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                self.gone = True
                raise VisitorGoneError from None
            if data:
                self.waiting += data
            else:
                self.ended = True

    def poke(self) -> None:
        """Have the reading task look at what has happened."""
        if self._reading is not None:
            self._reading.cancel()
        self.turn.ring()

    def moved(self) -> None:
        """Note that bytes have passed."""
        if self.idle_s < math.inf:
            self.moved_at = trio.current_time()

    def look_until(self, deadline: float) -> None:
        """Have the reading task wait no longer than until then."""
        if self._reading is not None:
            self._reading.deadline = deadline

    async def next_head(self) -> int:
        """Wait for the head of the next request, and return its length.

        0: there is none. -1: the target's connection was given up; ask again.

        Raises:
            HttpError: it is none that could be served; answer and ``leave``.
            VisitorGoneError: the visitor's connection is dead.
        """
        if self.idle_since is None:
            self.idle_since = trio.current_time()
        # A browser opens connections before it needs them: their silence is no fault.
        patience_s = self._keep_alive_s if self._served else self._head_s
        deadline = self.idle_since + patience_s
        while not self._has_begun():
            if self.ended or trio.current_time() >= deadline:
                return 0
            upstream = self.upstream
            idle_until = upstream.idle_until if upstream else deadline
            await self.more(min(deadline, idle_until))
            if upstream is not None and self._is_idle(upstream):
                self.drop_upstream()
                if not self.waiting:
                    return -1
        return await self._whole_head()

    async def _whole_head(self) -> int:
        seen, deadline = 0, math.inf
        while not (size := self._head_size(seen)):
            if self.ended:
                raise bad_request("the request ended within its head")
            if not seen:
                deadline = trio.current_time() + self._head_s
            elif trio.current_time() >= deadline:
                status, words = HTTPStatus.REQUEST_TIMEOUT, "did not come in time"
                raise HttpError(status, f"the request {words}", close=True)
            seen = len(self.waiting)
            await self.more(deadline)
        return size

    def _is_idle(self, upstream: Kept) -> bool:
        return upstream.is_over or trio.current_time() >= upstream.idle_until

    def _has_begun(self) -> bool:
        waiting = self.waiting
        while waiting.startswith(b"\r\n"):  # RFC 9112 §2.2
            del waiting[:2]
        return bool(waiting) and waiting != b"\r"

    def _head_size(self, seen: int) -> int:
        try:
            size = end_of_request(self.waiting, seen)
        except HeadError as error:
            raise _refused(error) from None
        if (size or len(self.waiting)) > self.limits.head_bytes:
            raise HttpError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"a head may have {self.limits.head_bytes} bytes", close=True,
            )  # fmt: skip
        return size

    def take_request(self, size: int) -> Request:
        """Return the request whose head has so many bytes.

        The same object as last time if the bytes are the same.

        Raises:
            HttpError: two could read it in two ways; answer and ``leave``.
        """
        raw = bytes(self.waiting[:size])
        del self.waiting[:size]
        self._served, self.idle_since, self.http_2 = True, None, None
        self.answering, self.may_go_on = False, False
        self.request = None
        if self.watch is not None:
            self.observer = Guarded.begin(self.watch, self.peer, raw)
        try:
            last = self._last
            if last is not None and last[0] == raw:
                self.request = head = last[1].head
                self.body = BodyReader(head.body)
                return last[1]
            head = read_request(raw, self.limits.fields)
            self.request = head
            self.body = BodyReader(head.body)
            request = self._read(head)
            self._last = raw, request
            return request
        except HeadError as error:
            raise _refused(error) from None

    # Answering -----------------------------------------------------------------------

    def head(self, status: int, lines: Sequence[bytes], reason: bytes = b"") -> bytes:
        """Begin the final answer; return its head as bytes.

        An answer that comes before the request's end is the last.
        """
        self.answering = True
        if self.line is not None:
            self.line.status = status
        request = self.request
        keep = self.body.done and request is not None and request.keeps_connection
        self.may_go_on = keep and not (self.ends or request is None or request.http_1_0)
        close = () if self.may_go_on else (b"Connection: close",)
        output = head_bytes(status, reason, [*lines, *close])
        if self.observer is not None:
            self.observer.answers(status, output)
        return output

    async def send(self, data: bytes, within_s: float = math.inf) -> None:
        """Send to the visitor.

        Raises:
            VisitorGoneError: its connection is dead, or it does not read.
        """
        if self.observer is not None:
            self.observer.sent(data)
        with trio.move_on_after(min(within_s, self.idle_s)) as limit:
            try:
                await self.stream.send_all(data)
            except trio.BrokenResourceError:
                self.gone = True
                raise VisitorGoneError from None
        if limit.cancelled_caught:
            raise VisitorGoneError

    async def say(self, error: HttpError) -> None:
        """Answer with a small page, unless another answer has begun."""
        if self.answering:
            raise VisitorGoneError
        request = self.request
        html = request is not None and any(
            word.startswith(b"text/html") for word in tokens(request.fields, b"accept")
        )
        lines, text = page(error, html=html)
        if error.close:
            self.body = BodyReader(OPEN)
        if (
            self.observer is not None
            and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        ):
            self.observer.failed(error.words)
        output = self.head(error.status, lines, error.status.phrase.encode())
        if request is None or request.method != b"HEAD":
            output += text
        await self.send(output, PAGE_S)

    # Its end -------------------------------------------------------------------------

    def forget(self) -> None:
        """Free what is of use only while requests come one after the other."""
        self.request = self._last = self.made = None

    def drop_upstream(self) -> None:
        """Give up the target's connection that was kept."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.drop()

    def has_left(self) -> None:
        """Note that what is relayed has ended."""
        if self.left is not None:
            self.left()
        if self.observer is not None:
            self.observer.over(whole=True)

    async def leave(self) -> None:
        """Close, after the visitor had the time to read what was sent, or has paused.

        Closed with bytes unread, the kernel would destroy the answer.
        """
        now = trio.current_time()
        sends_on = self.request is not None and not self.body.done
        with trio.move_on_at(now + GRACE_S) as patience:
            try:
                await self.stream.send_eof()
                while await self.stream.receive_some(READ_BYTES):
                    if sends_on:
                        silent_at = trio.current_time() + GRACE_S
                        patience.deadline = min(silent_at, now + LINGER_S)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await self.stream.aclose()


async def serve_requests(
    visit: Visit, answer: Callable[[Request], Awaitable[None]]
) -> None:
    """Answer the requests of one visitor to its end; closes its stream.

    What ``answer`` raises as ``HttpError`` becomes a page. ``VisitorGoneError`` resets.

    Args:
        visit: the visitor.
        answer: sends one whole answer, or runs an ``Exchange``.
    """
    done = False
    try:
        await _converse(visit, answer)
        done = True
    finally:
        if not done:  # an answer without its end must not seem to have one
            visit.drop_upstream()
            if visit.tunnel is not None:
                visit.tunnel.reset(Code.RESET)
                visit.has_left()
            await reset_socket(visit.stream)
    if visit.tunnel is not None:
        early, visit.waiting = bytes(visit.waiting), bytearray()
        visit.forget()  # it may last for days
        say = visit.line.say if visit.line is not None else None
        seen = visit.observer
        tunnel = visit.tunnel if seen is None else Tapped(visit.tunnel, seen)
        try:
            await carry(visit.stream, tunnel, visit.peer, early=early, say=say)
        finally:
            visit.has_left()
    elif visit.gone:
        await reset_socket(visit.stream)
    elif visit.http_2 and visit.waiting.startswith(HTTP_2):
        await visit.http_2(visit)
    else:
        await visit.leave()


async def _converse(visit: Visit, answer: Callable[[Request], Awaitable[None]]) -> None:
    while True:
        # An idle visitor has no nursery: there are many of them.
        size = await _next_head(visit)
        if not size or (visit.http_2 and visit.waiting.startswith(HTTP_2)):
            return
        async with trio.open_nursery() as visit.nursery:
            goes_on = await _answer_while_kept(visit, answer, size)
            if visit.tunnel is None:
                visit.drop_upstream()
            visit.nursery.cancel_scope.cancel()
        visit.nursery = None
        if not goes_on:
            return
        visit.forget()


async def _next_head(visit: Visit) -> int:
    """Do as ``Visit.next_head`` does, and answer what is no request."""
    try:
        try:
            return await visit.next_head()
        except HttpError as error:
            visit.request, visit.answering = None, False
            visit.refused = f"HTTP status {error.status.value}"
            visit.line = new_line(visit)
            if visit.watch is not None:
                raw = bytes(visit.waiting)
                visit.observer = Guarded.begin(visit.watch, visit.peer, raw)
            try:
                await visit.say(error)
            finally:
                request_over(visit)
    except VisitorGoneError:
        visit.gone = True
    return 0


async def _answer_while_kept(
    visit: Visit, answer: Callable[[Request], Awaitable[None]], size: int
) -> bool:
    """Answer requests while a target's connection is kept; return whether to go on."""
    while True:
        visit.line = new_line(visit)
        try:
            try:
                await answer(visit.take_request(size))
            except HttpError as error:
                await visit.say(error)
        except VisitorGoneError:
            visit.gone = True
            return False
        finally:
            request_over(visit)
        if visit.tunnel is not None or not visit.may_go_on:
            return False
        if (upstream := visit.upstream) is None or upstream.is_over:
            return True
        size = await _next_head(visit)
        if size <= 0:
            return size < 0


def _refused(error: HeadError) -> HttpError:
    return HttpError(error.status, error.words, close=True)
