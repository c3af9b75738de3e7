"""The commands: words and flags in, an exit status out.

What a command does is in a module of its own, loaded when it runs: ``--help`` must not
pay for trio.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from tunnel import __version__
from tunnel.errors import ConfigError, Exit, TunnelError, UsageError
from tunnel.ops import check_cli, config_cli, control_cli, service_cli, user_cli
from tunnel.ops.config.source import ConfigFlags, FileSource
from tunnel.ops.flags import (
    EntryFlags,
    LeaveAt,
    LogForm,
    RunFlags,
    ServerFlags,
    UpFlags,
    WebFlags,
    Words,
)
from tunnel.ops.serve_flags import ServeFlags
from tunnel.ops.variables import Environment, refuse_empty
from tunnel.redaction import keep_secret, redact
from tunnel.words import bare, escaped

if TYPE_CHECKING:
    from types import TracebackType

    from tunnel.front.http.limits import Limits
    from tunnel.net.timeouts import Timeouts
    from tunnel.ops.entries import Entry
    from tunnel.ops.reload.client import UpAgain
    from tunnel.ops.runtime import Command
    from tunnel.ops.show import Show


ENVIRONMENT: Final = Environment()
LEAST_COLUMNS: Final = 20
"""Of a terminal, for help."""
FILE: Final = FileSource()

app = App(
    name="tunnel",
    help="Any number of TCP connections over one long-lived link.",
    version=f"tunnel {__version__}",
    config=(refuse_empty, ENVIRONMENT, FILE),
    default_parameter=Parameter(negative=()),
    print_error=False,
    exit_on_error=False,
)

app.command(user_cli.invite)
app.command(user_cli.users)
app.command(config_cli.config)
service_cli.add_to(app)
control_cli.add_to(app)
app.command(check_cli.doctor)

SERVE: Final = ServeFlags()
SERVER: Final = ServerFlags()
ENTRIES: Final = EntryFlags()
WEB: Final = WebFlags()
RUN: Final = RunFlags()
UP: Final = UpFlags()
CONFIG: Final = ConfigFlags()


@app.command
def serve(
    *,
    flags: ServeFlags = SERVE,
    run: RunFlags = RUN,
    config: ConfigFlags = CONFIG,
) -> int:
    """Run a center-server: accept links, open public ports, be the exit."""
    from tunnel.ops.cluster_flags import cluster_options
    from tunnel.ops.config.again import Source
    from tunnel.ops.reload.server import ServeAgain
    from tunnel.ops.saved import show_join, state_folder
    from tunnel.ops.serve import identified, run_serve
    from tunnel.ops.workers.parent import run_workers
    from tunnel.ops.workers.worker import Worker, take_place

    state = flags.state or state_folder()
    if flags.print_join:
        return show_join(state, run.show())
    told, options = FILE.has_section, flags.options()
    source = Source(app, sys.argv[1:], FILE.path, told=told)
    flags.host(), flags.rotation(), run.drain_s(), run.ports()  # may be wrong
    cluster_options(flags)
    limits, show = (run.timeouts(), run.limits()), run.show()
    again = ServeAgain(flags, run, FILE.users, source.parse_serve, source.path)
    place = take_place(os.environ)
    if place is not None:
        serve_all = partial(run_serve, state, options, again, show, Worker(place))
    elif flags.count() != 1:
        prepare = partial(identified, options, state, flags.rotation(), show)
        serve_all = partial(
            run_workers,
            state,
            flags.count(),
            prepare,
            run.drain_s,
            run.ports(),
            show,
        )
    else:
        serve_all = partial(run_serve, state, options, again, show)
    return _run(serve_all, show, limits)


@app.command
def up(
    *,
    server: ServerFlags = SERVER,
    entries: EntryFlags = ENTRIES,
    run: UpFlags = UP,
    config: ConfigFlags = CONFIG,
) -> int:
    """Run a center-client with any number of entries."""
    from tunnel.ops.config.again import Source
    from tunnel.ops.reload.client import UpAgain

    wanted = [*entries.entries(), *FILE.entries]
    source = Source(app, sys.argv[1:], FILE.path, told=FILE.has_section)
    again = UpAgain(server, run, source.parse_up, source.path, FILE.kept)
    return _up(wanted, server, run, again)


@app.command
def tcp(
    target: str | None = None,
    /,
    *,
    remote: str = "0",
    proxy_protocol: Literal["v1", "v2"] | None = None,
    socks_: Annotated[bool, Parameter(name="--socks")] = False,
    auth: Words = None,
    network: Words = None,
    server: ServerFlags = SERVER,
    run: RunFlags = RUN,
) -> int:
    """Publish one TCP service: visitors of a port at the server reach TARGET.

    Args:
        target: [HOST:]PORT, [HOST:]LOW-HIGH or unix:/path of the service.
        remote: Port, ports or HOST:PORT at the server; 0 for any.
        proxy_protocol: Tell TARGET who its visitor is, in a PROXY header.
        socks_: No TARGET: a proxy into the network here.
        auth: USER:PASSWORD who may use --socks. Repeatable.
        network: What --socks may reach: 10.0.0.0/8. Repeatable; without it everything
            but this machine itself.
    """
    from tunnel.ops.entry_syntax import tcp_entry

    users, networks = auth or [], network or []
    entry = tcp_entry(
        target, remote, proxy_protocol, socks=socks_, auth=users, networks=networks
    )
    return _up([entry], server, run)


@app.command
def udp(
    target: str,
    /,
    *,
    remote: str = "0",
    server: ServerFlags = SERVER,
    run: RunFlags = RUN,
) -> int:
    """Publish one UDP service: datagrams to a port at the server reach TARGET.

    Args:
        target: [HOST:]PORT or [HOST:]LOW-HIGH of the service.
        remote: Port, ports or HOST:PORT at the server; 0 for any.
    """
    from tunnel.ops.entry_syntax import udp_entry

    return _up([udp_entry(target, remote)], server, run)


@app.command
def share(
    target: str,
    /,
    *,
    name: str = "",
    auth: str | None = None,
    list_files: Annotated[bool, Parameter(name="--list")] = False,
    web: WebFlags = WEB,
    server: ServerFlags = SERVER,
    run: UpFlags = UP,
) -> int:
    """Publish one web service, or the files of a folder, under a host name.

    Args:
        target: [HOST:]PORT or https://HOST:PORT of a service, or a folder.
        name: Host name; without a dot one of the server's domain.
        auth: USER:PASSWORD that visitors need, checked here. TUNNEL_AUTH_FILE may name
            a file with it.
        list_files: List folders without index.html.
    """
    from tunnel.ops.entry_syntax import share_entry
    from tunnel.ops.entry_values import parse_guard
    from tunnel.ops.saved import secret_file
    from tunnel.ops.web_words import pairs_of

    guard = secret_file("TUNNEL_AUTH_FILE", parse_guard) if auth is None else auth
    said = [*web.words(), *pairs_of({"list": list_files})]
    entry = share_entry(target, name, guard, said)
    if entry.inspect and run.dashboard is None:
        run = replace(run, dashboard="0")  # there is something to look at
    return _up([entry], server, run)


@app.command
def reach(
    listen: str,
    target: str,
    /,
    *,
    leave_at: LeaveAt = None,
    server: ServerFlags = SERVER,
    run: RunFlags = RUN,
) -> int:
    """Bring one TCP service of the server's side here.

    Args:
        listen: [HOST:]PORT or unix:/path to listen on here; a port alone is on
            127.0.0.1 and ::1.
        target: HOST:PORT or unix:/path at the server's side.
        leave_at: Leave at this client instead of the server.
    """
    from tunnel.ops.entry_syntax import reach_entry

    return _up([reach_entry(listen, target, leave_at)], server, run)


@app.command
def socks(
    listen: str = "1080",
    /,
    *,
    auth: Words = None,
    udp_public_address: str | None = None,
    leave_at: LeaveAt = None,
    server: ServerFlags = SERVER,
    run: RunFlags = RUN,
) -> int:
    """Run a SOCKS and HTTP proxy here that leaves at the server.

    Args:
        listen: [HOST:]PORT or unix:/path to listen on here; a port alone is on
            127.0.0.1 and ::1.
        auth: USER:PASSWORD who may use it. Repeatable.
        udp_public_address: IP address that SOCKS apps of other machines are told for
            their datagrams, where the proxy is behind NAT.
        leave_at: Leave at this client instead of the server.
    """
    from tunnel.ops.entry_syntax import socks_entry

    entry = socks_entry(listen, auth or [], leave_at, udp_public_address)
    return _up([entry], server, run)


@app.command
def check(
    file: Path | None = None,
    /,
    *,
    offline: bool = False,
    entries: EntryFlags = ENTRIES,
    server: ServerFlags = SERVER,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    log: LogForm | None = None,
) -> int:
    """Check a configuration without using it: ports, targets, and what the server says.

    Nothing is published; the client that runs here goes on.

    Args:
        file: Configuration of either side, or of both; without it and without entries
            tunnel.toml in the configuration folder, if there is one.
        offline: Do not ask the server.
        as_json: Each line of stdout is a JSON object.
        log: Form of the log on stderr.
    """
    from tunnel.ops.check.check import run_check
    from tunnel.ops.show import Show

    wanted = check_cli.wanted(app, file, entries.entries(), server)
    show = Show(as_json=as_json, log=log)
    return _run(partial(run_check, wanted, show, offline=offline), show)


@app.command
def pipe(
    target: str,
    /,
    *,
    leave_at: LeaveAt = None,
    to: str | None = None,
    via: str | None = None,
    client_cert: tuple[Path, Path] | None = None,
    log: LogForm | None = None,
) -> int:
    """Join stdin and stdout to a target, for `ssh -o ProxyCommand=...`.

    Args:
        target: HOST:PORT or unix:/path at the server's side.
        leave_at: Leave at this client instead of the server.
        to: The line that `tunnel serve` prints, or the name of a saved one.
        via: http:// or socks5:// URL of a proxy through which the server is reached;
            none: not even that of HTTPS_PROXY or ALL_PROXY.
        client_cert: CERT KEY: the client certificate, where the server wants one.
        log: Form of the log on stderr.
    """
    from tunnel.ops.entry_values import parse_far_target
    from tunnel.ops.pipe import run_pipe
    from tunnel.ops.show import Show

    where = parse_far_target(target)
    command = partial(run_pipe, where, to, via, leave_at, client_cert)
    return _run(command, Show(log=log or "terminal"))


@app.command
def join(
    line: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    save_as: str | None = None,
) -> int:
    """Save a server, its key pin and a token, so that --to is not needed.

    Args:
        line: The join line, or - to read it from stdin.
        save_as: Save the server under this name.
    """
    from tunnel.access.join import parse_join
    from tunnel.ops import saved
    from tunnel.ops.show import Show

    if line == "-":
        line = bare(sys.stdin.readline())
        if not line:
            raise UsageError("stdin holds no join line", "its first line is empty")
    show = Show()
    path = saved.save(parsed := parse_join(line), save_as or saved.DEFAULT)
    saved.forget_pins(parsed)
    show.talk("saved", str(path))
    return Exit.OK


@app.command
def demo(*, once: bool = False) -> int:
    """Show the whole thing on this machine: server, client, page and proxy.

    Args:
        once: End after the check, with status 0 or 9.
    """
    from tunnel.ops.demo import run_demo
    from tunnel.ops.show import Show

    return _run(partial(run_demo, once), Show(log="terminal"))


@config_cli.config.command(name="show")
def show_config(
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> int:
    """Print every value that holds, and whether flag, variable or file gave it.

    Args:
        words: A command line of `serve` or `up`; or --config FILE, for both. With
            --json each line is a JSON object.
    """
    from tunnel.ops.config.show import show_config as show_it
    from tunnel.ops.show import Show

    show_it(
        app, [one for one in words if one != "--json"], Show(as_json="--json" in words)
    )
    return Exit.OK


# Running -----------------------------------------------------------------------------


def _up(
    entries: list[Entry],
    server: ServerFlags,
    run: RunFlags,
    again: UpAgain | None = None,
) -> int:
    from tunnel.ops.up import run_up

    drain_s, limits, show = run.drain_s(), (run.timeouts(), run.limits()), run.show()
    flags = UpFlags(**vars(run))
    flags.keep_bytes()  # may be wrong
    up = partial(run_up, of_file=FILE.gives_to, again=again, run=flags)
    return _run(partial(up, entries, server, drain_s, show), show, limits)


def _run(
    command: Command, show: Show, limits: tuple[Timeouts, Limits] | None = None
) -> int:
    from tunnel.ops.runtime import run

    return run(command, show, limits, partial(ENVIRONMENT.warn, app))


def _mask_tracebacks() -> None:
    """Have Python's own tracebacks show no secrets."""

    def report(
        kind: type[BaseException], error: BaseException | None, at: TracebackType | None
    ) -> None:
        lines = redact("".join(traceback.format_exception(kind, error, at))).split("\n")
        if sys.stderr is not None:
            sys.stderr.write("\n".join(map(escaped, lines)))

    def report_args(args: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
        report(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = report
    threading.excepthook = sys.unraisablehook = report_args


def _refuse(error: TunnelError) -> Exit:
    """Write what is wrong with a command line, or with a variable in its place."""
    from tunnel.ops.show import Show

    if isinstance(error, UsageError) and (sources := ENVIRONMENT.sources()):
        read = f"read from the environment: {sources}"
        error.cause = f"{error.cause}; {read}" if error.cause else read
    if isinstance(error, UsageError):
        error = FILE.blamed(error)
    if isinstance(error, ConfigError):
        Show().lines(error.faults)
    else:
        Show().error(error)
    return error.exit_status


def _say_shown(why: str) -> None:
    """Warn that every user of this machine can read the secrets of the command line."""
    from tunnel.ops.show import Show

    what = "other users of this machine see the secrets of this command line"
    fix = "put them into files: TUNNEL_TO_FILE, TUNNEL_AUTH_FILE, TUNNEL_VIA_FILE"
    Show().error(UsageError(what, f"they could not be masked: {why}", fix), "warning")


def main(shown: str = "") -> NoReturn:
    """Run the command line and exit with its status.

    ``shown`` says why its secrets could not be kept out of ``ps``, where that is so.
    """
    keep_secret(sys.argv[1:], os.environ)
    if os.environ.get("COLUMNS", "").isdecimal():  # rich never ends at a width of 1
        os.environ["COLUMNS"] = str(max(int(os.environ["COLUMNS"][:6]), LEAST_COLUMNS))
    _mask_tracebacks()
    if shown:
        _say_shown(shown)
    try:
        status = app(result_action="return_value")
    except CycloptsError as error:
        command = " ".join(("tunnel", *(error.command_chain or ())))
        status = _refuse(UsageError(str(error), fix=f"{command} --help"))
    except TunnelError as error:
        status = _refuse(error)
    except KeyboardInterrupt:
        status = Exit.INTERRUPTED
    sys.exit(int(status or 0))
