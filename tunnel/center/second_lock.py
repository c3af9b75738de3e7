"""What a server with ``--client-ca`` asks of a client besides its token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.errors import Code, RemoteLinkError
from tunnel.link.transport import TlsTransport
from tunnel.proto.refusals import NO_CERTIFICATE
from tunnel.words import printable

if TYPE_CHECKING:
    from tunnel.link.transport import Transport
    from tunnel.proto.handshake import ServerHandshake


def check_certificate(
    transport: Transport, handshake: ServerHandshake, name: str
) -> None:
    """Raise LinkError, with the answer queued, where a certificate is not the user's.

    TLS has verified it, and the client has proved the user's token.
    """
    users = transport.peer_users() if isinstance(transport, TlsTransport) else ()
    if name not in users:
        handshake.refuse(Code.AUTH, NO_CERTIFICATE)
        whose = printable(", ".join(sorted(users))) or "nobody"
        why = f"the client certificate is for {whose}, not for {printable(name)}"
        raise RemoteLinkError(Code.AUTH, why)
