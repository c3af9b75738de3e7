"""The server's half of each link start: which key answers for which user."""

from __future__ import annotations

import secrets
from time import time
from typing import TYPE_CHECKING

from tunnel.proto.handshake import ServerHandshake
from tunnel.proto.proofs import PLAIN_BINDING, verifier_of

if TYPE_CHECKING:
    from tunnel.access.identity import Identity
    from tunnel.access.users import Users
    from tunnel.proto.frames import Terms
    from tunnel.proto.proofs import Verifier


class LinkStarts:
    """Begins handshakes.

    Args:
        users: those who may log in, at any time.
        identity: None where links are plain.
        coming: the identity that is announced, if one is.
    """

    def __init__(
        self,
        users: Users,
        identity: Identity | None,
        coming: Identity | None,
    ) -> None:
        self.next_pin = b"" if coming is None else coming.pin_bytes
        self._users = users
        self._binding = PLAIN_BINDING
        if identity is not None:
            self._binding = identity.certificate_sha256
        # Unknown names are checked against this one: same work, same answer.
        self._nobody = verifier_of("nobody", secrets.token_bytes(32))

    def begin(self, terms: Terms, resume_s: int) -> ServerHandshake:
        """Return the server's half of one link start (protocol.md, "Link start")."""
        return ServerHandshake(
            terms,
            secrets.token_bytes(32),
            self._binding,
            self._verifier,
            self._nobody,
            resume_s=resume_s,
            next_pin=self.next_pin,
            lookup_own=self._own_verifier,
        )

    def _verifier(self, name: str) -> Verifier | None:
        user = self._users.get(name)
        return user.verifier if user and not user.is_over(time()) else None

    def _own_verifier(self, name: str) -> Verifier | None:
        user = self._users.get(name)
        once = None if user is None or user.is_over(time()) else user.once
        return once.own if once else None
