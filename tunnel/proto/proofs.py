"""Tokens, what both sides derive of them, and the proofs over a link start.

A token never goes over the wire, and what a server stores of it cannot log in
(protocol.md#link-start).

    token -> Secrets (client) -> Verifier (server); transcript -> proofs
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from tunnel.errors import StateError, UsageError

TOKEN_BYTES: Final = 32
"""A key that nobody finds by trying at home (protocol.md#link-start)."""
PROOF_BYTES: Final = 32
PLAIN_BINDING: Final = b"plain"
"""``binding`` of a link without TLS."""
NO_BINDING: Final = b"none"
"""``binding`` where both ends are told that something between them ends TLS."""

_MAX_NAME_BYTES: Final = 255
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


@dataclass(frozen=True, slots=True, repr=False)
class Verifier:
    """What the server keeps of a token: it can check a client, never be one."""

    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return "Verifier(***)"

    def pack(self) -> bytes:
        """Return the bytes that ``unpack_verifier`` reads (protocol.md#own-token)."""
        return self.stored_key + self.server_key

    def render(self) -> str:
        """Return the one-line text form that ``parse_verifier`` reads."""
        keys = (self.stored_key, self.server_key)
        return ":".join(("prot1", *map(to_base64url, keys)))


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What the client makes of its name and token."""

    client_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return "Secrets(***)"

    @property
    def verifier(self) -> Verifier:
        """What a server needs to check this client."""
        return Verifier(sha256(self.client_key).digest(), self.server_key)


def to_base64url(raw: bytes) -> str:
    """Write bytes as base64url without padding (RFC 4648 §5)."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_base64url(text: str, size: int) -> bytes | None:
    """Read ``size`` bytes of base64url without padding; None for anything else."""
    if not _BASE64URL.fullmatch(text):
        return None
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return raw if len(raw) == size else None


def secrets_of(name: str, token: bytes | str) -> Secrets:
    """Derive the keys of a user; ``token`` is 32 random bytes or their base64url.

    Around the base64url there may be padding and the end of a line.

    Raises:
        UsageError: the token is malformed, or the name not 1 to 255 bytes of UTF-8. The
            token is not repeated in the error.
    """
    raw: bytes | None
    if isinstance(token, str):
        raw, unit = from_base64url(token.strip().rstrip("="), TOKEN_BYTES), "characters"
    else:
        raw, unit = token, "bytes"
    if raw is None or len(raw) != TOKEN_BYTES:
        raise UsageError(
            f"the token is not {TOKEN_BYTES} bytes or their base64url form",
            f"it has {len(token)} {unit}, perhaps a part was not copied",
        )
    name_bytes = name.encode(errors="replace")
    if not 0 < len(name_bytes) <= _MAX_NAME_BYTES:
        raise UsageError(
            f"a user's name has 1 to {_MAX_NAME_BYTES} bytes, this one "
            f"{len(name_bytes)}"
        )
    # HKDF-SHA256 (RFC 5869) for 32 bytes, which need one round of its expansion.
    key = _mac(_mac(b"prot/1", raw), b"auth" + name_bytes + b"\1")
    return Secrets(_mac(key, b"client key"), _mac(key, b"server key"))


def verifier_of(name: str, token: bytes | str) -> Verifier:
    """Derive what the server keeps; arguments and errors are ``secrets_of``'s."""
    return secrets_of(name, token).verifier


def parse_verifier(text: str) -> Verifier:
    """Read what ``Verifier.render`` wrote.

    Raises:
        StateError: it is something else. The text is not repeated in the error.
    """
    parts = text.strip().split(":")
    if len(parts) == 3 and parts[0] == "prot1":
        stored_key, server_key = (
            from_base64url(part.rstrip("="), PROOF_BYTES) for part in parts[1:]
        )
        if stored_key is not None and server_key is not None:
            return Verifier(stored_key, server_key)
    raise StateError(
        "a stored verifier is damaged", "it is not prot1: and two keys in base64url"
    )


def unpack_verifier(raw: bytes) -> Verifier | None:
    """Read what ``Verifier.pack`` wrote; None for anything else."""
    if len(raw) != 2 * PROOF_BYTES:
        return None
    return Verifier(raw[:PROOF_BYTES], raw[PROOF_BYTES:])


def transcript(client_hello: bytes, server_hello: bytes, binding: bytes) -> bytes:
    """Return T, which every proof is made over.

    Args:
        client_hello: the frame as it was on the wire, header included.
        server_hello: likewise.
        binding: SHA-256 of the server's certificate in DER, ``PLAIN_BINDING`` or
            ``NO_BINDING``.
    """
    return sha256(client_hello + server_hello + binding).digest()


def client_proof(secrets: Secrets, script: bytes, before_proof: bytes) -> bytes:
    """Return the proof, over transcript ``script``, that this side knows the token.

    ``before_proof`` is what AUTH says before it. The mask opens only to who holds the
    stored key, and what then appears, the client key, is not what is stored: a stolen
    user file cannot log in.
    """
    mask = _mac(secrets.verifier.stored_key, b"client" + script + before_proof)
    return _xor(secrets.client_key, mask)


def is_client_proof(
    verifier: Verifier, script: bytes, before_proof: bytes, proof: bytes
) -> bool:
    """Check a client's proof, in constant time."""
    mask = _mac(verifier.stored_key, b"client" + script + before_proof)
    client_key = _xor(proof, mask)
    return hmac.compare_digest(sha256(client_key).digest(), verifier.stored_key)


def server_proof(
    server_key: bytes, script: bytes, proof_c: bytes, before_proof: bytes
) -> bytes:
    """Return the proof that this side has the client's verifier and took its proof.

    ``before_proof`` is what the answer to AUTH says before it.
    """
    return _mac(server_key, b"server" + script + proof_c + before_proof)


def resume_secret(server_key: bytes, first_script: bytes) -> bytes:
    """Return R of the session that began on the link with this transcript."""
    return _mac(server_key, b"resume" + first_script)


def resume_proof(
    secret: bytes, script: bytes, session_id: bytes, count: int, link_no: int
) -> bytes:
    """Return the proof, on a new link, to be the client that began the session."""
    what = session_id + count.to_bytes(8, "big") + link_no.to_bytes(4, "big")
    return _mac(secret, b"resume proof" + script + what)
