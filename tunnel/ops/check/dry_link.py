"""A link for a question or two, as a client of its own.

It publishes nothing and keeps nothing, neither a session nor a pin nor a token. Its
client id is made for it: the client that runs here has another, and goes on.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.exit.tcp import refuse
from tunnel.center.link_maker import HANDSHAKE_S
from tunnel.center.whereabouts import ClientTls, secure
from tunnel.errors import Code, LocalLinkError, LocalSessionError
from tunnel.link.link import Link
from tunnel.link.session import Session
from tunnel.link.transport import PlainTransport, TlsTransport, dial, prove
from tunnel.link.upstream_proxy import dial_through
from tunnel.ops import saved
from tunnel.proto.frames import CLIENT_CAN, CLIENT_ID_BYTES, Terms
from tunnel.proto.handshake import ClientHandshake

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tunnel.access.join import JoinLine
    from tunnel.link.transport import Transport
    from tunnel.link.upstream_proxy import UpstreamProxy
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.claims import HandshakeResult

GOODBYE_S: Final = 2.0
"""For the server to hear that this client leaves."""


class DryLink:
    """The way to the server, step by step; ``aclose`` whatever step failed.

    Args:
        join: where the server is, and who asks.
        via: the proxy on the way, if any.
        certificate: a client certificate and its key, where the server wants one.
    """

    def __init__(
        self,
        join: JoinLine,
        via: UpstreamProxy | None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._join = join
        self._via = via
        self._tls = ClientTls(join, certificate)
        self.socket: socket.socket | None = None
        """Of the wire, once it is there."""
        self.transport: Transport | None = None
        self._binding = b""
        self._terms = Terms(
            capabilities=CLIENT_CAN, client_id=secrets.token_bytes(CLIENT_ID_BYTES)
        )

    async def dial(self) -> None:
        """Connect; raises LinkError, or StateError for the client certificate."""
        context = self._tls.context(known=False)
        host, port = self._join.host, self._join.port
        if self._via is None:
            stream = await dial(host, port)
        else:
            stream = await dial_through(self._via, host, port)
        self.socket, peer = stream.socket, f"{host}:{port}"
        if context is None:
            self.transport = PlainTransport(stream, peer)
        else:
            self.transport = TlsTransport(
                stream, context, server_side=False, host_name=host, peer=peer
            )

    async def secure(self) -> None:
        """Agree on keys, and see whose key it is; raises LinkError."""
        assert self.transport is not None  # noqa: S101 - dial comes first
        with _silence(self.transport.peer):
            self._binding, _ = await secure(self.transport, saved.pins(self._join))

    def certificate(self) -> bytes | None:
        """Return the server's certificate, DER; None without TLS."""
        if isinstance(self.transport, TlsTransport):
            return self.transport.peer_certificate()
        return None

    async def prove(self) -> HandshakeResult:
        """Prove who asks, and hear the server's proof; raises LinkError.

        ``ONCE`` from a server that is proved: the token is good, and was not used up.
        """
        assert self.transport is not None  # noqa: S101 - dial comes first
        handshake = ClientHandshake(
            self._join.name,
            self._join.token.reveal(),
            self._terms,
            secrets.token_bytes(32),
            self._binding,
            link_no=1,
            resume_s=0,
        )
        with _silence(self.transport.peer):
            return await prove(self.transport, handshake)

    @asynccontextmanager
    async def carry(self, result: HandshakeResult) -> AsyncIterator[Session]:
        """Carry a session for as long as the block runs; then say goodbye."""
        assert self.transport is not None  # noqa: S101 - dial comes first
        session = Session(
            client=True,
            ours=self._terms,
            theirs=result.peer_terms,
            serve_offer=_serve_nobody,
        )
        link = Link(session, self.transport, result.leftover)

        async def run() -> None:
            session.link_lost(await link.run())

        async with trio.open_nursery() as nursery:
            await nursery.start(session.run)
            nursery.start_soon(run)
            try:
                yield session
            finally:
                link.close(Code.NORMAL)
                with trio.move_on_after(GOODBYE_S, shield=True):
                    await link.gone.wait()
                session.end(LocalSessionError(Code.NORMAL, "all is asked"))
                nursery.cancel_scope.cancel()

    async def aclose(self) -> None:
        """Close the wire, if there is one; harmless when repeated."""
        if self.transport is not None:
            await self.transport.aclose()


@contextmanager
def _silence(peer: str) -> Iterator[None]:
    """Turn too long a wait for the server into the error of a link."""
    try:
        with trio.fail_after(HANDSHAKE_S):
            yield
    except trio.TooSlowError:
        why = f"no answer from {peer} within {HANDSHAKE_S:.0f} s"
        raise LocalLinkError(Code.SILENT, why) from None


async def _serve_nobody(stream: VirtualStream) -> None:
    await refuse(stream, Code.NO_MAPPING)
