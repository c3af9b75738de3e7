"""The ``TUNNEL_…`` variables: what each is called, and which command takes which.

A flag's variable is ``TUNNEL_`` and its name. Where commands mean different things by
one flag, the name holds the command too; the name without it, which is older, still
works with a warning.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Final

from cyclopts import UNSET, Parameter, Token
from cyclopts.config import Env

from tunnel.errors import UsageError
from tunnel.log import log_event
from tunnel.words import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
_SWITCHES: Final = {
    "tcp": ("socks",),
    "doctor": ("bundle",),
    "check": (
        "offline",
        "http",
        "https",
        "tcp",
        "udp",
        "reach",
        "socks",
        "be-exit",
        "save-as",
    ),
    "invite": ("may", "rate", "limit", "expires", "once", "address", "qr"),
    "install": (
        "user",
        "print",
        "name",
        "run-as",
        "low-ports",
        "credential",
        "force",
    ),
    "uninstall": ("user", "name", "force"),
    "rotate": ("address",),
    "limit": ("rate", "limit"),
    "rename": ("address",),
    "status": ("quiet", "watch"),
    "logs": ("follow",),
    "reload": ("now",),
    "tail": ("entry", "show", "reveal", "once"),
    "dashboard": ("open",),
    "add": ("save",),
    "remove": ("now", "save"),
}
"""Flags without a variable: the same word means something else in another command, or
it is about one user."""
NO_FLAGS: Final = frozenset(
    PREFIX + word
    for word in (
        "TO_FILE", "VIA_FILE", "AUTH_FILE", "DASHBOARD_AUTH_FILE", "TRUST_FILES", "NET"
    )
)  # fmt: skip
"""The variables that stand for no flag."""

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


def known(app: App) -> set[str]:
    """Return every variable that a command takes; reads all flags, so it is slow."""
    flags = {
        variable_of(command, argument.name)
        for command, one in _commands(app)
        for argument in one.assemble_argument_collection()
    }
    return {*NO_FLAGS, *filter(None, flags)}


def _commands(app: App) -> Iterator[tuple[str, App]]:
    """Yield the commands, those of ``tunnel users`` too."""
    for name in app:
        if not name.startswith("-"):
            one = app[name]
            if one.default_command is None:
                yield from _commands(one)
            else:
                yield name, one


def unknown(app: App, environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that no command takes, each with the likely right one.

    Those that Kubernetes makes for a service called tunnel are left out.
    """
    old = {PREFIX + word.upper() for words in OWN.values() for word in words}
    strange = [
        name
        for name, value in environ.items()
        if name.startswith(PREFIX)
        and name not in NO_FLAGS | old
        and not _KUBERNETES.fullmatch(name)
        and not (name.endswith("_PORT") and _KUBERNETES_URL.match(value))
    ]
    if not strange:
        return {}
    names = sorted(known(app))
    return {name: nearest(name, names, 0.75) for name in strange if name not in names}


def refuse_empty(
    app: App, _commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Raise UsageError for an empty word: it would mean something by chance."""
    for argument in arguments:
        given = [one.value for one in argument.tokens if one.implicit_value is UNSET]
        if not all(map(str.strip, given)):
            told = app.assemble_argument_collection(parse_docstring=True)
            texts = {one.name: one.parameter.help or "" for one in told}
            raise UsageError(
                f"{argument.name} is empty",
                "perhaps a variable of the shell is not set",
                f"what belongs there: {' '.join(texts[argument.name].split())}",
            )


class Environment(Env):
    """Gives commands the values of their variables."""

    def __init__(self) -> None:
        super().__init__(PREFIX, command=False)
        self.old: dict[str, str] = {}
        """The old names that were used, and the new ones."""
        self.given: list[str] = []
        """The variables that were used."""
        self.taken: set[str] = set()
        """The variables that the command takes."""

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
        command = _last(commands)
        for argument in arguments:
            name = variable_of(command, argument.name)
            if name is None:
                continue
            self.taken.add(name)
            if argument.tokens:
                continue
            before = PREFIX + name.removeprefix(f"{PREFIX}{command.upper()}_")
            if before != name and os.environ.get(before) and not os.environ.get(name):
                self.old[before] = name
                name = before
            if text := os.environ.get(name):  # empty is not set: `TUNNEL_STATE=`
                self.given.append(name)
                values = argument.parameter.env_var_split(argument.hint, text)
                for at, value in enumerate(values):
                    token = Token(keyword=name, value=value, source="env", index=at)
                    argument.append(token)

    def sources(self) -> str:
        """Return the names of the variables that were used, for an error to name."""
        return ", ".join(
            f"{name} (now {self.old[name]})" if name in self.old else name
            for name in self.given
        )

    def warn(self, app: App) -> None:
        """Log the old names that were used, and the variables that no command takes."""
        for before, name in self.old.items():
            log_event(LOG, logging.WARNING, "variable.old", variable=before, now=name)
        environ = {k: v for k, v in os.environ.items() if k not in self.taken}
        for name, meant in unknown(app, environ).items():
            log_event(LOG, logging.WARNING, "variable.unknown", variable=name,
                did_you_mean=meant)  # fmt: skip


def _last(commands: tuple[str, ...]) -> str:
    return commands[-1] if commands else ""
