"""The secret that the nodes share, and what is derived from it (protocol.md#peers).

No message and no ``repr`` shows it.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, Final

from tunnel.access.files import create_private, exists, read_private
from tunnel.errors import StateError
from tunnel.proto.proofs import from_base64url, to_base64url
from tunnel.proto.terms import MAX_HINT_BYTES

if TYPE_CHECKING:
    from pathlib import Path

SECRET_BYTES: Final = 32
FILE: Final = "cluster.key"
"""In the state folder, of which all nodes have a copy."""
_MAC_BYTES: Final = 16
"""Of a hint: nobody finds one by trying, and who did would only be led elsewhere."""
MAX_NODE_NAME: Final = MAX_HINT_BYTES - _MAC_BYTES
"""Bytes of a node's name, with what each start adds to it."""


class ClusterSecret:
    """What only the nodes know.

    Args:
        secret: 32 bytes or more.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "ClusterSecret(***)"

    def reveal(self) -> str:
        """Return it as base64url, for another process of this server alone."""
        return to_base64url(self._secret)

    def key_for(self, purpose: str) -> bytes:
        """Return 32 bytes for one purpose, which tell nothing of those for another."""
        return hmac.digest(self._secret, f"prot/1 {purpose}".encode(), "sha256")

    def peer_token(self) -> str:
        """Return the token with which a node proves that it is one, as base64url."""
        return to_base64url(self.key_for("peer"))

    def hint_of(self, node: str) -> bytes:
        """Return what leads a client's later links to a node (protocol.md#hint)."""
        name = node.encode()
        return self._mac(name) + name

    def node_of(self, hint: bytes) -> str:
        """Return the node to which a hint leads; empty if it is not authentic."""
        mac, name = hint[:_MAC_BYTES], hint[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(name)):
            return ""
        return name.decode(errors="replace")

    def _mac(self, name: bytes) -> bytes:
        key = self.key_for("hint")
        return hmac.digest(key, name, "sha256")[:_MAC_BYTES]


def secret_of(state: Path) -> ClusterSecret:
    """Return the secret of a state folder; made at the first time.

    Raises:
        StateError: the file cannot be used, or not be made.
    """
    path = state / FILE
    if not exists(path):
        create_private(path, to_base64url(secrets.token_bytes(SECRET_BYTES)) + "\n")
    return read_secret(path)


def read_secret(path: Path) -> ClusterSecret:
    """Return the secret in a file, 32 bytes as base64url.

    Raises:
        StateError: it cannot be read, others may read it, or it is none.
    """
    secret = from_base64url(read_private(path).strip(), SECRET_BYTES)
    if secret is None:
        why = f"it is not {SECRET_BYTES} bytes in base64url"
        raise StateError(f"cannot use {path}", why)
    return ClusterSecret(secret)
