"""``tunnel check``: whether a configuration would do, tried without doing it.

Nothing is published, listened on or saved: ports are bound for a moment and let go,
targets are dialled once, and the server says what it would answer (protocol.md#try).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.access.identity import kept_ids
from tunnel.addresses import Address
from tunnel.center.events import MappingRefused
from tunnel.center.local_services import probe_tls
from tunnel.center.names import termination_of
from tunnel.center.publisher import NOT_OFFERED
from tunnel.errors import (
    AddressError,
    Code,
    LinkError,
    StateError,
    StreamError,
    TunnelError,
    UsageError,
)
from tunnel.net.bind import try_port
from tunnel.net.dial import probe
from tunnel.ops import saved
from tunnel.ops.check.dry_link import DryLink
from tunnel.ops.check.findings import Findings
from tunnel.ops.check.line import ADD_RIGHT
from tunnel.ops.check.questions import Asked, ask
from tunnel.ops.entries import Local, Published, Service, as_target, refuse_twice
from tunnel.platform.kernel import is_tunnel, listeners
from tunnel.proto.frames import CAN_RULE, CAN_TRY, CAN_UDP, MappingType

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.center.server import ServerOptions
    from tunnel.errors import Exit
    from tunnel.link.session import Session
    from tunnel.ops.entries import Entry
    from tunnel.ops.flags import ServerFlags
    from tunnel.ops.show import Show

MOST_PROBED: Final = 100
"""Ports of one range whose targets are dialled, one after the other."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be checked: one side, or both."""

    path: Path | None
    """The file that says it, if one does."""
    serve: ServerOptions | None
    """Of the server's side."""
    server: ServerFlags | None
    """Which server a client would go to."""
    entries: tuple[Entry, ...] = ()


async def run_check(wanted: Wanted, show: Show, *, offline: bool) -> Exit:
    """Check what is wanted; write what is found.

    Raises:
        UsageError: two entries want the same, or no server is known.
        StateError: a file cannot be read.
    """
    findings = Findings(show)
    refuse_twice(wanted.entries)
    if wanted.path is not None:
        findings.ok("file", f"{wanted.path} can be used")
    if wanted.serve is not None:
        await _check_server(findings, wanted.serve)
    for entry in wanted.entries:
        await _check_here(findings, entry)
    if wanted.server is not None:
        if offline:
            findings.skip("server", "not asked: --offline")
        else:
            await _check_there(findings, wanted.server, wanted.entries)
    findings.sum_up("check")
    return findings.status


# The server's side -------------------------------------------------------------------


async def _check_server(findings: Findings, options: ServerOptions) -> None:
    names = options.names
    for what, where in (
        *(("listen", one) for one in options.listens),
        ("http", names.http), ("https", names.https),
    ):  # fmt: skip
        if where is not None:
            await _check_port(findings, what, where)
    try:
        if termination_of(names):
            findings.ok("certificate", f"{names.certificate and names.certificate[0]}")
    except UsageError as error:
        findings.error("certificate", error)


async def _check_port(findings: Findings, what: str, where: Address) -> None:
    """Say whether a TCP address can be listened on here."""
    try:
        await try_port(where.host, where.port, socket.SOCK_STREAM)
    except AddressError as error:
        ours = [pid for pid in listeners(where.port) if is_tunnel(pid)]
        if error.code is Code.TAKEN and ours:
            text = f"{where} is the running tunnel's (process {ours[0]})"
            return findings.ok(what, text, pid=ours[0])
        return findings.error(what, error)
    return findings.ok(what, f"{where} is free")


# The client's side, here -------------------------------------------------------------


async def _check_here(findings: Findings, entry: Entry) -> None:
    match entry:
        case Local(Address() as listen):
            await _check_port(findings, "listen", listen)
        case Local():
            findings.skip("listen", f"{entry.listen}: a path is not tried")
        case Published(endpoint=Service() as service, wanted=wanted):
            if wanted.type == MappingType.UDP:
                findings.skip("target", f"{service}: of UDP nobody can tell")
            else:
                await _check_target(findings, service)
        case Published():
            findings.ok("target", f"{entry.kind} {entry.endpoint}")


async def _check_target(findings: Findings, service: Service) -> None:
    """Say whether what visitors would be led to answers."""
    first = service.target
    if not isinstance(first, Address) or service.count == 1:
        ends = [first]
    else:
        ports = range(first.port, first.port + min(service.count, MOST_PROBED))
        ends = [Address(first.host, port) for port in ports]
    silent = [end for end in ends if not await probe(end)]
    if silent:
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        text = f"{silent[0]}{more}: nothing answers"
        fix = "start the service, or correct its address"
        return findings.fail("target", text, fix, silent=len(silent))
    if service.tls is not None and (why := await probe_tls(first, service.tls)):
        return findings.fail("target", f"{service}: {why}", "see above")
    return findings.ok("target", f"{service} answers")


# The client's side, at the server ----------------------------------------------------


async def _check_there(
    findings: Findings, flags: ServerFlags, entries: tuple[Entry, ...]
) -> None:
    """Log in as a client of its own, and ask what it would be answered."""
    join, _ = saved.find(flags.to)
    link = DryLink(join, saved.find_via(flags.via, join), flags.client_cert)
    try:
        try:
            await link.dial()
            await link.secure()
            result = await link.prove()
        except (LinkError, StateError) as error:
            if error.code is Code.ONCE:
                text = "its token works for one machine: `tunnel up` takes it first"
                return findings.skip("server", text)
            return findings.error("server", error, "tunnel doctor")
        where = Address(join.host, join.port)
        findings.ok("server", f"{where} takes {join.name}'s token", user=join.name)
        async with link.carry(result) as session:
            await _ask(findings, session, entries, join.host)
    finally:
        await link.aclose()
    return None


async def _ask(
    findings: Findings, session: Session, entries: tuple[Entry, ...], host: str
) -> None:
    published = [entry for entry in entries if isinstance(entry, Published)]
    if published and not session.core.theirs.capabilities & CAN_TRY:
        text = "this server is too old to say what it would answer"
        findings.skip("public", text, "update tunnel there")
    elif published:
        try:
            asked = await ask(session, published, kept_ids(saved.client_folder()))
        except TunnelError as error:
            return findings.error("server", error, "tunnel doctor")
        for one in asked:
            _say_answer(findings, session, one, host)
    for entry in entries:
        if isinstance(entry, Local):
            await _try_far_target(findings, session, entry)
    return None


def _say_answer(findings: Findings, session: Session, one: Asked, host: str) -> None:
    """Say what became, or would become, of an entry."""
    entry, wanted, answer = one
    what = entry.kind
    can = session.core.theirs.capabilities
    if answer.code is Code.NORMAL:
        if wanted.rules is not None and not can & CAN_RULE:
            return findings.fail(what, "this server is too old for its words", "")
        public = Address(answer.host or host, answer.port)
        text = f"{public} leads to {entry.endpoint}"
        if wanted.type in (MappingType.TCP, MappingType.UDP) and not wanted.port:
            text = f"a port of the server's choice leads to {entry.endpoint}"
        elif not answer.port:
            text = f"{answer.host} leads to {entry.endpoint}"
        return findings.ok(what, text, address=str(public))
    refused = MappingRefused("", Address(wanted.host, wanted.port), answer)
    if entry.instead(refused, host) is not None and answer.code in NOT_OFFERED:
        text = f"{entry.endpoint} gets a port: the server has no names of its own"
        return findings.ok(what, text)
    return findings.error(what, entry.refused(refused))


async def _try_far_target(findings: Findings, session: Session, entry: Local) -> None:
    """Connect at the server to what a local port leads to, and hang up."""
    if entry.target is None:
        can = session.core.theirs.capabilities & CAN_UDP
        text = "leaves at the server" + ("" if can else ", TCP only")
        return findings.ok("socks", f"{entry.listen} {text}")
    try:
        stream = await session.open(as_target(entry.target), exit_name=entry.exit_name)
    except StreamError as error:
        return findings.error("reach", _about(entry, error))
    stream.reset(Code.RESET)
    return findings.ok("reach", f"{entry.target} answers the server")


def _about(entry: Local, error: StreamError) -> TunnelError:
    what = f"{entry.target} cannot be reached from the server"
    fix = ""
    if error.code is Code.NOT_ALLOWED:
        right = error.what.rpartition(" ")[2]
        fix = ADD_RIGHT.format(right)
    return TunnelError(error.code, what, error.what, fix)
