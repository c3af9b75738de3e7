"""The configuration file as a source of values, behind flags and variables.

The file gives ``serve`` and ``up`` what neither the command line nor a variable gives.
What is read of it is loaded only where there is a file.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cyclopts import Parameter, Token
from platformdirs import user_config_path

from tunnel.redaction import keep_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cyclopts import App, ArgumentCollection

    from tunnel.access.users import User
    from tunnel.ops.config.read import Config
    from tunnel.ops.entries import Entry

FILE_NAME: Final = "tunnel.toml"
SECTION_OF: Final[dict[str, Literal["server", "client"]]] = {
    "serve": "server",
    "up": "client",
}
"""The commands that read a file, and the section that is about each."""


@Parameter(name="*")
@dataclass(frozen=True)
class ConfigFlags:
    """Where the configuration is.

    Args:
        config: File with what is not said here; without it tunnel.toml in the
            configuration folder, if there is one.
    """

    config: Path | None = None


def usual_path() -> Path | None:
    """Return where a file is read without being named; None if no home is known."""
    with suppress(RuntimeError):
        folder = user_config_path("tunnel")
        if folder.is_absolute():
            return folder / FILE_NAME
    return None


@dataclass(eq=False)
class FileSource:
    """Gives commands the values of a configuration file: a source of cyclopts."""

    path: Path | None = None
    """The file that is read, or would be if it were there."""
    config: Config | None = None
    """What it says; None where there is no file."""
    kept: frozenset[str] = frozenset()
    """The flags of entries that were given otherwise: the file's do not count."""
    gives_to: bool = False
    """Whether the server of a client is known from the file."""
    used: list[str] = field(default_factory=list)
    """The keys that were used, for an error to name."""

    def __call__(
        self, _app: App, commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        """Give the flags that were not given otherwise the values of the file.

        Raises:
            ConfigError: the file is wrong, or one that was named is not there.
        """
        command = commands[-1] if commands else ""
        if command not in SECTION_OF:
            return
        said = {_key_of(one.name): one for one in arguments}
        given = said["config"].tokens
        self.path = Path(given[-1].value).expanduser() if given else usual_path()
        if self.path is None or not (given or _is_there(self.path)):
            return
        from tunnel.ops.config.read import read_config

        name = SECTION_OF[command]
        self.config = read_config(self.path, (name,))
        section = getattr(self.config, name)
        if section is None:
            return
        self.kept = frozenset(key for key, one in said.items() if one.tokens)
        for key, value in section.flags.items():
            if said[key].tokens:
                continue
            self.used.append(key)
            self.gives_to |= key == "to"
            source = f"{self.path}:{value.line}"
            keep_secret((f"--{key}", *value.words), {})
            for index, word in enumerate(value.words):
                token = Token(keyword=key, value=word, source=source, index=index)
                said[key].append(token)

    @property
    def entries(self) -> list[Entry]:
        """The entries of the file, but those of a flag that was given otherwise."""
        client = self.config and self.config.client
        written = client.entries if client else ()
        return [one.entry for one in written if one.flag not in self.kept]

    @property
    def users(self) -> Mapping[str, User]:
        """The users of the file."""
        server = self.config and self.config.server
        return server.users if server else {}


def _is_there(path: Path) -> bool:
    """Say whether there is something; one that cannot be looked at is there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _key_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
