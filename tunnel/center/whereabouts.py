"""Whether the server of a join line is still where the line leads."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import pin_of
from tunnel.access.tls import client_tls_context
from tunnel.addresses import Address
from tunnel.errors import LinkError
from tunnel.link.transport import TlsTransport, dial
from tunnel.link.upstream_proxy import dial_through

if TYPE_CHECKING:
    from tunnel.access.join import JoinLine
    from tunnel.link.upstream_proxy import UpstreamProxy

LOOK_S: Final = 5.0
"""A server that answers does so within a round trip or three; nobody waits for this."""


async def is_there(join: JoinLine, via: UpstreamProxy | None = None) -> bool:
    """Dial the address of a join line, and say whether its key answers within 5 s.

    Nothing is sent but the handshake of TLS; a line without a pin is never there.
    """
    try:
        with trio.move_on_after(LOOK_S):
            if via is None:
                stream = await dial(join.host, join.port)
            else:
                stream = await dial_through(via, join.host, join.port)
            transport = TlsTransport(
                stream,
                client_tls_context(join.pin),
                server_side=False,
                host_name=join.host,
                peer=str(Address(join.host, join.port)),
            )
            try:
                await transport.handshake()
                offered = pin_of(transport.peer_certificate())
            finally:
                await transport.aclose()
            return hmac.compare_digest(offered, join.pin or "")
    except LinkError:
        pass
    return False
