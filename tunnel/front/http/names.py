"""Web services by name: one public HTTP port, and the Host of each request decides.

A front end is given ``route``, a function from a host name to a function that opens.
Every request gets a stream of its own: no two visitors, and no two requests of one,
ever share a connection to a target, so that none can be answered with what was meant
for another. Nothing is stored: each piece goes on before the next is awaited.

What a visitor says about who it is (X-Forwarded-*, Forwarded, X-Real-IP) is removed
before the truth is added: targets decide about access by these headers, and this is
the first place that knows. Names with ``_`` for ``-`` go too: many read both alike.

    read a head      http1.Visit          strictly; one visitor at a time
    route            handle_visitor       404, 503
    exchange         _Exchange            request up, response down, at the same time
    switch           relay                WebSocket: raw bytes from the 101 on
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio

from tunnel.addresses import Address
from tunnel.errors import CODES, Code, StreamError
from tunnel.front.http import headers as http_heads
from tunnel.front.http.forwarded import Origin, origin_of
from tunnel.front.http.headers import (
    HEAD_BYTES,
    HOP_BY_HOP,
    NEVER_BY_CONNECTION,
    Fields,
    tokens,
    without_frames,
)
from tunnel.front.http.server import (
    HttpError,
    Request,
    Visit,
    VisitorGoneError,
    serve_requests,
)
from tunnel.front.login import Login
from tunnel.log import log_event
from tunnel.net.listen import LOG, MAX_VISITORS, serve
from tunnel.net.relay import ResettableStream, relay
from tunnel.net.timeouts import TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.net.sockets import FastSocket


class Absent(Enum):
    """Why a host name leads nowhere at the moment."""

    UNKNOWN = "nothing is published under this name"
    AWAY = "the client that publishes this name is not connected at the moment"


Open = Callable[[Address], Awaitable[ResettableStream]]
"""Open for a visitor; StreamError refuses. It need not wait for the far side: what is
sent then travels with the CREATE, and a later refusal breaks the stream."""

Route = Callable[[str], Open | Absent]
"""Give who serves a host name (lower case, no port, no last dot); must not wait."""

RETRY_AFTER_S: Final = 5
PSEUDONYM: Final = f"tunnel-{secrets.token_hex(4)}"
"""In Via, so that a name that leads to itself is noticed (RFC 9110 §7.6.3)."""

_ABOUT_THE_VISITOR: Final = frozenset((b"forwarded", b"x-real-ip"))
_NOT_IN_TRAILERS: Final = NEVER_BY_CONNECTION | {b"trailer"}


async def serve_web(
    listeners: Sequence[trio.abc.Listener[FastSocket]],
    route: Route,
    *,
    max_visitors: int = MAX_VISITORS,
) -> None:
    """Serve an HTTP port until cancelled; closes the listeners."""

    async def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> None:
        await handle_visitor(Visit(stream, peer), route)

    await serve(listeners, handle, max_visitors=max_visitors)


async def handle_visitor(visit: Visit, route: Route) -> None:
    """Serve one visitor to its end; owns its stream."""

    async def answer(request: Request) -> bool:
        open_one = route(request.host)
        if isinstance(open_one, Absent):
            raise _absent(open_one)
        started = time.monotonic()
        origin = origin_of(request, visit.peer, secure=visit.secure)
        headers = request_headers(request, origin)
        visitor = origin.visitor
        exchange = await _begin(visit, request, headers, open_one, visitor)
        try:
            return await exchange.run()
        finally:
            log_event(LOG, logging.DEBUG, "request.served", peer=str(visitor),
                host=request.host, status=exchange.status,
                seconds=round(time.monotonic() - started, 3))  # fmt: skip

    await serve_requests(visit, answer)


async def handle_guarded(
    visit: Visit,
    guard: Guard,
    open_one: Open,
    *,
    believe_headers: bool,
) -> None:
    """Serve a visitor whose every request must bring the password; owns its stream.

    For the client's side: the password never leaves the machine that set it, a server
    that is broken into does not have it, and it guards a plain port as well as a name.

    Args:
        visit: the visitor.
        guard: user and password.
        open_one: opens the service behind it.
        believe_headers: what the headers say about the visitor was written by our
            server, and stays.
    """

    login = Login(visit.peer, "share")

    async def answer(request: Request) -> bool:
        guard.check(request, login)
        origin = None
        if not believe_headers:
            origin = origin_of(request, visit.peer, secure=visit.secure)
        headers = request_headers(request, origin)
        headers = [(k, v) for k, v in headers if k != b"authorization"]
        exchange = await _begin(visit, request, headers, open_one, visit.peer)
        return await exchange.run()

    await serve_requests(visit, answer)


@dataclass(frozen=True, slots=True, repr=False)
class Guard:
    """One user and password, asked for with Basic authentication (RFC 7617)."""

    user: str
    password: str

    def check(self, request: Request, login: Login) -> None:
        """Return if the request brings both.

        Args:
            request: what came.
            login: of its visitor.

        Raises:
            HttpError: 401; 429 if they were wrong too often from that address.
        """
        if request.value(b"authorization"):
            if wait_s := login.wait_s():
                raise HttpError(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "too many wrong passwords came from this address",
                    headers=[("Retry-After", str(math.ceil(wait_s)))],
                )
            if login.said(right=self._is_right(request)):
                return
        raise HttpError(
            HTTPStatus.UNAUTHORIZED,
            "a user and a password are needed",
            headers=[("WWW-Authenticate", 'Basic realm="tunnel", charset="UTF-8"')],
        )

    def _is_right(self, request: Request) -> bool:
        scheme, _, word = request.value(b"authorization").partition(b" ")
        try:
            given = base64.b64decode(word.strip(), validate=True)
        except binascii.Error:
            given = b""
        wanted = f"{self.user}:{self.password}".encode()
        # Both of one length, so that not even the length shows in the time.
        same = hmac.compare_digest(_digest(given), _digest(wanted))
        return same and scheme.lower() == b"basic"


def _digest(secret: bytes) -> bytes:
    return hmac.digest(_KEY, secret, "sha256")


_KEY: Final = secrets.token_bytes(32)


# Fields -----------------------------------------------------------------------------


def request_headers(request: Request, origin: Origin | None) -> Fields:
    """Give the headers for the target: hop-by-hop out, the truth about the visitor in.

    Args:
        request: what came.
        origin: None leaves what the headers say about the visitor: for who is behind a
            server that has written it.

    Raises:
        HttpError: 508, the request was here before.
    """
    if origin and any(PSEUDONYM in word for word in request.words(b"via")):
        raise HttpError(HTTPStatus.LOOP_DETECTED, "this name leads to itself")
    headers = [
        (name, value)
        for name, value in _end_to_end(request.headers)
        if name != b"host" and not (origin and _about_the_visitor(name))
    ]
    headers.insert(0, (b"host", request.authority.encode("latin-1")))
    if request.chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    if origin is not None:
        headers += _truth(origin)
        headers.append((b"via", f"1.1 {PSEUDONYM}".encode()))
    if wants_websocket(request):
        headers += [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
    else:
        headers.append((b"connection", b"close"))
    return headers


def wants_websocket(request: Request) -> bool:
    """Say whether to pass the wish for another protocol on: WebSocket's only.

    Others, h2c above all, would carry requests past this front end (RFC 9110 §7.8).
    """
    return not request.http_1_0 and http_heads.wants_websocket(request.headers)


def _end_to_end(headers: Fields) -> Fields:
    drop = HOP_BY_HOP | (set(tokens(headers, b"connection")) - NEVER_BY_CONNECTION)
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    if chunked:
        drop |= {b"content-length"}
    # To CGI and its heirs, X_Y and X-Y are one name.
    return [(k, v) for k, v in headers if k.replace(b"_", b"-") not in drop]


def _about_the_visitor(name: bytes) -> bool:
    name = name.replace(b"_", b"-")
    return name.startswith(b"x-forwarded-") or name in _ABOUT_THE_VISITOR


def _truth(origin: Origin) -> Fields:
    visitor, proto, host = origin
    # Without a port if a proxy in front said none; IPv6 has its brackets all the same.
    where = str(visitor) if visitor.port else str(visitor).removesuffix(":0")
    node = f"for={_quoted(where)}"
    forwarded = f"{node};host={_quoted(host)};proto={proto}" if host else node
    truth = [
        (b"x-forwarded-for", visitor.host),
        (b"x-forwarded-proto", proto),
        (b"forwarded", forwarded),
    ]
    if host:
        truth.append((b"x-forwarded-host", host))
    return [(name, value.encode("latin-1")) for name, value in truth]


def _quoted(text: str) -> str:
    return f'"{text}"'  # neither a host nor an address has a quote or a backslash


def _trailers(headers: Sequence[tuple[bytes, bytes]]) -> Fields:
    return [
        (k, v)
        for k, v in _end_to_end(list(headers))
        if k.replace(b"_", b"-") not in _NOT_IN_TRAILERS and not _about_the_visitor(k)
    ]


# Refusals ----------------------------------------------------------------------------


def _absent(why: Absent) -> HttpError:
    if why is Absent.UNKNOWN:
        return HttpError(HTTPStatus.NOT_FOUND, why.value)
    retry = [("Retry-After", str(RETRY_AFTER_S))]
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, why.value, headers=retry)


_LINK_CODES: Final = (Code.LINK_LOST, Code.TAKEN_OVER, Code.SUPERSEDED, Code.SILENT)


def _refusal(code: Code) -> HttpError:
    """Say which side is down, and nothing that is inside of it."""
    if code in _LINK_CODES:
        return _absent(Absent.AWAY)
    status = HTTPStatus(CODES[code].http)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:  # those are about a proxy's request
        status = HTTPStatus.BAD_GATEWAY
    words = {
        Code.NORMAL: "ended the connection without an answer",
        Code.RESET: "broke the connection",
    }.get(code, f"cannot be reached: {CODES[code].meaning}")
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        words = f"takes nothing new: {CODES[code].meaning}"
        return HttpError(status, f"the far side {words}")
    return _fault(words, status)


def _fault(words: str, status: HTTPStatus = HTTPStatus.BAD_GATEWAY) -> HttpError:
    return HttpError(
        status, f"the client is connected, but the service behind it {words}"
    )


# One request and its response --------------------------------------------------------


async def _begin(
    visit: Visit,
    request: Request,
    headers: Fields,
    open_one: Open,
    visitor: Address,
) -> _Exchange:
    try:
        virtual = await open_one(visitor)
    except StreamError as error:
        raise _refusal(error.code) from None
    return _Exchange(visit, request, headers, virtual)


class _Exchange:
    """The request up and the response down, each as fast as the other side takes it."""

    def __init__(
        self,
        visit: Visit,
        request: Request,
        headers: Fields,
        virtual: ResettableStream,
    ) -> None:
        self.status = 0
        self._visit = visit
        self._request = request
        self._virtual = virtual
        self._far = h11.Connection(h11.CLIENT, HEAD_BYTES)
        self._head = self._far.send(
            h11.Request(method=request.method, target=request.target, headers=headers)
        )
        self._idle_s = TIMEOUTS.get().idle_s
        self._scope = trio.CancelScope()
        self._failure: HttpError | VisitorGoneError | None = None
        self._complete = self._switched = False

    async def run(self) -> bool:
        """Return False when the visitor's stream was given away.

        Raises:
            HttpError: no response has begun; this is the answer.
            VisitorGoneError: the visitor must be reset, or is gone.
        """
        done = False
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                self._push()
                nursery.start_soon(self._up)
                await self._down()
                nursery.cancel_scope.cancel()
            if not (self._failure or self._ended):
                self._fail(_refusal(Code.IDLE))
            if self._failure is not None:
                raise self._take_failure(self._failure)
            done = True
        finally:
            if not done:
                self._virtual.reset(Code.RESET)
        if self._switched:
            visit = self._visit
            await relay(visit.stream, self._virtual, early=bytes(visit.waiting))
            return False
        await self._virtual.aclose()
        return True

    @property
    def _ended(self) -> bool:
        return self._switched or self._complete

    def _take_failure(
        self, failure: HttpError | VisitorGoneError
    ) -> HttpError | VisitorGoneError:
        """Keep it no more: raised, it would hold us, a cycle."""
        self._failure = None
        return failure

    def _push(self) -> None:
        self._scope.deadline = trio.current_time() + self._idle_s

    def _fail(self, failure: HttpError | VisitorGoneError) -> None:
        self._failure = self._failure or failure
        self._scope.cancel()

    # Up ------------------------------------------------------------------------------

    async def _up(self) -> None:
        try:
            if await self._send_up(self._head) and await self._send_body():
                await self._watch()
        except (HttpError, VisitorGoneError) as failure:
            self._fail(failure)

    async def _send_body(self) -> bool:
        """Carry the body; False when the far side reads no more."""
        visit = self._visit
        if visit.body_ended:
            return await self._send_up(self._far.send(h11.EndOfMessage()))
        while True:
            event = await visit.next_of_body()
            if isinstance(event, h11.EndOfMessage):
                event = h11.EndOfMessage(headers=_trailers(list(event.headers)))
            if not await self._send_up(self._far.send(event)):
                return False
            if isinstance(event, h11.EndOfMessage):
                return True
            self._push()

    async def _send_up(self, data: bytes | None) -> bool:
        try:
            if data:
                await self._virtual.send_all(data)
        except trio.BrokenResourceError:
            return False  # the way down knows why, and may still bring an answer
        return True

    async def _watch(self) -> None:
        """Notice a visitor that leaves: its end is passed on, its reset ends all."""
        while await self._visit.wait_for_more():
            pass
        try:
            self._virtual.finish()
        except trio.BrokenResourceError:
            return

    # Down ----------------------------------------------------------------------------

    async def _down(self) -> None:
        """Carry the response until it is complete, or the protocol was switched."""
        output: list[bytes] = []
        try:
            while True:
                event = self._far.next_event()
                if event is h11.NEED_DATA:
                    await self._visit.send(b"".join(output))
                    output.clear()
                    self._far.receive_data(bytes(await self._virtual.receive_some()))
                    self._push()
                    continue
                output.append(self._passed_on(event))
                if self._switched:
                    output.append(self._far.trailing_data[0])
                if self._ended:
                    await self._visit.send(b"".join(output))
                    return
        except VisitorGoneError as failure:
            self._fail(failure)
        except h11.ProtocolError as error:
            without_frames(error)
            self._fail(_fault("answered something that is not HTTP"))
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            code = cause.code if isinstance(cause, StreamError) else Code.RESET
            self._fail(_refusal(code))

    def _passed_on(self, event: object) -> bytes:
        """Give an event of the far side as bytes for the visitor."""
        visit = self._visit
        match event:
            case h11.Data():
                return visit.part(bytes(event.data))
            case h11.EndOfMessage():
                self._complete = True
                return visit.end(_trailers(list(event.headers)))
            case h11.Response():
                self.status = event.status_code
                headers = _end_to_end(list(event.headers))
                return visit.head(event.status_code, headers, event.reason)
            case h11.InformationalResponse(status_code=HTTPStatus.SWITCHING_PROTOCOLS):
                self.status, self._switched = event.status_code, True
                headers = [
                    *_end_to_end(list(event.headers)),
                    (b"connection", b"upgrade"),
                    (b"upgrade", b"websocket"),
                ]
                return visit.interim(event.status_code, headers)
            case h11.InformationalResponse():
                headers = _end_to_end(list(event.headers))
                return visit.interim(event.status_code, headers)
            case _:  # closed before its answer
                raise h11.RemoteProtocolError("no answer")
