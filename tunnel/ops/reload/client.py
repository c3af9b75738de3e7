"""What a reload does to a running center-client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnel.errors import UsageError
from tunnel.ops.reload.aside import aside
from tunnel.ops.reload.plan import held, plan_flags

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnel.ops.entries import Entry, Line
    from tunnel.ops.flags import RunFlags, ServerFlags
    from tunnel.ops.reload.entries import RunningEntries
    from tunnel.ops.reload.plan import Change

    Read = Callable[[], tuple[ServerFlags, list[Entry], RunFlags]]


@dataclass(frozen=True)
class UpAgain:
    """What ``tunnel up`` was told, and how it is told again."""

    server: ServerFlags
    run: RunFlags
    read: Read
    """Reads all of it anew, entries too; is called in a thread."""
    path: Path | None
    """The file."""
    given: frozenset[str] = frozenset()
    """The flags that were given otherwise: those of the file do not count."""


class ClientChanges:
    """Has a center-client run the entries of its command line and file by now.

    Args:
        again: what they said at the start.
        entries: are changed.
        say: called with the lines of entries that the server is not asked for.
    """

    def __init__(
        self,
        again: UpAgain,
        entries: RunningEntries,
        say: Callable[[list[Line]], None],
    ) -> None:
        self._again = again
        self.run = again.run
        self._entries = entries
        self._say = say

    async def apply(self, now: bool) -> list[Change]:
        """Read, and apply what differs; see ``reloader.Reloader``."""
        server, wanted, run = await aside(self._again.read)
        if not wanted:
            raise nothing_to_do()
        changes = plan_flags(self._again.server, server) + plan_flags(self.run, run)
        plan, lines = await self._entries.change(wanted, now=now)
        self.run = held(self.run, run)
        self._say(lines)
        return [*plan.lines, *changes]


def nothing_to_do() -> UsageError:
    """Return the error of a client without entries."""
    return UsageError(
        "there is nothing to do",
        "no entry is given",
        "for example: tunnel up --tcp 8000, or --socks 127.0.0.1:1080",
    )
