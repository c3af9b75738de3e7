"""``tunnel config``: show what holds, an example of all there is, files of others."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations

from cyclopts import App

from tunnel.errors import Exit, StateError

config = App(name="config", help="Show the configuration, and make one.")


@config.command
def example() -> int:
    """Print a configuration file with every key, all of it comments."""
    from tunnel.ops.config.example import example as text

    return _print(text())


@config.command
def migrate(file: Path, /) -> int:
    """Print what a file of frp or rathole is here, and on stderr what of it is not.

    Args:
        file: frpc.toml, frps.toml, or a file of rathole.
    """
    from tunnel.ops.config.migrate import migrate as migrated
    from tunnel.ops.show import Show

    text, left = migrated(file)
    status = _print(text)
    Show(log="terminal").lines(left)
    return status


def _print(text: str) -> int:
    """Write a text to stdout, with its secrets: it is for a file."""
    from tunnel.ops.standard import lost_output

    sys.stdout.write(text)
    sys.stdout.flush()
    if (lost := lost_output()) is not None:
        raise StateError("the text was not written", lost.strerror or str(lost))
    return Exit.OK
