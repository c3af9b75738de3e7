"""The server of a join line: reach it, check its key, ask whether it is there."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import pin_of
from tunnel.access.pins import Pins
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


async def is_there(
    join: JoinLine, via: UpstreamProxy | None = None, pins: Pins | None = None
) -> bool:
    """Dial the address of a join line, and say whether its key answers within 5 s.

    Nothing is sent but the handshake of TLS; a line without a pin is never there.
    """
    with trio.move_on_after(LOOK_S), suppress(LinkError):
        transport = await reach(join, via, client_tls_context(join.pin))
        try:
            await secure(transport, pins or Pins(join.pin))
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


async def secure(transport: Transport, pins: Pins) -> tuple[bytes, str]:
    """Make the wire secure; return what the proofs are bound to, and the key's pin.

    Raises TlsError, before anything is sent, when the key is not a pinned one.
    """
    if not isinstance(transport, TlsTransport):
        return PLAIN_BINDING, ""
    await transport.handshake()
    certificate = transport.peer_certificate()
    if pins.current is None:
        return sha256(certificate).digest(), ""
    offered = pin_of(certificate)
    if not pins.match(offered):
        pinned = " or ".join(f"SHA256:{pin}" for pin in pins.accepted)
        fix = "compare with the fingerprint that `tunnel serve` prints, then `tunnel "
        fix += "join` its line, which `tunnel serve --print-join` prints too"
        if pins.why_not_its_own:
            fix = f"if it has its old key again: rm {pins.why_not_its_own}; else {fix}"
        raise TlsError(
            Code.AUTH,
            f"the key of {transport.peer} is not the pinned one; nothing was sent",
            f"pinned {pinned}, offered SHA256:{offered}: the server has changed its "
            "key while this client was away, or was set up anew, or somebody stands "
            "between you and it",
            fix,
        )
    return sha256(certificate).digest(), offered
