"""Keys, requests and certificates for host names."""

from __future__ import annotations

import hashlib
import ssl
import time
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tunnel.access.host_certificates import (
    facts_of,
    is_for,
    new_key,
    proof_for,
    request_for,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_request_is_for_its_names_and_signed_with_its_key() -> None:
    key = new_key()
    request = x509.load_pem_x509_csr(request_for(["a.example.net", "*.b.net"], key))
    wanted = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert wanted.value.get_values_for_type(x509.DNSName) == [
        "a.example.net",
        "*.b.net",
    ]
    assert request.is_signature_valid
    assert request.public_key() == load_pem_private_key(key.encode(), None).public_key()
    assert not list(request.subject)


def test_keys_are_p256_and_each_is_another() -> None:
    one, other = (load_pem_private_key(new_key().encode(), None) for _ in range(2))
    assert isinstance(one, ec.EllipticCurvePrivateKey)
    assert isinstance(one.curve, ec.SECP256R1)
    assert one.public_key() != other.public_key()


def test_a_proof_has_what_rfc_8737_asks_for(tmp_path: Path) -> None:
    pem = proof_for("a.example.net", "token.thumbprint")
    proof = x509.load_pem_x509_certificate(pem.encode())
    found = proof.extensions.get_extension_for_oid(
        x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
    )
    assert found.critical
    assert isinstance(found.value, x509.UnrecognizedExtension)
    digest = hashlib.sha256(b"token.thumbprint").digest()
    assert found.value.value == b"\x04\x20" + digest
    assert facts_of(pem.encode()).names == {"a.example.net"}
    assert proof.issuer == proof.subject
    (tmp_path / "proof.pem").write_text(pem)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "proof.pem")


def test_facts_are_those_of_the_first_certificate() -> None:
    leaf = trustme.CA().issue_cert("a.example.net", "*.B.example.net")
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    facts = facts_of(chain)
    assert facts.names == {"a.example.net", "*.b.example.net"}
    assert facts.starts_at < time.time() < facts.ends_at


@pytest.mark.parametrize("pem", [b"", b"no certificate", new_key().encode()])
def test_what_is_no_certificate_has_no_facts(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        facts_of(pem)


def test_a_wildcard_is_for_one_label() -> None:
    names = frozenset(("*.example.net", "x.org"))
    assert is_for(names, "a.example.net")
    assert is_for(names, "x.org")
    assert is_for(names, "*.example.net")
    assert not is_for(names, "example.net")
    assert not is_for(names, "a.b.example.net")
    assert not is_for(names, "y.org")


def of_version(version: int) -> bytes:
    """Give a certificate whose version is this, and is not covered by its signature."""
    der = ssl.PEM_cert_to_DER_cert(trustme.CA().cert_pem.bytes().decode())
    return ssl.DER_cert_to_PEM_cert(
        der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01" + bytes([version]), 1)
    ).encode()


def test_what_is_no_certificate_that_is_known_is_none() -> None:
    """It came out as an error of the library's own, and ended a server."""
    assert facts_of(of_version(2))
    for none in (b"", b"nothing", of_version(7)):
        with pytest.raises(ValueError, match=r"."):
            facts_of(none)
