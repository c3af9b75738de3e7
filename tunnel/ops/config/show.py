"""``tunnel config show``: every value that holds, and where it is from; no secret."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.access.user_file import time_text
from tunnel.ops.config.again import Source
from tunnel.ops.config.source import FILES_OF, SECTION_OF
from tunnel.ops.flags import EntryFlags, ServerFlags, UpFlags
from tunnel.ops.serve_flags import ServeFlags
from tunnel.redaction import HIDDEN, masked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cyclopts import App
    from cyclopts.argument import Argument

    from tunnel.access.users import User
    from tunnel.ops.config.read import Written
    from tunnel.ops.config.source import FileSource
    from tunnel.ops.show import Show

COLUMN: Final = 48
"""Where the comments begin."""
_USUAL: Final = {
    one.name: one.default
    for kind in (ServeFlags, ServerFlags, EntryFlags, UpFlags)
    for one in fields(kind)
}
_ENTRIES: Final = ("tcp", "udp", "http", "https", "reach", "socks")
"""Flags of ``up`` that may be repeated."""
_LISTS: Final = (
    "limit", "trusted_proxy", "certificate", "client_cert", "allow", "deny",
    "header", "response_header", "network", "inspect_hide",
)  # fmt: skip


class Value(NamedTuple):
    """A value that holds."""

    table: str
    """The head of its table, as in the file."""
    key: str
    """Empty for a line about the table."""
    value: str
    """In TOML; empty if there is none."""
    where: str
    """``default``, ``not set``, a flag, a variable, or FILE:LINE."""


def show_config(app: App, words: Sequence[str], show: Show) -> None:
    """Show what a command line, the environment and the file say together.

    Args:
        app: has the commands.
        words: a command line of ``serve`` or ``up``; or flags of both, as --config.
        show: writes.

    Raises:
        ConfigError: the file is wrong, with all its faults.
        UsageError: the command line is.
    """
    commands = [words]
    if not words or words[0] not in SECTION_OF:
        commands = [(command, *words) for command in SECTION_OF]
    # All is read before a word is written: a fault of the second section comes alone.
    for value in [one for words in commands for one in _values(app, words)]:
        said = f"{value.key} = {value.value}" if value.value else f"# {value.key}"
        text = said if value.key else value.table
        show.line("value", f"{text:<{COLUMN}} # {value.where}", **value._asdict())


def _values(app: App, words: Sequence[str]) -> Iterator[Value]:
    """Yield the values of one command."""
    arguments, file = Source(app, words, None).arguments()
    path = file.path
    table = f"[{SECTION_OF[words[0]]}]"
    yield Value(table, "", "", _about(file) if path else "no file: no home is known")
    for argument in arguments:
        if argument.parse and argument.name.startswith("--"):
            yield from _of_flag(argument, table)
    for user in file.users.values():
        yield from _of_user(user)
    client = file.config and file.config.client
    for entry in client.entries if client else ():
        if entry.flag not in file.kept:
            yield from _of_entry(entry, f"{path}:{entry.line}")


def _about(file: FileSource) -> str:
    return f"{file.path}" if file.config else f"{file.path} is not there"


def _of_flag(argument: Argument, table: str) -> Iterator[Value]:
    flag = argument.name
    key = flag.removeprefix("--").replace("-", "_")
    words = masked_values(flag, (one.value for one in argument.tokens))
    if argument.tokens:
        token = argument.tokens[0]
        where = {"cli": flag, "env": token.keyword or ""}.get(token.source)
        if not words[0] and where == flag:  # a switch of the command line
            words = ["true"]
        repeated = {"[client]": _ENTRIES, "[server]": ("listen",)}.get(table, ())
        is_list = key in _LISTS or key in repeated
        text = _text(words, key, is_list=is_list)
        yield Value(table, key, text, where or token.source)
        return
    usual = _USUAL.get(key)
    if os.environ.get(variable := FILES_OF.get(key, "")):
        yield Value(table, key, json.dumps(HIDDEN), variable)
    elif usual is None:
        yield Value(table, key, "", "not set")
    else:
        yield Value(table, key, json.dumps(usual), "default")


def _of_user(user: User) -> Iterator[Value]:
    table = f"[server.users.{user.name}]"
    yield Value(table, "", "", user.place)
    yield Value(table, "may", json.dumps(user.rights.words), user.place)
    yield Value(table, "limits", json.dumps(user.limits.words), user.place)
    if user.expires_at is not None:
        yield Value(table, "expires", time_text(user.expires_at), user.place)


def _of_entry(entry: Written, where: str) -> Iterator[Value]:
    table = f"[[client.{entry.flag}]]"
    yield Value(table, "", "", where)
    for one in fields(entry.table):
        words = getattr(entry.table, one.name)
        if words is None:
            continue
        if one.name.startswith("auth") and one.name != "auth_header":
            words = [HIDDEN]
        flag = f"--{one.name.replace('_', '-')}"
        words = masked_values(flag, words)
        text = _text(words, one.name, is_list=one.name in _LISTS)
        yield Value(table, one.name, text, where)


def masked_values(flag: str, words: Iterable[str]) -> list[str]:
    """Return the values of a flag, with their secrets masked."""
    return [masked((flag, word))[1] for word in words]


def _text(words: Sequence[str], key: str, *, is_list: bool) -> str:
    """Return the value of a key in TOML."""
    if is_list:
        return json.dumps(words, ensure_ascii=False)
    (word,) = words[-1:]
    if word in ("true", "false") or isinstance(_USUAL.get(key), int):
        return word
    return json.dumps(word, ensure_ascii=False)
