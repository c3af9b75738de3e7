"""TLS contexts of a link: TLS 1.3, nothing older, no tickets."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.access.files import read_private
from tunnel.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.access.identity import Identity

ALPN: Final = "prot/1"


def server_tls_context(
    identity: Identity, client_ca: Path | None = None
) -> ssl.SSLContext:
    """Return a context with the server's certificate; no tickets, so no 0-RTT either.

    With ``client_ca``, a file of authorities, only clients are let in that have a
    certificate of one of them which is meant for clients.

    X25519 is the only key exchange, or P-256 where that cannot be chosen: with a large
    finite field, which a stranger may offer alone, one first message would cost 0.1 s.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not exchanges_only(context, "X25519"):
        exchanges_only(context, "prime256v1")
    context.num_tickets = 0
    context.load_cert_chain(identity.pem_path)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:  # ssl.SSLError is one
            what = f"--client-ca: no authority can be read from {client_ca}"
            raise UsageError(what, error.strerror or str(error)) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return _ours(context)


def show_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have a client show this certificate; both files are read now.

    Raises:
        StateError: the key cannot be read, or others can read it too.
        UsageError: they are not a certificate and its key without a password.
    """
    read_private(key)
    try:
        # OpenSSL would ask at the terminal for the password of an encrypted key.
        context.load_cert_chain(certificate, key, password=b"")
    except OSError as error:
        what = f"--client-cert: cannot use {certificate} and {key}"
        fix = "a PEM certificate, and its PEM key without a password"
        raise UsageError(what, error.strerror or str(error), fix) from error


def file_pair(said: tuple[str | Path, str | Path] | None) -> tuple[Path, Path] | None:
    """Return the files of a certificate and its key, as a program may name them."""
    if said is None:
        return None
    certificate, key = said
    return Path(certificate), Path(key)


def users_of(certificate: Mapping[str, object]) -> frozenset[str]:
    """Return the names for which a verified certificate is: CN, and DNS names of SAN.

    Args:
        certificate: as ``SSLObject.getpeercert`` gives it.
    """
    subject = certificate.get("subject", ())
    others = certificate.get("subjectAltName", ())
    names = set[str]()
    if isinstance(subject, tuple):
        names.update(
            value for part in subject for kind, value in part if kind == "commonName"
        )
    if isinstance(others, tuple):
        names.update(value for kind, value in others if kind == "DNS")
    return frozenset(names)


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
