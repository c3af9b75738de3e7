"""The wire under a link, dialled here: a plain or TLS stream for batches of bytes.

TLS runs over two memory BIOs instead of ``trio.SSLStream``: all records that one read
brought are opened in one turn, and all that one write holds are sealed in one (one
record for each call costs 40 % of the throughput).
"""

from __future__ import annotations

import os
import socket
import ssl
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from tunnel.access.tls import ALPN, users_of
from tunnel.addresses import Address
from tunnel.errors import Code, LinkError, LocalLinkError, LocalStreamError, TlsError
from tunnel.net.dial import connect
from tunnel.net.lookup import is_unknown, why_not_found
from tunnel.net.sockets import FastSocket, end_with_fin, quick
from tunnel.platform.sockets import TCP_NOTSENT_LOWAT, TCP_USER_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.proto.claims import AuthClaim, HandshakeResult
    from tunnel.proto.handshake import ClientHandshake, ServerHandshake

READ_BYTES: Final = 262_144
"""One read from the kernel: four of the largest frames, a fair batch for one turn."""
UNPROVEN_READ_BYTES: Final = 8_192
"""The same before the peer has proved who it is, all that it may send until then; and
while the wire only waits for its end."""
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


class Transport(ABC):
    """Bytes to and from the peer, over a trio stream. One task reads, one writes."""

    encrypted: ClassVar[bool]

    def __init__(self, stream: trio.abc.Stream, peer: str = "-") -> None:
        self._stream = stream
        self._bytes = quick(stream)
        self._rest = b""
        """What the kernel has not taken of the last write."""
        self.peer = peer
        self.read_at_most(UNPROVEN_READ_BYTES)

    @property
    def tcp(self) -> socket.socket | None:
        """The socket below, for what the kernel knows of it; None if there is more."""
        stream = self._stream
        return stream.socket if isinstance(stream, FastSocket) else None

    def read_at_most(self, size: int) -> None:
        """Take so many bytes at a time from now on."""
        # Buffers for many reads: new ones of ``READ_BYTES`` cost page faults.
        self._came = memoryview(bytearray(size))

    @abstractmethod
    async def receive_some(self) -> Buffer:
        """Return what came, empty at the end; valid until the next call.

        A loss of any kind is an end: only GO_AWAY says that the peer meant to go.
        """

    @abstractmethod
    def write(self, pieces: Sequence[Buffer]) -> None:
        """Take all pieces, in order, and give the kernel what it takes at once.

        Not while it owes output: ``flush`` first.

        Raises:
            LocalLinkError: ``LINK_LOST``.
        """

    def owes_output(self) -> bool:
        """Say whether there is something for ``flush``: a rest, or TLS's own bytes."""
        return bool(self._rest)

    async def flush(self) -> None:
        """Wait until the kernel has everything; no checkpoint when it has.

        Raises:
            LocalLinkError: ``LINK_LOST``. Cancelled, the link is lost too: nobody can
                know how much went out.
        """
        if self._rest:
            rest, self._rest = self._rest, b""
            await self._send_all(rest)

    async def _send_all(self, data: Buffer) -> None:
        try:
            await self._bytes.put(data)
        except trio.BrokenResourceError as error:
            raise lost(_reason(error)) from error

    async def send_eof(self) -> None:
        """End our direction; the peer's goes on."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            with suppress(trio.BrokenResourceError):
                await self._stream.send_eof()

    async def discard(self) -> None:
        """Drop all that comes up to the end.

        Closed with bytes unread, the kernel would destroy what was sent last.
        """
        with suppress(trio.BrokenResourceError):
            while await self._bytes.receive_into(self._came):
                pass

    def ended(self) -> LinkError:
        """Return the error for a link start that the peer ended."""
        return LocalLinkError(Code.LINK_LOST, "the peer ended the link start")

    async def aclose(self) -> None:
        """Close the stream below at once. Call it always."""
        # An error may hold us in its traceback: the buffers must not wait for that.
        self._came, self._rest = _NOTHING, b""
        await trio.aclose_forcefully(self._stream)


def lost(why: str) -> LocalLinkError:
    """Return the error of a link that broke under us."""
    return LocalLinkError(Code.LINK_LOST, f"the link is lost: {why}")


class PlainTransport(Transport):
    """The stream as it is: for loopback, unix sockets, or where both ends insist."""

    encrypted = False

    async def receive_some(self) -> Buffer:
        """Return what came; see ``Transport``."""
        came = self._came  # ``read_at_most`` may change it meanwhile
        try:
            size = await self._bytes.receive_into(came)
        except trio.BrokenResourceError:
            return b""
        return came[:size]

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Take all pieces; see ``Transport``."""
        data = b"".join(pieces)
        if data:
            self._rest = data[self._bytes.write_now(data) :]


class TlsTransport(Transport):
    """TLS 1.3 over a stream. ``handshake`` comes first; ``heard`` was read before."""

    encrypted = True

    def __init__(
        self,
        stream: trio.abc.Stream,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        host_name: str | None = None,
        peer: str = "-",
        heard: bytes = b"",
    ) -> None:
        super().__init__(stream, peer)
        self._ended = False
        """The peer ended TLS, or TLS broke: what comes behind that is dropped."""
        self._alert = ""
        """What TLS said when it broke."""
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
        self._incoming.write(heard)

    def read_at_most(self, size: int) -> None:
        """Take so many bytes at a time, opened and unopened."""
        super().read_at_most(size)
        self._plain = memoryview(bytearray(size))

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
                    why = f"TLS: a handshake of more than {came} bytes"
                    raise TlsError(Code.LINK_LOST, why) from None
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
                if self._ssl.server_side and (why := _why_not_in(error)):
                    raise TlsError(Code.AUTH, f"TLS: {why}") from error
                raise _tls_error(error) from error
            else:
                break
        await self.flush()
        if self._ssl.selected_alpn_protocol() != ALPN:
            raise TlsError(Code.LINK_LOST, f"the peer does not offer ALPN {ALPN}")

    def peer_certificate(self) -> bytes:
        """Return the peer's certificate, DER; the client's side only."""
        return self._ssl.getpeercert(binary_form=True) or b""

    def peer_users(self) -> frozenset[str]:
        """Return whom the client's certificate is for; the server's side only."""
        return users_of(self._ssl.getpeercert() or {})

    def ended(self) -> LinkError:
        """Return the error for a link start that the peer ended."""
        # In TLS 1.3 a server looks at the certificate after our side is done.
        if not ("CERTIFICATE" in self._alert or "UNKNOWN_CA" in self._alert):
            return super().ended()
        if "REQUIRED" in self._alert:
            what = "the server wants a client certificate"
        else:
            what = "the server does not take this client's certificate"
        said = self._alert.partition("ALERT_")[2].lower().replace("_", " ")
        fix = "--client-cert CERT KEY, of an authority in its --client-ca"
        return TlsError(Code.AUTH, what, f"TLS says: {said}", fix)

    async def receive_some(self) -> Buffer:
        """Return what was inside the records that came."""
        size = most = 0
        while not size:
            if not (self._unopened or await self._receive_raw()) or self._ended:
                return b""
            self._unopened = False
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
            except ssl.SSLError as error:
                self._ended, self._alert = True, error.reason or ""
        self._unopened = size == most or self._ended
        return self._plain[:size]

    async def _receive_raw(self) -> int:
        """Wait for bytes and give TLS them; return how many, 0 when no more come."""
        came = self._came  # ``read_at_most`` may change it meanwhile
        try:
            size = await self._bytes.receive_into(came)
        except trio.BrokenResourceError:
            return 0
        self._incoming.write(came[:size])
        return size

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Take all pieces; see ``Transport``."""
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
        """Say whether there is something for ``flush``."""
        return bool(self._rest) or self._outgoing.pending > 0

    async def flush(self) -> None:
        """Wait until the kernel has everything."""
        while rest := self._rest or self._outgoing.read():
            self._rest = b""
            await self._send_all(rest)

    async def send_eof(self) -> None:
        """End our direction; the peer's goes on."""
        # unwrap() queues close_notify, then asks for the peer's, which may never come.
        with suppress(ssl.SSLError):
            self._ssl.unwrap()
        with suppress(LocalLinkError):
            await self.flush()
            await super().send_eof()

    async def aclose(self) -> None:
        """Close the stream below at once. Call it always."""
        self._plain, self._ended, self._unopened = _NOTHING, True, True
        self._incoming = self._outgoing = ssl.MemoryBIO()
        if hasattr(self, "_ssl"):
            del self._ssl
        await super().aclose()


async def send(transport: Transport, pieces: Sequence[Buffer]) -> None:
    """Write all pieces and wait until the kernel has them; see ``Transport``."""
    transport.write(pieces)
    await transport.flush()


# The link start ----------------------------------------------------------------------


async def prove(transport: Transport, handshake: ClientHandshake) -> HandshakeResult:
    """Play the client's side. The caller sets the deadline.

    Raises:
        LinkError: the server refused, proved nothing, or went away.
    """
    while handshake.result is None:
        await _step(transport, handshake)
    return handshake.result


async def hear(transport: Transport, handshake: ServerHandshake) -> AuthClaim | None:
    """Play the server's side up to the client's proof.

    The caller sets the deadline, and answers the claim: by ``handshake.accept`` or
    ``refuse``, then ``answer``. None: the client belongs to another server, and has
    heard nothing (``handshake.away``).

    Raises:
        LinkError: the client proved nothing, or went away. What the handshake has to
            say to that is still in ``data_to_send``.
    """
    while handshake.claim is None and not handshake.away:
        await _step(transport, handshake)
    return handshake.claim


async def answer(transport: Transport, handshake: ServerHandshake) -> None:
    """Send what the handshake has to say, if the peer still listens."""
    with suppress(LinkError):
        await send(transport, [handshake.data_to_send()])


async def _step(
    transport: Transport, handshake: ClientHandshake | ServerHandshake
) -> None:
    """Send what is due, then take what comes."""
    if data := handshake.data_to_send():
        await send(transport, [data])
    came = await transport.receive_some()
    if not came:
        raise transport.ended()
    handshake.receive(bytes(came))


# Dialling ----------------------------------------------------------------------------


def tune_link(link: FastSocket) -> None:
    """Set a link's socket options."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES),
        (socket.IPPROTO_TCP, TCP_USER_TIMEOUT, LOST_AFTER_MS),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ):
        # A kernel or a socket family without the option works without it.
        with suppress(OSError):
            link.socket.setsockopt(level, option, value)
    end_with_fin(link.socket)


async def dial(host: str, port: int, mss: int | None = None) -> FastSocket:
    """Connect to a center-server; at most 10 s.

    Args:
        host: an IP address or a name.
        port: of the server.
        mss: bytes that one segment may carry, either way; None leaves it to the kernel.

    Raises:
        LocalLinkError: with the cause in words and what can be done.
    """

    def opened(sock: socket.socket) -> None:  # it counts only before the first packet
        if mss is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)

    where = Address(host, port)
    try:
        sock = await connect(where, deadline_s=DIAL_S, opened=opened, own=True)
    except LocalStreamError as error:
        raise _not_reached(where, error) from error
    link = FastSocket(sock)
    tune_link(link)
    return link


def _not_reached(where: Address, error: LocalStreamError) -> LocalLinkError:
    broke, cause, fix = error.__cause__, "", ""
    if isinstance(broke, socket.gaierror) and is_unknown(broke):
        why, cause = f"{where.host} is not known", "check the name"
    elif isinstance(broke, socket.gaierror):
        why, cause = why_not_found(broke), "is this machine online?"
    elif error.code is Code.REFUSED:
        why = "connection refused"
        cause = f"the machine answers, but nothing listens on port {where.port}"
        fix = "run `tunnel serve` there"
    elif isinstance(broke, TimeoutError):
        why, cause = f"no answer within {DIAL_S:.0f} s", "is it up?"
    else:
        said = broke.strerror if isinstance(broke, OSError) else None
        why = (said or error.what).lower()
    what = f"cannot reach {where}: {why}"
    return LocalLinkError(Code.LINK_LOST, what, cause, fix)


def _reason(error: BaseException | None) -> str:
    """Return the system's words for an error, or for what caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno).lower()
        error = error.__cause__
    return "the connection broke"


def _tls_error(error: ssl.SSLError) -> TlsError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(
            Code.LINK_LOST,
            f"TLS: {error.verify_message}",
            "a join line without #PIN is for a server whose certificate browsers take",
            "copy the whole line that `tunnel serve` printed",
        )
    return TlsError(Code.LINK_LOST, f"TLS: {_tls_reason(error)}")


def _why_not_in(error: ssl.SSLError) -> str:
    """Say what is wrong with a client's certificate; empty if it is something else."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is refused: {error.verify_message}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the client shows no certificate"
    return ""


def _tls_reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
