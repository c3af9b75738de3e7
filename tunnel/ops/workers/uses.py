"""What users have at each worker, told to the others: limits hold for all together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.together import Together
from tunnel.access.use import Use

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnel.access.months import Months
    from tunnel.center.accounts import Accounts

    Words = Mapping[str, object]
    Tell = Callable[[Words], None]

EVERY_S: Final = 0.25
"""How often a worker tells what has changed, and hears it of the others: a limit holds
for all of them within two such times."""
KEPT_S: Final = 5.0
"""How often what passed this month is noted for the file."""


async def tell_uses(accounts: Accounts, tell: Tell) -> None:
    """Tell what users have at this worker, until cancelled."""
    while True:
        await trio.sleep(EVERY_S)
        if changed := accounts.changed_uses():
            tell({user: use.to_json() for user, use in changed.items()})


def read_uses(words: Words) -> dict[str, Use]:
    """Read what another process of this server has told."""
    return {
        user: Use.from_json(said)
        for user, said in words.items()
        if isinstance(said, dict)
    }


class Uses:
    """What all workers tell, in the process that has started them.

    Args:
        months: what passed before, and where it is kept.
    """

    def __init__(self, months: Months) -> None:
        self._months = months
        before = {
            user: Use(month=months.month, month_bytes=size)
            for user, size in months.all().items()
        }
        self._together = Together(before)
        self._dirty = False

    def heard(self, node: str, words: Words) -> None:
        """Take what a worker tells."""
        self._together.heard(node, read_uses(words))
        self._dirty = True

    def months(self) -> dict[str, int]:
        """Return the bytes of this month of each user, at all workers and before."""
        month, uses = self._months.month, self._together.everywhere()
        return {user: use.bytes_in(month) for user, use in uses.items()}

    def rename(self, was: str, name: str) -> None:
        """Take that a user has another name: what has passed stays its own."""
        self._note()  # what has passed by now is renamed too
        self._together.rename(was, name)
        self._months.rename(was, name)
        self._dirty = True

    def gone(self, node: str) -> None:
        """Take that a worker has ended."""
        self._together.gone(node)
        self._dirty = True

    def elsewhere(self, node: str) -> Words:
        """Return what users have, but for what they have at this worker."""
        uses = self._together.elsewhere(node)
        return {user: use.to_json() for user, use in uses.items()}

    async def spread(self, tell_all: Callable[[], None]) -> None:
        """Have all told when something has changed, and keep the months."""
        noted_at = trio.current_time()
        try:
            while True:
                await trio.sleep(EVERY_S)
                if self._dirty:
                    self._dirty = False
                    tell_all()
                if trio.current_time() >= noted_at + KEPT_S:
                    noted_at = trio.current_time()
                    self._note()
                    if (text := self._months.due(noted_at)) is not None:
                        await trio.to_thread.run_sync(self._months.write, text)
        finally:
            self._note()
            if (text := self._months.due()) is not None:
                self._months.write(text)

    def _note(self) -> None:
        self._months.has_turned()
        for user, use in self._together.everywhere().items():
            if use.month == self._months.month:
                self._months.note(user, use.month_bytes)
