"""An HTTP proxy for the programs of this machine: CONNECT, and requests for http://.

Never here: resolving a name, and a decision about who may go where. A CONNECT becomes a
relay and is the last request; any other is an ``Exchange`` with its origin.

    far side not reached        the status of its code (403, 502, 503, 504), then closed
    malformed request           400 or 431, both sides closed
"""

from __future__ import annotations

import logging
import math
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.addresses import Address
from tunnel.errors import CODES, Code, StreamError
from tunnel.front.attempt import reach
from tunnel.front.http.exchange import Exchange, Words
from tunnel.front.http.fields import answer_lines, dropped, framing
from tunnel.front.http.heads import HeadError, tokens, values
from tunnel.front.http.limits import HEAD_S
from tunnel.front.http.pages import HttpError, date_line
from tunnel.front.http.request import Request
from tunnel.front.http.server import Visit, VisitorGoneError, serve_requests
from tunnel.front.http.targets import absolute_target, check_host, connect_target
from tunnel.front.login import Login
from tunnel.log import log_event
from tunnel.net.listen import LOG, peer_of
from tunnel.proto.frames import TcpTarget
from tunnel.words import whole_number

if TYPE_CHECKING:
    import trio

    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.front.dialer import Dialer
    from tunnel.front.http.heads import AnswerHead, RequestHead
    from tunnel.front.http.targets import AbsoluteTarget
    from tunnel.net.relay import ResettableStream

_CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_REALM: Final = ("Proxy-Authenticate", 'Basic realm="tunnel", charset="UTF-8"')
_METHODS: Final = b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, CONNECT"
MOST_FORWARDS: Final = 1_000_000_000
"""Of Max-Forwards: no request passes so many proxies."""
_NOBODY: Final = Address("unknown", 0)


async def handle_http(
    app: trio.abc.HalfCloseableStream,
    first: bytes,
    dialer: Dialer,
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
        dialer: only ``open`` is used.
        peer: who the app is, where its stream cannot tell.
        users: without them everybody is welcome.
        head_s: for each head, from its first byte.
        pseudonym: of this proxy in Via; a request that carries it has been here.
    """
    peer = peer or peer_of(app)
    visit = Visit(app, peer or _NOBODY, early=first, head_s=head_s, read=_read)
    proxy = _Proxy(visit, dialer, users, Login(peer, "proxy"), pseudonym)
    try:
        await serve_requests(visit, proxy.answer)
    finally:
        reason = visit.refused or proxy.refused
        if reason:
            log_event(LOG, logging.INFO, "proxy.refused", peer=str(peer), reason=reason)


def _read(head: RequestHead) -> Request:
    return Request(head, head.method.decode("ascii"), head.target.decode("ascii"),
                   "", "")  # fmt: skip


class _Proxy:
    """What one app asks for."""

    def __init__(
        self,
        visit: Visit,
        dialer: Dialer,
        users: ProxyUsers | None,
        login: Login,
        pseudonym: bytes,
    ) -> None:
        self.refused = ""
        """Why the app was shown out, if it was."""
        self._visit = visit
        self._dialer = dialer
        self._users = users
        self._login = login
        self._pseudonym = pseudonym

    async def answer(self, request: Request) -> None:
        """Answer one request; see ``serve_requests``."""
        self.refused = ""
        head = request.head
        try:
            self._check(head)
            self._ask_for_login(head)
            if head.method == b"CONNECT":
                await self._connect(connect_target(head.target))
                return
            target = absolute_target(head.target, head.method)
            if head.method == b"OPTIONS" and b"0" in values(
                head.fields, b"max-forwards"
            ):
                lines = (date_line(), b"Content-Length: 0", _METHODS)
                await self._visit.send(self._visit.head(HTTPStatus.OK, lines, b"OK"))
                return
        except HeadError as error:
            self.refused = f"HTTP status {error.status.value}"
            raise HttpError(error.status, error.words, close=True) from None
        await self._forward(head, target)

    def _check(self, head: RequestHead) -> None:
        check_host(head.fields)
        pseudonym = self._pseudonym.lower()
        if any(via.split()[1:2] == [pseudonym] for via in tokens(head.fields, b"via")):
            raise HeadError(
                HTTPStatus.LOOP_DETECTED, "the request has been here before: a loop"
            )
        if head.method == b"CONNECT" and head.body.size != 0:
            raise HeadError(HTTPStatus.BAD_REQUEST, "CONNECT has no body")
        if head.method == b"TRACE":
            raise HeadError(HTTPStatus.METHOD_NOT_ALLOWED, "TRACE is not passed on")

    def _ask_for_login(self, head: RequestHead) -> None:
        if self._users is None:
            return
        said = values(head.fields, b"proxy-authorization")
        if said and (wait_s := self._login.wait_s()):
            self.refused = Code.AUTH.name
            raise HttpError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many wrong passwords came from this address",
                close=True,
                headers=[("Retry-After", str(math.ceil(wait_s)))],
            )
        may = len(said) == 1 and self._users.check_basic(said[0])
        if said:
            self._login.said(right=may)
        if not may:
            # To be logged, unless a better password follows on this connection.
            self.refused = Code.AUTH.name if said else ""
            raise HttpError(
                HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
                "this proxy wants a user and a password", headers=[_REALM],
            )  # fmt: skip

    async def _connect(self, target: Address) -> None:
        virtual = await self._open(target)
        visit = self._visit
        visit.answering = True
        if visit.line is not None:
            visit.line.connected(virtual)
            visit.line.status = HTTPStatus.OK
        try:
            await visit.send(_CONNECTED)
        except BaseException:
            virtual.reset(Code.RESET)
            raise
        visit.tunnel = virtual

    async def _open(self, target: Address) -> ResettableStream:
        """Open at the exit, while the app is watched."""
        visit, wanted = self._visit, TcpTarget(target)
        try:
            virtual = await reach(visit.stream, visit.waiting, self._dialer, wanted)
        except StreamError as error:
            raise self._refusal(target, error.code, error.what) from None
        if virtual is None:
            raise VisitorGoneError
        return virtual

    def _refusal(self, target: Address, code: Code, why: str = "") -> HttpError:
        self.refused = code.name
        why = why or CODES[code].meaning
        status = CODES[code].http
        retry = [("Retry-After", "1")] if status == 503 else []
        return HttpError(
            HTTPStatus(status if status >= 400 else 502),
            why if str(target) in why else f"{target}: {why}",
            close=True, headers=retry,
        )  # fmt: skip

    def _fault(self, target: Address, words: str) -> HttpError:
        self.refused = Code.PROTOCOL.name
        return HttpError(HTTPStatus.BAD_GATEWAY, f"{target}: {words}", close=True)

    async def _forward(self, head: RequestHead, target: AbsoluteTarget) -> None:
        to = target.address
        self._visit.host = str(to)
        exchange = Exchange(
            self._visit,
            self._head_for(head, target),
            Words(partial(self._refusal, to), partial(self._fault, to)),
            self._answer_lines,
        )
        await exchange.run(to, partial(self._open, to))

    def _head_for(self, head: RequestHead, target: AbsoluteTarget) -> bytes:
        drop = dropped(head.connection) | {b"host"}
        lines = [
            b"%b %b HTTP/1.1" % (head.method, target.path),
            b"Host: " + target.authority,
        ]
        for name, value, line in head.fields:
            if name == b"max-forwards" and head.method == b"OPTIONS":
                lines.append(b"Max-Forwards: " + _one_less(value))
            elif name not in drop:
                lines.append(line)
        lines += framing(head)
        version = b"1.0" if head.http_1_0 else b"1.1"
        lines += (b"Via: %b %b" % (version, self._pseudonym), b"", b"")
        return b"\r\n".join(lines)

    def _answer_lines(self, head: AnswerHead) -> list[bytes]:
        version = b"1.0" if head.http_1_0 else b"1.1"
        return [*answer_lines(head), b"Via: %b %b" % (version, self._pseudonym)]


def _one_less(value: bytes) -> bytes:
    """Count Max-Forwards down; what is no such number stays as it is."""
    count = whole_number(value.decode("latin-1"), MOST_FORWARDS)
    return value if count is None else b"%d" % (count - 1)
