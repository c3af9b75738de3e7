"""The link start over a transport: moves the bytes of the sans-IO handshake."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tunnel.errors import Code, LinkError, LocalLinkError
from tunnel.link.transport import send

if TYPE_CHECKING:
    from tunnel.link.transport import Transport
    from tunnel.proto.handshake import (
        AuthClaim,
        ClientHandshake,
        HandshakeResult,
        ServerHandshake,
    )


async def prove(transport: Transport, handshake: ClientHandshake) -> HandshakeResult:
    """Play the client's side of the link start. The caller sets the deadline.

    Raises:
        LinkError: the server refused, proved nothing, or went away.
    """
    while handshake.result is None:
        await _step(transport, handshake)
    return handshake.result


async def hear(transport: Transport, handshake: ServerHandshake) -> AuthClaim:
    """Play the server's side up to the client's proof. The caller sets the deadline.

    The caller answers the claim too: ``handshake.accept`` or ``refuse``, then
    ``answer``.

    Raises:
        LinkError: the client proved nothing, or went away. What the handshake has to
            say to that is still in ``data_to_send``.
    """
    while handshake.claim is None:
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
        raise LocalLinkError(Code.LINK_LOST, "the peer ended the link start")
    handshake.receive(bytes(came))
