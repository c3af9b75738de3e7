"""TLS contexts of a link: TLS 1.3, nothing older, no tickets."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.access.identity import Identity

ALPN: Final = "prot/1"


def server_tls_context(identity: Identity) -> ssl.SSLContext:
    """Return a context with the server's certificate; no tickets, so no 0-RTT either.

    X25519 is the only key exchange, or P-256 where that cannot be chosen: with a large
    finite field, which a stranger may offer alone, one first message would cost 0.1 s.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not exchanges_only(context, "X25519"):
        exchanges_only(context, "prime256v1")
    context.num_tickets = 0
    context.load_cert_chain(identity.pem_path)
    return _ours(context)


def exchanges_only(context: ssl.SSLContext, curve: str) -> bool:
    """Have a server take this key exchange alone; return False where that fails.

    Python as Debian 12 has it, and any above OpenSSL 1.1.1, knows only curves that
    were there before X25519.
    """
    try:
        context.set_ecdh_curve(curve)  # one: CPython 3.11 takes no list
    except ssl.SSLError:
        return False
    return True


def client_tls_context(pin: str | None) -> ssl.SSLContext:
    """Return a context towards a server whose key is pinned, or verified as on the web.

    With a pin the context itself **verifies nothing**: after the handshake the caller
    compares ``pin_of(peer certificate)`` with the pin, before it sends a byte.
    """
    if pin is None:
        return _ours(ssl.create_default_context())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _ours(context)


def _ours(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    return context
