"""``tunnel serve``: a center-server, the line by which clients join it, and its end."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

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
from tunnel.center.server import CenterServer
from tunnel.errors import StateError
from tunnel.log import log_event
from tunnel.net.bind import own_address_outwards
from tunnel.ops.control import open_control, serve_control
from tunnel.ops.runtime import Ending
from tunnel.ops.show import is_journal
from tunnel.ops.user_care import UserCare
from tunnel.platform.sockets import listed_ipv6
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tunnel.access.identity import Identity
    from tunnel.addresses import Address
    from tunnel.center.names import NamePorts
    from tunnel.center.server import ServerOptions
    from tunnel.errors import Exit
    from tunnel.ops.show import Show

Rotation = Literal["keep", "announce", "change"]
"""What becomes of the server's key at this start."""

logger = logging.getLogger("tunnel.client")


async def run_serve(
    state: Path,
    options: ServerOptions,
    public_host: str | None,
    drain_s: int,
    show: Show,
    rotation: Rotation = "keep",
    users: Mapping[str, User] | None = None,
) -> Exit:
    """Run a center-server until a signal ends it.

    Args:
        state: the folder of its key, tokens and join line.
        options: of the center-server.
        public_host: the host that the join line names; None for one found out here.
        drain_s: how long running connections may go on after a signal.
        show: writes for the user.
        rotation: what becomes of the server's key.
        users: of the configuration file, by name.

    Raises:
        StateError: another server has the state folder, it cannot be used, or a user
            of it is in the configuration file too.
    """
    with sole_server(state):
        identity = None
        if not options.plain:
            identity, coming = _identities(state, rotation, show)
            options = replace(options, next_identity=coming)
        token = owner_token(state)
        owner = User(OWNER, verifier_of(OWNER, token.reveal()), rights=ALL)
        server = CenterServer({OWNER: owner}, identity, options, Months(state))
        commands = UserCommands(state, lambda: join, of_file=users)
        care = UserCare(state, owner, server, commands)
        ending = Ending(show, lambda: server.connections)
        async with trio.open_nursery() as nursery:
            address = await nursery.start(server.run)
            host = public_host or _reachable_host(address.host)
            pin = identity.pin if identity else None
            join = JoinLine(OWNER, token, host, address.port, pin, options.plain)
            try:
                write_join(state, join)
            except StateError as error:  # a read-only folder will do if it holds one
                if kept_join(state) is None:
                    raise
                show.error(error, "warning")

            async def until_signal(*, task_status: trio.TaskStatus[None]) -> None:
                drain = partial(server.drain, drain_s)
                await ending.watch(drain, server.stop, task_status=task_status)
                nursery.cancel_scope.cancel()

            nursery.start_soon(care.watch)
            if (control := open_control(state)) is not None:
                nursery.start_soon(serve_control, control, care.handlers)

            # A reader of the join line may send a signal at once.
            await nursery.start(until_signal)
            _show_server(show, address, join, server.names)
        return ending.status


def _identities(
    state: Path, rotation: Rotation, show: Show
) -> tuple[Identity, Identity | None]:
    """Return the server's identity, and the next one if it is to be announced."""
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
    return identity, coming


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
