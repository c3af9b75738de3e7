"""TLS by name: one public HTTPS port, and the name in each first message decides.

The name is taken by OpenSSL itself (a server-side ``SSLObject`` whose callback hears
it): there is no parser of ours. Where the name is passed through, the visitor's bytes
go on untouched, and this side has no key; else TLS ends here, on the same object.

    read the name    _Greeting       at most 16 KiB and 10 s
    pass through     carry           raw bytes, from the first one on
    end it here      TlsVisitor      a trio stream, for the HTTP front end
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import StreamError
from tunnel.front.http1 import HttpError, Visit, host_of
from tunnel.front.listen import LOG, MAX_VISITORS, carry, serve
from tunnel.front.web import Absent, Open, handle_visitor
from tunnel.link.relay import GRACE_S, IDLE_S, reset_socket
from tunnel.log import say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tunnel.front.web import Route
    from tunnel.link.sockets import QuickSocket
    from tunnel.proto.frames import Address

RoutePassed = Callable[[str], Open | Absent]
"""Give who gets the visitors of a name with their TLS as it is; must not wait."""

HELLO_BYTES: Final = 16_384
"""A first message has some 600 bytes, with keys against quantum computers 2 KiB."""
HELLO_S: Final = 10.0
_READ_BYTES: Final = 16_384


def termination_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Give a context that ends TLS with a certificate; HTTP/1.1 is all it offers.

    Raises:
        OSError: a file cannot be read (``ssl.SSLError`` is one: they do not fit).
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def serve_tls_names(
    listeners: Sequence[trio.abc.Listener[QuickSocket]],
    route_passed: RoutePassed,
    route_web: Route,
    context: ssl.SSLContext | None,
    *,
    max_visitors: int = MAX_VISITORS,
    idle_s: float = IDLE_S,
) -> None:
    """Serve an HTTPS port until cancelled; closes the listeners.

    Args:
        listeners: of the port.
        route_passed: asked first.
        route_web: asked for each request of who is not passed through.
        context: ends TLS for those; None refuses them.
        max_visitors: at once.
        idle_s: without a byte either way.
    """

    async def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> None:
        await handle_tls_visitor(
            stream, peer, route_passed, route_web, context, idle_s=idle_s
        )

    await serve(listeners, handle, max_visitors=max_visitors)


async def handle_tls_visitor(
    stream: trio.abc.HalfCloseableStream,
    peer: Address,
    route_passed: RoutePassed,
    route_web: Route,
    context: ssl.SSLContext | None,
    *,
    idle_s: float = IDLE_S,
) -> None:
    """Serve one visitor to its end; owns the stream."""
    greeting = _Greeting(stream, route_passed, context)
    try:
        with trio.fail_after(HELLO_S):
            visitor = await greeting.run()
    except (ssl.SSLError, trio.BrokenResourceError, trio.TooSlowError) as error:
        reason = greeting.reason or type(error).__name__
        say(LOG, logging.INFO, "visitor.refused", peer=str(peer), reason=reason)
        await _last_words(stream, greeting.outgoing.read())
        return
    if visitor is not None:
        visit = Visit(visitor, peer, secure=True)
        await handle_visitor(visit, route_web, idle_s=idle_s)
        return
    assert greeting.passed is not None  # noqa: S101 - one of both has come
    try:
        virtual = await greeting.passed(peer)
    except StreamError as error:
        say(LOG, logging.INFO, "visitor.refused", peer=str(peer),
            reason=error.code.name)  # fmt: skip
        await reset_socket(stream)
        return
    await carry(stream, virtual, peer, early=bytes(greeting.heard), idle_s=idle_s)


class _Greeting:
    """The first messages of one visitor, until it is known who serves it."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        route_passed: RoutePassed,
        context: ssl.SSLContext | None,
    ) -> None:
        self.heard = bytearray()
        self.passed: Open | None = None
        self.reason = ""
        self.outgoing = ssl.MemoryBIO()
        self._incoming = ssl.MemoryBIO()
        self._stream = stream
        self._route_passed = route_passed
        self._context = context
        self._named = False
        # Never handshakes itself: the callback gives a real one, or stops it.
        listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        listening.set_alpn_protocols(["http/1.1"])
        listening.sni_callback = self._hear_name
        self._tls = listening.wrap_bio(self._incoming, self.outgoing, server_side=True)

    async def run(self) -> TlsVisitor | None:
        """Give the visitor's stream inside its TLS; None if it is passed through.

        Raises:
            ssl.SSLError: neither; ``outgoing`` has the alert.
        """
        while not self._named:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                raise trio.BrokenResourceError
            self.heard += data
            self._incoming.write(data)
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                if self.passed is None:
                    raise
            if not self._named and len(self.heard) > HELLO_BYTES:
                self.reason = "a first message without end"
                raise ssl.SSLError(self.reason)
        if self.passed is not None:
            return None
        visitor = TlsVisitor(self._stream, self._tls, self._incoming, self.outgoing)
        await visitor.handshake()
        return visitor

    def _hear_name(
        self, tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        """Decide on the name; an alert also ends what is passed through."""
        self._named = True
        found: Open | Absent = Absent.UNKNOWN
        if name:
            with suppress(HttpError):  # no host name: nobody has it
                found = self._route_passed(host_of(name))
        if not isinstance(found, Absent):
            self.passed = found
        elif found is Absent.UNKNOWN and self._context is not None:
            tls.context = self._context
            return None
        else:
            self.reason = found.value
        if found is Absent.AWAY:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


async def _last_words(stream: trio.abc.HalfCloseableStream, alert: bytes) -> None:
    """Say the alert and close; bytes that are unread would destroy it."""
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


class TlsVisitor(trio.abc.HalfCloseableStream):
    """What a visitor says inside its TLS, and what it is told.

    Unlike ``trio.SSLStream`` it can end its own direction (a close_notify, as TLS 1.3
    knows it). An end without close_notify counts as one: HTTP says itself where a
    message ends. Closing closes the stream below.
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self._stream = stream
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._flushing = trio.Lock()
        self._said_end = False

    async def handshake(self) -> None:
        """Shake hands.

        Raises:
            ssl.SSLError: the visitor does not want to, or cannot.
            trio.BrokenResourceError: it left.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._read():
                    raise trio.BrokenResourceError from None
            else:
                await self._flush()
                return

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Give what has come; nothing at the end.

        Raises:
            trio.BrokenResourceError: the connection broke, or what came is not TLS.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                data = self._tls.read(max_bytes or _READ_BYTES)
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._read():
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
            else:
                return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Return when the stream below has taken it.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: after ``send_eof``.
        """
        if self._said_end:
            raise trio.ClosedResourceError
        try:
            if data:
                self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError from error
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """See ``trio.abc.SendStream``."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End our direction; the visitor's goes on."""
        if not self._said_end:
            self._said_end = True
            # It only waits for the other's end, which may come later.
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            await self._flush()
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream below, after a close_notify if that is taken at once."""
        try:
            with trio.move_on_after(GRACE_S), suppress(trio.BrokenResourceError):
                if not self._said_end:
                    await self.send_eof()
        finally:
            await self._stream.aclose()

    async def _read(self) -> bool:
        data = await self._stream.receive_some(_READ_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return bool(data)

    async def _flush(self) -> None:
        async with self._flushing:
            if self._outgoing.pending:
                await self._stream.send_all(self._outgoing.read())
