"""``tunnel check`` and ``tunnel doctor``: words and flags in, an exit status out."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunnel.errors import UsageError
from tunnel.ops.flags import LogForm  # noqa: TC001 - cyclopts reads the annotations

if TYPE_CHECKING:
    from cyclopts import App

    from tunnel.ops.check.check import Wanted
    from tunnel.ops.entries import Entry
    from tunnel.ops.flags import ServerFlags
    from tunnel.ops.runtime import Command
    from tunnel.ops.show import Show


def doctor(
    server: str | None = None,
    /,
    *,
    to: str | None = None,
    via: str | None = None,
    client_cert: tuple[Path, Path] | None = None,
    bundle: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    log: LogForm | None = None,
) -> int:
    """Find out what stands between this machine and a server.

    Names, TCP, keys, token, round trip, throughput, packets, and the limits of this
    machine: each is ok, warn or fail, with what helps. The client that runs here does
    not notice. Throughput takes the right `test`.

    Args:
        server: Join line, or name of a saved one; without it the default.
        to: The same.
        via: http:// or socks5:// URL of a proxy through which the server is reached;
            none: not even that of HTTPS_PROXY or ALL_PROXY.
        client_cert: CERT KEY: the client certificate, where the server wants one.
        bundle: Write a report to this file, without secrets.
        as_json: Each line of stdout is a JSON object.
        log: Form of the log on stderr.
    """
    from tunnel.ops.check.doctor import run_doctor
    from tunnel.ops.show import Show

    show = Show(as_json=as_json, log=log)
    where = server or to
    command = partial(
        run_doctor, where, via, client_cert, bundle, dict(os.environ), show
    )
    return _run(command, show)


def wanted(
    app: App, file: Path | None, entries: list[Entry], server: ServerFlags
) -> Wanted:
    """Return what is to be checked: what a file says, or else the flags.

    Raises:
        ConfigError: the file is wrong, with all its faults.
        UsageError: there are entries in both places.
    """
    from tunnel.ops.check.check import Wanted
    from tunnel.ops.config.again import Source
    from tunnel.ops.config.read import read_config
    from tunnel.ops.config.source import usual_path

    if file is None and not entries and (named := os.environ.get("TUNNEL_CONFIG")):
        file = Path(named)
    if file is None and not entries:
        usual = usual_path()
        file = usual if usual is not None and usual.exists() else None
    if file is None:
        return Wanted(None, None, server, tuple(entries))
    if entries:
        fix = f"tunnel check {file}, or tunnel check with the entries alone"
        raise UsageError("a file and entries are given", "which is it to be?", fix)
    config = read_config(file)
    argv = ("--config", str(file))
    serve = None
    if config.server is not None:
        serve = Source(app, ("serve", *argv), file).parse_serve()[0].options()
    if config.client is None:
        return Wanted(file, serve, None)
    flags, found, _ = Source(app, ("up", *argv, *_said(server)), file).parse_up()
    return Wanted(file, serve, flags, tuple(found))


def _said(server: ServerFlags) -> list[str]:
    """Return the flags that say which server, as words of a command line."""
    words: list[str] = []
    for flag, value in (("--to", server.to), ("--via", server.via)):
        words += [flag, value] if value is not None else []
    if server.client_cert is not None:
        words += ["--client-cert", *map(str, server.client_cert)]
    return words


def _run(command: Command, show: Show) -> int:
    from tunnel.ops.runtime import run

    return run(command, show, None, lambda: None)
