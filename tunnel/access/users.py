"""What a user may do whose proof was verified: pure decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.access.limits import Limits

if TYPE_CHECKING:
    from tunnel.proto.proofs import Verifier

OWNER: Final = "default"
"""The user that is made with the server and may do everything."""


@dataclass(frozen=True, slots=True)
class User:
    """A name, the verifier of its token, its rights and limits. Default: no right."""

    name: str
    verifier: Verifier
    is_owner: bool = False
    limits: Limits = Limits()  # noqa: RUF009 - it cannot change

    def may_publish(self, _host: str, _port: int) -> bool:
        """Say whether this user may listen at the server on that address."""
        return self.is_owner

    def may_reach(self, _ip: str, _port: int) -> bool:
        """Say whether this user may be connected to that address from the server."""
        return self.is_owner

    def may_reach_unix(self, _path: str) -> bool:
        """Say whether this user may be connected to that socket of the server.

        A unix socket often trusts everybody that reaches it (databases, containers): it
        is the machine itself, so it takes the right of the machine's owner.
        """
        return self.is_owner

    def may_be_exit(self, _name: str) -> bool:
        """Say whether this user's client may be an exit for others under that name."""
        return self.is_owner

    def may_leave_at(self, _name: str) -> bool:
        """Say whether this user may leave at the client of that name."""
        return self.is_owner
