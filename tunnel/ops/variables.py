"""The ``TUNNEL_…`` variables: one table of names, and which command takes which.

A flag's variable is ``TUNNEL_`` and its name. Where commands mean different things by
one flag, the name holds the command too; the name without it, which is older, still
works with a warning.
"""

from __future__ import annotations

import logging
import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from cyclopts import UNSET, Parameter, Token
from cyclopts.config import Env

from tunnel.errors import UsageError
from tunnel.log import log_event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cyclopts import App, ArgumentCollection
    from cyclopts.argument import Argument

LOG: Final = logging.getLogger(__name__)
PREFIX: Final = "TUNNEL_"

OWN: Final = {
    "serve": ("http", "https"),
    "up": ("http", "https", "tcp", "udp", "reach", "socks"),
    "share": ("name",),
}
"""Flags whose variables hold the name of the command."""
_SWITCHES: Final = {"tcp": ("socks",)}
"""Flags without a variable: the same word takes a value in another command."""
SHARED: Final = frozenset(
    [
        "LISTEN",
        "PORTS",
        "PUBLIC_HOST",
        "STATE",
        "PLAIN",
        "RESUME",
        "MAX_SESSIONS",
        "MAX_WAITING_SESSIONS",
        "DOMAIN",
        "CERTIFICATE",
        "PRINT_JOIN",
        "TRUSTED_PROXY",
        "MAX_PER_ADDRESS",
        "TO",
        "VIA",
        "SAVE_AS",
        "DRAIN",
        "IDLE",
        "UDP_IDLE",
        "DEAD_AFTER",
        "JSON",
        "LOG",
        "REMOTE",
        "PROXY_PROTOCOL",
        "AUTH",
        "NETWORK",
        "LIST",
        "EXIT",
        "BE_EXIT",
        "UDP_PUBLIC_ADDRESS",
        "ONCE",
        "TO_FILE",
        "VIA_FILE",
        "AUTH_FILE",
        "TRUST_FILES",
        "NET",
    ]
)
"""The other variables, without the prefix."""

_KUBERNETES: Final = re.compile(
    r"TUNNEL_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?"
    r"|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_URL: Final = re.compile(r"(tcp|udp|sctp)://")


def variable_of(command: str, flag: str) -> str | None:
    """Return the variable of a flag such as ``--public-host``; None if it has none."""
    word = flag.removeprefix("--")
    if not flag.startswith("--") or word in _SWITCHES.get(command, ()):
        return None
    own = f"{command.upper()}_" if word in OWN.get(command, ()) else ""
    return f"{PREFIX}{own}{word.upper().replace('-', '_')}"


def known() -> set[str]:
    """Return every variable that a command takes."""
    shared = {PREFIX + word for word in SHARED}
    return shared | {
        f"{PREFIX}{command.upper()}_{word.upper()}"
        for command, words in OWN.items()
        for word in words
    }


def unknown(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that no command takes, each with the likely right one.

    Those that Kubernetes makes for a service called tunnel are left out.
    """
    names = known()
    old = {PREFIX + word.upper() for words in OWN.values() for word in words}
    found: dict[str, str | None] = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in names | old:
            continue
        made = name.endswith("_PORT") and _KUBERNETES_URL.match(value)
        if not made and not _KUBERNETES.fullmatch(name):
            close = get_close_matches(name, sorted(names), 1, 0.75)
            found[name] = close[0] if close else None
    return found


def refuse_empty(
    app: App, commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Refuse an empty word of the command line, and say what belongs there.

    Raises:
        UsageError: a word is empty; it would mean something by chance.
    """
    del commands
    for argument in arguments:
        given = [one.value for one in argument.tokens if one.implicit_value is UNSET]
        if not all(map(str.strip, given)):
            raise UsageError(
                f"{argument.name} is empty",
                "perhaps a variable of the shell is not set",
                f"what belongs there: {_help_of(app, argument.name)}",
            )


def _help_of(app: App, name: str) -> str:
    arguments = app.assemble_argument_collection(parse_docstring=True)
    texts = {one.name: one.parameter.help or "" for one in arguments}
    return " ".join(texts[name].split())


class Environment(Env):
    """Gives commands the values of their variables."""

    def __init__(self) -> None:
        super().__init__(PREFIX, command=False)
        self.old: dict[str, str] = {}
        """The old names that were used, and the new ones."""
        self.given: list[str] = []
        """The variables that were used."""

    def _convert_argument(self, commands: tuple[str, ...], argument: Argument) -> str:
        name = variable_of(_last(commands), argument.name)
        if name is None:  # or the help shows an empty one
            hidden = Parameter(show_env_var=False)
            argument.parameter = Parameter.combine(argument.parameter, hidden)
        return name or ""

    def __call__(
        self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        """Give the flags that the command line leaves out the values of variables."""
        del app
        for argument in arguments:
            name = variable_of(_last(commands), argument.name)
            if name is None or argument.tokens:
                continue
            before = PREFIX + name.removeprefix(f"{PREFIX}{_last(commands).upper()}_")
            if before != name and os.environ.get(before) and not os.environ.get(name):
                self.old[before] = name
                name = before
            if os.environ.get(name):  # empty is not set: `TUNNEL_STATE=${STATE:-}`
                self.given.append(name)
                self._give(argument, name)

    def _give(self, argument: Argument, name: str) -> None:
        values: Iterable[str] = argument.parameter.env_var_split(
            argument.hint, os.environ[name]
        )
        for index, value in enumerate(values):
            argument.append(Token(keyword=name, value=value, source="env", index=index))

    def sources(self) -> str:
        """Return the names of the variables that were used, for an error to name."""
        return ", ".join(
            f"{name} (now {self.old[name]})" if name in self.old else name
            for name in self.given
        )

    def warn(self) -> None:
        """Log the old names that were used, and the variables that no command takes."""
        for before, name in self.old.items():
            log_event(LOG, logging.WARNING, "variable.old", variable=before, now=name)
        for name, meant in unknown(os.environ).items():
            log_event(LOG, logging.WARNING, "variable.unknown", variable=name,
                did_you_mean=meant)  # fmt: skip


def _last(commands: tuple[str, ...]) -> str:
    return commands[-1] if commands else ""
