"""TLS over any stream: what a visitor says inside it here, or a target there.

Unlike ``trio.SSLStream`` it can end its own direction (a close_notify, as TLS 1.3 knows
it). An end without close_notify counts as one: HTTP says itself where a message ends.
A link has a TLS of its own (``link.transport``), made for its reads and writes.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.net.relay_policy import GRACE_S
from tunnel.net.sockets import quick

if TYPE_CHECKING:
    from tunnel.platform.sockets import Buffer

_RECORD_BYTES: Final = 16_384
"""What one read of OpenSSL gives at most."""
_READ_BYTES: Final = 65_536


class TlsStream(trio.abc.HalfCloseableStream):
    """What one end of a TLS connection hears, and says.

    Args:
        stream: below; owned.
        context: of this end.
        name: of the other end, for a client; None for a server.
        heard: was read from ``stream`` before.
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        context: ssl.SSLContext,
        name: str | None = None,
        heard: bytes = b"",
    ) -> None:
        self._stream = stream
        self._below = quick(stream)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, name is None, name)
        self._incoming.write(heard)
        self._writing = trio.Lock()
        self._has_ended = False
        """The other end's direction, below TLS."""
        self._finished = False
        """Our direction is to end …"""
        self._said_end = False
        """… and has."""

    @property
    def beneath(self) -> trio.abc.HalfCloseableStream:
        """The stream below."""
        return self._stream

    async def handshake(self) -> None:
        """Shake hands; a failure is told to the other end.

        Raises:
            ssl.SSLError: one end does not want to, or cannot.
            trio.BrokenResourceError: the other end left.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._read():
                    raise trio.BrokenResourceError from None
            except ssl.SSLError:
                with suppress(trio.BrokenResourceError):
                    await self._flush()
                raise
            else:
                await self._flush()
                return

    def protocol(self) -> str:
        """Return what both ends agreed to speak (ALPN); empty if nothing."""
        return self._tls.selected_alpn_protocol() or ""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; nothing at the end.

        Raises:
            trio.BrokenResourceError: the connection broke, or what came is not TLS.
            trio.ClosedResourceError: it was closed here.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self._tls.read(max_bytes or _RECORD_BYTES)
            except ssl.SSLWantReadError:
                # A writer has the lock, or what is pending answers a key update.
                if not self._writing.locked():
                    if self._finished:
                        await self._end()
                    elif self._outgoing.pending:
                        await self._flush()
                if not await self._read():
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: Buffer) -> None:
        """Return when the stream below has taken it.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: it was closed here, or this direction has ended.
        """
        if self._finished:
            raise trio.ClosedResourceError("this direction has ended")
        try:
            if data:
                self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError from error
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until ``send_all`` of one byte would not wait."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End our direction: with close_notify, and an end below behind it.

        That is left to the reader while something that has come waits for it: OpenSSL
        would break off there.
        """
        self._finished = True
        if not self._is_busy:
            await self._end()

    async def aclose(self) -> None:
        """Close the stream below, after a close_notify if that is taken at once.

        Cancelled, it says none: what was cut short must not seem to have ended.
        """
        try:
            await trio.lowlevel.checkpoint()
            with (
                trio.move_on_after(GRACE_S),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await self._end()
        finally:
            await self._stream.aclose()

    @property
    def _is_busy(self) -> bool:
        waits = self._incoming.pending or self._tls.pending()
        return bool(waits) or self._writing.locked()

    async def _end(self) -> None:
        self._finished = True
        if self._say_end():
            await self._flush()
            await self._stream.send_eof()

    def _say_end(self) -> bool:
        """Have the end ready to be sent; False if it was."""
        if self._said_end:
            return False
        self._said_end = True
        with suppress(ssl.SSLError):  # it only waits for the other's end
            self._tls.unwrap()
        return True

    async def _read(self) -> bool:
        data = await self._below.receive_some(_READ_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._has_ended = True
            self._incoming.write_eof()
        return bool(data)

    async def _flush(self) -> None:
        if self._writing.locked():
            await self._writing.acquire()
        else:
            self._writing.acquire_nowait()
        try:
            if self._outgoing.pending:
                await self._below.put(self._outgoing.read())
        finally:
            self._writing.release()
