"""``tunnel doctor``: the way to a server, step by step, and what stands in it."""

from __future__ import annotations

import json
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tunnel import __version__
from tunnel.access.files import write_private
from tunnel.access.host_certificates import facts_of
from tunnel.addresses import Address, parse_ip
from tunnel.errors import Code, LinkError, LocalStreamError, StateError
from tunnel.net.dial import connect
from tunnel.net.lookup import look_up
from tunnel.ops import saved
from tunnel.ops.check import line, machine
from tunnel.ops.check.dry_link import DryLink
from tunnel.ops.check.findings import Findings, Watch
from tunnel.ops.proxy_variables import not_used
from tunnel.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tunnel.access.join import JoinLine
    from tunnel.errors import Exit
    from tunnel.link.upstream_proxy import UpstreamProxy
    from tunnel.ops.show import Show
    from tunnel.proto.claims import HandshakeResult

TRY_S: Final = 5.0
"""For one address: an answer of any kind comes within two round trips, or never."""
MOST_ADDRESSES: Final = 8
"""Of one name that are tried."""
SOON: Final = timedelta(days=14)
HIDDEN: Final = "***"
LOOK_AT_SERVER: Final = (
    "is `tunnel serve` running there, and does a firewall let TCP in?"
)

LOOK_AT_PORT: Final = "is it `tunnel serve` that listens at that port of the server?"
ASK_ITS_OWNER: Final = (
    "at the server: tunnel users ls, or tunnel invite NAME; then join"
)


async def run_doctor(
    to: str | None,
    via: str | None,
    certificate: tuple[Path, Path] | None,
    bundle: Path | None,
    environ: Mapping[str, str],
    show: Show,
) -> Exit:
    """Look at everything between this machine and a server; write what is found.

    Raises:
        UsageError: no server is known, or a value cannot be read.
        StateError: a file cannot be read, or the bundle not be written.
    """
    join, _ = saved.find(to)
    proxy = saved.find_via(via, join)
    findings = Findings(show)
    machine.look_at_program(findings)
    look = _Look(findings, join, proxy, certificate)
    look.at_proxy(environ)
    rtt_s = await look.at_link() if await look.at_addresses() else 0.0
    machine.look_at_descriptors(findings)
    machine.look_at_kernel(findings, rtt_s)
    findings.sum_up("doctor")
    if bundle is not None:
        _write_bundle(bundle, findings, join, proxy)
        show.talk("saved", f"{bundle} (without secrets)")
    return findings.status


class _Look:
    """The steps, each of which says what it finds."""

    def __init__(
        self,
        findings: Findings,
        join: JoinLine,
        via: UpstreamProxy | None,
        certificate: tuple[Path, Path] | None,
    ) -> None:
        self._findings = findings
        self._join = join
        self._via = via
        self._certificate = certificate

    def at_proxy(self, environ: Mapping[str, str]) -> None:
        """Say which proxy is on the way, or why none is."""
        via, join, findings = self._via, self._join, self._findings
        if via is not None:
            text = f"{via}, because of {via.named}"
            return findings.ok("proxy", text, url=str(via), named=via.named)
        unused = not_used(environ, join.host, join.port)
        if unused is not None:
            name, why = unused
            return findings.ok("proxy", f"{name} is not used: {why}")
        return findings.ok("proxy", "none: the link goes straight to the server")

    async def at_addresses(self) -> bool:
        """Look the first hop's name up, and try each of its addresses.

        Return whether one of them answers.
        """
        via, join = self._via, self._join
        first = (
            Address(join.host, join.port)
            if via is None
            else (Address(via.host, via.port))
        )
        findings, watch = self._findings, Watch()
        try:
            found = await look_up(first.host, own=True)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", "") or str(error)
            fix = f"getent ahosts {first.host}   # and look into /etc/resolv.conf"
            findings.fail("names", f"{first.host} has no address: {why}", fix)
            return False
        hosts = list(dict.fromkeys(one.host for one in found))[:MOST_ADDRESSES]
        if parse_ip(first.host) is None:
            text = f"{first.host} is {', '.join(hosts)}"
            findings.ok("names", text, ms=watch.ms, addresses=len(hosts))
        else:
            findings.ok("names", f"{first.host} is an address: nothing to look up")
        several = len(hosts) > 1
        name = first.host if several else ""
        answers = [await self._try(Address(one, first.port), name) for one in hosts]
        if several and not any(answers):
            text = f"none of the addresses of {first.host} answers"
            findings.fail("tcp", text, LOOK_AT_SERVER)
        return any(answers)

    async def _try(self, where: Address, name: str) -> bool:
        """Say whether an address answers; ``name`` is set if it has others too."""
        kind = "tcp6" if ":" in where.host else "tcp4"
        findings, watch = self._findings, Watch()
        try:
            sock = await connect(where, deadline_s=TRY_S)
        except LocalStreamError as error:
            text = f"{where}: {error.what}"
            if name:
                fix = f"let TCP in there, or take {where.host} from what {name} means"
                findings.weak(kind, text, fix, code=error.code.name)
            else:
                findings.fail(kind, text, LOOK_AT_SERVER, code=error.code.name)
            return False
        sock.close()
        ms = watch.ms
        findings.ok(kind, f"{where} answers in {ms:.0f} ms", ms=ms)
        return True

    async def at_link(self) -> float:
        """Make a link and measure it; return its round trip in seconds, 0 without."""
        link, findings = (
            DryLink(self._join, self._via, self._certificate),
            self._findings,
        )
        try:
            try:
                await link.dial()
            except (LinkError, StateError) as error:
                findings.error("tcp", error, LOOK_AT_SERVER)
                return 0.0
            result = await self._at_keys(link)
            if result is None:
                return 0.0
            async with link.carry(result) as session:
                return await line.look_at_line(findings, session, link.socket)
        finally:
            await link.aclose()

    async def _at_keys(self, link: DryLink) -> HandshakeResult | None:
        """Agree on keys and prove the token; None where that fails."""
        findings, watch, join = self._findings, Watch(), self._join
        try:
            await link.secure()
        except LinkError as error:
            findings.error("tls", error, LOOK_AT_PORT)
            return None
        self._say_tls(link, watch.ms)
        machine.look_at_clock(findings)
        watch = Watch()
        try:
            result = await link.prove()
        except LinkError as error:
            if error.code is Code.ONCE:
                text = f"{join.name}'s works for one machine, and no machine has it yet"
                findings.ok("token", f"{text}: `tunnel up` takes it")
            else:
                findings.error("token", error, ASK_ITS_OWNER)
            return None
        agent = result.peer_terms.agent or "no name"
        findings.ok("token", f"the server takes {join.name}'s", user=join.name)
        findings.ok("link", f"proved in {watch.ms:.0f} ms; its program is {agent}")
        return result

    def _say_tls(self, link: DryLink, ms: float) -> None:
        findings, join = self._findings, self._join
        if join.plain:
            fix = "fine on loopback or in a net of your own; else serve without --plain"
            return findings.weak("tls", "the link is plain, NOT encrypted", fix)
        if join.pin is not None:
            return findings.ok("tls", "TLS 1.3, and the key is the pinned one", ms=ms)
        text = "TLS 1.3; chain and name are verified"
        until = self._valid_until(link)
        if until is not None and until - datetime.now(UTC) < SOON:
            fix = "renew the server's certificate"
            text += f"; the certificate ends on {until:%Y-%m-%d}"
            return findings.weak("tls", text, fix, ms=ms)
        return findings.ok("tls", text, ms=ms)

    def _valid_until(self, link: DryLink) -> datetime | None:
        if (der := link.certificate()) is None:
            return None
        with suppress(ValueError):
            facts = facts_of(ssl.DER_cert_to_PEM_cert(der).encode())
            return datetime.fromtimestamp(facts.ends_at, UTC)
        return None


def _write_bundle(
    path: Path, findings: Findings, join: JoinLine, via: UpstreamProxy | None
) -> None:
    """Write all that was found, for somebody else to read; mode 0600."""
    report = {
        "tunnel": __version__,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "server": str(Address(join.host, join.port)),
        "user": join.name,
        "encrypted": not join.plain,
        "pinned": join.pin is not None,
        "proxy": str(via) if via else None,
        "findings": [one._asdict() for one in findings.all],
        "machine": machine.facts(),
    }
    text = redact(json.dumps(report, indent=2, ensure_ascii=False))
    # Nothing here says one of these; that it stays so is not left to chance.
    for secret in (join.token.reveal(), via.password if via else ""):
        text = text.replace(secret, HIDDEN) if secret else text
    write_private(path, text + "\n")
