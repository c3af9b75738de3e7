"""Keeps a server's users as their file has them, whoever changes it."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from tunnel.access.user_file import changed_users, load_users, stamp_of, users_path
from tunnel.center.cluster.users import names_of
from tunnel.errors import StateError, UsageError
from tunnel.log import log_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tunnel.access.user_commands import UserCommands
    from tunnel.access.users import User
    from tunnel.center.cluster.users import SharedUsers
    from tunnel.center.server import CenterServer
    from tunnel.ops.control import Answer, Args, Handler

LOOK_S: Final = 0.5
"""How often the file and the clock are looked at: what a command changes where it finds
no server, and what a person writes, holds within a second."""

logger = logging.getLogger("tunnel.users")


class UserCare:
    """The users of a running server, and the commands that change them.

    Args:
        state: the folder of their file.
        owner: is a user too, and in no file.
        server: has the sessions.
        commands: change the file.

    Raises:
        StateError: the file is wrong.
    """

    def __init__(
        self,
        state: Path,
        owner: User,
        server: CenterServer,
        commands: UserCommands,
    ) -> None:
        self._state = state
        self._owner = owner
        self._changes = server.user_changes
        self._commands = commands
        self._stamp = stamp_of(users_path(state))
        self._one_by_one = trio.Lock()
        self.tell: Callable[[str, str], Awaitable[None]] | None = None
        """Has the other processes of this server ``read``, and waits until they did.

        It is told who has another name since: the name before, and the new one.
        """
        self.shared: SharedUsers | None = None
        """The users of all nodes of a cluster; None without one."""
        self._accounts = server.accounts
        self._apply(load_users(state))
        server.user_changes.store = self._keep

    async def check(self, of_file: Mapping[str, User]) -> None:
        """Raise StateError if one of these users is in the other file too."""
        users = await trio.to_thread.run_sync(load_users, self._state)
        self._refuse_both(of_file, users)

    async def have(self, of_file: Mapping[str, User]) -> None:
        """Have these users of the configuration file in place of those before.

        Raises:
            StateError: one is in the other file too; nothing has changed.
        """
        async with self._one_by_one:
            users = await trio.to_thread.run_sync(load_users, self._state)
            before, self._commands.of_file = self._commands.of_file, of_file
            try:
                self._apply(users)
            except StateError:
                self._commands.of_file = before
                raise

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket answers."""
        return {
            f"users.{name}": partial(self._perform, name)
            for name in self._commands.names
        }

    async def watch(self) -> NoReturn:
        """Notice what others change in the file, and whose time is over."""
        while True:
            self._changes.end_expired(time.time())
            await trio.sleep(LOOK_S)
            if stamp_of(users_path(self._state)) != self._stamp:
                async with self._one_by_one:
                    await self._read()
                if self.shared is not None:
                    await self.shared.look_again()

    async def _keep(self, was: User, now: User) -> bool:
        """Write a user that has changed; False if it was another meanwhile, or cannot.

        Says why it cannot.
        """

        def write() -> bool:
            with changed_users(self._state) as users:
                if users.get(was.name) != was:
                    return False
                users[was.name] = now
            return True

        kept = False

        async def make() -> bool:
            nonlocal kept
            async with self._one_by_one:
                kept = await trio.to_thread.run_sync(write)
                return await self._read()

        try:
            await self._change(make)
        except (StateError, UsageError) as error:
            log_event(logger, logging.ERROR, "users.not_written",
                reason=error.what, cause=error.cause or None)  # fmt: skip
            return False
        await self._tell_others()
        return kept

    async def _perform(self, command: str, args: Args, by: str) -> Answer:
        perform = partial(self._commands.perform, command, args, by)
        answer: Answer = {}
        has_changed = False

        async def make() -> bool:
            nonlocal answer, has_changed
            async with self._one_by_one:
                answer = await trio.to_thread.run_sync(perform)
                has_changed = await self._read()
            return has_changed

        missed = await self._change(make)
        if has_changed:
            was = str(args["name"]) if command == "rename" else ""
            await self._tell_others(was, str(answer["user"]) if was else "")
        if missed:
            answer["missed"] = names_of(missed)
        listed = answer.get("users")
        for one in listed if isinstance(listed, list) else [answer]:
            one["sessions"], one["links"] = self._count(str(one["user"]))
        return answer

    async def _change(self, make: Callable[[], Awaitable[bool]]) -> list[str]:
        """Make a change; return the nodes of the cluster that have not heard of it."""
        if self.shared is not None:
            return await self.shared.change(make)
        await make()
        return []

    def _count(self, name: str) -> tuple[int, int]:
        """Return sessions and links of a user, of all nodes."""
        sessions, links = self._changes.count_sessions().get(name, (0, 0))
        if self.shared is not None:
            elsewhere = self._accounts.elsewhere(name)
            sessions += elsewhere.sessions
            links += elsewhere.links
        return sessions, links

    async def read(self) -> None:
        """Have what another process of this server has changed in the file."""
        async with self._one_by_one:
            await self._read()

    async def _tell_others(self, was: str = "", name: str = "") -> None:
        if self.tell is not None:
            await self.tell(was, name)

    async def _read(self) -> bool:
        """Have the users of the file, or the old ones if it is wrong; says so once.

        False: it is as it was.
        """
        stamp = stamp_of(users_path(self._state))
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._apply(await trio.to_thread.run_sync(load_users, self._state))
        except StateError as error:
            log_event(logger, logging.ERROR, "users.unreadable", reason=error.what,
                cause=error.cause or None, fix=error.fix or None)  # fmt: skip
        return True

    def _apply(self, users: Mapping[str, User]) -> None:
        of_file = self._commands.of_file
        self._refuse_both(of_file, users)
        self._changes.apply({self._owner.name: self._owner, **of_file, **users})

    def _refuse_both(
        self, of_file: Mapping[str, User], users: Mapping[str, User]
    ) -> None:
        for name in of_file.keys() & users.keys():
            raise StateError(
                f"the user {name} is in {users_path(self._state)} too",
                f"it stands in {of_file[name].place}",
                "take it out of one of them",
            )
