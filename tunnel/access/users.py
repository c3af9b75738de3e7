"""Who may do what: pure decisions about a user whose proof was verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.proto.proofs import Verifier

OWNER: Final = "default"
"""The user who is made with the server and may do everything."""


@dataclass(frozen=True, slots=True)
class User:
    """A name, what checks its token, and its rights: without a right, nothing."""

    name: str
    verifier: Verifier
    is_owner: bool = False

    def may_publish(self, host: str, port: int) -> bool:
        """Say whether this user may listen at the server on that address."""
        del host, port
        return self.is_owner

    def may_reach(self, ip: str, port: int) -> bool:
        """Say whether this user may be connected to that address from the server."""
        del ip, port
        return self.is_owner
