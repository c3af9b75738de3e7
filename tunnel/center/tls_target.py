"""A target that is spoken to with TLS: who it must be, and its connection.

TargetTls       what an entry wants its target to prove
TlsTarget       the connection, in the place of a virtual TCP connection
connect_tls     makes one
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import pin_of
from tunnel.errors import Code, TlsError
from tunnel.net.sockets import CHUNK_BYTES
from tunnel.net.tls_stream import TlsStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.addresses import Address
    from tunnel.center.direct import DirectStream
    from tunnel.net.virtual_connection import LocalEnd
    from tunnel.platform.sockets import Buffer

HTTP_2: Final = "h2"
HANDSHAKE_S: Final = 10.0
"""As long as a dial may take."""


@dataclass(frozen=True, slots=True)
class TargetTls:
    """Who a target must prove to be.

    Raises:
        OSError: ``ca`` is no file with certificates.
    """

    name: str
    """In its certificate, and told to it."""
    ca: str = ""
    """The file of the authorities that are trusted; empty: the system's."""
    pin: str = ""
    """Of its public key (``pin_of``); without ``ca`` this is all that is asked."""
    insecure: bool = False
    """Nothing is asked."""
    alpn: str = "http/1.1"
    """What it is to speak inside."""
    context: ssl.SSLContext = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=self.ca or None)
        if self.insecure or (self.pin and not self.ca):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([self.alpn])
        object.__setattr__(self, "context", context)


async def connect_tls(sock: DirectStream, wanted: TargetTls) -> TlsTarget:
    """Shake hands over a connection, which is taken over, also when this raises.

    Raises:
        TlsError: it is not who it should be, or does not speak TLS.
        trio.BrokenResourceError: it broke the connection.
        trio.TooSlowError: it did neither for ``HANDSHAKE_S``.
    """
    stream = TlsTarget(sock, wanted)
    try:
        with trio.fail_after(HANDSHAKE_S):
            await stream.handshake()
        if wanted.pin and stream.pin() != wanted.pin:
            what = "the target has another key than the one that is pinned"
            raise TlsError(Code.AUTH, what, f"its pin is {stream.pin()}")
        if wanted.alpn == HTTP_2 and stream.protocol() != HTTP_2:
            raise TlsError(Code.PROTOCOL, "the target speaks no HTTP/2 inside its TLS")
    except BaseException:
        sock.reset()
        raise
    return stream


class TlsTarget(TlsStream):
    """A ``ResettableStream`` of what a target says inside its TLS.

    Args:
        sock: its connection; owned.
        wanted: whom it belongs to.
    """

    def __init__(self, sock: DirectStream, wanted: TargetTls) -> None:
        super().__init__(sock, wanted.context, wanted.name)
        self.bound: Address | None = sock.bound
        self._sock = sock

    async def handshake(self) -> None:
        """Shake hands.

        Raises:
            TlsError: it is not who it should be, or does not speak TLS.
            trio.BrokenResourceError: it broke the connection.
        """
        try:
            await super().handshake()
        except ssl.SSLCertVerificationError as error:
            what = "the target's certificate is not trusted"
            raise TlsError(Code.AUTH, what, error.verify_message) from None
        except ssl.SSLError as error:
            what = "the target does not speak TLS as it should"
            why = (error.reason or "").replace("_", " ").lower()
            raise TlsError(Code.PROTOCOL, what, why) from None
        except trio.BrokenResourceError:
            if not self._has_ended:
                raise
            what = "the target ended the connection within its TLS handshake"
            raise TlsError(Code.PROTOCOL, what) from None

    def pin(self) -> str:
        """Return the pin of its key; empty without a certificate."""
        certificate = self._tls.getpeercert(binary_form=True)
        return pin_of(certificate) if certificate else ""

    async def receive_piece(self) -> bytes:
        """Wait for bytes; nothing at the end."""
        return await self.receive_some()

    async def put(self, data: Buffer) -> None:
        """Do as ``send_all`` does."""
        await self.send_all(data)

    async def wait_room(self) -> int:
        """Say that a read's worth can be sent: how much, only the kernel knows."""
        return CHUNK_BYTES

    def finish(self) -> None:
        """Do as ``send_eof`` does; what a full kernel does not take is left out.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: it was closed here.
        """
        self._finished = True
        if not self._is_busy:
            self._end_now()

    def _end_now(self) -> None:
        if self._say_end():
            self._sock.write_now(self._outgoing.read())
            self._sock.finish()

    async def aclose(self) -> None:
        """Do as ``close`` does; a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """End both directions; harmless when it is over."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self.finish()
        self._sock.close()

    def reset(self, code: Code = Code.RESET) -> None:
        """Close with a RST."""
        self._sock.reset(code)

    def carry(self, local: LocalEnd, idle_s: float, *, ready: bool = False) -> None:
        """Carry nothing: the caller has to read and write."""
        del local, idle_s, ready

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: the kernel tells only a task that reads or writes."""
