"""The accounts of all users of a server: their rates, their months, their changes.

An account is there while its user has a session, and as long as the server runs if the
user has bytes of this month.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.access.account import Account
from tunnel.access.months import Months
from tunnel.access.use import NOTHING, Held, Use
from tunnel.net.notify import Notify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tunnel.access.limits import Limits
    from tunnel.access.users import User
    from tunnel.link.user_session import UserSession

TICK_S: Final = 0.02
"""How often what waits for a rate is let through: a turn of a 5 MB/s is 100 KB."""
LOOK_S: Final = 0.5
"""How often limits that were changed are looked at, and bytes are counted."""


class Counts(Protocol):
    """Counts what users have, beside their accounts."""

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return fields of ``Held``, each with the counts by user."""
        ...


class Accounts:
    """One account for each user that has been here.

    Args:
        users: those of the server; one that changes there is noticed.
        defaults: the server's limits, where those of a user say nothing else.
        months: what has passed this month; None: since the start, kept nowhere.
        clock: the time in seconds; it does not jump.
    """

    def __init__(
        self,
        users: Mapping[str, User],
        defaults: Limits,
        months: Months | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._users = users
        self._defaults = defaults
        self._months = months or Months()
        self._accounts: dict[str, Account] = {}
        self._said: dict[str, Limits] = {}
        """The limits of the users themselves, as they were last looked at."""
        self._sessions: dict[str, dict[UserSession, None]] = {}
        self._wanted = Notify()
        self._clock = clock
        self._tables: tuple[Counts, ...] | None = None
        self._told: dict[str, Use] = {}
        self._elsewhere: dict[str, Use] = {}

    def of(self, user: User) -> Account:
        """Return the account of a user, with the limits that it has now."""
        account = self._accounts.get(user.name)
        # Asked for each user twice a second: the same object says the same.
        if account is not None and self._said.get(user.name) is user.limits:
            return account
        self._said[user.name] = user.limits
        limits = user.limits.over(self._defaults)
        if account is None:
            account = self._accounts[user.name] = Account(
                user.name,
                limits,
                self._clock,
                self._wanted.ring,
                shared=self._tables is not None,
            )
            account.month_bytes = self._months.bytes_of(user.name)
            self._let_know(account)
        elif account.limits != limits:
            self._change(account, limits)
        return account

    def named(self, name: str) -> Account:
        """Return the account of a user that was here a moment ago."""
        user = self._users.get(name)
        return self.of(user) if user else self._accounts.get(name) or Account(name)

    def change_defaults(self, defaults: Limits) -> None:
        """Have users without limits of their own live with others from now on."""
        if defaults == self._defaults:
            return
        self._defaults = defaults
        self._said.clear()  # so all are looked at anew
        for name in self._accounts:
            self.named(name)

    def forget_visitors(self) -> None:
        """Count visitors anew: other proxies speak for them now."""
        for account in self._accounts.values():
            account.forget_visitors()

    def __iter__(self) -> Iterator[Account]:
        """Yield the account of each user that is here, or was this month."""
        return iter(tuple(self._accounts.values()))

    def begin(self, user: User, session: UserSession) -> None:
        """Count a session of a user from now on."""
        session.count_for(self.of(user))
        self._sessions.setdefault(user.name, {})[session] = None

    def end(self, session: UserSession) -> None:
        """Count a session no more: its tasks are over. Harmless a second time."""
        name = session.account.name
        sessions = self._sessions.get(name, {})
        if session in sessions:
            del sessions[session]
            session.count()
            self._months.note(name, session.account.month_bytes)
        if not sessions:
            self._sessions.pop(name, None)

    def rename(self, was: str, name: str) -> None:
        """Have another name for a user: what has passed this month stays its own.

        Sessions that still live count for the new name until they have ended.
        """
        sessions = self._sessions.pop(was, {})
        for session in sessions:
            session.count()
        account = self._accounts.pop(was, None)
        self._said.pop(was, None)
        if account is not None:
            self._months.note(was, account.month_bytes)
        self._months.rename(was, name)
        # Who had the new name was thrown out; its sessions count for nobody now.
        self._accounts.pop(name, None)
        self._sessions.pop(name, None)
        if account is not None:
            account.name = name
            self._accounts[name] = account
            # The other nodes say so only once they know the new name too.
            self._elsewhere.pop(name, None)
            if (use := self._elsewhere.pop(was, None)) is not None:
                self._elsewhere[name] = use
            self._said.pop(name, None)
        if sessions:
            self._sessions[name] = sessions

    def keep_now(self) -> dict[str, int]:
        """Write what has passed this month, and return it by user."""
        self._count_all()
        if (text := self._months.due()) is not None:
            self._months.write(text)
        return self._months.all()

    def leave_months(self) -> None:
        """Keep nothing any more: another process does; see ``passed``."""
        self._months.leave()

    def passed(self) -> dict[str, int]:
        """Return what each user has passed this month."""
        self._count_all()
        return self._months.all()

    def add(self, name: str, size: int) -> None:
        """Count bytes for a user that have passed at another process."""
        if (user := self._users.get(name)) is not None:
            account = self.of(user)
            account.month_bytes += size
            self._months.note(name, account.month_bytes)

    # Other nodes -------------------------------------------------------------------

    def share(self, *tables: Counts) -> None:
        """Be the accounts of one node of several, before there is any.

        The months keep nothing then: what has passed at other nodes, and before they
        were started, is among what the others have.

        Args:
            tables: what the accounts do not count.
        """
        self._tables = tables

    def uses(self) -> dict[str, Use]:
        """Return what each user has here that has anything.

        It is due four times a second: what is wanted of a rate is that since the last
        call. After ``share`` only.
        """
        held: dict[str, dict[str, int]] = {}
        for table in self._tables or ():
            for field, by_user in table.counts().items():
                for name, count in by_user.items():
                    if count:
                        held.setdefault(name, {})[field] = count
        month, uses = self._months.month, {}
        for name, account in self._accounts.items():
            of_user = held.get(name)
            has = account.links or account.connections or account.month_bytes
            if of_user or has:
                use = account.use(Held(**of_user) if of_user else Held(), month)
                if use != NOTHING:
                    uses[name] = use
        for name, size in self._months.all().items():
            has_not_been_here = name in self._users and name not in self._accounts
            if size and has_not_been_here:
                uses[name] = Use(month=month, month_bytes=size)
        return uses

    def changed_uses(self) -> dict[str, Use]:
        """Return the uses that are others than when this was called last.

        ``NOTHING`` is of users that have nothing any more. Who begins to listen is told
        all ``uses`` first.
        """
        before, self._told = self._told, self.uses()
        changed = {
            name: use for name, use in self._told.items() if before.get(name) != use
        }
        for name in before.keys() - self._told.keys():
            changed[name] = NOTHING
        return changed

    @property
    def told_uses(self) -> Mapping[str, Use]:
        """What ``changed_uses`` has compared last."""
        return self._told

    def elsewhere(self, name: str) -> Use:
        """Return what a user has at the other nodes."""
        return self._elsewhere.get(name, NOTHING)

    def have_elsewhere(self, uses: Mapping[str, Use]) -> None:
        """Hold users against their limits together with what they have elsewhere.

        Args:
            uses: what all other nodes together have, by user; it replaces what was said
                before, so who is not in it has nothing there.
        """
        before, self._elsewhere = self._elsewhere, dict(uses)
        for name in before.keys() | uses.keys():
            if (account := self._accounts.get(name)) is not None:
                self._let_know(account)

    def _let_know(self, account: Account) -> None:
        use = self._elsewhere.get(account.name, NOTHING)
        account.have_elsewhere(use, self._months.month)

    def _change(self, account: Account, limits: Limits) -> None:
        account.limit(limits)
        for session in tuple(self._sessions.get(account.name, ())):
            session.pace()

    async def run(self) -> None:
        """Let through what waits, and count, until cancelled; then keep the months."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pace)
                nursery.start_soon(self._count)
        finally:
            self._count_all()
            if (text := self._months.due()) is not None:
                self._months.write(text)

    async def _pace(self) -> None:
        while True:
            waiting = [one for one in self._accounts.values() if one.waits]
            if not waiting:
                await self._wanted.wait()
            await trio.sleep(TICK_S)
            for account in waiting:
                account.tick()

    async def _count(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            self._count_all()
            if (text := self._months.due(trio.current_time())) is not None:
                await trio.to_thread.run_sync(self._months.write, text)

    def _count_all(self) -> None:
        months = self._months
        if months.has_turned():
            for account in self._accounts.values():
                account.begin_month(months.month)
        if len(self._accounts) > len(self._users):
            for name in (
                self._accounts.keys() - self._users.keys() - self._sessions.keys()
            ):
                del self._accounts[name]  # it was revoked
                self._said.pop(name, None)
        for name, sessions in tuple(self._sessions.items()):
            account = self.named(name)
            for session in sessions:
                session.count()
            months.note(name, account.month_bytes)
            if account.month_is_used_up:
                why = ""
                for session in tuple(sessions):
                    if session.streams:
                        why = why or account.refused("the bytes of this month")
                        session.reset_all(why)
