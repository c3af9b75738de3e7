"""Web services by name: one public HTTP port, and the Host of each request decides.

A front end is given ``route``, a function from a host name to a destination, and asks
it at each request. The requests of one visitor's connection to one destination share a
connection to the target; two visitors never do, so that none can be answered with what
was meant for another. Nothing is stored: each piece goes on before the next is awaited.

What a visitor says about who it is (X-Forwarded-*, Forwarded, X-Real-IP) is removed
before the truth is added: targets decide about access by these headers, and this is
the first place that knows. Names with ``_`` for ``-`` go too: many read both alike.

    read a head      server.Visit         strictly; one visitor at a time
    route            handle_visitor       404, 503
    exchange         exchange.Exchange    request up, answer down, at the same time
    switch           relay                raw bytes from the 101 on
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Hashable
from enum import Enum
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.addresses import Address
from tunnel.errors import CODES, Code, StreamError
from tunnel.front.http.exchange import Exchange, Upstream, Words
from tunnel.front.http.fields import about_the_visitor, dropped, framing
from tunnel.front.http.forwarded import Origin, origin_of
from tunnel.front.http.guards import RETRY_AFTER_S, Guards
from tunnel.front.http.server import (
    HttpError,
    Request,
    Visit,
    serve_requests,
)
from tunnel.front.login import Login
from tunnel.log import log_event
from tunnel.net.listen import LOG, MAX_VISITORS, serve
from tunnel.net.relay import ResettableStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from tunnel.front.http.guard import Guard
    from tunnel.front.http.guards import Member
    from tunnel.net.sockets import FastSocket


class Absent(Enum):
    """Why a host name leads nowhere at the moment."""

    UNKNOWN = "nothing is published under this name"
    AWAY = "the client that publishes this name is not connected at the moment"


Open = Callable[[Address], Awaitable[ResettableStream]]
"""Open for a visitor; StreamError refuses. It need not wait for the far side: what is
sent then travels with the CREATE, and a later refusal breaks the stream."""


class Destination(NamedTuple):
    """Who serves a host name."""

    key: Hashable
    """Equal as long as a connection that was opened may be used again."""
    open: Open


Route = Callable[[str], Destination | Guards | Absent]
"""Return who serves a host name (lower case, no port, no last dot); must not wait."""

PSEUDONYM: Final = f"tunnel-{secrets.token_hex(4)}"
"""In Via, so that a name that leads to itself is noticed (RFC 9110 §7.6.3)."""
_VIA: Final = f"Via: 1.1 {PSEUDONYM}".encode()
_PSEUDONYM: Final = PSEUDONYM.encode()


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

    async def answer(request: Request) -> None:
        found = route(request.host)
        if not isinstance(found, Destination):
            await _answer_guarded(visit, request, found)
            return
        origin = origin_of(request, visit.peer, secure=visit.secure)
        head = request_head(request, origin)
        await _exchange(visit, request, head, found, origin.visitor)

    await serve_requests(visit, answer)


async def _answer_guarded(
    visit: Visit, request: Request, found: Guards | Absent
) -> None:
    """Answer at a name of which the server asks more than whose it is."""
    if isinstance(found, Absent):
        raise _absent(found)
    origin = origin_of(request, visit.peer, secure=visit.secure)
    visitor, place = origin.visitor, found.place_of(request.target)
    place.admit(visitor, found.rates)
    place.limit_body(visit)
    kept = visit.upstream
    key = kept.key if isinstance(kept, Upstream) and not kept.is_over else None
    member = place.member(key, visitor)
    request = request._replace(target=place.stripped(request.target))
    head = request_head(request, origin)
    member.in_flight += 1
    try:
        await _exchange(visit, request, head, member, visitor)
    finally:
        member.in_flight -= 1


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
    there = Destination(None, open_one)

    async def answer(request: Request) -> None:
        guard.check(request, login)
        origin = None
        if not believe_headers:
            origin = origin_of(request, visit.peer, secure=visit.secure)
        head = request_head(request, origin, b"authorization")
        await _exchange(visit, request, head, there, visit.peer)

    await serve_requests(visit, answer)


async def _exchange(
    visit: Visit,
    request: Request,
    head: bytes,
    to: Destination | Member,
    visitor: Address,
) -> None:
    started = time.monotonic()
    exchange = Exchange(visit, head, _WORDS)
    try:
        await exchange.run((to.key, visitor.host), partial(to.open, visitor))
    except StreamError as error:
        raise _refusal(error.code) from None
    finally:
        if LOG.isEnabledFor(logging.DEBUG):
            log_event(LOG, logging.DEBUG, "request.served", peer=str(visitor),
                host=request.host, status=exchange.status,
                seconds=round(time.monotonic() - started, 3))  # fmt: skip


# Fields -----------------------------------------------------------------------------


def request_head(
    request: Request, origin: Origin | None, without: bytes = b""
) -> bytes:
    """Return the head for the target: what is for this hop out, the visitor's truth in.

    Args:
        request: what came.
        origin: None leaves what the fields say about the visitor: for who is behind a
            server that has written it.
        without: the name of another field that ends here.

    Raises:
        HttpError: 508, the request was here before.
    """
    head = request.head
    drop = dropped(head.connection) | {without}
    lines = [
        f"{request.method} {request.target} HTTP/1.1".encode(),
        b"Host: " + request.authority.encode("latin-1"),
    ]
    for name, value, line in head.fields:
        if name in drop or name == b"host" or (origin and about_the_visitor(name)):
            continue
        if name == b"via" and origin and _PSEUDONYM in value:
            raise HttpError(HTTPStatus.LOOP_DETECTED, "this name leads to itself")
        lines.append(line)
    lines += framing(head)
    if origin is not None:
        lines += _truth(origin)
        lines.append(_VIA)
    lines += (b"", b"")
    return b"\r\n".join(lines)


def _truth(origin: Origin) -> list[bytes]:
    visitor, proto, host = origin
    # Without a port if a proxy in front said none; IPv6 has its brackets all the same.
    where = str(visitor) if visitor.port else str(visitor).removesuffix(":0")
    node = f"for={_quoted(where)}"
    forwarded = f"{node};host={_quoted(host)};proto={proto}" if host else node
    truth = [
        f"X-Forwarded-For: {visitor.host}",
        f"X-Forwarded-Proto: {proto}",
        f"Forwarded: {forwarded}",
    ]
    if host:
        truth.append(f"X-Forwarded-Host: {host}")
    return [line.encode("latin-1") for line in truth]


def _quoted(text: str) -> str:
    return f'"{text}"'  # neither a host nor an address has a quote or a backslash


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


_WORDS: Final = Words(_refusal, _fault)
