"""``tunnel config migrate``: files of frp and rathole, as one of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.errors import ConfigError, TunnelError
from tunnel.ops.config import frp, rathole
from tunnel.ops.config.content import content
from tunnel.ops.config.lines import lines_of
from tunnel.ops.config.old import Old
from tunnel.ops.config.read import syntax_fault
from tunnel.words import read_toml

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.ops.config.old import Table

_HEAD: Final = """\
# Made of {path} by `tunnel config migrate`. Where a password is in it, nobody else may
# read it: chmod 600.
"""


def migrate(path: Path) -> tuple[str, list[str]]:
    """Return the text of a file of ours, and a line for each key that is left.

    Raises:
        ConfigError: the file cannot be read, or is of neither program.
    """
    try:
        text, _ = content(path)
    except TunnelError as error:
        raise ConfigError([f"{path}: {error.what}"]) from None
    return carried_over(path, text)


def carried_over(path: Path, text: str) -> tuple[str, list[str]]:
    """Carry over the text of a file; as ``migrate``."""
    try:
        document = read_toml(text)
    except ValueError as error:
        fault = syntax_fault(path, text, error)
        if text.lstrip().startswith(("[common]", ";", "# [common]")):
            fault += "; frp's older INI is not read"
        raise ConfigError([fault]) from None
    lines = lines_of(text.replace("\r\n", "\n"))
    tables: list[Table]
    if rathole.is_one(document):
        old = Old(path, document, lines, rathole.REASONS)
        tables = rathole.tables(old)
    elif frp.is_one(document):
        old = Old(path, document, lines, frp.REASONS)
        tables = frp.tables(old)
    else:
        raise ConfigError([f"{path}: it is neither frp's nor rathole's"])
    head = _HEAD.format(path=path.name)
    return "\n".join([head, *(one.text() for one in tables)]), old.left()
