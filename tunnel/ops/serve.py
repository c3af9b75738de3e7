"""``tunnel serve``: a center-server, the line by which clients join it, and its end."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from tunnel.access.files import sole_server
from tunnel.access.identity import (
    change_identity,
    load_or_make_identity,
    next_identity,
)
from tunnel.access.join import JoinLine, kept_join, owner_token, write_join
from tunnel.access.months import Months
from tunnel.access.rules import ALL
from tunnel.access.user_commands import UserCommands
from tunnel.access.users import OWNER, User
from tunnel.addresses import EVERYWHERE, LOOPBACKS, WILDCARDS, is_loopback
from tunnel.center.cluster.users import SharedUsers
from tunnel.center.cluster.uses import SharedUses
from tunnel.center.server import CenterServer
from tunnel.center.why import Why
from tunnel.errors import AddressError, StateError
from tunnel.log import log_event
from tunnel.net.bind import own_address_outwards
from tunnel.net.given import take_given
from tunnel.ops.cluster_flags import cluster_options
from tunnel.ops.control.handlers import CommonHandlers
from tunnel.ops.control.server_handlers import ServerHandlers
from tunnel.ops.control.service import OwnSocket
from tunnel.ops.life import Life
from tunnel.ops.reload.reloader import Reloader
from tunnel.ops.reload.server import ServerChanges
from tunnel.ops.runtime import Ending
from tunnel.ops.show import is_journal
from tunnel.ops.systemd import tell_systemd
from tunnel.ops.takeover.giver import Giver
from tunnel.ops.takeover.taker import Taker, ask_for_takeover, new_place
from tunnel.ops.user_care import UserCare
from tunnel.ops.user_versions import UserVersions
from tunnel.platform.sockets import listed_ipv6
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tunnel.access.identity import Identity
    from tunnel.access.join import Secret
    from tunnel.addresses import Address
    from tunnel.center.acme.keeper import Keeper
    from tunnel.center.cluster.redis import RedisDirectory
    from tunnel.center.names import NamePorts
    from tunnel.center.server import ServerOptions
    from tunnel.errors import Exit
    from tunnel.ops.control import Handlers
    from tunnel.ops.flags import Ports
    from tunnel.ops.metrics.facts import Facts, UserFacts
    from tunnel.ops.reload.server import ServeAgain
    from tunnel.ops.serve_flags import Rotation, ServeFlags
    from tunnel.ops.show import Show
    from tunnel.ops.takeover import Place
    from tunnel.ops.workers.worker import Worker

logger = logging.getLogger("tunnel.client")


async def run_serve(
    state: Path,
    options: ServerOptions,
    again: ServeAgain,
    show: Show,
    worker: Worker | None = None,
) -> Exit:
    """Run a center-server until a signal ends it.

    Args:
        state: the folder of its key, tokens and join line.
        options: of the center-server.
        again: what was told, with the users of the file, and how it is read again.
        show: writes for the user.
        worker: which of several processes this is; None: it is the only one.

    Raises:
        AddressError: a given socket is none that listens.
        StateError: the state folder cannot be used, or a user of it is in the file too.
    """
    sock = None
    if again.flags.takeover and worker is None:
        sock = await trio.to_thread.run_sync(ask_for_takeover, state)
        if sock is None:
            log_event(logger, logging.INFO, "takeover.nobody", reason="none runs here")
    if sock is None:
        return await _run(state, options, again, show, worker)
    async with trio.open_nursery() as nursery:
        taker = Taker(sock)
        await nursery.start(taker.run)
        status = await _run(state, options, again, show, taker=taker)
        nursery.cancel_scope.cancel()
    return status


async def _run(
    state: Path,
    options: ServerOptions,
    again: ServeAgain,
    show: Show,
    worker: Worker | None = None,
    taker: Taker | None = None,
) -> Exit:
    """Do as ``run_serve`` does; ``taker`` takes the place of a server that runs."""
    around = worker or taker
    given = take_given(os.environ) if around is None else around.given
    options = replace(options, given=given)
    held = taker.lock if taker is not None else None
    with sole_server(state, held) if worker is None else nullcontext(-1) as lock:
        place = taker.place if taker is not None else new_place()
        made = _made(state, options, again, show, around, place)
        server, joined, care, directory, identity = made
        life = Life()
        ending = Ending(show, lambda: server.connections, life, reloads=True)
        async with trio.open_nursery() as nursery:
            if worker is not None:
                _be_one_of_several(worker, show, care, server)
            await _start_around(nursery, life, around, directory, server)
            address = await nursery.start(server.run)
            if taker is not None:
                await taker.go()
            keeper = _keep_certificates(nursery, state, server)
            joined.at(address, again.flags)
            about = ServerHandlers(server, keeper)

            def moved(address: Address, flags: ServeFlags) -> None:
                joined.at(address, flags)
                life.ready(f"listening on {about.address}")

            changes = ServerChanges(again, server, care, moved)
            reloader = Reloader(changes.apply, show, again.path, life)
            giver = Giver(server, identity, place, lock, life, nursery)
            if worker is not None:
                giver.why_not = "it has several workers: stop it, and start the new one"
            elif directory is not None:
                giver.why_not = "it is a node of a cluster: drain it, the others serve"
            asked = {**care.handlers, **reloader.handlers, **giver.handlers}

            async def until_signal(*, task_status: trio.TaskStatus[None]) -> None:
                drain = server.drain, server.stop, lambda: changes.run.drain_s()
                await ending.watch(*drain, task_status=task_status)
                await giver.finish()
                nursery.cancel_scope.cancel()

            nursery.start_soon(care.watch)
            answers = partial(_answer, nursery, state, server, about, ending, life)
            giver.leave = await answers(asked, again.run.ports(), around)
            # A reader of the join line may send a signal at once.
            await reloader.start(nursery)
            await nursery.start(until_signal)
            life.ready(f"listening on {about.address}")
            if worker is None or worker.shows:
                _show_server(show, server.addresses, joined.line(), server.names)
        return ending.status


async def _start_around(
    nursery: trio.Nursery,
    life: Life,
    around: Worker | Taker | None,
    directory: RedisDirectory | None,
    server: CenterServer,
) -> None:
    """Start in ``nursery`` what the server leans on, and who is told of its life."""
    if isinstance(around, Taker):
        await nursery.start(tell_systemd, life, around.watched_by)
        await around.join(server)
    elif around is None:
        await nursery.start(tell_systemd, life)
    else:
        await nursery.start(around.run, nursery.cancel_scope.cancel)
    if directory is not None:
        await nursery.start(directory.run)


def _be_one_of_several(
    worker: Worker, show: Show, care: UserCare, server: CenterServer
) -> None:
    """Do what the parent says, and have the other workers hear of users."""
    worker.reopen_log, worker.read_users = show.reopen, care.read
    care.tell = worker.users_changed
    server.user_changes.says_over = worker.is_first


def _made(
    state: Path,
    options: ServerOptions,
    again: ServeAgain,
    show: Show,
    around: Worker | Taker | None,
    place: Place,
) -> tuple[CenterServer, _Joined, UserCare, RedisDirectory | None, Identity | None]:
    """Return a server that does not run, its join line, and who keeps its users.

    And the directory of its cluster, which does not run either, None without one; and
    its identity.
    """
    worker = None if isinstance(around, Taker) else around
    rotation = again.flags.rotation() if worker is None else "keep"
    identity, options = identified(options, state, rotation, show)
    token = owner_token(state)
    owner = User(OWNER, verifier_of(OWNER, token.reveal()), rights=ALL)
    months = Months(state if worker is None else None)
    cluster, directory = None, None
    if around is not None:
        cluster = around.cluster(identity)
    elif (wanted := cluster_options(again.flags)) is not None:
        cluster, directory = wanted.join(state, identity)
    hint = place.hint if worker is None else b""
    server = CenterServer({OWNER: owner}, identity, options, months, cluster, hint)
    kept = state if worker is None or worker.is_first else None
    joined = _Joined(kept, token, identity, show)
    commands = UserCommands(state, joined.line, of_file=again.users)
    care = UserCare(state, owner, server, commands)
    if cluster is not None and directory is not None:
        care.shared = SharedUsers(directory, UserVersions(state, care.read))
        cluster.add(care.shared)
        cluster.add(SharedUses(directory, server.accounts))
    return server, joined, care, directory, identity


def _keep_certificates(
    nursery: trio.Nursery, state: Path, server: CenterServer
) -> Keeper | None:
    """Start in ``nursery`` what gets certificates, and return it; or None."""
    acme = server.options.names.acme
    if acme is None:
        return None
    from tunnel.center.acme.keeper import Keeper

    keeper = Keeper(acme, state, server.names, server.mappings.sites)
    nursery.start_soon(keeper.run)
    return keeper


class _Joined:
    """The line by which clients join a server, and its file; None: another keeps it."""

    def __init__(
        self, state: Path | None, token: Secret, identity: Identity | None, show: Show
    ) -> None:
        self._state = state
        self._token = token
        self._identity = identity
        self._show = show
        self._line: JoinLine

    def line(self) -> JoinLine:
        """Return the line."""
        return self._line

    def at(self, address: Address, flags: ServeFlags) -> None:
        """Have the line lead there, and keep it."""
        host = flags.host() or _reachable_host(address.host)
        pin = self._identity.pin if self._identity else None
        port, plain = address.port, self._identity is None
        self._line = JoinLine(OWNER, self._token, host, port, pin, plain)
        if self._state is None:
            return
        try:
            write_join(self._state, self._line)
        except StateError as error:  # a read-only folder will do if it holds one
            if kept_join(self._state) is None:
                raise
            self._show.error(error, "warning")


async def _answer(
    nursery: trio.Nursery,
    state: Path,
    server: CenterServer,
    about: ServerHandlers,
    ending: Ending,
    life: Life,
    more: Handlers,
    ports: Ports,
    around: Worker | Taker | None,
) -> Callable[[], Awaitable[None]]:
    """Have all who look at the process answered in ``nursery``.

    The control socket, and at ``ports`` people and Prometheus; a worker's parent
    instead. Returns when they can ask, with what leaves all that to another process.

    Raises:
        AddressError: one of the ports cannot be listened on.
    """
    own = OwnSocket("serve", state)
    common = CommonHandlers("serve", own, ending.show.recent, ending, about.fill)
    why = Why(about.sessions)
    nursery.start_soon(about.meters.run)
    nursery.start_soon(why.run)
    handlers = {**more, **common.handlers, **about.handlers, **why.handlers}
    facts = partial(_facts, server, common, about, life)
    if around is not None and not isinstance(around, Taker):
        around.facts = facts
        await around.ready(server, handlers)
        return trio.lowlevel.checkpoint
    desk, gone = await nursery.start(_desk)

    async def leave() -> None:
        desk.cancel_scope.cancel()
        await gone.wait()
        await own.move_out()

    if ports.dashboard is not None:
        from tunnel.ops.dashboard.live import Live
        from tunnel.ops.dashboard.opened import open_dashboard

        async def use() -> tuple[UserFacts, ...]:
            return (await facts()).users

        live = Live(common.status_now, handlers, use=use)
        with _not_for_that(around, ending.show):
            handlers["dashboard"] = await open_dashboard(
                desk, ports.dashboard, live, handlers, ending.show
            )
    await nursery.start(own.serve, handlers)
    if ports.metrics is not None:
        from tunnel.ops.metrics.web import MetricsPort

        with _not_for_that(around, ending.show):
            await desk.start(MetricsPort(facts, life).serve, ports.metrics)
    return leave


@contextmanager
def _not_for_that(around: Worker | Taker | None, show: Show) -> Iterator[None]:
    """End no server that was just taken over for a port that only looks at it."""
    try:
        yield
    except AddressError as error:
        if not isinstance(around, Taker):
            raise
        show.error(error, "warning")


async def _desk(
    *, task_status: trio.TaskStatus[tuple[trio.Nursery, trio.Event]]
) -> None:
    """Host what is listened on for people and programs that look at the process."""
    gone = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            task_status.started((nursery, gone))
            await trio.sleep_forever()
    finally:
        gone.set()


async def _facts(
    server: CenterServer, common: CommonHandlers, about: ServerHandlers, life: Life
) -> Facts:
    """Return the numbers of this moment."""
    from tunnel.ops.metrics.facts import facts_of, users_of_server

    await trio.lowlevel.checkpoint()
    users = users_of_server(server)
    return facts_of(common, life, users, about.sessions(), server.pools)


def identified(
    options: ServerOptions, state: Path, rotation: Rotation, show: Show
) -> tuple[Identity | None, ServerOptions]:
    """Return the server's identity; the options get what is to be announced."""
    if options.plain:
        return None, options
    label = "identity"
    if rotation == "change":
        if change_identity(state):
            label = "identity changed"
            log_event(logger, logging.WARNING, "identity.changed",
                reason="clients that did not hear of it need the new line")  # fmt: skip
        else:
            show.talk("identity", "no other is announced: it stays")
    identity, created = load_or_make_identity(state)
    label = "identity created" if created else label
    show.talk(label, f"{identity.pem_path}   fingerprint {identity.fingerprint}")
    coming = next_identity(state, begin=rotation == "announce")
    if coming is not None:
        show.talk("announced", f"fingerprint {coming.fingerprint} is the next")
        log_event(logger, logging.INFO, "identity.announced", next=coming.pin)
    return identity, replace(options, next_identity=coming)


def _show_server(
    show: Show, addresses: list[Address], join: JoinLine, names: NamePorts
) -> None:
    line = join.render()
    address, *others = addresses
    how = "plain, NOT encrypted" if join.plain else "TLS 1.3"
    show.talk("listening", f"{address}  {how}")
    for other in others:
        show.talk("", f"{other}  {how}")
    for kind, where in (("HTTP", names.http), ("HTTPS", names.https)):
        if where is not None:
            show.talk("", f"{where}  {kind} by name")
    if is_loopback(join.host) and not is_loopback(address.host):
        log_event(logger, logging.WARNING, "join.only_here", host=join.host,
            reason="no address of this machine is known that others reach",
            fix="--public-host HOST")  # fmt: skip
    if join.plain and not is_loopback(address.host):
        show.talk("warning", "everybody on the way can read and change what passes")
    if is_journal(sys.stdout):  # which is kept, and which others may read
        show.talk("", "tunnel serve --print-join prints the join line")
        show.line("listening", f"listening {address}", address=str(address))
    elif show.terminal:
        show.talk("", "On the other machine:")
        show.secret_line("join", f"    tunnel tcp 8000 --to '{line}'")
    else:
        show.secret_line("join", line, join=line, address=str(address))


def _reachable_host(host: str) -> str:
    """Return an address for the join line: where we listen, or the default route's own.

    Nothing is sent: connecting a UDP socket only looks up the route.
    """
    if host == EVERYWHERE:
        ipv4, ipv6 = map(_own_address, WILDCARDS)
        return ipv4 or ipv6 or LOOPBACKS[0]
    if host in WILDCARDS:
        return _own_address(host) or LOOPBACKS[WILDCARDS.index(host)]
    return host


def _own_address(wildcard: str) -> str:
    """Return the address that leads out of this machine; empty if none is known."""
    try:
        return own_address_outwards(wildcard)
    except OSError:  # no default route, as in a network that leads nowhere else
        return listed_ipv6() if ":" in wildcard else ""
