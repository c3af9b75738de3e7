"""A proxy into this client's network: its visitors come through a mapping.

The dialogue of the proxy runs here, at the client: the server carries bytes, and sees
neither the password nor what is asked for beyond what passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.center.exit.direct import DirectStream
from tunnel.errors import Code, LocalStreamError
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import handle_app
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.net.dial import connect
from tunnel.proto.frames import TcpTarget

if TYPE_CHECKING:
    from tunnel.access.networks import Networks
    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.relay import ResettableStream
    from tunnel.proto.frames import Target


async def serve_client_proxy(
    stream: VirtualStream, networks: Networks, users: ProxyUsers | None
) -> None:
    """Serve one visitor of the proxy to its end; owns the stream.

    Args:
        stream: of a visitor whom nobody has answered.
        networks: where the visitor may be led.
        users: who may; None only where nobody but the server's own programs comes.
    """

    async def open_target(target: Target) -> ResettableStream:
        if not isinstance(target, TcpTarget):
            raise LocalStreamError(Code.UNSUPPORTED, f"{target} is not offered")
        return DirectStream(
            await connect(
                target.address, allow=networks.allow, opened=DESCRIPTORS.admit
            )
        )

    stream.accept()
    visitor = stream.create.visitor if stream.create else None
    await handle_app(stream, Dialer(open_target), peer=visitor, users=users)
