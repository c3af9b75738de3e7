"""What a change of the users does to the sessions that live.

Who is not a user any more, or has another token, loses links, sessions and public ports
at once; nobody else notices.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code
from tunnel.log import log_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tunnel.access.users import User, Users
    from tunnel.center.client_session import ClientSession
    from tunnel.center.sessions import Sessions

GONE_S: Final = 0.9
"""How long a link may live on that is ended, so that its client reads why: nothing
passes any more, but by the promise it is gone within a second."""

logger = logging.getLogger("tunnel.users")


class UserChanges:
    """Carries out what changes in ``users``.

    Args:
        users: those of the server, one object for its life.
        sessions: of all clients.
        forget: closes what belongs to a session that is about to end.
        review: closes what a session's user may not have any more.
        limit: has the limits of a user hold for what runs.
        rename: has what a user used count for the user's new name.
    """

    def __init__(
        self,
        users: Users,
        sessions: Sessions,
        forget: Callable[[ClientSession], None],
        review: Callable[[ClientSession], None],
        limit: Callable[[User], object],
        rename: Callable[[str, str], object],
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._forget = forget
        self._review = review
        self._limit = limit
        self._rename = rename
        self._told_over: set[str] = set()
        self.says_over = True
        """Log whose time is over: of several processes one does."""
        self.store: Callable[[User, User], Awaitable[bool]] | None = None
        """Does what ``keep`` promises, for users that outlive the process."""

    def apply(self, now: Mapping[str, User]) -> None:
        """Have these users from now on; end what others of that name had."""
        before = dict(self._users)
        called = _renamed(before, now)
        for former, name in called.items():
            self._rename(former, name)
        self._users.replace(now)
        self._told_over &= now.keys()
        for name, was in before.items():
            user = now.get(name)
            if name in called:
                reason = f"the user {name} is called {called[name]} now"
                self._end(name, Code.REVOKED, reason)
            elif user is None:
                self._end(name, Code.REVOKED, f"the user {name} was revoked")
            elif user != was:
                self._change(was, user)
        self._give_up_names(now.keys() - before.keys())

    async def keep(self, was: User, now: User) -> bool:
        """Have ``now`` in the place of ``was``, in ``store`` first, if there is one.

        False: ``was`` is not the user any more, or it cannot be stored.
        """
        if self.store is not None:
            return await self.store(was, now)
        if self._users.get(was.name) != was:
            return False
        self.apply({**self._users, now.name: now})
        return True

    def end_expired(self, now: float) -> None:
        """End what belongs to users whose time is over at ``now``, in Unix time."""
        for name, user in self._users.items():
            if not user.is_over(now):
                self._told_over.discard(name)
            elif name not in self._told_over:
                self._told_over.add(name)
                if self.says_over:
                    log_event(logger, logging.INFO, "user.expired", user=name)
                self._end(name, Code.REVOKED, f"the time of the user {name} is over")

    def count_sessions(self) -> Mapping[str, tuple[int, int]]:
        """Return how many sessions each user has, and how many of them with a link."""
        counts: dict[str, tuple[int, int]] = {}
        for session in self._sessions:
            sessions, links = counts.get(session.user.name, (0, 0))
            counts[session.user.name] = sessions + 1, links + (not session.waiting)
        return counts

    def sessions_of(self, name: str) -> list[ClientSession]:
        """Return the sessions of a user, those without a link too."""
        return [one for one in self._sessions if one.user.name == name]

    def _change(self, was: User, user: User) -> None:
        name = user.name
        if not set(was.verifiers) & set(user.verifiers):
            self._end(name, Code.REVOKED, f"the user {name} has another token")
        elif set(was.rights.words) - set(user.rights.words):
            # What stands on a right that is gone is not sought one by one.
            self._end(name, Code.NORMAL, f"{name} has other rights")
        for session in self.sessions_of(name):
            session.user = user
        if user.limits != was.limits:
            self._limit(user)

    def _give_up_names(self, new: Iterable[str]) -> None:
        """Close what ``alice`` has below the name of ``alice-two``, who is new."""
        shorter = {
            name[:at] for name in new for at, char in enumerate(name) if char == "-"
        }
        for session in self._sessions if shorter else ():
            if session.user.name in shorter:
                self._review(session)

    def _end(self, name: str, code: Code, reason: str) -> None:
        for session in self.sessions_of(name):
            self._forget(session)
            session.dismiss(code, reason, GONE_S)


def _renamed(before: Mapping[str, User], now: Mapping[str, User]) -> dict[str, str]:
    """Return the new name of each user that has another one since ``before``."""
    return {
        user.was: name
        for name, user in now.items()
        if user.was in before and (name not in before or before[name].was != user.was)
    }
