"""Keys, requests and certificates for host names, as a certificate authority has them.

Uses ``cryptography``, which takes long to import: only where one is made or read.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography.x509 import Certificate

_ACME_IDENTIFIER: Final = "1.3.6.1.5.5.7.1.31"
"""The extension that holds what an authority looks for (RFC 8737 §3)."""
_OCTET_STRING: Final = b"\x04\x20"
"""How DER begins 32 bytes."""
_LOOKED_AT: Final = timedelta(days=1)
"""How long a certificate for an authority's look is valid, and how far clocks differ:
no authority minds."""


class Facts(NamedTuple):
    """What a certificate says about itself."""

    names: frozenset[str]
    """The host names that it is for, in small letters."""
    starts_at: float
    ends_at: float
    """Seconds since 1970."""


def new_key() -> str:
    """Return a new P-256 key as PEM, without a password."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def request_for(names: Sequence[str], key_pem: str) -> bytes:
    """Return a request, PEM, for a certificate; ValueError: it is no key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        load_pem_private_key,
    )

    key = load_pem_private_key(key_pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC key")
    wanted = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(wanted, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def proof_for(name: str, key_authorization: str) -> str:
    """Return what proves to an authority that a name leads here (tls-alpn-01).

    It is a key and the certificate that it signs itself, as PEM; to be shown to who
    says ``acme-tls/1`` (RFC 8737 §3), and of no use for anything else.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    proof = _OCTET_STRING + hashlib.sha256(key_authorization.encode()).digest()
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LOOKED_AT)
        .not_valid_after(now + _LOOKED_AT)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), True)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(_ACME_IDENTIFIER), proof),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    pem = key.private_bytes(
        form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (pem + certificate.public_bytes(form)).decode()


def read_certificate(load: Callable[[bytes], Certificate], raw: bytes) -> Certificate:
    """Read a certificate; raises ValueError if it is none, of any version."""
    from cryptography.x509 import InvalidVersion

    try:
        return load(raw)
    except InvalidVersion as error:  # it is no ValueError
        raise ValueError(str(error)) from error


def facts_of(chain_pem: bytes) -> Facts:
    """Return what the first certificate of a chain says.

    Raises:
        ValueError: it is none.
    """
    from cryptography import x509

    certificate = read_certificate(x509.load_pem_x509_certificate, chain_pem)
    try:
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from error
    return Facts(
        frozenset(name.lower() for name in names),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def is_for(names: frozenset[str], host: str) -> bool:
    """Say whether a certificate of these names is good for a host (RFC 6125 §6.4)."""
    return host in names or f"*.{host.partition('.')[2]}" in names
