"""Who gets a session at a center-server, and which older one ends for it."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Final

from tunnel.center.mappings import SILENT_OWNER_S
from tunnel.center.nodes import is_node
from tunnel.center.sessions import NO_CLIENT_ID
from tunnel.errors import Code
from tunnel.proto.calm import Calm, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.access.users import Users
    from tunnel.center.accounts import Accounts
    from tunnel.center.client_session import ClientSession
    from tunnel.center.cluster.cluster import Cluster
    from tunnel.center.sessions import Sessions
    from tunnel.proto.claims import AuthClaim

RETRY_AFTER_S: Final = 5
"""The pause that a client is told to make when there is no session for it."""
_OF_THE_CLIENT: Final = (Code.DUPLICATE, Code.REVOKED)
"""Refusals that no waiting helps against."""


class Admission:
    """Decides who gets a session.

    Args:
        users: those of the server.
        sessions: of all clients.
        accounts: of all users.
        forget: closes what belongs to a session that is about to end.
    """

    def __init__(
        self,
        users: Users,
        sessions: Sessions,
        accounts: Accounts,
        forget: Callable[[ClientSession], None],
    ) -> None:
        self.draining = False
        """The server is about to stop: nobody gets a session."""
        self.cluster: Cluster | None = None
        """Of the other nodes; None without any."""
        self._users = users
        self._sessions = sessions
        self._accounts = accounts
        self._forget = forget

    @property
    def has_others(self) -> bool:
        """Whether a client that gets no session here may get one elsewhere."""
        return self.cluster is not None and self.cluster.has_others

    async def refusal(
        self, claim: AuthClaim, session_id: bytes
    ) -> tuple[Code, str, int] | None:
        """Say why a client gets no session, and when to come again, in seconds.

        None: there is room for it, and its older session has ended.
        """
        no_room = await self._refusal(claim, session_id)
        if no_room is None:
            return None
        code, reason = no_room
        elsewhere = self.draining and self.has_others
        at_once = code in _OF_THE_CLIENT or elsewhere
        return code, reason, 0 if at_once else RETRY_AFTER_S

    async def _refusal(
        self, claim: AuthClaim, session_id: bytes
    ) -> tuple[Code, str] | None:
        if is_node(claim.name):
            return None
        if self.draining:
            return Code.DRAINING, "the server is about to stop"
        if not await self._succeeds(claim, session_id):
            return Code.DUPLICATE, "another client that answers has this client id"
        user = self._users.get(claim.name)
        if user is None or claim.verifier not in user.verifiers:  # since its proof
            return Code.REVOKED, f"the user {claim.name} was revoked"
        if user.is_over(time()):  # who has been told so is not ended again
            return Code.REVOKED, f"the time of the user {claim.name} is over"
        account = self._accounts.of(user)
        if why := account.refuses_link():
            return refusal(Calm.LINKS, why)
        most = account.limits.sessions
        elsewhere = account.elsewhere.sessions
        if not self._sessions.make_room(claim.name, most, elsewhere):
            return refusal(Calm.SESSIONS, f"{claim.name} has {most}")
        return None

    async def _succeeds(self, claim: AuthClaim, session_id: bytes) -> bool:
        """End the older session of a client that was restarted; False if it is there.

        A state folder that was copied makes two clients of one, which would take over
        from one another for ever.
        """
        name, client_id = claim.name, claim.client_id
        while older := self._sessions.of_client(name, client_id):
            if not await self.ends(older):
                return False
        if self.cluster is None or client_id == NO_CLIENT_ID:
            return True
        return await self.cluster.succeeds(name, client_id, session_id)

    async def ends(self, older: ClientSession) -> bool:
        """End the session of a client that came back; False if it is still there.

        Where it was sent away, what runs over it runs on, and its names stay until they
        are claimed elsewhere: no visitor is refused.
        """
        if self.draining:
            self._sessions.depart(older)
            return True
        while True:
            link = older.link
            if link is None:
                break
            if await older.answers(SILENT_OWNER_S):
                return False
            if older.link in (None, link):
                break  # else it has found another meanwhile
        self._forget(older)
        older.dismiss(Code.TAKEN_OVER, "the same client came back")
        return True
