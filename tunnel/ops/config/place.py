"""Where a configuration file is, who can read it, and the secrets that it names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.access.files import insist_private, read_private
from tunnel.errors import UsageError
from tunnel.words import bare

if TYPE_CHECKING:
    from collections.abc import Callable

_CREDENTIALS: Final = ("$CREDENTIALS_DIRECTORY/", "${CREDENTIALS_DIRECTORY}/")


@dataclass(frozen=True, slots=True)
class Place:
    """A configuration file: its path, and its status when it was read."""

    path: Path
    status: os.stat_result | None
    """None: it holds no secret that others could read, as an example."""

    def file(self, text: str) -> Path:
        """Return the path of a file that the configuration names.

        A relative one begins at the folder of the configuration, ``~/`` at the home
        folder, ``$CREDENTIALS_DIRECTORY/`` where systemd puts credentials.

        Raises:
            UsageError: the home folder or that of the credentials is not known.
        """
        for prefix in _CREDENTIALS:
            if text.startswith(prefix):
                folder = os.environ.get("CREDENTIALS_DIRECTORY")
                if not folder:
                    what = f"{text} is not known: systemd sets no CREDENTIALS_DIRECTORY"
                    raise UsageError(what, fix="LoadCredential= in the unit")
                return Path(folder, text.removeprefix(prefix))
        try:
            path = Path(text).expanduser()
        except RuntimeError as error:
            raise UsageError(f"{text}: no home folder is known") from error
        return self.path.parent / path

    def secret(self, text: str, read: Callable[[str], str] = bare) -> str:
        """Return what is in a file of a secret.

        Raises:
            StateError: it cannot be read, or others can read it too.
            UsageError: it is empty.
        """
        path = self.file(text)
        secret = read(read_private(path))
        if not secret:
            raise UsageError(f"{path} is empty")
        return secret

    def insist_private(self) -> None:
        """Raise StateError if others can read the configuration: a secret is in it."""
        if self.status is not None:
            insist_private(self.path, self.status)
