"""What a reload does to a running center-server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnel.ops.reload.aside import aside
from tunnel.ops.reload.plan import Change, held, plan_flags, plan_users

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tunnel.access.users import User
    from tunnel.addresses import Address
    from tunnel.center.server import CenterServer
    from tunnel.ops.flags import RunFlags
    from tunnel.ops.serve_flags import ServeFlags
    from tunnel.ops.user_care import UserCare

    Read = Callable[[], tuple[ServeFlags, RunFlags, Mapping[str, User]]]


@dataclass(frozen=True)
class ServeAgain:
    """What ``tunnel serve`` was told, and how it is told again."""

    flags: ServeFlags
    run: RunFlags
    users: Mapping[str, User]
    """Of the file."""
    read: Read
    """Reads all of it anew; may take a while, and is called in a thread."""
    path: Path | None
    """The file."""


class ServerChanges:
    """Has a center-server be what its command line and file say by now.

    Args:
        again: what they said at the start.
        server: is changed.
        care: has the users.
        moved: called with where links come in, and the flags, after a change of those.
    """

    def __init__(
        self,
        again: ServeAgain,
        server: CenterServer,
        care: UserCare,
        moved: Callable[[Address, ServeFlags], None],
    ) -> None:
        self._read = again.read
        self.flags, self.run, self._users = again.flags, again.run, again.users
        self._server = server
        self._care = care
        self._moved = moved

    async def apply(self, now: bool) -> list[Change]:
        """Read, and apply what differs; see ``reloader.Reloader``.

        ``now`` says nothing here: a user whose right is taken loses what stands on it
        at once, and all else goes on to its end.
        """
        del now
        flags, run, users = await aside(self._read)
        changes = [
            *plan_flags(self.flags, flags),
            *plan_flags(self.run, run),
            *plan_users(self._users, users),
        ]
        flags, run = held(self.flags, flags), held(self.run, run)
        options = flags.options()
        if self._server.names.ending(options.names) is not None:
            renewed = Change("~", "certificate")
            changes += [renewed] if renewed not in changes else []
        await self._care.check(users)
        address = await self._server.change(options)
        await self._care.have(users)
        places = flags.listen, flags.public_host
        if places != (self.flags.listen, self.flags.public_host):
            self._moved(address, flags)
        self.flags, self.run, self._users = flags, run, users
        return changes
