"""TLS by name: one public HTTPS port, and the name in each first message decides.

The first message is read before OpenSSL sees a byte of it. Where its name is passed
through, the visitor's bytes go on untouched, and this side has no key; where it leads
nowhere, an alert is all that it gets; else TLS ends here, with a context that was made
once and that costs little whatever a stranger offers.

    read the name    client_hello     at most 16 KiB and 10 s
    a link           links            where links share the port: it is no visitor
    pass through     carry            raw bytes, from the first one on
    end it here      TlsStream        a trio stream, for the HTTP front end
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.tls import ALPN
from tunnel.errors import StreamError
from tunnel.front.http.client_hello import (
    ACCESS_DENIED,
    HANDSHAKE_FAILURE,
    INTERNAL_ERROR,
    P256,
    UNRECOGNIZED_NAME,
    HelloError,
    alert_record,
    read_client_hello,
)
from tunnel.front.http.names import (
    Absent,
    Destination,
    by_streams,
    handle_visitor,
)
from tunnel.front.http.pages import HttpError
from tunnel.front.http.places import Places
from tunnel.front.http.request import host_of
from tunnel.front.http.server import Visit
from tunnel.log import log_event
from tunnel.net.carry import carry
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.net.listen import ENTRY_SHARE, LOG, MAX_VISITORS, serve
from tunnel.net.relay import GRACE_S, reset_socket
from tunnel.net.sockets import FastSocket
from tunnel.net.tls_stream import TlsStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.addresses import Address
    from tunnel.front.http.client_hello import ClientHello
    from tunnel.front.http.names import HandOver, Learn, Route
    from tunnel.front.http.places import Member
    from tunnel.front.http.request import Request
    from tunnel.front.http.terminations import Terminations
    from tunnel.net.listen import Then


HELLO_S: Final = 10.0
"""For the first message, and as much for the handshake behind it, if TLS ends here."""
_READ_BYTES: Final = 16_384

ACME: Final = b"acme-tls/1"
"""What a certificate authority says that looks whether a name leads here (RFC 8737)."""
HTTP_2: Final = "h2"
LINK: Final = ALPN.encode()
HELLOS: Final = 64
"""Visitors beyond the most, on a port that links share: so many are heard out, for one
of them may be a link."""


@dataclass(slots=True)
class Doors:
    """Where an HTTPS port leads to; ``links`` and what is in ``endings`` may change."""

    passed: Route
    """Asked first."""
    web: Route
    """Asked for each request of who is not passed through."""
    endings: Terminations
    """End TLS for those."""
    learn: Learn | None = None
    """Has names known that other nodes may have."""
    hand_over: HandOver | None = None
    """Has another process serve whom it is about."""
    links: Links | None = None
    """Serves who wants to be a link, with what was heard of it; None: nobody is one."""


Links = Callable[["FastSocket", "Address", bytes], Coroutine[object, object, None]]


async def serve_tls_names(
    listeners: Sequence[trio.abc.Listener[FastSocket]],
    doors: Doors,
    *,
    max_visitors: int = MAX_VISITORS,
) -> None:
    """Serve an HTTPS port until cancelled; closes the listeners.

    Args:
        listeners: of the port.
        doors: where it leads to.
        max_visitors: at once; links are none.
    """
    most = DESCRIPTORS.share(ENTRY_SHARE, max_visitors + HELLOS)
    places = trio.Semaphore(max(most - HELLOS, 1))

    def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> Awaitable[Then]:
        return handle_tls_visitor(stream, peer, doors, places)

    await serve(listeners, handle, max_visitors=max_visitors + HELLOS)


async def handle_tls_visitor(
    stream: trio.abc.HalfCloseableStream,
    peer: Address,
    doors: Doors,
    places: trio.Semaphore,
) -> Then:
    """Serve one visitor to its end, or return what serves a link; owns the stream."""
    if doors.hand_over is not None and await doors.hand_over(stream):
        return None
    heard = bytearray()
    try:
        with trio.fail_after(HELLO_S):
            hello = await _hear(stream, heard)
            links = doors.links
            if links and LINK in hello.protocols and isinstance(stream, FastSocket):
                return links(stream, peer, bytes(heard))
    except HelloError as error:
        await _refuse(stream, peer, str(error), alert_record(error.alert))
        return None
    except (trio.BrokenResourceError, trio.TooSlowError) as error:
        await _refuse(stream, peer, type(error).__name__)
        return None
    said = bytes(heard)
    heard.clear()
    if links is None:
        await _serve_heard(stream, peer, doors, hello, said)
        return None
    try:
        places.acquire_nowait()
    except trio.WouldBlock:
        await _refuse(stream, peer, "the entry is full", alert_record(INTERNAL_ERROR))
        return None
    try:
        await _serve_heard(stream, peer, doors, hello, said)
    finally:
        places.release()
    return None


async def _serve_heard(
    stream: trio.abc.HalfCloseableStream,
    peer: Address,
    doors: Doors,
    hello: ClientHello,
    heard: bytes,
) -> None:
    """Serve a visitor whose first message has come; owns the stream."""
    try:
        with trio.fail_after(HELLO_S):
            await _learn(doors.learn, _host(hello))
            found: Destination | Member | Absent | TlsStream
            found = _find(hello, doors.passed, peer)
            if isinstance(found, Absent):
                context = _context(hello, found, doors.endings)
                found = await _shaken_hands(stream, context, heard)
    except HelloError as error:
        await _refuse(stream, peer, str(error), alert_record(error.alert))
    except (ssl.SSLError, trio.BrokenResourceError, trio.TooSlowError) as error:
        await _refuse(stream, peer, type(error).__name__)
    else:
        if isinstance(found, TlsStream) and ACME in hello.protocols:
            await found.aclose()  # shaking hands was all
        elif isinstance(found, TlsStream):
            await _serve_ended(found, peer, doors, _host(hello))
        elif isinstance(found, Destination):
            await _pass_on(stream, peer, found, heard, hello)
        else:
            await _pass_to(stream, peer, found, heard, hello)


async def _serve_ended(
    stream: TlsStream, peer: Address, doors: Doors, host: str
) -> None:
    """Serve a visitor whose TLS ends here; owns its stream."""
    if stream.protocol() != HTTP_2:
        visit = Visit(stream, peer, secure=True)
        await handle_visitor(visit, doors.web, learn=doors.learn)
        return

    def before(visit: Visit, request: Request) -> None:
        # Browsers ask for all names of a certificate on one connection.
        del visit
        if (
            doors.endings.of(request.host) is not doors.endings.of(host)
            or doors.passed(request.host) is not Absent.UNKNOWN
        ):
            status = HTTPStatus.MISDIRECTED_REQUEST
            raise HttpError(status, "this name is served on another connection")

    serve = by_streams(
        partial(handle_visitor, route=doors.web, before=before, learn=doors.learn)
    )
    await serve(Visit(stream, peer, secure=True))


async def _pass_to(
    stream: trio.abc.HalfCloseableStream,
    peer: Address,
    member: Member,
    heard: bytes,
    hello: ClientHello,
) -> None:
    """Pass a visitor on to a member, for which it counts as one request."""
    member.in_flight += 1
    try:
        await _pass_on(stream, peer, member, heard, hello)
    finally:
        member.in_flight -= 1


async def _hear(stream: trio.abc.HalfCloseableStream, heard: bytearray) -> ClientHello:
    """Wait for a whole first message; what came is in ``heard``."""
    while True:
        data = await stream.receive_some(_READ_BYTES)
        if not data:
            raise trio.BrokenResourceError
        heard += data
        hello = read_client_hello(heard)
        if hello is not None:
            return hello


async def _learn(learn: Learn | None, host: str) -> None:
    learned = learn(host) if learn is not None and host else None
    if learned is not None and not await learned:
        raise HelloError(INTERNAL_ERROR, "it cannot be told who serves this name")


def _find(
    hello: ClientHello, route_passed: Route, peer: Address
) -> Destination | Member | Absent:
    host = _host(hello)
    if not host:
        return Absent.UNKNOWN
    found = route_passed(host)
    if not isinstance(found, Places):
        return found
    try:
        return found.admit_connection(peer)
    except HttpError as error:
        raise HelloError(ACCESS_DENIED, error.words) from None


def _host(hello: ClientHello) -> str:
    """Return the host that is wanted; empty if none is, or what nobody can have."""
    try:
        return host_of(hello.name) if hello.name else ""
    except HttpError:
        return ""


def _context(
    hello: ClientHello, absent: Absent, endings: Terminations
) -> ssl.SSLContext:
    """Return what ends this visitor's TLS here.

    Raises:
        HelloError: nothing does.
    """
    if absent is Absent.AWAY:
        raise HelloError(INTERNAL_ERROR, absent.value)
    host = _host(hello)
    if ACME in hello.protocols:
        if host in endings.challenges:
            return endings.challenges[host]
        raise HelloError(UNRECOGNIZED_NAME, "no certificate is asked for this name")
    ending = endings.of(host)
    if not ending:
        raise HelloError(UNRECOGNIZED_NAME, absent.value)
    # A part that was sent already saves the visitor a round trip.
    for group in (*hello.shares, *(hello.groups or (P256,))):
        if group in ending:
            return ending[group]
    raise HelloError(HANDSHAKE_FAILURE, "neither X25519 nor P-256 is offered")


async def _shaken_hands(
    stream: trio.abc.HalfCloseableStream, context: ssl.SSLContext, heard: bytes
) -> TlsStream:
    visitor = TlsStream(stream, context, heard=heard)
    await visitor.handshake()
    return visitor


async def _pass_on(
    stream: trio.abc.HalfCloseableStream,
    peer: Address,
    there: Destination | Member,
    heard: bytes,
    hello: ClientHello,
) -> None:
    try:
        virtual = await there.open(peer)
    except StreamError as error:
        log_event(LOG, logging.INFO, "visitor.refused", peer=str(peer),
            reason=error.code.name)  # fmt: skip
        await reset_socket(stream)
        return
    entry = f"https {hello.name.lower()}"
    await carry(stream, virtual, peer, early=heard, entry=entry)


async def _refuse(
    stream: trio.abc.HalfCloseableStream, peer: Address, reason: str, alert: bytes = b""
) -> None:
    """Log it, say the alert and close; bytes that are unread would destroy it."""
    log_event(LOG, logging.INFO, "visitor.refused", peer=str(peer), reason=reason)
    with (
        trio.move_on_after(GRACE_S),
        suppress(trio.BrokenResourceError, trio.ClosedResourceError),
    ):
        if alert:
            await stream.send_all(alert)
        await stream.send_eof()
        while await stream.receive_some(_READ_BYTES):
            pass
    await trio.aclose_forcefully(stream)
