"""The long-running commands: a role, its front ends, its signals, its exit status."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.security import (
    JoinLine,
    client_id,
    kept_join,
    load_or_make_identity,
    owner_token,
    sole_server,
    write_join,
)
from tunnel.access.users import OWNER, User
from tunnel.addresses import EVERYWHERE, LOCALHOST, LOOPBACKS, WILDCARDS, host_of
from tunnel.center.client import CenterClient
from tunnel.center.drain import DRAIN_S
from tunnel.center.events import (
    ClientIdChanged,
    LinkDown,
    LinkResumed,
    LinkUp,
    MappingReady,
    MappingRefused,
    SessionLost,
)
from tunnel.center.names import NameOptions, NamePorts
from tunnel.center.publisher import ASKED_AGAIN
from tunnel.center.server import CenterServer, ServerOptions
from tunnel.center.sessions import MAX_SESSIONS, MAX_WAITING_SESSIONS
from tunnel.center.whereabouts import is_there
from tunnel.errors import CODES, Code, Exit, StateError, StreamError, UsageError
from tunnel.front.proxy_users import is_loopback
from tunnel.log import log_event
from tunnel.net.relay import relay
from tunnel.net.timeouts import TIMEOUTS, Timeouts
from tunnel.ops import saved
from tunnel.ops.entries import Local, Published, as_target
from tunnel.ops.show import connections, is_journal, size_text
from tunnel.ops.signals import ending_signals
from tunnel.ops.stdio import standard_stream
from tunnel.proto.frames import Address
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tunnel.access.networks import Network
    from tunnel.center.events import Notice
    from tunnel.errors import TunnelError
    from tunnel.ops.entries import Entry, Line
    from tunnel.ops.show import Show
    from tunnel.proto.frames import End

STATUS_S: Final = 1.0
"""How often a terminal's line of moving numbers is written."""
PIPE_GIVES_UP_S: Final = 10.0
"""A program waits behind a pipe: it should hear soon that there is no server."""

logger = logging.getLogger("tunnel.client")


class _Ending:
    """How a command ends: drain on the first signal, at once on the second Ctrl+C."""

    def __init__(self, show: Show, connections: Callable[[], int]) -> None:
        self.status = Exit.OK
        self._show = show
        self._connections = connections

    async def watch(
        self,
        drain: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Wait for signals; returns when the drain is over or was cut short."""
        with trio.open_signal_receiver(*ending_signals()) as signals:
            task_status.started()
            number = await anext(signals)
            if number == signal.SIGINT:
                self.status = Exit.INTERRUPTED
            if live := self._connections():
                log_event(logger, logging.INFO, "draining", connections=live)
                self._show.talk(
                    "stopping", f"{connections(live, 'live ')} (Ctrl+C again: now)"
                )
            async with trio.open_nursery() as nursery:

                async def until_drained() -> None:
                    await drain()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_drained)
                # Of a closed window two may come: the kernel's and the shell's.
                while await anext(signals) == signal.SIGHUP:
                    pass
                nursery.cancel_scope.cancel()
            await stop()


# serve -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServePlan:
    """What ``tunnel serve`` was asked for."""

    listen: Address
    ports: range
    public_host: str | None
    state: Path
    plain: bool
    resume_s: int
    names: NameOptions = field(default_factory=NameOptions)
    max_sessions: int = MAX_SESSIONS
    max_waiting_sessions: int = MAX_WAITING_SESSIONS
    max_per_address: int | None = None
    trusted_proxies: tuple[Network, ...] = ()
    drain_s: int = int(DRAIN_S)
    patience: Timeouts = field(default_factory=Timeouts)


async def run_serve(plan: ServePlan, show: Show) -> Exit:
    """Run a center-server until a signal ends it.

    Raises:
        StateError: another server has the state folder, or it cannot be used.
    """
    TIMEOUTS.set(plan.patience)
    with sole_server(plan.state):
        return await _serve(plan, show)


async def _serve(plan: ServePlan, show: Show) -> Exit:
    identity = None
    if not plan.plain:
        identity, created = load_or_make_identity(plan.state)
        show.talk(
            "identity created" if created else "identity",
            f"{identity.pem_path}   fingerprint {identity.fingerprint}",
        )
    token = owner_token(plan.state)
    owner = User(OWNER, verifier_of(OWNER, token.reveal()), is_owner=True)
    server = CenterServer(
        {OWNER: owner},
        identity,
        ServerOptions(
            plan.listen,
            plan.ports,
            plan.plain,
            plan.resume_s,
            plan.names,
            max_sessions=plan.max_sessions,
            max_waiting_sessions=plan.max_waiting_sessions,
            max_per_address=plan.max_per_address,
            trusted_proxies=plan.trusted_proxies,
        ),
    )
    ending = _Ending(show, lambda: server.connections)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(server.run)
        join = JoinLine(
            OWNER,
            token,
            plan.public_host or _reachable_host(address.host),
            address.port,
            identity.pin if identity else None,
            plan.plain,
        )
        _keep_line(plan.state, join, show)

        async def until_signal(*, task_status: trio.TaskStatus[None]) -> None:
            drain = partial(server.drain, plan.drain_s)
            await ending.watch(drain, server.stop, task_status=task_status)
            nursery.cancel_scope.cancel()

        # Who has read the line may send a signal at once.
        await nursery.start(until_signal)
        _show_server(show, address, join, server.names)
    return ending.status


def _keep_line(state: Path, join: JoinLine, show: Show) -> None:
    """Keep the join line; a folder that has one with this token may be read-only."""
    try:
        write_join(state, join)
    except StateError as error:
        if kept_join(state) is None:
            raise
        show.error(error, "warning")


def _show_server(
    show: Show, address: Address, join: JoinLine, names: NamePorts
) -> None:
    line = join.render()
    how = "plain, NOT encrypted" if join.plain else "TLS 1.3"
    show.talk("listening", f"{address}  {how}")
    for kind, where in (("HTTP", names.http), ("HTTPS", names.https)):
        if where is not None:
            show.talk("", f"{where}  {kind} by name")
    if is_loopback(join.host) and not is_loopback(address.host):
        log_event(logger, logging.WARNING, "join.only_here", host=join.host,
            reason="no address of this machine is known that others reach",
            fix="--public-host HOST")  # fmt: skip
    if join.plain and not is_loopback(address.host):
        show.talk("warning", "everybody on the way can read and change what passes")
    if is_journal(sys.stdout):  # others may read it, and it is kept
        show.talk("", "tunnel serve --print-join prints the join line")
        show.line("listening", f"listening {address}", address=str(address))
    elif show.terminal:
        show.talk("", "On the other machine:")
        show.secret_line("join", f"    tunnel tcp 8000 --to '{line}'")
    else:
        show.secret_line("join", line, join=line, address=str(address))


def _reachable_host(host: str) -> str:
    """Give an address for the join line: where we listen, or the default route's own.

    Nobody is asked: connecting a UDP socket sends nothing, it only looks up the route.
    """
    if host == EVERYWHERE:
        ipv4, ipv6 = map(_own_address, WILDCARDS)
        return ipv4 or ipv6 or LOOPBACKS[0]
    if host in WILDCARDS:
        return _own_address(host) or LOOPBACKS[WILDCARDS.index(host)]
    return host


def _own_address(wildcard: str) -> str:
    """Give the address that leads out of this machine; empty if none is known."""
    family, anywhere = (
        (socket.AF_INET6, "2001:db8::1")
        if ":" in wildcard
        else (socket.AF_INET, "192.0.2.1")
    )
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe_socket:
            probe_socket.connect((anywhere, 9))
            own: str = probe_socket.getsockname()[0]
            return own
    except OSError:  # no default route, as in a network that leads nowhere else
        return _listed_ipv6() if family == socket.AF_INET6 else ""


def _listed_ipv6() -> str:
    """Give a global IPv6 address of this machine; Linux lists them (proc(5))."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    scopes = {words[0]: words[3] for words in map(str.split, lines)}
    own = (digits for digits, scope in scopes.items() if scope == "00")
    return next((str(IPv6Address(bytes.fromhex(digits))) for digits in own), "")


def name_options(
    http: str | None,
    https: str | None,
    domain: str | None,
    certificate: tuple[Path, Path] | None,
) -> NameOptions:
    """Read where a server serves host names.

    Without a domain, names on loopback end in ``.localhost``, which browsers and curl
    look for on their own machine.

    Raises:
        UsageError: the values do not fit together.
    """
    if certificate is not None and https is None:
        raise UsageError(
            "a certificate is given, but no port to use it on",
            fix="--https 443",
        )
    known = host_of(domain.strip(".")) if domain is not None else None
    if domain is not None and (known is None or ":" in known):
        raise UsageError(f"{domain!r} is not a domain", fix="--domain t.example.net")
    http_at = Address.parse(http, EVERYWHERE) if http else None
    https_at = Address.parse(https, EVERYWHERE) if https else None
    public = [at for at in (http_at, https_at) if at and not is_loopback(at.host)]
    if known is None and not public:
        known = LOCALHOST
    name = known.lower() if known else None
    return NameOptions(http_at, https_at, name, certificate)


# up ----------------------------------------------------------------------------------


@dataclass(slots=True)
class UpPlan:
    """What ``tunnel up`` or one of its short forms was asked for."""

    to: str | None = None
    save_as: str | None = None
    entries: list[Entry] = field(default_factory=list)
    via: str | None = None
    """URL of a proxy on the way to the server."""
    drain_s: int = int(DRAIN_S)
    patience: Timeouts = field(default_factory=Timeouts)

    def check(self) -> None:
        """Refuse what is nothing at all.

        Raises:
            UsageError: no entry.
        """
        if not self.entries:
            raise UsageError(
                "there is nothing to do",
                "no entry is given",
                "for example: tunnel up --tcp 8000, or --socks 127.0.0.1:1080",
            )


class _Up:
    """One run of ``tunnel up``: its entries, and what its user is told of them."""

    def __init__(self, plan: UpPlan, join: JoinLine, given: bool, show: Show) -> None:
        self._plan = plan
        self._via = saved.find_via(plan.via, join)
        self._join = join
        self._keep = given
        self._show = show
        self._published: dict[str, Published] = {}
        self._said: dict[str, Address] = {}
        self._had: set[str] = set()
        self._without: dict[str, Exit] = {}
        """Entries that have never been had, or never will be again, and why."""
        self._local: list[Line] = []
        self._was_up = False
        self._works = False
        """One of the entries has come to stand."""
        self._trouble = ""
        """Why the last attempt of this outage failed."""
        self._failure: Exit | None = None
        self._nursery: trio.Nursery | None = None
        self._client: CenterClient | None = None

    async def run(self) -> Exit:
        with ExitStack() as stack:
            own_id = stack.enter_context(client_id(saved.client_folder()))
            client = CenterClient(
                self._join,
                client_id=own_id.value,
                new_id=own_id.renew,
                tell=self._tell,
                via=self._via,
            )
            self._client = client
            ending = _Ending(self._show, lambda: client.connections)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for entry in self._plan.entries:
                    await self._start(entry, client, nursery)
                drain = partial(client.drain, self._plan.drain_s)
                await nursery.start(ending.watch, drain, client.leave)
                if self._show.terminal:
                    nursery.start_soon(self._keep_status, client)
                await client.run()
                nursery.cancel_scope.cancel()
        return self._failure or ending.status

    async def _start(
        self, entry: Entry, client: CenterClient, nursery: trio.Nursery
    ) -> None:
        match entry:
            case Local():
                self._local.append(await entry.start(client, nursery))
            case Published():
                name = await entry.start(client)
                self._published[name] = entry

    def _tell(self, notice: Notice) -> None:
        match notice:
            case LinkUp():
                self._trouble = ""
                self._link_up(notice)
            case LinkDown():
                self._link_down(notice)
            case LinkResumed():
                self._trouble = ""
                self._show.talk(
                    "link resumed",
                    f"after {notice.after_s:.1f} s, {connections(notice.connections)} "
                    f"kept, {size_text(notice.repeated_bytes)} sent again",
                )
            case SessionLost(reason, count):
                if count:  # else nobody has lost anything
                    self._show.talk(
                        "session lost", f"{reason}; reset: {connections(count)}"
                    )
            case ClientIdChanged():
                self._show.talk(
                    "warning",
                    "another machine has our client id (a copied state folder?); "
                    "this one has one of its own from now on",
                )
            case MappingReady(name, public, over_tls):
                self._without.pop(name, None)
                self._had.add(name)
                if self._nursery is not None:
                    self._nursery.start_soon(self._ready, name, public, over_tls)
            case MappingRefused():
                self._refused(notice)

    def _link_up(self, notice: LinkUp) -> None:
        how = "TLS 1.3" if notice.encrypted else "plain, NOT encrypted"
        how += ", key pinned" if notice.pinned else ""
        self._show.talk(notice.peer, f"{how}, {notice.rtt_s * 1000:.0f} ms")
        if not self._was_up:
            self._was_up = True
            for line in self._local:
                self._say(line)

    def _keep_join(self) -> None:
        """The first line that worked is the default from now on, if it can be kept."""
        with _logged_if_not_saved():
            if self._plan.save_as:
                saved.save(self._join, self._plan.save_as)
            elif self._keep and not saved.is_saved(saved.DEFAULT):
                path = saved.save(self._join, saved.DEFAULT)
                self._show.talk("saved", f"{path} (--to is not needed next time)")
            elif self._keep and self._nursery is not None:
                self._nursery.start_soon(self._replace_join)

    async def _replace_join(self) -> None:
        """Keep ours instead of an older line that leads to the server no more.

        One that still does is another way to it, and nothing has moved.
        """
        if (old := saved.outdated(self._join)) is None:
            return
        same_token = old.token.reveal() == self._join.token.reveal()
        if same_token and await is_there(old, self._via):
            return
        with _logged_if_not_saved():
            path = saved.save(self._join, saved.DEFAULT)
            was, now = (Address(join.host, join.port) for join in (old, self._join))
            what = "the same server, a new token"
            if was != now:
                what = f"the same server moved from {was} to {now}"
                log_event(
                    logger,
                    logging.INFO,
                    "server.moved",
                    was=str(was),
                    now=str(now),
                    saved=str(path),
                )
            self._show.talk("saved", f"{path} ({what})")

    def _link_down(self, notice: LinkDown) -> None:
        waiting = f"{connections(notice.waiting)} waiting, " if notice.waiting else ""
        again = f"{waiting}trying again in {notice.retry_s:.1f} s"
        if notice.was_up:
            self._show.talk("link lost", again)
        elif notice.reason.what != self._trouble:
            # Said once in each outage; only what changes is news.
            self._trouble = notice.reason.what
            self._show.trouble(notice.reason, again)
        else:
            self._show.talk("no link", again)

    async def _ready(self, name: str, public: Address, over_tls: bool) -> None:
        entry = self._published[name]
        line = await (entry.over_tls() if over_tls else entry).ready(public)
        if line.warning:
            self._show.talk("warning", line.warning)
        # A script is told once, unless a new link brought another address.
        if self._said.get(name) != public or self._show.terminal:
            self._say(line)
        self._said[name] = public

    def _say(self, line: Line) -> None:
        if not self._works:  # a command that fails has changed nothing
            self._works = True
            self._keep_join()
        text = line.text(terminal=self._show.terminal)
        self._show.line("entry", text, **line.fields)

    def _refused(self, notice: MappingRefused) -> None:
        entry = self._published[notice.name]
        nursery, client = self._nursery, self._client
        if nursery is None or client is None:
            return
        other = entry.instead(notice, self._join.host)
        if other is not None:
            nursery.start_soon(self._start_other, notice.name, other, client, nursery)
            return
        error = entry.refused(notice)
        asked_again = notice.answer.code in ASKED_AGAIN
        if not (asked_again and notice.name in self._had):
            self._without[notice.name] = error.exit_status
        # Only once all answers of one message are counted: is there one that stands?
        nursery.start_soon(self._say_refused, error, asked_again, client)

    async def _start_other(
        self, name: str, other: Published, client: CenterClient, nursery: trio.Nursery
    ) -> None:
        await client.withdraw(name)
        await self._start(other, client, nursery)

    async def _say_refused(
        self, error: TunnelError, asked_again: bool, client: CenterClient
    ) -> None:
        await trio.lowlevel.checkpoint()
        if len(self._without) < len(self._plan.entries):
            until = "until it is free" if asked_again else "over the next link"
            self._show.trouble(error, f"it is asked for again {until}")
            return
        self._show.error(error)
        # No other entry stands: how that of the first ended is how we end.
        self._failure = next(iter(self._without.values()))
        client.stop()

    async def _keep_status(self, client: CenterClient) -> None:
        """Show moving numbers while something moves; silent while nothing does."""
        last = (0, 0, 0)
        while True:
            await trio.sleep(STATUS_S)
            sent, received = client.traffic
            now = (client.connections, sent, received)
            if now != last:
                last = now
                self._show.status(
                    f"  {connections(now[0])}, {size_text(received)} in, "
                    f"{size_text(sent)} out"
                )


@contextmanager
def _logged_if_not_saved() -> Iterator[None]:
    """Go on without what could not be kept, and say so."""
    try:
        yield
    except StateError as error:
        log_event(logger, logging.WARNING, "join.not_saved", reason=error.what,
            cause=error.cause)  # fmt: skip


async def run_up(plan: UpPlan, show: Show) -> Exit:
    """Run a center-client with its entries until a signal, or a final failure."""
    plan.check()
    TIMEOUTS.set(plan.patience)
    join, given = saved.find(plan.to)
    return await _Up(plan, join, given, show).run()


# pipe --------------------------------------------------------------------------------


async def run_pipe(
    target: End,
    to: str | None,
    show: Show,
    *,
    via: str | None = None,
    exit_name: str | None = None,
) -> Exit:
    """Join stdin and stdout to a target at the server's side.

    Raises:
        TunnelError: no server within 10 s, or the target refused.
    """
    del show
    join, _ = saved.find(to)
    way = saved.find_via(via, join)
    client = CenterClient(join, give_up_s=PIPE_GIVES_UP_S, via=way)
    status = Exit.OK
    refusals: list[StreamError] = []  # raised behind the goodbye: nobody is to wait
    async with trio.open_nursery() as nursery:
        relaying = trio.CancelScope()

        async def until_signal(*, task_status: trio.TaskStatus[None]) -> None:
            nonlocal status
            # Killed without a word, the far end would wait for another link.
            with trio.open_signal_receiver(*ending_signals()) as signals:
                task_status.started()
                if await anext(signals) == signal.SIGINT:
                    status = Exit.INTERRUPTED
                relaying.cancel()
                client.stop()

        await nursery.start(until_signal)
        with relaying:
            await nursery.start(client.run)
            try:
                stream = await client.open(as_target(target), exit_name=exit_name)
            except StreamError as error:
                where = exit_name or "the server"
                why = error.what.removeprefix(f"cannot reach {target}: ")
                error.what = f"cannot reach {target} from {where}: {why}"
                refusals.append(error.with_traceback(None))
            else:
                result = await relay(standard_stream(), stream)
                if result.code is not Code.NORMAL:
                    status = CODES[result.code].exit_status
        client.stop()
        await client.wait_over()
        nursery.cancel_scope.cancel()
    if refusals:
        raise refusals.pop()
    return status
