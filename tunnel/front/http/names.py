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
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from enum import Enum
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.access.visitors import VISITORS
from tunnel.addresses import Address
from tunnel.errors import CODES, Code, LimitError, StreamError
from tunnel.front.http.exchange import Exchange, UnservedError, Words
from tunnel.front.http.fields import (
    about_the_visitor,
    answer_lines,
    dropped,
    framing,
)
from tunnel.front.http.forwarded import Origin, origin_of
from tunnel.front.http.h2 import serve_http_2
from tunnel.front.http.limits import KEPT_S
from tunnel.front.http.pages import HttpError
from tunnel.front.http.places import RETRY_AFTER_S, SHUNNED_S, Places
from tunnel.front.http.server import Visit, serve_requests
from tunnel.front.http.upstream import Upstream
from tunnel.front.http.whole import send_whole
from tunnel.log import log_event
from tunnel.net.listen import LOG, MAX_VISITORS, serve
from tunnel.net.relay import ResettableStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.front.http.heads import AnswerHead
    from tunnel.front.http.places import Member, Place
    from tunnel.front.http.request import Request
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


Route = Callable[[str], Destination | Places | Absent]
"""Return who serves a host name (lower case, no port, no last dot); must not wait."""
Learn = Callable[[str], Awaitable[bool] | None]
"""Have a host name known that another node may have. None: it is; else it is once this
is awaited, or cannot be (False)."""
HandOver = Callable[[trio.abc.AsyncResource], Awaitable[bool]]
"""Say whether a visitor is served by another process from now on."""
Before = Callable[[Visit, "Request"], bytes | None]
"""Called before a request is routed, and must not wait. What it returns, or raises as
HttpError, is the answer instead."""

PSEUDONYM: Final = f"tunnel-{secrets.token_hex(4)}"
"""In Via, so that a name that leads to itself is noticed (RFC 9110 §7.6.3)."""
_VIA: Final = f"Via: 1.1 {PSEUDONYM}".encode()
_PSEUDONYM: Final = PSEUDONYM.encode()


async def serve_web(
    listeners: Sequence[trio.abc.Listener[FastSocket]],
    route: Route,
    before: Before | None = None,
    learn: Learn | None = None,
    hand_over: HandOver | None = None,
    *,
    max_visitors: int = MAX_VISITORS,
) -> None:
    """Serve an HTTP port until cancelled; closes the listeners."""

    serve_visit = partial(handle_visitor, route=route, before=before, learn=learn)
    http_2 = by_streams(serve_visit)

    # No coroutines of their own, here and below: each is 400 bytes of an idle visitor.
    def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> Awaitable[None]:
        if hand_over is not None:
            return unless_handed_over(stream, peer)
        return serve_visit(Visit(stream, peer, http_2=http_2))

    async def unless_handed_over(
        stream: trio.abc.HalfCloseableStream, peer: Address
    ) -> None:
        if hand_over is None or not await hand_over(stream):
            await serve_visit(Visit(stream, peer, http_2=http_2))

    await serve(listeners, handle, max_visitors=max_visitors)


def by_streams(
    serve: Callable[[Visit], Awaitable[None]],
) -> Callable[[Visit], Awaitable[None]]:
    """Return what serves a visitor of HTTP/2 as visitors of HTTP/1.1 are served."""

    def start(visit: Visit) -> Awaitable[None]:
        def serve_lane(lane: trio.abc.HalfCloseableStream) -> Awaitable[None]:
            return serve(
                Visit(
                    lane,
                    visit.peer,
                    secure=visit.secure,
                    keep_alive_s=KEPT_S,
                    watch=visit.watch,
                )
            )

        return serve_http_2(visit, serve_lane)

    return start


def handle_visitor(
    visit: Visit,
    route: Route,
    before: Before | None = None,
    learn: Learn | None = None,
) -> Coroutine[object, object, None]:
    """Serve one visitor to its end; owns its stream."""

    async def answer(request: Request) -> None:
        if learn is not None:
            learned = learn(request.host)
            if learned is not None and not await learned:
                raise _unknown_yet()
        if before is not None and (said := before(visit, request)) is not None:
            await send_whole(visit, request, said, "application/octet-stream")
            return
        found = route(request.host)
        visit.host = request.host
        if not isinstance(found, Destination):
            await _answer_guarded(visit, request, found, route)
            return
        made = visit.made
        if made is None or made[0] is not request or made[1] is not found.key:
            origin = origin_of(request, visit.peer, secure=visit.secure)
            head = b"\r\n".join((*request_lines(request, origin), b"", b""))
            visit.made = made = request, found.key, head, origin.visitor
        if visit.line is not None:
            visit.line.peer = made[3]
        await exchange_with(found, visit, request, made[2], made[3])

    visit.shared = VISITORS.get().trusts(visit.peer.host)
    return serve_requests(visit, answer)


async def _answer_guarded(
    visit: Visit, request: Request, found: Places | Absent, route: Route
) -> None:
    """Answer at a name of which the server asks more than whose it is."""
    if isinstance(found, Absent):
        raise _absent(found)
    origin = origin_of(request, visit.peer, secure=visit.secure)
    visitor, place = origin.visitor, found.place_of(request.target)
    if visit.line is not None:
        visit.line.peer = visitor
    place.admit(visitor, found.rates)
    place.limit_body(visit)
    kept = visit.upstream
    key = kept.key if isinstance(kept, Upstream) and not kept.is_over else None
    member = place.member(key, visitor)
    asked = request._replace(target=place.stripped(request.target))
    head = b"\r\n".join((*request_lines(asked, origin), b"", b""))
    tried: list[Member] = [member]
    while failure := await _ask_member(place, tried, visit, asked, head, visitor):
        # What is published may have changed meanwhile.
        now, rules = route(request.host), place.rules
        other = None
        if isinstance(now, Places):
            place = now.place_of(request.target)
            other = place.other(tried) if place.rules == rules else None
        if other is None:
            try:
                raise failure
            finally:  # it holds this frame, and must not be held by it
                del failure
        place.limit_body(visit)
        tried.append(other)


async def _ask_member(
    place: Place,
    tried: list[Member],
    visit: Visit,
    request: Request,
    head: bytes,
    visitor: Address,
) -> HttpError | None:
    """Have the last of ``tried`` answer; return a page if others may be asked."""
    member = tried[-1]
    exchange = Exchange(visit, head, _WORDS)
    exchange.has_others = len(place.members) > len(tried)

    def lost() -> None:
        if place.has_other(tried):
            exchange.give_up()

    def left() -> None:
        member.in_flight -= 1

    lost_calls = member.when_lost if exchange.has_others else set()
    lost_calls.add(lost)
    member.in_flight += 1
    try:
        await exchange_with(member, visit, request, head, visitor, exchange=exchange)
    except UnservedError as error:
        if not error.lost:
            member.shunned_until = trio.current_time() + SHUNNED_S
        return error.failure
    else:
        member.shunned_until = 0.0
    finally:
        lost_calls.discard(lost)
        if visit.tunnel is None:
            member.in_flight -= 1
        else:  # what it has switched to is in flight for as long as it lasts
            visit.left = left
    return None


async def exchange_with(
    to: Destination | Member,
    visit: Visit,
    request: Request,
    head: bytes,
    visitor: Address,
    lines: Callable[[AnswerHead], list[bytes]] = answer_lines,
    *,
    exchange: Exchange | None = None,
) -> None:
    """Have a destination answer a request.

    Args:
        to: the destination.
        visit: who asks.
        request: what came.
        head: what goes on of its head.
        visitor: for whom it is opened.
        lines: makes the fields of the answer that go on.
        exchange: made for this; None makes one.

    Raises:
        HttpError: there is no answer; this is ours.
        UnservedError: others may be asked.
        VisitorGoneError: see ``Exchange.run``.
    """
    if exchange is None:
        exchange = Exchange(visit, head, _WORDS, lines)
    moved = False
    try:
        await exchange.run((to.key, visitor.host), partial(to.open, visitor))
    except UnservedError:
        moved = True
        raise
    except StreamError as error:
        if isinstance(error, LimitError):
            failure = _limit(error.of_address)
        else:
            failure = _refusal(error.code)
        exchange.failure = failure.words
        if exchange.has_others:
            moved = True
            raise UnservedError(failure, lost=error.code in _LINK_CODES) from None
        try:
            raise failure from None
        finally:  # it holds this frame, and must not be held by it
            del failure
    finally:
        if exchange.failure:
            event = "request.moved" if moved else "request.failed"
            log_event(LOG, logging.INFO, event, peer=str(visitor),
                host=request.host, reason=exchange.failure)  # fmt: skip


# Fields -----------------------------------------------------------------------------


def request_lines(request: Request, origin: Origin | None) -> list[bytes]:
    """Return the head for the target, in lines without their ends.

    What is for this hop is out, and the visitor's truth in.

    Args:
        request: what came.
        origin: None leaves what the fields say about the visitor: for who is behind a
            server that has written it.

    Raises:
        HttpError: 508, the request was here before.
    """
    head = request.head
    drop = dropped(head.connection)
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
    return lines


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


def _unknown_yet() -> HttpError:
    retry = [("Retry-After", str(RETRY_AFTER_S))]
    words = "it cannot be told at the moment who serves this name"
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, words, headers=retry)


def _limit(of_address: bool) -> HttpError:
    """Say whose limit it is: the visitor has mostly done nothing for it."""
    words = (
        "this service has reached a limit that its server has set for it, not for you"
    )
    if of_address:
        words = "this service takes no more connections from one address at once"
    retry = [("Retry-After", str(RETRY_AFTER_S))]
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, words, headers=retry)


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
    if code is Code.DRAINING:  # it is paused, or its client is about to end
        return HttpError(status, "the far side takes no new visitors at the moment")
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        words = f"takes nothing new: {CODES[code].meaning}"
        return HttpError(status, f"the far side {words}")
    return fault(words, status)


def fault(words: str, status: HTTPStatus = HTTPStatus.BAD_GATEWAY) -> HttpError:
    """Return the page about a service that ``words``."""
    return HttpError(
        status, f"the client is connected, but the service behind it {words}"
    )


_WORDS: Final = Words(_refusal, fault)
