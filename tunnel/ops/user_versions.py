"""The users of a node of a cluster, in its state folder, and which version they are.

Beside STATE/users.toml stands users.version: the number under which the nodes know its
content, and the hash of that. So a change by hand, or by a command while no server ran,
is seen, and is told to the others.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.files import exists, locked, read_private, write_private
from tunnel.access.user_file import read_users, users_path
from tunnel.center.cluster.users import Version
from tunnel.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

FILE: Final = "users.version"


class UserVersions:
    """Keeps the users that the nodes share.

    Args:
        state: the folder.
        read: has the server take what is there now.
    """

    def __init__(self, state: Path, read: Callable[[], Awaitable[None]]) -> None:
        self._state = state
        self._path = state / FILE
        self._read = read

    async def version(self) -> Version:
        """Return what is there; raises StateError."""
        text = await trio.to_thread.run_sync(self._text)
        return Version(self._kept()[0], text)

    async def is_changed(self) -> bool:
        """Say whether somebody has changed it since it was kept; raises StateError."""
        text = await trio.to_thread.run_sync(self._text)
        number, digest = self._kept()
        return _digest(text) != digest if number else bool(text)

    async def keep(self, version: Version) -> None:
        """Note under which number the nodes know this; raises StateError."""
        await trio.to_thread.run_sync(self._note, version)

    async def take(self, version: Version) -> None:
        """Have what another node has; raises StateError where it cannot be read here.

        It may be of a newer version of this program.
        """

        def write() -> None:
            read_users(version.text, f"version {version.number} of the users")
            with locked(self._state / "users.lock"):
                write_private(users_path(self._state), version.text)
                self._note(version)

        await trio.to_thread.run_sync(write)
        await self._read()

    def _text(self) -> str:
        path = users_path(self._state)
        return read_private(path) if exists(path) else ""

    def _note(self, version: Version) -> None:
        words = {"number": version.number, "sha256": _digest(version.text)}
        write_private(self._path, json.dumps(words) + "\n")

    def _kept(self) -> tuple[int, str]:
        if not exists(self._path):
            return 0, ""
        try:
            words = json.loads(read_private(self._path))
            return int(words["number"]), str(words["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"cannot use {self._path}", str(error)) from error


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
