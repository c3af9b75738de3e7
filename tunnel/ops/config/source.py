"""The configuration file as a source of values, behind flags and variables.

The file gives ``serve`` and ``up`` what neither the command line nor a variable gives.
What is read of it is loaded only where there is a file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cyclopts import Parameter, Token

from tunnel.errors import UsageError
from tunnel.redaction import keep_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cyclopts import App, ArgumentCollection

    from tunnel.access.users import User
    from tunnel.errors import TunnelError
    from tunnel.ops.config.read import ClientSection, Config, Known
    from tunnel.ops.entries import Entry

FILE_NAME: Final = "tunnel.toml"
SECTION_OF: Final[dict[str, Literal["server", "client"]]] = {
    "serve": "server",
    "up": "client",
}
"""The commands that read a file, and the section that is about each."""


FILES_OF: Final = {
    "to": "TUNNEL_TO_FILE",
    "via": "TUNNEL_VIA_FILE",
    "dashboard_auth": "TUNNEL_DASHBOARD_AUTH_FILE",
}
"""Variables that name a file with the value of a key: they are before this file too."""
_SECRETS: Final = {
    "auth": "--auth",
    "auth_file": "--auth",
    "header": "--header",
    "response_header": "--response-header",
}
"""Keys of entries that hold secrets, and the flags by which these are known."""


_KNOWN: Final[Known] = {}
"""The entries of the last reading in this process: a reload makes only what is new."""


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
    from platformdirs import user_config_path

    with suppress(RuntimeError):
        folder = user_config_path("tunnel")
        if folder.is_absolute():
            return folder / FILE_NAME
    return None


def users_of_file() -> Mapping[str, User]:
    """Return the users of the file that a server of this user reads unless told so.

    A file that is wrong has none here: the server says why.
    """
    path = named_path()
    if path is None or not _is_there(path):
        return {}
    from tunnel.errors import ConfigError
    from tunnel.ops.config.read import read_config

    with suppress(ConfigError):
        section = read_config(path, ("server",)).server
        return section.users if section else {}
    return {}


def named_path() -> Path | None:
    """Return the file that ``TUNNEL_CONFIG`` names, or else the usual one."""
    named = os.environ.get("TUNNEL_CONFIG")
    return Path(named).expanduser() if named else usual_path()


@dataclass(eq=False)
class FileSource:
    """Gives commands the values of a configuration file: a source of cyclopts."""

    path: Path | None = None
    """The file that is read, or would be if it were there."""
    config: Config | None = None
    """What it says; None where there is no file."""
    kept: frozenset[str] = frozenset()
    """The flags of entries that were given otherwise: the file's do not count."""
    is_alone: bool = False
    """Whether nothing was said otherwise: a contradiction is the file's own."""
    gives_to: bool = False
    """Whether the server of a client is known from the file."""
    has_section: bool = False
    """Whether it says anything for this command."""
    known: Known = field(default_factory=lambda: _KNOWN)
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
        self.kept = frozenset(key for key, one in said.items() if one.tokens)
        given = said["config"].tokens
        self.path = Path(given[-1].value).expanduser() if given else usual_path()
        if self.path is None or not (given or _is_there(self.path)):
            return
        from tunnel.ops.config.read import read_config

        name = SECTION_OF[command]
        self.config = read_config(self.path, (name,), self.known)
        section = getattr(self.config, name)
        self.has_section = section is not None
        if section is None:
            return
        self.is_alone = not self.kept - {"config"}
        secrets: list[str] = []
        for key, value in section.flags.items():
            if said[key].tokens or os.environ.get(FILES_OF.get(key, "")):
                continue
            self.used.append(key)
            self.gives_to |= key == "to"
            source = f"{self.path}:{value.line}"
            for index, word in enumerate(value.words):
                secrets += f"--{key.replace('_', '-')}", word
                token = Token(keyword=key, value=word, source=source, index=index)
                said[key].append(token)
        if self.config.client is not None:
            secrets += _secrets_of(self.config.client)
        keep_secret(secrets, {})

    def blamed(self, error: UsageError) -> TunnelError:
        """Return an error about values that go together, as the file's if it is.

        Else it names the keys of the file that may be part of it.
        """
        if not self.used or self.config is None:
            return error
        if self.is_alone:
            from tunnel.ops.config.read import as_fault

            return as_fault(self.config, error)
        read = f"{self.path} says {', '.join(self.used)}"
        cause = f"{error.cause}; {read}" if error.cause else read
        return UsageError(error.what, cause, error.fix)

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


def _secrets_of(client: ClientSection) -> Iterator[str]:
    """Yield what the entries have of secrets, as a command line would."""
    for written in client.entries:
        for key, flag in _SECRETS.items():
            for word in getattr(written.table, key, None) or ():
                yield from (flag, word)


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
