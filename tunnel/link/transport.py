"""The wire under a link: a plain or TLS stream that moves batches of bytes.

TLS is taken over two memory BIOs instead of ``trio.SSLStream``: all records that one
read brought are opened in one turn, and all that one write holds are sealed in one
(a record a call costs 40 % of the throughput).

Knows no frame. Only this module dials links.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.errors import Code, LocalLinkError, LocalStreamError, TlsError
from tunnel.net.dial import connect
from tunnel.net.sockets import FastSocket, end_with_fin, quick
from tunnel.platform.sockets import TCP_NOTSENT_LOWAT, TCP_USER_TIMEOUT
from tunnel.proto.frames import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.net.sockets import FastStream

ALPN: Final = "prot/1"
READ_BYTES: Final = 262_144
"""One read from the kernel: four of the largest frames, a fair batch for one turn."""
UNPROVEN_READ_BYTES: Final = 8_192
"""The same before the peer has proved who it is: all that it may say until then."""
TLS_START_BYTES: Final = 16_384
"""What a client may say in a TLS handshake: 600 bytes to 2 KiB are usual, and OpenSSL
would keep eight times this. Certificates of a server may be larger."""
SEALED_BYTES: Final = 65_536
"""Given to TLS, and what it made of it to the kernel, at once: four records, which stay
in the processor's cache between the three copies."""
NOTSENT_LOWAT_BYTES: Final = 65_536
"""What the kernel may hold unsent: little, so that the order of sending stays ours;
64 KiB cost the least processor time per byte."""
LOST_AFTER_MS: Final = 30_000
"""The kernel gives up unacknowledged bytes when the liveness rule would."""
DIAL_S: Final = 10.0

Buffer = bytes | bytearray | memoryview

_NOTHING: Final = memoryview(b"")


class Transport(Protocol):
    """Bytes to and from the peer. One task reads, one writes."""

    encrypted: bool
    peer: str

    def enlarge(self) -> None:
        """Take ``READ_BYTES`` at a time from now on: the peer has proved who it is."""
        ...

    def shrink(self) -> None:
        """Take little at a time again: the wire only waits for its end."""
        ...

    async def receive_some(self) -> Buffer:
        """Give what came, empty at the end; valid until the next call.

        A loss of any kind is an end: that the peer meant to go, only GO_AWAY says.
        """
        ...

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Take all pieces, in order, and give the kernel what it takes at once.

        Not while it owes output: ``flush`` first.

        Raises:
            LocalLinkError: ``LINK_LOST``.
        """
        ...

    def owes_output(self) -> bool:
        """Say whether there is something for ``flush``: a rest, or TLS's own bytes."""
        ...

    async def flush(self) -> None:
        """Wait until the kernel has everything; no checkpoint when it has.

        Raises:
            LocalLinkError: ``LINK_LOST``. Cancelled, the link is lost too: nobody can
                know how much went out.
        """
        ...

    async def send_eof(self) -> None:
        """End our direction; the peer's goes on."""
        ...

    async def aclose(self) -> None:
        """Close the stream below at once. Call it always."""
        ...


def lost(why: str) -> LocalLinkError:
    """Make the error of a link that broke under us."""
    return LocalLinkError(Code.LINK_LOST, f"the link is lost: {why}")


class PlainTransport:
    """The stream as it is: for loopback, unix sockets, or where both ends insist."""

    encrypted = False

    def __init__(self, stream: trio.abc.Stream, peer: str = "-") -> None:
        self._stream = stream
        self._bytes = quick(stream)
        self._came = memoryview(bytearray(UNPROVEN_READ_BYTES))
        self._rest = b""
        self.peer = peer

    def enlarge(self) -> None:
        """See ``Transport``."""
        self._came = memoryview(bytearray(READ_BYTES))

    def shrink(self) -> None:
        """See ``Transport``."""
        self._came = memoryview(bytearray(UNPROVEN_READ_BYTES))

    async def receive_some(self) -> Buffer:
        """See ``Transport``."""
        try:
            return self._came[: await self._bytes.receive_into(self._came)]
        except trio.BrokenResourceError:
            return b""

    def write(self, pieces: Sequence[Buffer]) -> None:
        """See ``Transport``."""
        data = b"".join(pieces)
        if data:
            self._rest = data[self._bytes.write_now(data) :]

    def owes_output(self) -> bool:
        """See ``Transport``."""
        return bool(self._rest)

    async def flush(self) -> None:
        """See ``Transport``."""
        if self._rest:
            rest, self._rest = self._rest, b""
            await _send_all(self._bytes, rest)

    async def send_eof(self) -> None:
        """See ``Transport``."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            with suppress(trio.BrokenResourceError):
                await self._stream.send_eof()

    async def aclose(self) -> None:
        """See ``Transport``."""
        # An error may hold us in its traceback: the buffers must not wait for that.
        self._came, self._rest = _NOTHING, b""
        await trio.aclose_forcefully(self._stream)


class TlsTransport:
    """TLS 1.3 over a stream. ``handshake`` comes first."""

    encrypted = True

    def __init__(
        self,
        stream: trio.abc.Stream,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        host_name: str | None = None,
        peer: str = "-",
    ) -> None:
        self._stream = stream
        self._bytes = quick(stream)
        self._rest = b""
        self._ended = False
        """The peer said so, or TLS broke: what comes behind that is nobody's."""
        self._unopened = True
        """There may be records that came, or the end, and were not given out."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=host_name,
        )
        self._came = memoryview(bytearray(UNPROVEN_READ_BYTES))
        self._plain = memoryview(bytearray(UNPROVEN_READ_BYTES))
        self.peer = peer

    def enlarge(self) -> None:
        """See ``Transport``."""
        # Buffers for the life of the link: new ones this size cost page faults.
        self._came = memoryview(bytearray(READ_BYTES))
        self._plain = memoryview(bytearray(READ_BYTES))

    def shrink(self) -> None:
        """See ``Transport``."""
        self._came = memoryview(bytearray(UNPROVEN_READ_BYTES))
        self._plain = memoryview(bytearray(UNPROVEN_READ_BYTES))

    async def handshake(self) -> None:
        """Agree on keys and check that the peer speaks this protocol.

        Raises:
            TlsError: it does not, or its certificate is not accepted.
            LocalLinkError: the connection broke.
        """
        came = 0
        while True:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                if came > TLS_START_BYTES and self._ssl.server_side:
                    raise TlsError(
                        Code.LINK_LOST, f"TLS: a handshake of more than {came} bytes"
                    ) from None
                size = await self._receive_raw()
                came += size
                if not size:
                    # Not a TlsError: a full server does this too, and may be retried.
                    raise LocalLinkError(
                        Code.LINK_LOST,
                        "the peer ended the TLS handshake",
                        "it takes no more links at the moment, or speaks without TLS",
                    ) from None
            except ssl.SSLError as error:
                with suppress(LocalLinkError):
                    await self.flush()
                raise _tls_error(error) from error
            else:
                await self.flush()
                break
        if self._ssl.selected_alpn_protocol() != ALPN:
            raise TlsError(Code.LINK_LOST, f"the peer does not offer ALPN {ALPN}")

    def peer_certificate(self) -> bytes:
        """Give the peer's certificate, DER; the client's side only."""
        certificate = self._ssl.getpeercert(binary_form=True)
        return certificate or b""

    async def receive_some(self) -> Buffer:
        """See ``Transport``."""
        size = self._open_records() if self._unopened else 0
        while not size:
            if size is None or not await self._receive_raw():
                return b""
            size = self._open_records()
        return self._plain[:size]

    def _open_records(self) -> int | None:
        """Open all records that are whole; give their size, None after the end."""
        if self._ended:
            return None
        size = 0
        incoming, read, plain = self._incoming, self._ssl.read, self._plain
        most = len(plain)
        try:
            # Asked in vain, it would raise, and that costs more than to look first.
            while size < most and (incoming.pending or self._ssl.pending()):
                got = read(most - size, plain[size:])
                if not got:
                    self._ended = True
                    break
                size += int(got)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._ended = True
        self._unopened = size == most or self._ended
        return None if self._ended and not size else size

    async def _receive_raw(self) -> int:
        """Wait for bytes of the peer and give them to TLS; 0 when there are no more."""
        try:
            size = await self._bytes.receive_into(self._came)
        except trio.BrokenResourceError:
            return 0
        self._incoming.write(self._came[:size])
        return size

    def write(self, pieces: Sequence[Buffer]) -> None:
        """See ``Transport``."""
        data = memoryview(b"".join(pieces))
        try:
            for start in range(0, len(data), SEALED_BYTES):
                self._ssl.write(data[start : start + SEALED_BYTES])
                if not self._rest:
                    sealed = self._outgoing.read()
                    self._rest = sealed[self._bytes.write_now(sealed) :]
        except ssl.SSLError as error:
            raise lost(_tls_reason(error)) from error
        if self._rest:
            self._rest += self._outgoing.read()

    def owes_output(self) -> bool:
        """See ``Transport``."""
        return bool(self._rest) or self._outgoing.pending > 0

    async def flush(self) -> None:
        """See ``Transport``."""
        while rest := self._rest or self._outgoing.read():
            self._rest = b""
            await _send_all(self._bytes, rest)

    async def send_eof(self) -> None:
        """See ``Transport``."""
        # unwrap() queues close_notify, then asks for the peer's, which may never come.
        with suppress(ssl.SSLError):
            self._ssl.unwrap()
        with suppress(LocalLinkError, trio.BrokenResourceError):
            await self.flush()
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()

    async def aclose(self) -> None:
        """See ``Transport``."""
        # An error may hold us in its traceback: the buffers must not wait for that.
        self._came = self._plain = _NOTHING
        self._rest, self._ended, self._unopened = b"", True, True
        self._incoming = self._outgoing = ssl.MemoryBIO()
        if hasattr(self, "_ssl"):
            del self._ssl
        await trio.aclose_forcefully(self._stream)


async def send(transport: Transport, pieces: Sequence[Buffer]) -> None:
    """Write all pieces and wait until the kernel has them.

    Raises:
        LocalLinkError: as ``Transport.flush`` does.
    """
    transport.write(pieces)
    await transport.flush()


async def _send_all(stream: FastStream, data: Buffer) -> None:
    try:
        await stream.put(data)
    except trio.BrokenResourceError as error:
        raise lost(_reason(error)) from error


def tune_link(link: FastSocket) -> None:
    """Set a link's socket options; local sockets are never treated so."""
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES),
        (TCP_USER_TIMEOUT, LOST_AFTER_MS),
    ):
        # A kernel or a socket family without the option works without it.
        with suppress(OSError):
            link.socket.setsockopt(socket.IPPROTO_TCP, option, value)
    with suppress(OSError):
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end_with_fin(link.socket)


async def dial(host: str, port: int, mss: int | None = None) -> FastSocket:
    """Connect to a center-server; at most 10 s.

    Args:
        host: an IP address or a name.
        port: of the server.
        mss: bytes that one segment may carry, in either direction; None leaves it to
            the kernel. It counts only if it is set before the first packet.

    Raises:
        LocalLinkError: with the cause in words and what can be done.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def opened(sock: socket.socket) -> None:
        if mss is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)

    try:
        sock = await connect(
            Address(host, port), deadline_s=DIAL_S, opened=opened, own=True
        )
    except LocalStreamError as error:
        raise _dial_failed(where, host, port, error) from error
    link = FastSocket(sock)
    tune_link(link)
    return link


def _dial_failed(
    where: str, host: str, port: int, error: LocalStreamError
) -> LocalLinkError:
    cause = error.__cause__
    if isinstance(cause, socket.gaierror):
        return _not_reached(where, f"{host} is not known", "check the name")
    if error.code is Code.REFUSED:
        return _not_reached(
            where,
            "connection refused",
            f"the machine answers, but nothing listens on port {port}",
            "run `tunnel serve` there",
        )
    if isinstance(cause, TimeoutError):
        return _not_reached(where, f"no answer within {DIAL_S:.0f} s", "is it up?")
    why = cause.strerror if isinstance(cause, OSError) else None
    return _not_reached(where, (why or error.what).lower(), "")


def _not_reached(where: str, why: str, cause: str, fix: str = "") -> LocalLinkError:
    what = f"cannot reach {where}: {why}"
    return LocalLinkError(Code.LINK_LOST, what, cause, fix)


def _first_errno(error: BaseException) -> int | None:
    """Find the errno in an error or in what caused it."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return _first_errno(error.__cause__) if error.__cause__ else None


def _reason(error: BaseException) -> str:
    number = _first_errno(error)
    return os.strerror(number).lower() if number else "the connection broke"


def _tls_error(error: ssl.SSLError) -> TlsError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(
            Code.LINK_LOST,
            f"TLS: {error.verify_message}",
            "a join line without #PIN is for a server whose certificate browsers take",
            "copy the whole line that `tunnel serve` printed",
        )
    return TlsError(Code.LINK_LOST, f"TLS: {_tls_reason(error)}")


def _tls_reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
