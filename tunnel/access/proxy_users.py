"""Who may use a proxy: names and passwords."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from tunnel.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


_MAX_BYTES: Final = 255
"""RFC 1929 has one byte for the length of each."""


class ProxyUsers:
    """The users of one proxy, the same for SOCKS5 and HTTP.

    Args:
        passwords: by name; only their hashes are kept.

    Raises:
        UsageError: a name or a password that an app could not send.
    """

    __slots__ = ("_digests",)

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._digests: dict[bytes, bytes] = {}
        for name, password in passwords.items():
            raw = name.encode(), password.encode()
            if ":" in name or not all(1 <= len(part) <= _MAX_BYTES for part in raw):
                raise UsageError(
                    f"{name!r} cannot be a user of a proxy",
                    "name and password are 1 to 255 bytes, the name without a colon",
                    "for example: alice:secret",
                )
            self._digests[raw[0]] = _digest(raw[1])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProxyUsers):
            return NotImplemented
        return self._digests == other._digests

    def __hash__(self) -> int:
        return hash(frozenset(self._digests))

    def check(self, name: bytes, password: bytes) -> bool:
        """Say whether this is the password of this user, in constant time."""
        known = self._digests.get(name)
        # Compared for unknown users too: the time must not tell who exists.
        return (
            hmac.compare_digest(known or bytes(32), _digest(password))
            and known is not None
        )

    def check_basic(self, value: bytes) -> bool:
        """Say whether a value of Proxy-Authorization is good (RFC 7617)."""
        scheme, _, encoded = value.strip().partition(b" ")
        if scheme.lower() != b"basic":
            return False
        try:
            pair = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            return False
        name, colon, password = pair.partition(b":")
        return bool(colon) and self.check(name, password)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
