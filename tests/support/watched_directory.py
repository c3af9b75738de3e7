"""A directory that counts what it is asked, and can be away."""

from __future__ import annotations

from tunnel.center.cluster.directory import DirectoryAwayError
from tunnel.center.cluster.embedded import EmbeddedDirectory


class WatchedDirectory(EmbeddedDirectory):
    """A directory in the process of the test."""

    is_away = False
    asked = 0

    async def _ask(self) -> None:
        self.asked += 1
        await super()._ask()
        if self.is_away:
            raise DirectoryAwayError
