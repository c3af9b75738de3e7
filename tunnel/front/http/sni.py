"""TLS by name: one public HTTPS port, and the name in each first message decides.

The first message is read before OpenSSL sees a byte of it. Where its name is passed
through, the visitor's bytes go on untouched, and this side has no key; where it leads
nowhere, an alert is all that it gets; else TLS ends here, with a context that was made
once and that costs little whatever a stranger offers.

    read the name    client_hello     at most 16 KiB and 10 s
    pass through     carry            raw bytes, from the first one on
    end it here      TlsStream       a trio stream, for the HTTP front end
"""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.tls import exchanges_only
from tunnel.errors import StreamError
from tunnel.front.http.client_hello import (
    ACCESS_DENIED,
    HANDSHAKE_FAILURE,
    INTERNAL_ERROR,
    P256,
    UNRECOGNIZED_NAME,
    X25519,
    HelloError,
    alert_record,
    read_client_hello,
)
from tunnel.front.http.names import Absent, Destination, handle_visitor
from tunnel.front.http.pages import HttpError
from tunnel.front.http.places import Places
from tunnel.front.http.request import host_of
from tunnel.front.http.server import Visit
from tunnel.log import log_event
from tunnel.net.listen import LOG, MAX_VISITORS, carry, serve
from tunnel.net.relay import GRACE_S, reset_socket
from tunnel.net.tls_stream import TlsStream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tunnel.addresses import Address
    from tunnel.front.http.client_hello import ClientHello
    from tunnel.front.http.names import Route
    from tunnel.front.http.places import Member
    from tunnel.net.sockets import FastSocket


HELLO_S: Final = 10.0
"""For the first message, and the handshake behind it where TLS ends here."""
_READ_BYTES: Final = 16_384

_CURVES: Final[Mapping[int, str]] = {X25519: "X25519", P256: "prime256v1"}
"""Key exchanges that cost some 0.1 ms, and that every visitor of today can do one of.
A finite field of 8,192 bits, which a stranger may ask for as well, costs a thousand
times that."""
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; those of 1.3 are all of this kind."""

Termination = dict[int, ssl.SSLContext]
"""What ends TLS with one certificate: a context for each key exchange, made once. Each
has the keys of its session tickets, so a visitor that comes back resumes."""


def termination(certificate: Path, key: Path) -> Termination:
    """Return what ends TLS with a certificate; HTTP/1.1 is all that it offers.

    Raises:
        OSError: a file cannot be read (``ssl.SSLError`` is one: they do not fit).
    """
    contexts = {}
    for group, curve in _CURVES.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if not exchanges_only(context, curve):
            continue
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.load_cert_chain(certificate, key)
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        contexts[group] = context
    return contexts


async def serve_tls_names(
    listeners: Sequence[trio.abc.Listener[FastSocket]],
    route_passed: Route,
    route_web: Route,
    ending: Termination | None,
    *,
    max_visitors: int = MAX_VISITORS,
) -> None:
    """Serve an HTTPS port until cancelled; closes the listeners.

    Args:
        listeners: of the port.
        route_passed: asked first.
        route_web: asked for each request of who is not passed through.
        ending: ends TLS for those, and may change; None or an empty one refuses them.
        max_visitors: at once.
    """

    async def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> None:
        await handle_tls_visitor(stream, peer, route_passed, route_web, ending)

    await serve(listeners, handle, max_visitors=max_visitors)


async def handle_tls_visitor(
    stream: trio.abc.HalfCloseableStream,
    peer: Address,
    route_passed: Route,
    route_web: Route,
    ending: Termination | None,
) -> None:
    """Serve one visitor to its end; owns the stream."""
    heard = bytearray()
    try:
        with trio.fail_after(HELLO_S):
            hello = await _hear(stream, heard)
            found: Destination | Member | Absent | TlsStream
            found = _find(hello, route_passed, peer)
            if isinstance(found, Absent):
                context = _context(hello, found, ending)
                found = await _shaken_hands(stream, context, bytes(heard))
    except HelloError as error:
        await _refuse(stream, peer, str(error), alert_record(error.alert))
    except (ssl.SSLError, trio.BrokenResourceError, trio.TooSlowError) as error:
        await _refuse(stream, peer, type(error).__name__)
    else:
        if isinstance(found, TlsStream):
            visit = Visit(found, peer, secure=True)
            await handle_visitor(visit, route_web)
        elif isinstance(found, Destination):
            await _pass_on(stream, peer, found, bytes(heard), hello)
        else:
            await _pass_to(stream, peer, found, bytes(heard), hello)


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


def _find(
    hello: ClientHello, route_passed: Route, peer: Address
) -> Destination | Member | Absent:
    if not hello.name:
        return Absent.UNKNOWN
    try:
        host = host_of(hello.name)
    except HttpError:  # no host name: nobody has it
        return Absent.UNKNOWN
    found = route_passed(host)
    if not isinstance(found, Places):
        return found
    try:
        return found.admit_connection(peer)
    except HttpError as error:
        raise HelloError(ACCESS_DENIED, error.words) from None


def _context(
    hello: ClientHello, absent: Absent, ending: Termination | None
) -> ssl.SSLContext:
    """Return what ends this visitor's TLS here.

    Raises:
        HelloError: nothing does.
    """
    if absent is Absent.AWAY:
        raise HelloError(INTERNAL_ERROR, absent.value)
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
    entry = f"https {hello.name}"
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
