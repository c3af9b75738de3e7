"""What ends TLS for host names here: a certificate for all, and some for one name each.

Both change while visitors are served; who has shaken hands is not touched.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

from tunnel.access.tls import exchanges_only
from tunnel.front.http.client_hello import P256, X25519

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CURVES: Final[Mapping[int, str]] = {X25519: "X25519", P256: "prime256v1"}
"""Key exchanges that cost some 0.1 ms, and that every visitor of today can do one of.
A finite field of 8,192 bits, which a stranger may ask for as well, costs a thousand
times that."""
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; those of 1.3 are all of this kind."""

Termination = dict[int, ssl.SSLContext]
"""What ends TLS with one certificate: a context for each key exchange, made once. Each
has the keys of its session tickets, so a visitor that comes back resumes."""


def termination(certificate: Path, key: Path) -> Termination:
    """Return what ends TLS with a certificate, for HTTP/2 or HTTP/1.1.

    Raises:
        OSError: a file cannot be read (``ssl.SSLError`` is one: they do not fit).
    """
    contexts = {}
    for group, curve in _CURVES.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if not exchanges_only(context, curve):
            continue
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        # OpenSSL would ask at the terminal for the password of an encrypted key.
        context.load_cert_chain(certificate, key, password=b"")
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["h2", "http/1.1"])
        contexts[group] = context
    return contexts


_NO_PAIR: Final = (
    "KEY_VALUES_MISMATCH",
    "KEY_TYPE_MISMATCH",
    "NO_CERTIFICATE_ASSIGNED",
)
"""What OpenSSL says to a key that belongs to another certificate."""


def why_unusable(error: OSError) -> str:
    """Say in words why ``termination`` could not use its files."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason in _NO_PAIR:
        return "the key is not that of the certificate"
    if error.reason in (None, "", "PEM lib", "PEM_LIB"):
        return "one of them is not PEM, not whole, or has a password"
    return error.reason.lower().replace("_", " ")


class Terminations:
    """What ends TLS at a port, by the name that a visitor wants.

    Nothing here is made for a visitor: an unknown name costs a look into a dict.
    """

    def __init__(self) -> None:
        self.usual: Termination = {}
        """For names that have none of their own; empty, these are refused."""
        self.challenges: dict[str, ssl.SSLContext] = {}
        """By host name: what proves to a certificate authority that the name leads here
        (RFC 8737)."""
        self._of_names: dict[str, Termination] = {}

    def show(self, name: str, ending: Termination) -> None:
        """Have this for a host name, or for all of ``*.DOMAIN``."""
        self._of_names[name] = ending

    def of(self, host: str) -> Termination:
        """Return what ends TLS for a host name, in small letters; empty: nothing."""
        found = self._of_names.get(host)
        if found is None:
            found = self._of_names.get(f"*.{host.partition('.')[2]}")
        return self.usual if found is None else found
