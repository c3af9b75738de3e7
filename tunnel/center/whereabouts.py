"""The server of a join line: reach it, check its key, ask whether it is there."""

from __future__ import annotations

import hmac
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import pin_of
from tunnel.access.tls import client_tls_context
from tunnel.addresses import Address
from tunnel.errors import Code, LinkError, TlsError
from tunnel.link.transport import PlainTransport, TlsTransport, dial
from tunnel.link.upstream_proxy import dial_through
from tunnel.proto.proofs import PLAIN_BINDING

if TYPE_CHECKING:
    import ssl

    from tunnel.access.join import JoinLine
    from tunnel.link.transport import Transport
    from tunnel.link.upstream_proxy import UpstreamProxy

LOOK_S: Final = 5.0
"""A server that answers does so within a round trip or three; nobody waits for this."""


async def is_there(join: JoinLine, via: UpstreamProxy | None = None) -> bool:
    """Dial the address of a join line, and say whether its key answers within 5 s.

    Nothing is sent but the handshake of TLS; a line without a pin is never there.
    """
    with trio.move_on_after(LOOK_S), suppress(LinkError):
        transport = await reach(join, via, client_tls_context(join.pin))
        try:
            await secure(transport, join.pin)
        finally:
            await transport.aclose()
        return join.pin is not None
    return False


async def reach(
    join: JoinLine,
    via: UpstreamProxy | None,
    tls: ssl.SSLContext | None,
    mss: int | None = None,
) -> Transport:
    """Connect to the server, or raise LinkError; without ``tls`` the link is plain."""
    if via is None:
        stream = await dial(join.host, join.port, mss)
    else:
        stream = await dial_through(via, join.host, join.port)
    peer = str(Address(join.host, join.port))
    if tls is None:
        return PlainTransport(stream, peer)
    return TlsTransport(stream, tls, server_side=False, host_name=join.host, peer=peer)


async def secure(transport: Transport, pin: str | None) -> bytes:
    """Make the wire secure; return what the proofs of both sides are bound to.

    Raises TlsError, before anything is sent, when the key is not the pinned one.
    """
    if not isinstance(transport, TlsTransport):
        return PLAIN_BINDING
    await transport.handshake()
    certificate = transport.peer_certificate()
    if pin is not None and not hmac.compare_digest(pin_of(certificate), pin):
        raise TlsError(
            Code.AUTH,
            f"the key of {transport.peer} is not the pinned one; nothing was sent",
            f"pinned SHA256:{pin}, offered SHA256:{pin_of(certificate)}: the server "
            "was set up anew, or somebody stands between you and it",
            "compare with the fingerprint that `tunnel serve` prints, then join "
            "with its line",
        )
    return sha256(certificate).digest()
