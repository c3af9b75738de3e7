"""What ``tunnel service`` looks at, writes and removes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from platformdirs import user_config_path

from tunnel.addresses import Address
from tunnel.errors import StateError, UsageError
from tunnel.ops.config.again import Source
from tunnel.ops.entries import Local
from tunnel.ops.service.unit import JOIN, Unit, is_ours
from tunnel.redaction import masked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cyclopts import App

    from tunnel.ops.flags import RunFlags
    from tunnel.ops.serve_flags import ServeFlags
    from tunnel.ops.service.unit import Role

SYSTEM: Final = Path("/etc/systemd/system")
CONFIG: Final = Path("/etc/tunnel/tunnel.toml")
LOGS: Final = "/var/log/"
HIDDEN: Final = ("/home", "/root", "/run/user")
"""What ``ProtectHome=`` takes away."""
FIRST_FREE: Final = 1024
"""The first port that needs no right."""


def make_unit(
    app: App,
    role: Role,
    words: Sequence[str],
    *,
    name: str,
    user: bool,
    run_as: str | None,
    low_ports: bool,
    credentials: Sequence[str],
) -> Unit:
    """Return the unit that starts a command, whose words are read as it would.

    Raises:
        UsageError: it would not start so, or its words hold a secret: everybody can
            read a unit.
        ConfigError: its configuration file is wrong.
    """
    if masked(words) != list(words):
        raise UsageError(
            "a secret would stand in the unit, which every user can read",
            fix=f"put it into a file: a join line into {JOIN}, for root alone; others "
            "into one that a …_file key of the configuration names",
        )
    argv = [role, *words]
    has_config = any(word.partition("=")[0] == "--config" for word in words)
    if not (user or has_config) and CONFIG.exists():
        argv += ["--config", str(CONFIG)]
    source = Source(app, argv, None)
    run: RunFlags
    if role == "serve":
        flags, run, _users = source.parse_serve()
        low = any(0 < port < FIRST_FREE for port in _ports_of(flags))
        needs_join = False
    else:
        server, entries, run = source.parse_up()
        local = [one.listen for one in entries if isinstance(one, Local)]
        low = any(isinstance(at, Address) and at.port < FIRST_FREE for at in local)
        needs_join = not (user or server.to or credentials)
    files = [str(one) for one in (run.log_file, run.access_log) if one]
    for file in files:
        if not (user or file == "-" or file.startswith(f"{LOGS}{name}/")):
            raise UsageError(
                f"{file} is where this service cannot write",
                "it has a user and a folder for logs of its own",
                f"{LOGS}{name}/{Path(file).name}",
            )
    return Unit(
        role,
        name,
        [*executable(), role, *words],
        user=user,
        run_as=run_as,
        low_ports=low or low_ports,
        credentials=[*credentials, *([f"join:{JOIN}"] if needs_join else [])],
        logs=any(one.startswith(f"{LOGS}{name}/") for one in files),
        drain_s=run.drain_s(),
    )


def _ports_of(flags: ServeFlags) -> Iterator[int]:
    options = flags.options()
    yield options.listen.port
    yield from options.ports[:1]
    for at in (options.names.http, options.names.https):
        if at is not None:
            yield at.port


def executable() -> list[str]:
    """Return the words by which this program is started anew."""
    script = Path(sys.executable).with_name("tunnel")
    return [str(script)] if script.exists() else [sys.executable, "-m", "tunnel"]


def unreachable(unit: Unit) -> str:
    """Return a file that the unit's own user cannot get at; "" if there is none.

    Of the program, and of the words that name files.
    """
    if unit.user or unit.run_as == "root":
        return ""
    parts = {part for word in unit.command for part in re.split("[=,]", word)}
    named = [part for part in parts if part.startswith("/") and os.path.exists(part)]
    for place in (*sorted(named), sys.prefix, str(Path(__file__).parents[2])):
        really = Path(place).resolve()
        for folder in (really, *really.parents):
            hidden = str(folder) in HIDDEN
            if hidden or (folder.is_dir() and not folder.stat().st_mode & 0o001):
                return str(really)
    return ""


def place_of(name: str, *, user: bool) -> Path:
    """Return the file of a unit.

    Raises:
        UsageError: that is no name.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise UsageError(f"{name!r} is no name: letters, digits, - and _")
    folder = user_config_path("systemd") / "user" if user else SYSTEM
    return folder / f"{name}.service"


def write(unit: Unit, *, force: bool) -> tuple[Path, bool]:
    """Write a unit to its place; return that, and whether anything has changed.

    Raises:
        StateError: somebody else's is there, or it cannot be written.
    """
    path = place_of(unit.name, user=unit.user)
    text = unit.text()
    try:
        before = path.read_text("utf-8", "replace") if path.exists() else None
        if before == text:
            return path, False
        if before is not None and not (force or is_ours(before)):
            raise _foreign(path, "--force replaces it, --name NAME is another one")
        if unit.user:
            path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_text(text, "utf-8")
        beside.chmod(0o644)
        beside.replace(path)
    except OSError as error:
        raise _failed(path, error) from error
    return path, True


def remove(name: str, *, user: bool, force: bool) -> Path:
    """Stop and disable a unit, and remove its file; what it has kept stays.

    Raises:
        StateError: there is none, it is somebody else's, or it cannot be removed.
    """
    path = place_of(name, user=user)
    try:
        if not (force or is_ours(path.read_text("utf-8", "replace"))):
            raise _foreign(path, "--force removes it")
        _systemctl(["disable", "--now", path.name], user=user)
        path.unlink()
        _systemctl(["daemon-reload"], user=user)
    except OSError as error:
        raise _failed(path, error) from error
    return path


def _systemctl(words: Iterable[str], *, user: bool) -> None:
    """Run it where systemd does; what it says is for the terminal."""
    found = shutil.which("systemctl")
    if found is not None and os.path.isdir("/run/systemd/system"):
        of_user = ["--user"] if user else []
        subprocess.run([found, *of_user, *words], check=False)  # noqa: S603


def _foreign(path: Path, fix: str) -> StateError:
    what = f"{path} is not as `tunnel service install` made it"
    return StateError(what, "somebody has changed or written it", fix)


def _failed(path: Path, error: OSError) -> StateError:
    fix = "as root; or --user, or --print" if isinstance(error, PermissionError) else ""
    return StateError(f"cannot use {path}", error.strerror or str(error), fix)
