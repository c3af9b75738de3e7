"""An HTTP proxy for the programs of this machine: CONNECT, and requests for http://.

h11 is the only parser. What goes on, either way, is written anew from what it found, so
nothing can mean one thing here and another there. Bodies stream: what is held is a read
of each side. Never here: resolving a name, and a decision about who may go where.

``handle_http`` runs a ``_Conversation``, the requests of one app one after the other. A
CONNECT becomes a relay and is the last. Any other is an ``_Exchange``: two tasks, one
carries the request and one the answer, so that an answer may come before its time.

    far side not reached        the status of its code (403, 502, 503, 504), then closed
    answer before the body      passed on with "Connection: close", then closed
    far side breaks midway      closed without the end that the head had promised
    malformed request           400 or 431, both sides closed
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio

from tunnel.errors import CODES, Code, StreamError
from tunnel.front.attempt import (
    EARLY_BYTES,
    READ_BYTES,
    attempt,
    drop_stream,
    last_words,
)
from tunnel.front.http.headers import (
    BETWEEN_S,
    HEAD_BYTES,
    HEAD_S,
    MAX_FIELDS,
    AbsoluteTarget,
    Fields,
    TargetError,
    absolute_target,
    check_host,
    connect_target,
    has_body,
    is_ambiguous,
    passed_on,
    quoted_line,
    tokens,
    values,
    wants_websocket,
    without,
    without_frames,
)
from tunnel.front.login import Login
from tunnel.log import log_event
from tunnel.net.listen import LOG, carry, peer_of
from tunnel.net.relay import ResettableStream, reset_socket
from tunnel.net.sockets import CHUNK_BYTES
from tunnel.net.timeouts import TIMEOUTS
from tunnel.proto.frames import TcpTarget

if TYPE_CHECKING:
    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import Address
    from tunnel.front.dialer import Dialer

_CONNECTED: Final = b"Connection established"
_REALM: Final = (b"Proxy-Authenticate", b'Basic realm="tunnel", charset="UTF-8"')
_METHODS: Final = (b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, CONNECT")
_REPEATABLE: Final = (b"GET", b"HEAD", b"OPTIONS")
_NOT_HTTP: Final = "the answer is not HTTP, or ended too soon"


async def handle_http(
    app: trio.abc.HalfCloseableStream,
    first: bytes,
    way_out: Dialer,
    *,
    peer: Address | None = None,
    users: ProxyUsers | None = None,
    head_s: float = HEAD_S,
    pseudonym: bytes = b"tunnel",
) -> None:
    """Serve one app to its end; owns the stream.

    Args:
        app: from which ``first`` was read.
        first: bytes of the first request, at least one.
        way_out: only ``open`` is used.
        peer: who the app is, where its stream cannot tell.
        users: without them everybody is welcome.
        head_s: for each head, from its first byte.
        pseudonym: of this proxy in Via; a request that carries it has been here.
    """
    peer = peer or peer_of(app)
    login = Login(peer, "proxy")
    talk = _Conversation(app, way_out, users, login, head_s, pseudonym)
    try:
        await talk.run(first)
    except trio.BrokenResourceError:
        talk.reason = talk.reason or "the app left"
    except BaseException:  # an answer without its end must not seem to have one
        await reset_socket(app)
        raise
    finally:
        await talk.close()
    if talk.virtual is not None:
        early = bytes(talk.early)
        await carry(app, talk.virtual, peer, early=early)
    elif talk.reason:
        log_event(
            LOG, logging.INFO, "proxy.refused", peer=str(peer), reason=talk.reason
        )


class _SlowedError(Exception):
    """A password that must not be looked at yet."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("Too many wrong passwords came from this address.")
        self.wait_s = wait_s


class _Side:
    """A stream, and the machine that speaks HTTP on it."""

    def __init__(
        self,
        source: trio.abc.ReceiveStream | ResettableStream,
        role: type[h11.CLIENT | h11.SERVER],
    ) -> None:
        self._source = source
        # h11 looks after each read, so one read more than this may be held.
        self.http = h11.Connection(role, HEAD_BYTES)
        self.heard = False

    async def read(self, max_bytes: int) -> bool:
        """Give the machine what comes; False at end of file."""
        data = await self._source.receive_some(max_bytes)
        self.hear(bytes(data))
        self.heard = self.heard or bool(data)
        return bool(data)

    def hear(self, data: bytes) -> None:
        """Give the machine what came."""
        self.http.receive_data(data)

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        """Return what comes next; raises ``h11.RemoteProtocolError`` for nonsense."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]  # no narrowing by identity
            await self.read(CHUNK_BYTES)

    @property
    def is_between(self) -> bool:
        """Both directions have ended a message, and another may follow."""
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE


class _App(_Side):
    """The connection of the app."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        super().__init__(stream, h11.SERVER)
        self.stream = stream
        self._in_first_line = True

    def hear(self, data: bytes) -> None:
        """Give the machine what came; a first line as it must be."""
        if self._in_first_line and data:
            data = quoted_line(data)
            self._in_first_line = b"\n" not in data
        super().hear(data)

    def start_next(self) -> None:
        """Expect another request."""
        self.http.start_next_cycle()
        self._in_first_line = not self.http.trailing_data[0]

    async def send(self, *events: h11.Event) -> None:
        """Send events as one piece."""
        if data := b"".join(self.http.send(event) or b"" for event in events):
            await self.stream.send_all(data)


class _Upstream(_Side):
    """A connection to an origin."""

    def __init__(self, stream: ResettableStream, address: Address) -> None:
        super().__init__(stream, h11.CLIENT)
        self.stream = stream
        self.address = address

    @property
    def is_reusable(self) -> bool:
        """Nothing came behind the last answer, neither bytes nor the end."""
        return self.is_between and self.http.trailing_data == (b"", False)


class _Conversation:
    """All that one app says."""

    def __init__(
        self,
        app: trio.abc.HalfCloseableStream,
        way_out: Dialer,
        users: ProxyUsers | None,
        login: Login,
        head_s: float,
        pseudonym: bytes,
    ) -> None:
        self._stream = app
        self._app = _App(app)
        self._way_out = way_out
        self._users = users
        self._login = login
        self._head_s = head_s
        self._pseudonym = pseudonym
        self._upstream: _Upstream | None = None
        self._has_served = False
        self._method = b""  # of the request that is being served
        self._opened: ResettableStream | None = None  # not told to the app yet
        self.virtual: ResettableStream | None = None
        """To be relayed, with ``early``, when ``run`` is over."""
        self.early = bytearray()
        self.reason = ""
        """Why the app was shown out, if it was."""

    async def run(self, first: bytes) -> None:
        """Serve requests until there are no more, or ``virtual`` is to be relayed."""
        self._app.hear(first)
        while (request := await self._next_request()) is not None:
            self._method = request.method
            await self._serve(request)
            if self.virtual is not None:
                return
            if not self._app.is_between:
                break
            self._app.start_next()
            self._has_served = True
        if self._upstream is not None:  # it has nothing to do: no reset for its origin
            await self._upstream.stream.aclose()
            self._upstream = None
        if request is not None or self.reason:
            await last_words(self._stream)

    async def close(self) -> None:
        """Give up what is not to be relayed; does not wait."""
        if self._opened is not None:
            self._opened.reset(Code.RESET)
        if self._upstream is not None:
            self._upstream.stream.reset(Code.RESET)
        if self.virtual is None:
            await trio.aclose_forcefully(self._stream)

    # One request

    async def _next_request(self) -> h11.Request | None:
        """Wait for a head; None when there is none, and what is to be said is said."""
        request: h11.Request | None = None
        refusal: TargetError | None = None
        self._method = b""
        async with trio.open_nursery() as nursery:
            if self._upstream is not None:
                nursery.start_soon(self._watch_idle, self._upstream)
            try:
                request = await self._read_head()
            except h11.RemoteProtocolError as error:
                without_frames(error)
                refusal = TargetError(error.error_status_hint, f"Not HTTP: {error}.")
            except TargetError as error:
                refusal = error
                without_frames(error)
            except trio.BrokenResourceError:
                self.reason = "" if self._has_served else "the app left"
            nursery.cancel_scope.cancel()
        if refusal is not None:
            await self._refuse(refusal.status, str(refusal))
        return request

    async def _read_head(self) -> h11.Request | None:
        http = self._app.http
        begun = False
        with trio.move_on_after(BETWEEN_S) as waiting:
            while (event := http.next_event()) is h11.NEED_DATA:
                if not begun and http.trailing_data[0]:
                    begun = True
                    waiting.deadline = trio.current_time() + self._head_s
                await self._app.read(READ_BYTES)
            return event if isinstance(event, h11.Request) else None
        if begun:
            raise TargetError(408, "The request did not come in time.")
        return None

    async def _watch_idle(self, upstream: _Upstream) -> None:
        """Notice an origin that closes while it has nothing to do."""
        with suppress(trio.BrokenResourceError):
            await upstream.stream.receive_some(1)
        # Its end, or bytes that nobody asked for: neither is to meet another request.
        self._upstream = None
        await upstream.stream.aclose()

    async def _serve(self, request: h11.Request) -> None:
        fields = request.headers.raw_items()
        body = has_body(fields)
        try:
            self._check(request, fields, body)
            if not body:
                self._app.http.next_event()  # its end, which is part of the head
            if not self._may(fields):
                await self._ask_for_login(body)
            elif request.method == b"CONNECT":
                await self._connect(connect_target(request.target))
            elif request.method == b"OPTIONS" and b"0" in values(
                fields, b"max-forwards"
            ):
                absolute_target(request.target, request.method)
                await self._respond(200, "", _METHODS)
            else:
                target = absolute_target(request.target, request.method)
                await self._forward(request, target, body)
        except _SlowedError as error:
            self.reason = Code.AUTH.name
            later = b"Retry-After", str(math.ceil(error.wait_s)).encode()
            await self._refuse(429, str(error), later)
        except TargetError as error:
            await self._refuse(error.status, str(error))

    def _check(self, request: h11.Request, fields: Fields, body: bool) -> None:
        if request.http_version not in (b"1.0", b"1.1"):
            raise TargetError(505, "This is HTTP/1.1.")
        if is_ambiguous(fields, request.http_version):
            raise TargetError(400, "The length of the request is said in two ways.")
        check_host(fields)
        if len(fields) > MAX_FIELDS:
            raise TargetError(431, f"More than {MAX_FIELDS} header fields.")
        if any(
            via.split()[1:2] == [self._pseudonym.lower()]
            for via in tokens(fields, b"via")
        ):
            raise TargetError(508, "The request has been here before: a loop.")
        if request.method == b"CONNECT" and body:
            raise TargetError(400, "CONNECT has no body.")
        if request.method == b"TRACE":
            raise TargetError(405, "TRACE is not passed on.")

    def _may(self, fields: Fields) -> bool:
        if self._users is None:
            return True
        said = values(fields, b"proxy-authorization")
        if said and (wait_s := self._login.wait_s()):
            raise _SlowedError(wait_s)
        may = len(said) == 1 and self._users.check_basic(said[0])
        if said:
            self._login.said(right=may)
        # To be logged, unless a better password follows on this connection.
        self.reason = Code.AUTH.name if said and not may else ""
        return may

    async def _ask_for_login(self, body: bool) -> None:
        # The connection lives on, for the retry of a program that asks its user; with a
        # body behind it, it cannot.
        close = [(b"Connection", b"close")] if body else []
        await self._respond(
            407, "This proxy wants a user and a password.", _REALM, *close
        )

    async def _connect(self, target: Address) -> None:
        self.early += self._app.http.trailing_data[0]
        if not await self._open(target, self.early) or self._opened is None:
            return
        await self._app.send(
            h11.Response(status_code=200, headers=[], reason=_CONNECTED)
        )
        self.virtual, self._opened = self._opened, None

    async def _open(self, target: Address, early: bytearray) -> bool:
        """Set ``_opened``; if that fails, say why and return False."""

        async def make() -> ResettableStream:
            return await self._way_out.open(TcpTarget(target))

        try:
            self._opened = await attempt(self._stream, early, make, drop_stream)
        except StreamError as error:
            await self._fail(target, error.code, error.what)
            return False
        return self._opened is not None

    # A request that is passed on

    async def _forward(
        self, request: h11.Request, target: AbsoluteTarget, body: bool
    ) -> None:
        head = self._head_for(request, target, body)
        while True:
            upstream = self._upstream
            reused = upstream is not None and upstream.address == target.address
            if not reused or upstream is None:
                upstream = await self._reach(target.address)
                if upstream is None:
                    return
            exchange = _Exchange(self._app, upstream, head, body, self._pseudonym)
            await exchange.run()
            if not (reused and exchange.may_repeat):
                break
            self._give_up_upstream()
        await self._conclude(request, target.address, upstream, exchange)

    async def _reach(self, target: Address) -> _Upstream | None:
        if self._upstream is not None:
            await self._upstream.stream.aclose()
            self._upstream = None
        early = bytearray(self._app.http.trailing_data[0])
        known = len(early)  # what waits in the machine counts against the same limit
        if not await self._open(target, early) or self._opened is None:
            return None
        if len(early) > known:
            self._app.http.receive_data(bytes(early[known:]))
        self._upstream = _Upstream(self._opened, target)
        self._opened = None
        return self._upstream

    def _head_for(
        self, request: h11.Request, target: AbsoluteTarget, body: bool
    ) -> h11.Request:
        fields = request.headers.raw_items()
        kept = without(passed_on(fields), b"host")
        if request.method == b"OPTIONS":
            kept = [
                (name, _one_less(value) if name.lower() == b"max-forwards" else value)
                for name, value in kept
            ]
        made = [(b"Host", target.authority), *kept, self._via(request.http_version)]
        if values(fields, b"transfer-encoding"):
            made.append((b"Transfer-Encoding", b"chunked"))
        if not body and wants_websocket(fields):
            made += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        return h11.Request(method=request.method, target=target.path, headers=made)

    def _via(self, version: bytes) -> tuple[bytes, bytes]:
        return b"Via", version + b" " + self._pseudonym

    async def _conclude(
        self,
        request: h11.Request,
        target: Address,
        upstream: _Upstream,
        exchange: _Exchange,
    ) -> None:
        """Say what is left to say, and decide what may be used again."""
        if exchange.switched:
            await self._switch(upstream)
            return
        if exchange.is_done and upstream.is_reusable:
            upstream.http.start_next_cycle()
            return
        if exchange.is_done and exchange.request_over:
            self._upstream = None
            await upstream.stream.aclose()
            return
        self._give_up_upstream()
        if exchange.bad_request:
            self.reason = "bad request"
            if not exchange.started:
                await self._refuse(400, exchange.bad_request)
        elif exchange.failure is not None and not exchange.started:
            await self._fail(target, *exchange.failure)
        if exchange.failure is not None and exchange.started:
            self.reason = exchange.failure[0].name
            await self._break_off(request)

    async def _switch(self, upstream: _Upstream) -> None:
        """Turn the exchange into a relay."""
        self._opened, self._upstream = upstream.stream, None
        if behind := upstream.http.trailing_data[0]:
            await self._stream.send_all(behind)
        self.early += self._app.http.trailing_data[0]
        self.virtual, self._opened = self._opened, None

    def _give_up_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.stream.reset(Code.RESET)
            self._upstream = None

    async def _break_off(self, request: h11.Request) -> None:
        """End an answer that stays incomplete, so that it is not taken for complete."""
        if request.http_version < b"1.1":  # its end may be that of the connection
            await reset_socket(self._stream)
        else:  # the end is missing, and what came is not lost to a RST
            await trio.aclose_forcefully(self._stream)
        raise trio.BrokenResourceError

    # Answers of our own

    async def _fail(self, target: Address, code: Code, why: str) -> None:
        self.reason = code.name
        status = CODES[code].http
        retry = [(b"Retry-After", b"1")] if status == 503 else []
        text = why if str(target) in why else f"{target}: {why}"
        await self._refuse(status if status >= 400 else 502, text, *retry)

    async def _refuse(
        self,
        status: int,
        text: str,
        *fields: tuple[bytes, bytes],
    ) -> None:
        self.reason = self.reason or f"HTTP status {status}"
        await self._respond(status, text, (b"Connection", b"close"), *fields)

    async def _respond(
        self,
        status: int,
        text: str,
        *fields: tuple[bytes, bytes],
    ) -> None:
        if self._app.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # a part of another answer is out already
        body = f"{text}\n".encode() if text else b""
        head = h11.Response(
            status_code=status,
            headers=[
                (b"Content-Type", b"text/plain; charset=utf-8"),
                (b"Content-Length", str(len(body)).encode()),
                *fields,
            ],
            reason=HTTPStatus(status).phrase.encode(),
        )
        events: list[h11.Event] = [head]
        if self._method != b"HEAD":
            events.append(h11.Data(data=body))
        await self._app.send(*events, h11.EndOfMessage())


class _Exchange:
    """One request on its way out, and its answer on its way back."""

    def __init__(
        self,
        app: _App,
        upstream: _Upstream,
        head: h11.Request,
        body: bool,
        pseudonym: bytes,
    ) -> None:
        self._app = app
        self._upstream = upstream
        self._head = head
        self._body = body
        self._pseudonym = pseudonym
        self._scope = trio.CancelScope()
        self._idle_s = TIMEOUTS.get().idle_s
        self._push_at = 0.0
        upstream.heard = False
        self.request_over = not body
        """The origin has, or is being sent, all of the request."""
        self.started = False
        """The app has seen a part of the answer."""
        self.is_done = False
        """The app has the whole answer."""
        self.switched = False
        """Both sides have left HTTP."""
        self.app_left = False
        self.bad_request = ""
        self.failure: tuple[Code, str] | None = None
        """Why there is no whole answer."""

    @property
    def may_repeat(self) -> bool:
        """The connection was found closed, and asking again does no harm."""
        return (
            self.failure is not None
            and not self._upstream.heard
            and not self._body
            and not self.app_left
            and self._head.method in _REPEATABLE
        )

    async def run(self) -> None:
        """Return when it is done or cannot be; the fields say which."""
        # Written before anything is read: an answer without a request is nonsense.
        head = self._upstream.http.send(self._head)
        if not self._body:
            head += self._upstream.http.send(h11.EndOfMessage())
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            self._progress()
            nursery.start_soon(self._carry_request, head)
            await self._carry_answer()
            nursery.cancel_scope.cancel()
        if trio.current_time() >= self._scope.deadline and not self.is_done:
            self.failure = self.failure or (Code.TIMEOUT, CODES[Code.TIMEOUT].meaning)

    def _progress(self) -> None:
        now = trio.current_time()
        if now >= self._push_at:  # as rarely as ``relay`` does, for its reasons
            self._push_at = now + self._idle_s / 100
            self._scope.deadline = self._push_at + self._idle_s

    # Towards the origin

    async def _carry_request(self, head: bytes) -> None:
        try:
            is_heard = await self._pass_out(head)
            if self._body:
                await self._carry_body(is_heard)
            while len(self._app.http.trailing_data[0]) < EARLY_BYTES:
                # Nothing is wanted now but word that it leaves.
                if not await self._app.read(READ_BYTES):
                    return
        except h11.RemoteProtocolError as error:
            without_frames(error)
            self.bad_request = f"Not HTTP: {error}."
            self._scope.cancel()
        except trio.BrokenResourceError:
            self.app_left = True
            self._scope.cancel()

    async def _carry_body(self, is_heard: bool) -> None:
        while True:
            event = await self._app.next_event()
            self._progress()
            if isinstance(event, h11.Data):
                # Who is not heard any more may have answered; an app that has not
                # looked yet is read on, or it would never come to look.
                out = self._upstream.http.send(h11.Data(data=event.data))
                is_heard = is_heard and await self._pass_out(out)
            else:  # trailers end here
                out = self._upstream.http.send(h11.EndOfMessage())
                self.request_over = is_heard and await self._pass_out(out)
                return

    async def _pass_out(self, data: bytes) -> bool:
        try:
            if data:
                await self._upstream.stream.send_all(data)
        except trio.BrokenResourceError:
            return False
        return True

    # Towards the app

    async def _carry_answer(self) -> None:
        while not (self.is_done or self.switched):
            try:
                event = await self._upstream.next_event()
            except h11.RemoteProtocolError as error:
                without_frames(error)
                self.failure = Code.PROTOCOL, _NOT_HTTP
                return
            except trio.BrokenResourceError as broken:
                cause = broken.__cause__
                code = cause.code if isinstance(cause, StreamError) else Code.RESET
                self.failure = code, CODES[code].meaning
                return
            self._progress()
            try:
                await self._pass_back(event)
            except h11.LocalProtocolError as error:
                without_frames(error)
                self.failure = Code.PROTOCOL, _NOT_HTTP
                return
            except trio.BrokenResourceError:
                self.app_left = True
                return

    async def _pass_back(self, event: h11.Event | type[h11.PAUSED]) -> None:
        match event:
            case h11.InformationalResponse():
                await self._pass_interim(event)
            case h11.Response():
                head = self._answer_head(event)
                self.started = True
                await self._app.send(head)
            case h11.Data(data=data):
                await self._app.send(h11.Data(data=data))
            case h11.EndOfMessage():  # trailers end here
                await self._app.send(h11.EndOfMessage())
                self.is_done = True
            case _:
                raise h11.LocalProtocolError(_NOT_HTTP)

    async def _pass_interim(self, event: h11.InformationalResponse) -> None:
        fields = passed_on(event.headers.raw_items())
        is_switch = event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
        if is_switch:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        elif (self._app.http.their_http_version or b"1.0") < b"1.1":
            return
        await self._app.send(
            h11.InformationalResponse(
                status_code=event.status_code, headers=fields, reason=event.reason
            )
        )
        self.started = self.switched = is_switch

    def _answer_head(self, event: h11.Response) -> h11.Response:
        fields = event.headers.raw_items()
        if is_ambiguous(fields, event.http_version):
            raise h11.LocalProtocolError("two lengths")
        kept = passed_on(fields)
        if event.status_code == HTTPStatus.NO_CONTENT:
            kept = without(kept, b"content-length")
        kept.append((b"Via", event.http_version + b" " + self._pseudonym))
        if not self.request_over:  # whether the rest will be read is not known
            kept.append((b"Connection", b"close"))
        return h11.Response(
            status_code=event.status_code, headers=kept, reason=event.reason
        )


def _one_less(value: bytes) -> bytes:
    """Count Max-Forwards down; what is not a number stays as it is."""
    return str(int(value) - 1).encode() if value.isdigit() else value
