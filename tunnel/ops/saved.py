"""Join lines that are kept: the user's servers, by name."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from platformdirs import user_config_path, user_state_path

from tunnel.access.security import (
    JoinLine,
    exists,
    kept_join,
    parse_join,
    read_private,
    write_private,
)
from tunnel.errors import Exit, StateError, UsageError
from tunnel.log import log_event
from tunnel.ops.standard import lost_output
from tunnel.proto.fields import is_host_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.link.upstream_proxy import UpstreamProxy
    from tunnel.ops.show import Show

LOG: Final = logging.getLogger(__name__)
DEFAULT: Final = "default"
NO_PROXY: Final = "none"
"""What ``--via`` says to go the straight way whatever the environment holds."""


def state_folder() -> Path:
    """Give where this user's tunnel keeps what it made itself.

    Raises:
        StateError: no home folder is known.
    """
    return _of_this_user(user_state_path, "--state DIR, or XDG_STATE_HOME")


def client_folder() -> Path | None:
    """Return where this user's client ids are kept; None if no place is known."""
    try:
        return state_folder() / "client"
    except StateError:
        return None


def _file(name: str) -> Path:
    if not is_host_name(name):
        raise UsageError(f"{name!r} is not a name: letters, digits, dot, - and _")
    folder = _of_this_user(user_config_path, "--to, or XDG_CONFIG_HOME")
    return folder / f"{name}.join"


def _of_this_user(find: Callable[[str], Path], instead: str) -> Path:
    """Return the folder that ``find`` knows for this user.

    Raises:
        StateError: neither HOME nor the system's list of users names a home folder.
    """
    with suppress(RuntimeError):
        folder = find("tunnel")
        if folder.is_absolute():  # or it begins with a ~ that nobody could resolve
            return folder
    raise StateError(
        "no folder is known to keep files in",
        "HOME is not set, and this user is not in the system's list of users",
        f"set HOME, or use {instead}",
    )


def save(join: JoinLine, name: str) -> Path:
    """Keep a join line, mode 0600; replaces one of the same name."""
    path = _file(name)
    write_private(path, join.render() + "\n")
    return path


def is_saved(name: str) -> bool:
    """Say whether there is one of this name; raises StateError where none can be."""
    return exists(_file(name))


def outdated(join: JoinLine) -> JoinLine | None:
    """Give the saved ``default``, if it is an older line of the server of ``join``.

    The key says that it is the same server, wherever it is by now. None too where
    ``join`` is saved under a name of its own: then it is another way to that server.
    """
    folder = user_config_path("tunnel")
    lines = {path.stem: _readable(path) for path in folder.glob("*.join")}
    kept = lines.get(DEFAULT)
    if (
        kept is None
        or join.pin is None
        or (kept.pin, kept.name) != (join.pin, join.name)
    ):
        return None
    known = [line.render() for line in lines.values() if line is not None]
    return None if join.render() in known else kept


def _readable(path: Path) -> JoinLine | None:
    try:
        return parse_join(read_private(path).strip())
    except (StateError, UsageError):
        return None


def secret_file(variable: str) -> str | None:
    """Read the file that an environment variable names; None without the variable.

    Raises:
        StateError: it cannot be read, or others can.
    """
    file = os.environ.get(variable)
    return read_private(Path(file)).strip() if file else None


def find(to: str | None) -> tuple[JoinLine, bool]:
    """Give the join line meant by ``--to``, and whether it was given as a line.

    ``to`` is a line, or the name of a saved one; without it ``TUNNEL_TO_FILE`` names a
    file that holds a line, else the saved ``default`` is meant.

    Raises:
        UsageError: none is meant, or it cannot be read.
    """
    if to is None and (text := secret_file("TUNNEL_TO_FILE")) is not None:
        return parse_join(text), True
    if to is not None and "://" in to:
        return parse_join(to.strip()), True
    name = to or DEFAULT
    path = _file(name)
    if exists(path):
        return parse_join(read_private(path).strip()), False
    if to is None:
        raise UsageError(
            "no server is known yet",
            "neither --to nor TUNNEL_TO is given, and none was saved",
            "run `tunnel serve` on a public host, then use the line that it prints: "
            "--to 'tunnel://…'",
        )
    known = [p.stem for p in path.parent.glob("*.join")]
    close = get_close_matches(name, known, 1)
    raise UsageError(
        f"no saved server is called {name!r}",
        f"saved: {', '.join(sorted(known)) or 'none'}",
        f"did you mean {close[0]!r}?"
        if close
        else "`tunnel join 'tunnel://…'` saves one",
    )


def show_join(state: Path, show: Show) -> Exit:
    """Print the join line that a server keeps in its state folder.

    Raises:
        StateError: there is none yet, or it cannot be used.
    """
    line = kept_join(state)
    if line is None:
        raise StateError(
            f"there is no join line in {state}",
            "`tunnel serve` makes it when it starts for the first time",
            "tunnel serve",
        )
    show.secret_line("join", line.render(), join=line.render())
    if (lost := lost_output()) is not None:
        raise StateError("the join line was not written", lost.strerror or str(lost))
    return Exit.OK


def find_via(url: str | None, join: JoinLine) -> UpstreamProxy | None:
    """Give the proxy on the way to a server.

    It is the one of ``--via`` (``none``: no proxy), else of ``TUNNEL_VIA_FILE``, else
    of ``HTTPS_PROXY`` or ``ALL_PROXY``, which is logged.

    Raises:
        UsageError: it cannot be read.
    """
    from tunnel.link.upstream_proxy import UpstreamProxy  # `join` must not pay for trio
    from tunnel.ops.proxy_variables import proxy_of

    if url is None and (file := os.environ.get("TUNNEL_VIA_FILE")):
        url = read_private(Path(file)).strip()
    if url == NO_PROXY:
        return None
    if url:
        return UpstreamProxy.parse(url)
    via = proxy_of(os.environ, join.host, join.port)
    if via is not None:
        log_event(LOG, logging.INFO, "proxy.used", proxy=str(via), variable=via.named)
    return via
