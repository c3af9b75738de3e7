"""Tokens, verifiers and proofs: their text forms, their sizes, their exact bytes."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from support import frames as by_hand

from tunnel.errors import StateError, UsageError
from tunnel.proto.proofs import (
    Verifier,
    client_proof,
    parse_verifier,
    resume_proof,
    resume_secret,
    secrets_of,
    server_proof,
    transcript,
    verifier_of,
)

TOKEN = bytes(range(32))
TOKEN_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
NAME = "anna"
NONCE_C, NONCE_S = b"c" * 32, b"s" * 32
SESSION_ID = b"0123456789abcdef"


def test_the_key_is_hkdf_of_rfc_5869() -> None:
    key = HKDF(SHA256(), 32, b"prot/1", b"auth" + NAME.encode()).derive(TOKEN)
    secrets = secrets_of(NAME, TOKEN)
    assert secrets.client_key == hmac.digest(key, b"client key", "sha256")
    assert secrets.server_key == hmac.digest(key, b"server key", "sha256")
    assert secrets.verifier.stored_key == sha256(secrets.client_key).digest()


def test_another_name_makes_other_keys_of_the_same_token() -> None:
    assert verifier_of("anna", TOKEN) != verifier_of("otto", TOKEN)


@pytest.mark.parametrize("text", [TOKEN_TEXT, TOKEN_TEXT + "=", f" {TOKEN_TEXT}\n"])
def test_a_token_may_be_padded_or_read_from_a_line(text: str) -> None:
    assert secrets_of(NAME, text) == secrets_of(NAME, TOKEN)


@pytest.mark.parametrize(
    "text", ["", "secret", TOKEN_TEXT[:-1], "ü" * 43, "A" * 44, "!" * 43]
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        secrets_of(NAME, text)
    assert not text or text not in caught.value.what + caught.value.cause


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_verifier_survives_its_text_form(stored: bytes, key: bytes) -> None:
    verifier = Verifier(stored, key)
    assert parse_verifier(verifier.render() + "\n") == verifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prot1",
        "prot1::",
        f"prot2:{TOKEN_TEXT}:{TOKEN_TEXT}",
        f"prot1:{TOKEN_TEXT}:{TOKEN_TEXT}:",
        f"prot1:{TOKEN_TEXT}:{TOKEN_TEXT[:-1]}",
        f"prot1:{TOKEN_TEXT[:-1]}:{TOKEN_TEXT}",
        f"prot1:{TOKEN_TEXT}:{TOKEN_TEXT[:-1]}!",
    ],
)
def test_a_damaged_verifier_is_refused(text: str) -> None:
    with pytest.raises(StateError):
        parse_verifier(text)


# Vectors ---------------------------------------------------------------------------

VECTORS = {
    "ClientKey": "93e31729d4f772cefd3a6d12821964adb2e32c13887431c4fdf724e416579ba0",
    "StoredKey": "6f5b682fdbeb4a3ca96caaa78b98c476aa9549b8cbe19cb591f84abde2dfaa9a",
    "ServerKey": "0599feed3121c7d3497f9e3d57de3aabe57c06d54e453996248a240bc80c43e9",
    "T": "d519d892a8c66478eab8284aec8c9fb378082e77d395cb7bc62d43dea4f76263",
    "proof_c": "fba42f92e37ac6a5a0d76ba907e02f898d3c4fccf1b80f9252037fb088387a72",
    "proof_s": "cbfe9c45d9a2b357f3c23150c7840786d7b5a4e1e1113754827eae52ebd7dcf2",
    "R": "92b5a4f6dbe3808de7315fe0fbe0f1b404a93e193e88b3170af0f5a62e283367",
    "resume proof": (
        "1916aa56c073012c1990b0e06e8ac6337c0b8cbf4f0c900aef5d8a7dbb0faf77"
    ),
}
"""Token 00 01 .. 1f, name anna, nonces 32 c and 32 s, a plain link, no fields."""


def vectors() -> dict[str, bytes]:
    secrets = secrets_of(NAME, TOKEN)
    hello_c, hello_s = by_hand.hello(NONCE_C), by_hand.hello_ack(NONCE_S)
    script = transcript(hello_c, hello_s, b"plain")
    auth = by_hand.auth(NAME, 1, proof=b"")[8:]
    proof_c = client_proof(secrets, script, auth)
    answer = by_hand.auth_ack(SESSION_ID, proof=b"")[8:]
    secret = resume_secret(secrets.server_key, script)
    return {
        "ClientKey": secrets.client_key,
        "StoredKey": secrets.verifier.stored_key,
        "ServerKey": secrets.server_key,
        "T": script,
        "proof_c": proof_c,
        "proof_s": server_proof(secrets.server_key, script, proof_c, answer),
        "R": secret,
        "resume proof": resume_proof(secret, script, SESSION_ID, 4096, 2),
    }


def test_the_constants_of_the_protocol_do_not_move() -> None:
    assert {name: value.hex() for name, value in vectors().items()} == VECTORS


def test_the_text_of_a_token_is_base64url() -> None:
    assert urlsafe_b64encode(TOKEN).decode().rstrip("=") == TOKEN_TEXT
