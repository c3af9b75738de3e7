"""What a server with ``--client-ca`` asks of a client besides its token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.errors import Code, RemoteLinkError
from tunnel.proto.refusals import NO_CERTIFICATE
from tunnel.words import printable

if TYPE_CHECKING:
    from tunnel.proto.handshake import ServerHandshake


def check_certificate(
    users: frozenset[str], handshake: ServerHandshake, name: str
) -> None:
    """Raise LinkError, with the answer queued, where a certificate is not the user's.

    TLS has verified that it is for ``users``, and the client has proved its token.
    """
    if name not in users:
        handshake.refuse(Code.AUTH, NO_CERTIFICATE)
        whose = printable(", ".join(sorted(users))) or "nobody"
        why = f"the client certificate is for {whose}, not for {printable(name)}"
        raise RemoteLinkError(Code.AUTH, why)
