"""The user's files: saved join lines, and the files that variables name."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from platformdirs import user_config_path, user_state_path

from tunnel.access.files import exists, read_private, write_private
from tunnel.access.join import JoinLine, kept_join, parse_join
from tunnel.access.pins import Pins, forget_pin
from tunnel.addresses import is_host_name
from tunnel.errors import Exit, StateError, UsageError
from tunnel.log import log_event
from tunnel.ops.standard import lost_output
from tunnel.words import bare, meant

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.link.upstream_proxy import UpstreamProxy
    from tunnel.ops.show import Show

LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")
DEFAULT: Final = "default"
NO_PROXY: Final = "none"
"""The word of ``--via`` that goes without a proxy, whatever the environment says."""


def state_folder() -> Path:
    """Return the folder for what tunnel itself makes for this user.

    Raises:
        StateError: no home folder is known.
    """
    return _of_this_user(user_state_path, "--state DIR, or XDG_STATE_HOME")


def client_folder() -> Path | None:
    """Return the folder of this user's client ids; None if no home folder is known."""
    with suppress(StateError):
        return state_folder() / "client"
    return None


def _pins_folder() -> Path | None:
    folder = client_folder()
    return folder and folder / "pins"


def pins(join: JoinLine) -> Pins:
    """Return the pins by which the server of a line is known to this user."""
    return Pins(join.pin, _pins_folder())


def forget_pins(join: JoinLine) -> None:
    """Have the pin of a line count as it is: its user has given it anew."""
    forget_pin(join.pin, _pins_folder())


def _file(name: str, instead: str = "--to, or XDG_CONFIG_HOME") -> Path:
    if not is_host_name(name):
        raise UsageError(f"{name!r} is not a name: letters, digits, dot, - and _")
    return _of_this_user(user_config_path, instead) / f"{name}.join"


def _of_this_user(find: Callable[[str], Path], instead: str) -> Path:
    with suppress(RuntimeError):
        folder = find("tunnel")
        if folder.is_absolute():  # else it begins with a ~ that cannot be resolved
            return folder
    raise StateError(
        "no folder is known to keep files in",
        "HOME is not set, and this user is not in the system's list of users",
        f"set HOME, or use {instead}",
    )


def save(join: JoinLine, name: str) -> Path:
    """Save a join line, mode 0600, in the place of one of the same name."""
    path = _file(name, "XDG_CONFIG_HOME")  # `tunnel join` has no --to
    write_private(path, join.render() + "\n")
    return path


def place_of(to: str | None, save_as: str | None, *, of_file: bool = False) -> Path:
    """Return the file in which a line with a token of this machine's own belongs.

    It is that of the line itself; one from a command line is saved as ``save_as``, or
    as the default where there is no other.

    Raises:
        StateError: there is no such place.
    """
    what = "this join line works for one machine, whose own line cannot be saved"
    if of_file and to is not None and "://" in to:
        why = "it is in a configuration file, of which only entries are ever written"
        raise StateError(what, why, "tunnel join LINE, and no `to` in the file")
    if to is None and os.environ.get("TUNNEL_TO_FILE"):
        why = "it is in the file of TUNNEL_TO_FILE, which is never written"
        raise StateError(what, why, "tunnel join - <FILE, and no TUNNEL_TO_FILE")
    if to is None or "://" not in to:
        return _file(DEFAULT if to is None else to)
    if save_as is None and is_saved(DEFAULT):
        why = "another server is saved as the default"
        raise StateError(what, why, "--save-as NAME")
    return _file(save_as or DEFAULT)


def is_saved(name: str) -> bool:
    """Say whether a line of this name is saved; raises StateError where none can be."""
    return exists(_file(name))


def outdated(join: JoinLine) -> JoinLine | None:
    """Return the saved ``default`` if it is another line of the server of ``join``.

    The key tells that it is the same server, whatever its address, also after the
    server has changed it. None also where
    ``join`` itself is saved under some name: then it is another way to that server.
    """
    folder = user_config_path("tunnel")
    lines = {path.stem: _readable(path) for path in folder.glob("*.join")}
    kept = lines.get(DEFAULT)
    if kept is None or join.pin is None:
        return None
    is_same = pins(kept).current == pins(join).current and kept.name == join.name
    return kept if is_same and join not in lines.values() else None


def _readable(path: Path) -> JoinLine | None:
    with suppress(StateError, UsageError):
        return parse_join(read_private(path))
    return None


def secret_file(variable: str, read: Callable[[str], T]) -> T | None:
    """Read the file that an environment variable names; None without the variable.

    Raises:
        StateError: the file cannot be read, or others can read it too.
        UsageError: it is empty, or ``read`` refuses its text. The error names the file.
    """
    file = os.environ.get(variable)
    return _read_file(Path(file), f"{file} ({variable})", read) if file else None


def _read_file(path: Path, named: str, read: Callable[[str], T]) -> T:
    text = bare(read_private(path))
    if not text:
        raise UsageError(f"{named} is empty")
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{named}: {error.what}", error.cause, error.fix) from None


def find(to: str | None) -> tuple[JoinLine, bool]:
    """Return the join line that ``--to`` means, and whether it is to be saved.

    ``to`` is a line, or the name of a saved one; without it, the line is in the file
    that ``TUNNEL_TO_FILE`` names, or it is the saved ``default``. A line from a file is
    not saved: the file may hold a secret that must not be copied.

    Raises:
        UsageError: there is no such line, or it cannot be read.
    """
    if to is None and (line := secret_file("TUNNEL_TO_FILE", parse_join)) is not None:
        return line, False
    if to is not None and "://" in to:
        return parse_join(to), True
    path = _file(DEFAULT if to is None else to)
    if exists(path):
        return _read_file(path, str(path), parse_join), False
    if to is None:
        raise UsageError(
            "no server is known yet",
            "neither --to nor TUNNEL_TO is given, and none was saved",
            "run `tunnel serve` on a public host, then use the line that it prints: "
            "--to 'tunnel://…'",
        )
    known = sorted(p.stem for p in path.parent.glob("*.join"))
    saves = "`tunnel join 'tunnel://…'` saves one"
    raise UsageError(
        f"no saved server is called {to!r}",
        f"saved: {', '.join(known) or 'none'}",
        meant(to, {one: repr(one) for one in known}, saves),
    )


def show_join(state: Path, show: Show) -> Exit:
    """Print the join line that a server keeps in its state folder.

    Raises:
        StateError: there is none, it cannot be used, or stdout cannot be written.
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
    """Return the proxy on the way to a server.

    ``--via`` names it (``none``: no proxy), else ``TUNNEL_VIA_FILE``, else
    ``HTTPS_PROXY`` or ``ALL_PROXY``; whether the last are used, and why not, is logged.

    Raises:
        UsageError: its URL cannot be read.
    """
    from tunnel.link.upstream_proxy import UpstreamProxy  # `join` must not pay for trio
    from tunnel.ops.proxy_variables import not_used, proxy_of

    def read(text: str) -> UpstreamProxy | None:
        return None if text == NO_PROXY else UpstreamProxy.parse(text)

    if url is not None:
        return read(url)
    if os.environ.get("TUNNEL_VIA_FILE"):
        return secret_file("TUNNEL_VIA_FILE", read)
    via = proxy_of(os.environ, join.host, join.port)
    if via is not None:
        log_event(LOG, logging.INFO, "proxy.used", proxy=str(via), variable=via.named)
    elif (unused := not_used(os.environ, join.host, join.port)) is not None:
        name, reason = unused
        log_event(LOG, logging.INFO, "proxy.not_used", variable=name, reason=reason)
    return via
