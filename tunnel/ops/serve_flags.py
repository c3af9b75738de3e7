"""The flags of ``tunnel serve``, and what they mean for a center-server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING, Final, Literal

from cyclopts import Parameter

from tunnel.addresses import (
    EVERYWHERE,
    LOCALHOST,
    MAX_PORT,
    Address,
    host_of,
    is_loopback,
)
from tunnel.errors import UsageError
from tunnel.ops.flags import Words, seconds
from tunnel.words import whole_number

if TYPE_CHECKING:
    from tunnel.access.limits import Limits as UserLimits
    from tunnel.center.names import NameOptions
    from tunnel.center.options import ServerOptions

MOST_WORKERS: Final = 64
"""More than the cores of most machines; each is a process of 40 MB."""
Rotation = Literal["keep", "announce", "change"]
"""What becomes of the server's key at this start."""


@Parameter(name="*")
@dataclass(frozen=True)
class ServeFlags:
    """How a center-server is set up.

    Args:
        listen: [HOST:]PORT for links; a port alone is on every address, IPv4 and IPv6.
            Repeatable. Public ports without a host are where the first is, and the join
            line leads there.
        ports: Public ports for entries that name none.
        public_host: Host that the join line names.
        state: Folder for the server's key and tokens.
        plain: No TLS: only for loopback or your own net.
        resume: How long connections wait for a lost link; 0: not at all.
        max_sessions: Clients of one user at once, by default 1024; above it, one is
            refused.
        max_waiting_sessions: Of those, without a link, by default 1024; above it one
            without connections, or the longest waiting, is given up.
        limit: WORD=VALUE, as rate=5MB/s or connections=100: of each user that has no
            such limit of its own. Repeatable.
        http: [HOST:]PORT for web services by name.
        https: [HOST:]PORT for TLS by name.
        domain: Completes names without a dot: NAME.DOMAIN.
        certificate: CERT KEY: end TLS here for names published with --http.
        redirect: Send visitors of the --http port to https://, where TLS ends here.
        acme: MAIL: get, use and renew certificates for names published with --http, of
            Let's Encrypt, whose terms you agree to. Needs tunnel[acme].
        acme_directory: URL of another authority, or of your own.
        acme_ca: Authorities, PEM, that are trusted about the certificate of that URL.
        acme_hook: PROGRAM that makes and removes DNS records, for wildcards: called
            present|cleanup NAME VALUE, it ends when all see the record.
        print_join: Print the join line that is kept, and end.
        rotate_identity: Make the next key, and announce its pin to the clients that
            come from now on, also after a restart without this flag.
        client_ca: Authorities, PEM: each client needs a certificate of one of them with
            the name of its user, besides its token.
        change_identity: Take the announced key instead of the old one.
        max_per_address: Visitors of one address at once; without it a quarter of the
            process's descriptors, at most 4096. This machine has no limit.
        takeover: Take the place of the server that runs on this state folder: it hands
            over what it listens on, and drains. Nobody is refused meanwhile.
        trusted_proxy: Address or network of a proxy in front of this server that is
            believed about who its visitors are. Repeatable.
        workers: Processes that serve together, one for each core with 0.
        cluster: redis:// or rediss:// URL: be a node of the cluster that shares this
            Redis. Needs tunnel[cluster].
        node: Name of this node, by default that of the machine.
        advertise: HOST:PORT at which other nodes reach this one.
        cluster_secret_file: What all nodes know, where it is not STATE/cluster.key: all
            have a copy of one state folder.
        cluster_ca: Authorities, PEM, that are trusted about the certificate of Redis.
    """

    listen: tuple[str, ...] = ("7443",)
    ports: str = "20000-20999"
    public_host: str | None = None
    state: Path | None = None
    plain: bool = False
    resume: str = "120s"
    max_sessions: int | None = None
    max_waiting_sessions: int | None = None
    limit: Words = None
    http: str | None = None
    https: str | None = None
    domain: str | None = None
    certificate: tuple[Path, Path] | None = None
    redirect: bool = False
    acme: str | None = None
    acme_directory: str | None = None
    acme_ca: Path | None = None
    acme_hook: Path | None = None
    print_join: bool = False
    rotate_identity: bool = False
    change_identity: bool = False
    takeover: bool = False
    client_ca: Path | None = None
    max_per_address: int | None = None
    trusted_proxy: list[str] | None = None
    workers: int = 1
    cluster: str | None = None
    node: str | None = None
    advertise: str | None = None
    cluster_secret_file: Path | None = None
    cluster_ca: Path | None = None

    def count(self) -> int:
        """Return how many processes are to serve; 0 is one for each core."""
        if not 0 <= self.workers <= MOST_WORKERS:
            what = f"--workers {self.workers} is not 0 to {MOST_WORKERS}"
            raise UsageError(what, fix="--workers 0: one for each core")
        if self.takeover and (self.workers != 1 or self.cluster is not None):
            what = "--workers" if self.workers != 1 else "--cluster"
            raise UsageError(
                f"--takeover and {what} do not go together",
                fix="drain one node after the other: the rest serves meanwhile"
                if self.cluster is not None
                else "stop the server, and start the new one",
            )
        return self.workers

    def options(self) -> ServerOptions:
        """Return the options of the center-server."""
        from tunnel.access.networks import Networks
        from tunnel.center.server import ServerOptions

        listens, names = self.listens(), self.names()
        shared = [one for one in listens if one == names.https and one.port]
        if self.plain and shared:
            raise UsageError(
                f"--listen {shared[0]} is the port of --https",
                "links without TLS cannot be told from visitors there",
                "without --plain, or a port of its own",
            )
        return ServerOptions(
            listens[0],
            _port_range(self.ports),
            self.plain,
            seconds("--resume", self.resume),
            names,
            limits=self.limits(),
            max_per_address=None
            if self.max_per_address is None
            else _count("--max-per-address", self.max_per_address, least=1),
            client_ca=self._client_ca(),
            trusted_proxies=Networks.parse(self.trusted_proxy or []).allowed,
            also_listen=tuple(listens[1:]),
        )

    def listens(self) -> list[Address]:
        """Return where links come in, the first for the join line."""
        found = [Address.parse(one, EVERYWHERE) for one in self.listen]
        if not found:
            raise UsageError("--listen names no address", fix="--listen 7443")
        for at, one in enumerate(found):
            if one in found[:at] and one.port:
                raise UsageError(f"--listen {one} is there twice")
        return found

    def limits(self) -> UserLimits:
        """Return what a user may have who has no such limit of its own."""
        from tunnel.access.limits import parse_limits

        words = list(self.limit or ())
        for flag, limit, count in (
            ("--max-sessions", "sessions", self.max_sessions),
            ("--max-waiting-sessions", "waiting", self.max_waiting_sessions),
        ):
            if count is not None:
                parse_limits([word := f"{limit}={count}"], flag)
                words.append(word)
        return parse_limits(words, "--limit")

    def _client_ca(self) -> Path | None:
        if self.plain and self.client_ca is not None:
            why = "clients show certificates in TLS alone"
            raise UsageError("--client-ca needs TLS", why, "without --plain")
        return self.client_ca

    def rotation(self) -> Rotation:
        """Return what is to become of the server's key."""
        if self.rotate_identity and self.change_identity:
            raise UsageError(
                "--rotate-identity announces another key, --change-identity takes it",
                "clients would hear of the change too late",
                "announce first, until all clients have come by",
            )
        if self.plain and (self.rotate_identity or self.change_identity):
            raise UsageError("a server without TLS has no key", fix="without --plain")
        if self.rotate_identity:
            return "announce"
        return "change" if self.change_identity else "keep"

    def host(self) -> str | None:
        """Return the host that the join line is to name; None if none is given."""
        if self.public_host is None:
            return None
        host = host_of(self.public_host)
        if host is None:
            raise UsageError(
                f"--public-host {self.public_host!r} is not a host",
                "it is a name or an IP address, without a port",
                "for example --public-host t.example.net",
            )
        return host

    def names(self) -> NameOptions:
        """Return where the server serves host names.

        Without a domain, names on loopback end in ``.localhost``, which browsers and
        curl look for on their own machine.
        """
        from tunnel.center.acme_options import acme_options
        from tunnel.center.names import NameOptions

        if self.certificate is not None and self.https is None:
            why = "a certificate is given, but no port to use it on"
            raise UsageError(why, fix="--https 443")
        if self.redirect and not (self.http and self.https):
            why = "--redirect leads from --http to --https, and one is not there"
            raise UsageError(why, fix="--http 80 --https 443")
        known = None
        if self.domain is not None:
            known = host_of(self.domain.strip("."))
            if known is None or ":" in known:
                what = f"{self.domain!r} is not a domain"
                raise UsageError(what, fix="--domain t.example.net")
        http = Address.parse(self.http, EVERYWHERE) if self.http else None
        https = Address.parse(self.https, EVERYWHERE) if self.https else None
        if known is None and all(is_loopback(at.host) for at in (http, https) if at):
            known = LOCALHOST
        domain = known and known.lower()
        said = self.acme, self.acme_directory, self.acme_ca, self.acme_hook
        acme = acme_options(*said, has_https=https is not None)
        if acme is not None and self.count() != 1:
            raise UsageError(
                "--acme and --workers do not go together yet",
                "the workers would not have each other's certificates",
                "--workers 1; or --certificate, of a program such as certbot",
            )
        return NameOptions(http, https, domain, self.certificate, self.redirect, acme)


def _port_range(text: str) -> range:
    low, dash, high = text.partition("-")
    first = whole_number(low, MAX_PORT)
    last = whole_number(high, MAX_PORT) if dash else first
    if first and last and first <= last:
        return range(first, last + 1)
    raise UsageError(
        f"--ports {text!r} is not a range of ports",
        "ports are 1 to 65535",
        "for example --ports 20000-20999",
    )


def _count(flag: str, number: int, least: int = 0) -> int:
    if number < least:
        raise UsageError(f"{flag} {number} is too few", f"it is {least} or more")
    return number
