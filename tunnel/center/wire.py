"""A wire on which somebody begins a link, from its first byte to the proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import LinkError
from tunnel.link.transport import READ_BYTES, PlainTransport, TlsTransport, tune_link

if TYPE_CHECKING:
    import ssl

    from tunnel.access.gate import GatePlace
    from tunnel.addresses import Address
    from tunnel.link.transport import Transport
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.sockets import FastSocket
    from tunnel.proto.frames import LinkTarget
    from tunnel.proto.handshake import ServerHandshake

FIRST_BYTE_S: Final = 5.0
LEAVE_S: Final = 2.0
"""How long a client may take to read the last word of its link, and to go."""


class Wire:
    """A socket on which a client, or another node, begins a link; owned.

    Args:
        stream: the socket.
        peer: who is at its other end.
        tls: ends TLS here; None where the link is plain.
        heard: what was read of it.
        of_nodes: only nodes of this machine come in here, and nobody else may.
    """

    def __init__(
        self,
        stream: FastSocket,
        peer: Address,
        tls: ssl.SSLContext | None,
        heard: bytes = b"",
        *,
        of_nodes: bool = False,
    ) -> None:
        tune_link(stream)
        self.peer = peer
        self.of_nodes = of_nodes
        self.transport: Transport | None = None
        """What the link will run over, once its first byte has come."""
        self.handshake: ServerHandshake | None = None
        """Set when somebody is to be heard."""
        self.onward: VirtualStream | None = None
        """The way to the node that has the client's session, if that is another."""
        self._stream = stream
        self._tls = tls
        self._heard = heard

    async def open(self, place: GatePlace) -> Transport:
        """Return the transport, once the peer has spoken and TLS is agreed on.

        Raises:
            LinkError: the peer speaks no TLS, or not with us.
            trio.TooSlowError: it says nothing.
        """
        if not self._heard:
            with trio.fail_after(FIRST_BYTE_S):
                await trio.lowlevel.wait_readable(self._stream.socket)
        place.heard = True
        # Not before: a silent peer costs no TLS and no buffers.
        peer = str(self.peer)
        if self._tls is None:
            self.transport = PlainTransport(self._stream, peer)
            return self.transport
        tls = TlsTransport(
            self._stream, self._tls, server_side=True, peer=peer, heard=self._heard
        )
        self.transport = tls
        await tls.handshake()
        return tls

    def users(self) -> frozenset[str]:
        """Return whom the client's certificate is for."""
        tls = self.transport
        return tls.peer_users() if isinstance(tls, TlsTransport) else frozenset()

    async def aclose(self) -> None:
        """Close the socket at once."""
        await trio.aclose_forcefully(self._stream)


class PassedWire(Wire):
    """A client's wire that came to another node, which passes on what it says."""

    def __init__(
        self, stream: VirtualStream, peer: Address, target: LinkTarget
    ) -> None:
        self.peer = peer
        self.of_nodes = False
        self.handshake = None
        self.onward = None
        kind = _Unwrapped if target.encrypted else PlainTransport
        self.transport = kind(stream, str(peer))
        self._users = frozenset(target.users)
        self._passed = stream

    async def open(self, place: GatePlace) -> Transport:
        """Return the transport at once: somebody has spoken."""
        assert self.transport is not None  # noqa: S101 - it was made
        place.heard = True
        await trio.lowlevel.checkpoint()
        return self.transport

    def users(self) -> frozenset[str]:
        """Return whom the client's certificate is for, as the other node has seen."""
        return self._users

    async def aclose(self) -> None:
        """Close what the other node has opened."""
        await trio.aclose_forcefully(self._passed)


class _Unwrapped(PlainTransport):
    """What comes out of TLS that ended at another node."""

    encrypted = True


async def pass_on(wire: Wire, onward: VirtualStream) -> None:
    """Carry a client's link to the node that has its session; owns ``onward``.

    Returns when both directions have ended, or one has broken: then both have.
    """
    transport, handshake = wire.transport, wire.handshake
    assert transport is not None  # noqa: S101 - it was heard
    assert handshake is not None  # noqa: S101
    transport.read_at_most(READ_BYTES)
    heard = handshake.heard()

    async def up() -> None:
        await onward.put(heard)
        while came := await transport.receive_some():
            await onward.put(bytes(came))
        onward.finish()

    async def down() -> None:
        while piece := await onward.receive_piece():
            transport.write([piece])
            await transport.flush()
        await transport.send_eof()

    async with onward:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(up)
                await down()
                # The client has had its last word: it has to go now.
                nursery.cancel_scope.deadline = trio.current_time() + LEAVE_S
        except* (trio.BrokenResourceError, LinkError):
            pass
