"""Which sessions a center-server has, and which one ends when there are too many.

Everything costs what one user has or what waits, not what all have: thousands of
clients lose their links at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from tunnel.access.identity import short_id
from tunnel.errors import Code
from tunnel.log import log_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.center.client_session import ClientSession
    from tunnel.link.transport import Transport
    from tunnel.proto.claims import AuthClaim

logger = logging.getLogger("tunnel.server")

MAX_KEPT_BYTES: Final = 128 * 1024 * 1024
"""Unconfirmed bytes that the process keeps for sessions without a link: half of what
all may keep, so that an outage of many leaves enough to those that move."""
NO_CLIENT_ID: Final = bytes(16)
"""The id of clients that have none: none of them succeeds another, or is its copy."""


class Sessions:
    """All sessions of a center-server, within the limits of their users."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, ClientSession] = {}
        self._by_client: dict[tuple[str, bytes], ClientSession] = {}
        self._count: Counter[str] = Counter()
        # The longest waiting first, each with the bytes that are kept for it: they do
        # not grow without a link.
        self._waiting: dict[ClientSession, int] = {}
        self._waiting_count: Counter[str] = Counter()
        self._kept_bytes = 0

    def __iter__(self) -> Iterator[ClientSession]:
        return iter(tuple(self._by_id.values()))

    def counts(self) -> dict[str, Counter[str]]:
        """Return how many each user has, and how many of them wait: see ``Held``."""
        return {"sessions": self._count, "waiting": self._waiting_count}

    def find(self, session_id: bytes) -> ClientSession | None:
        """Return the session with this id."""
        return self._by_id.get(session_id)

    def of_client(self, user: str, client_id: bytes) -> ClientSession | None:
        """Return the session that this client of the user has."""
        return self._by_client.get((user, client_id))

    def claimed(self, claim: AuthClaim, transport: Transport) -> ClientSession | None:
        """Return the session that a client wants to go on with, if it is its own."""
        client = self.find(claim.session_id)
        if (
            client is None
            or client.gone
            or client.user.name != claim.name
            or client.encrypted != transport.encrypted
            or not claim.proves(client.secret)
        ):
            # Unknown, expired or foreign: nobody learns which.
            if claim.session_id:
                log_event(logger, logging.WARNING, "session.unknown",
                    peer=transport.peer, user=claim.name,
                    client=short_id(claim.client_id))  # fmt: skip
            return None
        if claim.link_no > client.link_no and (
            not client.session.core.can_resume(claim.count)
        ):
            client.dismiss(Code.PROTOCOL, f"a resume cannot begin at {claim.count}")
            return None
        return client

    def add(self, session: ClientSession) -> None:
        """Add a session; its client has no other."""
        name = session.user.name
        self._by_id[session.session_id] = session
        self._count[name] += 1
        if session.client_id != NO_CLIENT_ID:
            self._by_client[name, session.client_id] = session

    def remove(self, session: ClientSession) -> None:
        """Remove a session; harmless when it is removed."""
        if self._by_id.pop(session.session_id, None) is None:
            return
        if not session.departed.is_set():
            self._uncount(session)
        self.has_link(session)

    def depart(self, session: ClientSession) -> None:
        """Count a session for nobody: its client has another one elsewhere."""
        if not session.departed.is_set():
            session.departed.set()
            self._uncount(session)

    def _uncount(self, session: ClientSession) -> None:
        name = session.user.name
        _count_down(self._count, name)
        self._by_client.pop((name, session.client_id), None)

    def has_link(self, session: ClientSession) -> None:
        """Note that a session waits no longer."""
        kept = self._waiting.pop(session, None)
        if kept is not None:
            self._kept_bytes -= kept
            _count_down(self._waiting_count, session.user.name)

    def waits(self, session: ClientSession) -> None:
        """Note that a session has lost its link; end those that are too many then."""
        self.has_link(session)
        name = session.user.name
        self._waiting[session] = session.session.kept_bytes
        self._kept_bytes += session.session.kept_bytes
        self._waiting_count[name] += 1
        account = session.account
        if self._waiting_count[name] > account.here.waiting:
            most = account.limits.waiting
            why = f"{name} has more than {most} sessions without a link"
            self._dismiss(self._first_to_go(name), why)
        if self._kept_bytes > MAX_KEPT_BYTES:
            self._keep_less()

    def make_room(self, user: str, most: int, elsewhere: int = 0) -> bool:
        """Say whether the user may have one more session, of ``most`` in all.

        A session that has neither a link nor a connection ends for it. ``elsewhere``
        are those at other nodes, which do not.
        """
        if self._count[user] + elsewhere < most:
            return True
        session = self._first_to_go(user)
        if session is None or session.session.streams:
            return False
        self._dismiss(session, f"{user} has {most} sessions, and another began")
        return True

    def _first_to_go(self, user: str) -> ClientSession | None:
        """Return what waits without a live connection, else what waits longest."""
        of_user = [one for one in self._waiting if one.user.name == user]
        idle = (one for one in of_user if not one.session.streams)
        return next(idle, of_user[0] if of_user else None)

    def _keep_less(self) -> None:
        """End sessions until what is kept is within its bound."""
        kept = [one for one, size in self._waiting.items() if size]
        for session in sorted(kept, key=lambda one: bool(one.session.streams)):
            if self._kept_bytes <= MAX_KEPT_BYTES:
                break
            self._dismiss(session, "too much is kept for sessions without a link")

    def _dismiss(self, session: ClientSession | None, reason: str) -> None:
        if session is not None:
            self.remove(session)
            session.dismiss(Code.RESOURCE, reason)


def _count_down(counts: Counter[str], name: str) -> None:
    """Keep nothing for users that have left."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
