"""Who may use a proxy: names and passwords."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from tunnel.access.guesses import BURST, GUESSES
from tunnel.addresses import is_localhost
from tunnel.errors import UsageError
from tunnel.log import log_event
from tunnel.net.descriptors import Told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.proto.frames import Address

LOG: Final = logging.getLogger("tunnel.front")
_SLOWED: Final = Told("login.slowed")
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


class Login:
    """The passwords that one connection says: who is wrong too often is not heard.

    Args:
        peer: whose connection it is, as far as is known.
        what: it wants to use, for the log.
    """

    __slots__ = ("_host", "_is_proved", "_peer", "_what")

    def __init__(self, peer: Address | None, what: str) -> None:
        self._peer = peer
        self._host = peer.host if peer is not None else ""
        self._what = what
        self._is_proved = False

    def wait_s(self) -> float:
        """Say for how long its words must not be looked at; 0: they may be.

        A connection that was right last time is heard whoever else is at its address.
        """
        if self._is_proved:
            return 0.0
        wait_s = GUESSES.wait_s(self._host, time.monotonic())
        if wait_s:
            _SLOWED.tell("too many wrong passwords", BURST, self._peer)
        return wait_s

    def said(self, *, right: bool) -> bool:
        """Take note of whether its words were right; give that back."""
        self._is_proved = right
        if not right:
            GUESSES.failed(self._host, time.monotonic())
            log_event(LOG, logging.WARNING, "login.failed", peer=str(self._peer),
                to=self._what)  # fmt: skip
        return right


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return is_localhost(host)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
