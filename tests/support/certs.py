"""Certificates of an authority that lives as long as the tests."""

from __future__ import annotations

import ssl
from functools import cache

import pytest
import trustme

ALPN = "prot/1"
HOST = "tunnel.test"


@cache
def _authority() -> tuple[trustme.CA, trustme.LeafCert]:
    authority = trustme.CA()
    return authority, authority.issue_cert(HOST)


def tls_contexts(
    *, client_alpn: str | None = ALPN, server_alpn: str | None = ALPN
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's context that trusts the server's, and the server's."""
    authority, certificate = _authority()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without what the system trusts
    authority.configure_trust(client)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.num_tickets = 0
    certificate.configure_cert(server)
    for context, alpn in ((client, client_alpn), (server, server_alpn)):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if alpn is not None:
            context.set_alpn_protocols([alpn])
    return client, server


def choose_curve(context: ssl.SSLContext, curve: str) -> None:
    """Have it do this key exchange alone; skip the test where Python cannot."""
    try:
        context.set_ecdh_curve(curve)
    except ssl.SSLError as error:
        pytest.skip(f"NOT TESTED: this Python cannot choose {curve}: {error}")


def only_curves_before_x25519(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Python refuse X25519 as CPython 3.11.2 does on Debian 12."""
    choose = ssl.SSLContext.set_ecdh_curve

    def older(context: ssl.SSLContext, curve: str) -> None:
        if curve.startswith("X"):
            raise ssl.SSLError("[EC: UNKNOWN_GROUP] unknown group")
        choose(context, curve)

    monkeypatch.setattr(ssl.SSLContext, "set_ecdh_curve", older)
