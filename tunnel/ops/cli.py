"""The verbs: flags in, an exit status out. What they do is in run.py."""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from tunnel import __version__
from tunnel.addresses import EVERYWHERE, host_of
from tunnel.errors import Exit, TunnelError, UsageError
from tunnel.ops.timeout_flags import TimeoutFlags, seconds
from tunnel.ops.variables import Environment, refuse_empty
from tunnel.proto.frames import Address
from tunnel.redaction import keep_secret, redact
from tunnel.words import bare, escaped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from tunnel.ops.entries import Entry
    from tunnel.ops.runtime import UpPlan
    from tunnel.ops.show import Show


ENVIRONMENT: Final = Environment()

LogForm = Literal["logfmt", "json", "terminal"]

app = App(
    name="tunnel",
    help="Any number of TCP connections over one long-lived link.",
    version=f"tunnel {__version__}",
    config=(refuse_empty, ENVIRONMENT),
    print_error=False,
    exit_on_error=False,
)

To = Annotated[
    str | None,
    Parameter(help="The line that `tunnel serve` prints, or the name of a saved one."),
]
SaveAs = Annotated[str | None, Parameter(help="Save the server under this name.")]
UpstreamProxy = Annotated[
    str | None,
    Parameter(
        help="http:// or socks5:// URL of a proxy through which the server is reached; "
        "none: not even that of HTTPS_PROXY or ALL_PROXY."
    ),
]
LeaveAt = Annotated[
    str | None,
    Parameter(name="--exit", help="Leave at this client instead of the server."),
]
Drain = Annotated[
    str,
    Parameter(
        help="How long running connections may go on after SIGTERM or Ctrl+C; the "
        "process is gone 1.5 s later at most."
    ),
]
UdpPublic = Annotated[
    str | None,
    Parameter(
        name="--udp-public-address",
        help="IP address that SOCKS apps of other machines are told for their "
        "datagrams, where the proxy is behind NAT.",
    ),
]
Json = Annotated[
    bool,
    Parameter(
        name="--json",
        negative=(),
        help="Each line of stdout is a JSON object; --log json is for the log.",
    ),
]
Log = Annotated[LogForm | None, Parameter(help="Form of the log on stderr.")]
_USUAL: Final = TimeoutFlags()


@app.command
def serve(
    *,
    listen: Annotated[
        str,
        Parameter(
            help="[HOST:]PORT for links; a port alone is on every address, IPv4 and "
            "IPv6. Public ports without a host are where this is."
        ),
    ] = "7443",
    ports: Annotated[
        str, Parameter(help="Public ports for entries that name none.")
    ] = "20000-20999",
    public_host: Annotated[
        str | None, Parameter(help="Host that the join line names.")
    ] = None,
    state: Annotated[
        Path | None, Parameter(help="Folder for the server's key and tokens.")
    ] = None,
    plain: Annotated[
        bool, Parameter(negative=(), help="No TLS: only for loopback or your own net.")
    ] = False,
    resume: Annotated[
        str, Parameter(help="How long connections wait for a lost link; 0: not at all.")
    ] = "120s",
    drain: Drain = "8s",
    max_sessions: Annotated[
        int, Parameter(help="Clients of one user at once; above it, one is refused.")
    ] = 1_024,
    max_waiting_sessions: Annotated[
        int,
        Parameter(
            help="Of those, without a link; above it one without connections, or the "
            "longest waiting, is given up."
        ),
    ] = 1_024,
    http: Annotated[
        str | None, Parameter(help="[HOST:]PORT for web services by name.")
    ] = None,
    https: Annotated[str | None, Parameter(help="[HOST:]PORT for TLS by name.")] = None,
    domain: Annotated[
        str | None, Parameter(help="Completes names without a dot: NAME.DOMAIN.")
    ] = None,
    certificate: Annotated[
        tuple[Path, Path] | None,
        Parameter(
            help="CERT KEY: end TLS here for names published with --http.", negative=()
        ),
    ] = None,
    print_join: Annotated[
        bool, Parameter(negative=(), help="Print the join line that is kept, and end.")
    ] = False,
    max_per_address: Annotated[
        int | None,
        Parameter(
            help="Visitors of one address at once; without it a quarter of the "
            "process's descriptors, at most 4096. This machine has no limit."
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        Parameter(
            help="Address or network of a proxy in front of this server that is "
            "believed about who its visitors are. Repeatable.",
            negative=(),
        ),
    ] = None,
    silence: TimeoutFlags = _USUAL,
    as_json: Json = False,
    log: Log = None,
) -> int:
    """Run a center-server: accept links, open public ports, be the exit."""
    from tunnel.access.networks import Networks
    from tunnel.ops.runtime import ServePlan, name_options, run_serve
    from tunnel.ops.saved import show_join, state_folder
    from tunnel.ops.show import Show

    if print_join:
        return show_join(state or state_folder(), Show(as_json=as_json, log=log))
    plan = ServePlan(
        Address.parse(listen, EVERYWHERE),
        _port_range(ports),
        _public_host(public_host),
        state or state_folder(),
        plain,
        seconds("--resume", resume),
        name_options(http, https, domain, certificate),
        max_sessions=_count("--max-sessions", max_sessions, least=1),
        max_waiting_sessions=_count("--max-waiting-sessions", max_waiting_sessions),
        max_per_address=None
        if max_per_address is None
        else _count("--max-per-address", max_per_address, least=1),
        trusted_proxies=Networks.parse(trusted_proxy or []).allowed,
        drain_s=seconds("--drain", drain),
        patience=silence.patience(),
    )
    show = Show(as_json=as_json, log=log)
    return _run(lambda: run_serve(plan, show), show)


@app.command
def up(
    *,
    to: To = None,
    via: UpstreamProxy = None,
    save_as: SaveAs = None,
    tcp: Annotated[
        list[str] | None,
        Parameter(
            help="[REMOTE=]TARGET[,proxy=v1|v2]: a public port at the server leads to "
            "TARGET here; LOW-HIGH for several. TARGET `socks` is a proxy into the "
            "network here. Repeatable.",
            negative=(),
        ),
    ] = None,
    udp: Annotated[
        list[str] | None,
        Parameter(
            help="[REMOTE=]TARGET: a public UDP port leads to a UDP TARGET here. "
            "Repeatable.",
            negative=(),
        ),
    ] = None,
    http: Annotated[
        list[str] | None,
        Parameter(
            help="NAME=TARGET: a host name at the server leads to a web service, or a "
            "folder, here. Repeatable.",
            negative=(),
        ),
    ] = None,
    https: Annotated[
        list[str] | None,
        Parameter(
            help="NAME=TARGET: as --http, but TLS passes through to TARGET. "
            "Repeatable.",
            negative=(),
        ),
    ] = None,
    reach: Annotated[
        list[str] | None,
        Parameter(
            help="LISTEN=TARGET: a port here leads to TARGET at the server's side. "
            "Repeatable.",
            negative=(),
        ),
    ] = None,
    socks: Annotated[
        list[str] | None,
        Parameter(
            help="LISTEN[,auth=USER:PASSWORD...]: a SOCKS and HTTP proxy here, leaving "
            "at the server. Repeatable.",
            negative=(),
        ),
    ] = None,
    udp_public: UdpPublic = None,
    leave_at: LeaveAt = None,
    be_exit: Annotated[
        str | None,
        Parameter(
            help="NAME[,network=NET...]: other clients may leave here with --exit "
            "NAME; without networks they reach everything but this machine itself."
        ),
    ] = None,
    drain: Drain = "8s",
    silence: TimeoutFlags = _USUAL,
    as_json: Json = False,
    log: Log = None,
) -> int:
    """Run a center-client with any number of entries."""
    from tunnel.ops import entry_syntax as syntax
    from tunnel.ops.runtime import UpPlan

    entries: list[Entry] = [
        *map(syntax.parse_tcp, tcp or []),
        *map(syntax.parse_udp, udp or []),
        *map(syntax.parse_http, http or []),
        *map(syntax.parse_https, https or []),
        *(syntax.parse_reach(text, leave_at) for text in reach or []),
        *(syntax.parse_socks(text, leave_at, udp_public) for text in socks or []),
        *([syntax.parse_exit(be_exit)] if be_exit else []),
    ]
    return _up(UpPlan(to, save_as, entries, via), drain, silence, as_json, log)


@app.command
def tcp(
    target: Annotated[
        str | None,
        Parameter(help="[HOST:]PORT, [HOST:]LOW-HIGH or unix:/path of the service."),
    ] = None,
    /,
    *,
    remote: Annotated[
        str, Parameter(help="Port, ports or HOST:PORT at the server; 0 for any.")
    ] = "0",
    proxy_protocol: Annotated[
        Literal["v1", "v2"] | None,
        Parameter(help="Tell TARGET who its visitor is, in a PROXY header."),
    ] = None,
    socks_: Annotated[
        bool,
        Parameter(
            name="--socks",
            negative=(),
            help="No TARGET: a proxy into the network here.",
        ),
    ] = False,
    auth: Annotated[
        list[str] | None,
        Parameter(negative=(), help="USER:PASSWORD who may use --socks. Repeatable."),
    ] = None,
    network: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            help="What --socks may reach: 10.0.0.0/8. Repeatable; without it "
            "everything but this machine itself.",
        ),
    ] = None,
    to: To = None,
    via: UpstreamProxy = None,
    save_as: SaveAs = None,
    drain: Drain = "8s",
    silence: TimeoutFlags = _USUAL,
    as_json: Json = False,
    log: Log = None,
) -> int:
    """Publish one TCP service: visitors of a port at the server reach TARGET."""
    from tunnel.ops.entry_syntax import tcp_entry
    from tunnel.ops.runtime import UpPlan

    entry = tcp_entry(
        target,
        remote,
        proxy_protocol,
        socks=socks_,
        auth=auth or [],
        networks=network or [],
    )
    return _up(UpPlan(to, save_as, [entry], via), drain, silence, as_json, log)


@app.command
def udp(
    target: Annotated[
        str, Parameter(help="[HOST:]PORT or [HOST:]LOW-HIGH of the service.")
    ],
    /,
    *,
    remote: Annotated[
        str, Parameter(help="Port, ports or HOST:PORT at the server; 0 for any.")
    ] = "0",
    to: To = None,
    via: UpstreamProxy = None,
    save_as: SaveAs = None,
    drain: Drain = "8s",
    silence: TimeoutFlags = _USUAL,
    as_json: Json = False,
    log: Log = None,
) -> int:
    """Publish one UDP service: datagrams to a port at the server reach TARGET."""
    from tunnel.ops.entry_syntax import udp_entry
    from tunnel.ops.runtime import UpPlan

    entry = udp_entry(target, remote)
    return _up(UpPlan(to, save_as, [entry], via), drain, silence, as_json, log)


@app.command
def share(
    target: Annotated[str, Parameter(help="[HOST:]PORT of a service, or a folder.")],
    /,
    *,
    name: Annotated[
        str,
        Parameter(help="Host name; without a dot one of the server's domain."),
    ] = "",
    auth: Annotated[
        str | None,
        Parameter(
            help="USER:PASSWORD that visitors need, checked here. TUNNEL_AUTH_FILE may "
            "name a file with it."
        ),
    ] = None,
    list_files: Annotated[
        bool,
        Parameter(name="--list", negative=(), help="List folders without index.html."),
    ] = False,
    to: To = None,
    via: UpstreamProxy = None,
    save_as: SaveAs = None,
    drain: Drain = "8s",
    silence: TimeoutFlags = _USUAL,
    as_json: Json = False,
    log: Log = None,
) -> int:
    """Publish one web service, or the files of a folder, under a host name."""
    from tunnel.ops.entry_syntax import share_entry
    from tunnel.ops.entry_values import parse_guard
    from tunnel.ops.runtime import UpPlan
    from tunnel.ops.saved import secret_file

    guard = secret_file("TUNNEL_AUTH_FILE", parse_guard) if auth is None else auth
    entry = share_entry(target, name, guard, listing=list_files)
    return _up(UpPlan(to, save_as, [entry], via), drain, silence, as_json, log)


@app.command
def reach(
    listen: Annotated[
        str,
        Parameter(
            help="[HOST:]PORT or unix:/path to listen on here; a port alone is on "
            "127.0.0.1 and ::1."
        ),
    ],
    target: Annotated[
        str, Parameter(help="HOST:PORT or unix:/path at the server's side.")
    ],
    /,
    *,
    leave_at: LeaveAt = None,
    to: To = None,
    via: UpstreamProxy = None,
    save_as: SaveAs = None,
    drain: Drain = "8s",
    silence: TimeoutFlags = _USUAL,
    as_json: Json = False,
    log: Log = None,
) -> int:
    """Bring one TCP service of the server's side here."""
    from tunnel.ops.entry_syntax import reach_entry
    from tunnel.ops.runtime import UpPlan

    entry = reach_entry(listen, target, leave_at)
    return _up(UpPlan(to, save_as, [entry], via), drain, silence, as_json, log)


@app.command
def socks(
    listen: Annotated[
        str,
        Parameter(
            help="[HOST:]PORT or unix:/path to listen on here; a port alone is on "
            "127.0.0.1 and ::1."
        ),
    ] = "1080",
    /,
    *,
    auth: Annotated[
        list[str] | None,
        Parameter(negative=(), help="USER:PASSWORD who may use it. Repeatable."),
    ] = None,
    udp_public: UdpPublic = None,
    leave_at: LeaveAt = None,
    to: To = None,
    via: UpstreamProxy = None,
    save_as: SaveAs = None,
    drain: Drain = "8s",
    silence: TimeoutFlags = _USUAL,
    as_json: Json = False,
    log: Log = None,
) -> int:
    """Run a SOCKS and HTTP proxy here that leaves at the server."""
    from tunnel.ops.entry_syntax import socks_entry
    from tunnel.ops.runtime import UpPlan

    entry = socks_entry(listen, auth or [], leave_at, udp_public)
    return _up(UpPlan(to, save_as, [entry], via), drain, silence, as_json, log)


@app.command
def pipe(
    target: Annotated[
        str, Parameter(help="HOST:PORT or unix:/path at the server's side.")
    ],
    /,
    *,
    leave_at: LeaveAt = None,
    to: To = None,
    via: UpstreamProxy = None,
    log: Log = None,
) -> int:
    """Join stdin and stdout to a target, for `ssh -o ProxyCommand=...`."""
    from tunnel.ops.entry_values import parse_far_target
    from tunnel.ops.runtime import run_pipe
    from tunnel.ops.show import Show

    where = parse_far_target(target)
    show = Show(log=log or "terminal")
    return _run(lambda: run_pipe(where, to, show, via=via, exit_name=leave_at), show)


@app.command
def join(
    line: Annotated[
        str,
        Parameter(
            help="The join line, or - to read it from stdin.",
            allow_leading_hyphen=True,
        ),
    ],
    /,
    *,
    save_as: SaveAs = None,
) -> int:
    """Save a server, its key pin and a token, so that --to is not needed."""
    from tunnel.access.security import parse_join
    from tunnel.ops import saved
    from tunnel.ops.show import Show

    if line == "-":
        line = bare(sys.stdin.readline())
        if not line:
            raise UsageError("stdin holds no join line", "its first line is empty")
    show = Show()
    path = saved.save(parse_join(line), save_as or saved.DEFAULT)
    show.talk("saved", str(path))
    return Exit.OK


@app.command
def demo(
    *,
    once: Annotated[
        bool, Parameter(negative=(), help="End after the check, with status 0 or 9.")
    ] = False,
) -> int:
    """Show the whole thing on this machine: server, client, page and proxy."""
    from tunnel.ops.demo import run_demo
    from tunnel.ops.show import Show

    return _run(lambda: run_demo(once), Show(log="terminal"))


# Values ------------------------------------------------------------------------------


def _port_range(text: str) -> range:
    low, dash, high = text.partition("-")
    if low.isdigit() and (high.isdigit() if dash else not high):
        first, last = int(low), int(high or low)
        if 0 < first <= last < 65_536:
            return range(first, last + 1)
    raise UsageError(
        f"--ports {text!r} is not a range of ports",
        "ports are 1 to 65535",
        "for example --ports 20000-20999",
    )


def _public_host(text: str | None) -> str | None:
    host = None if text is None else host_of(text)
    if text is not None and host is None:
        raise UsageError(
            f"--public-host {text!r} is not a host",
            "it is a name or an IP address, without a port",
            "for example --public-host t.example.net",
        )
    return host


def _count(flag: str, number: int, least: int = 0) -> int:
    if number < least:
        raise UsageError(f"{flag} {number} is too few", f"it is {least} or more")
    return number


# Running -----------------------------------------------------------------------------


def _up(
    plan: UpPlan, drain: str, silence: TimeoutFlags, as_json: bool, log: LogForm | None
) -> int:
    from tunnel.ops.runtime import run_up
    from tunnel.ops.show import Show

    plan.drain_s, plan.patience = seconds("--drain", drain), silence.patience()
    show = Show(as_json=as_json, log=log)
    return _run(lambda: run_up(plan, show), show)


def _run(command: Callable[[], Awaitable[int]], show: Show) -> int:
    """Run a command in trio; whatever it says ends as text and a status."""
    import trio

    from tunnel.net.descriptors import raise_limit

    raise_limit()
    _calm_collector()
    _calm_allocator()
    try:
        return trio.run(_with_log, command, show)
    except BaseException as error:
        fault = _first_fault(error)
        if isinstance(fault, TunnelError):
            show.error(fault)
            return fault.exit_status
        if isinstance(fault, KeyboardInterrupt):
            return Exit.INTERRUPTED
        raise
    finally:
        show.close()


async def _with_log(command: Callable[[], Awaitable[int]], show: Show) -> int:
    """Run a command beside the log, which has something to say in quiet times too."""
    import trio

    ENVIRONMENT.warn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show.keep_log)
        status = await command()
        nursery.cancel_scope.cancel()
    return status


COLLECT_AFTER: Final = (20_000, 20, 50)
"""New objects before a young collection, and of those before the next two. Python's own
700, 10, 10 walk over every live connection again and again: with 4,000 of them that
took a third of the requests a second. Hardly anything here is a cycle."""


def _calm_collector() -> None:
    """Have the collector look less often, and never at what stays to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


RECYCLED_BYTES: Final = 4_194_304
"""Memory that comes and goes with what waits for another link, or for a reader."""


def _calm_allocator() -> None:
    """Have memory that was freed kept for the next piece, up to twice as much.

    glibc does so for blocks as large as the largest that was freed once, and gives the
    rest back to the kernel at once: each piece of a transfer began with page faults.
    Other allocators take no notice.
    """
    bytes(RECYCLED_BYTES)


def _first_fault(error: BaseException) -> BaseException:
    """Look into exception groups: the first of ours, else the first at all."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.split(TunnelError)[0]
        error = (ours or error).exceptions[0]
    return error


def _mask_tracebacks() -> None:
    """Have Python's own reports of faults show no secret either."""

    def report(
        kind: type[BaseException], error: BaseException | None, at: TracebackType | None
    ) -> None:
        lines = redact("".join(traceback.format_exception(kind, error, at))).split("\n")
        if sys.stderr is not None:
            sys.stderr.write("\n".join(map(escaped, lines)))

    sys.excepthook = report
    threading.excepthook = lambda args: report(
        args.exc_type, args.exc_value, args.exc_traceback
    )
    sys.unraisablehook = lambda args: report(
        args.exc_type, args.exc_value, args.exc_traceback
    )


def _refuse(error: TunnelError) -> Exit:
    """Say what is wrong with a command line, or with what stood in for it."""
    from tunnel.ops.show import Show

    if isinstance(error, UsageError) and (sources := ENVIRONMENT.sources()):
        read = f"read from the environment: {sources}"
        error.cause = f"{error.cause}; {read}" if error.cause else read
    Show().error(error)
    return error.exit_status


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    keep_secret(sys.argv[1:], os.environ)
    _mask_tracebacks()
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
