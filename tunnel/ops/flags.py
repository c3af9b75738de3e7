"""Flags that commands share, and those of ``tunnel up`` and ``tunnel serve``.

Each class is one parameter of a command: cyclopts makes a flag of every field, and its
help of the docstring. The methods read what the flags say, and only they load trio;
they raise UsageError where a flag cannot be read, or is out of range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING, Annotated, Final, Literal

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
from tunnel.words import whole_number

if TYPE_CHECKING:
    from tunnel.access.limits import Limits as UserLimits
    from tunnel.center.names import NameOptions
    from tunnel.center.server import ServerOptions
    from tunnel.front.http.limits import Limits
    from tunnel.net.timeouts import Timeouts
    from tunnel.ops.entries import Entry
    from tunnel.ops.entry_values import SaidWord
    from tunnel.ops.show import Show

LEAST_DEAD_AFTER_S: Final = 5
"""Links lose packets for that long every day, and recover."""
MOST_DEAD_AFTER_S: Final = 43_200
"""Twelve hours: the kernel counts no more than nine before it asks."""
LEAST_HEAD_BYTES: Final = 1_024
"""Below that no browser is served."""
MOST_HEAD_BYTES: Final = 1_048_576
"""Each visitor may have so much held for it."""
LEAST_FIELDS: Final = 10
MOST_FIELDS: Final = 10_000
MOST_S: Final = 100 * 366 * 86_400
"""A hundred years: more can only be a slip, and a clock may not bear it."""
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}

Rotation = Literal["keep", "announce", "change"]
"""What becomes of the server's key at this start."""
LogForm = Literal["logfmt", "json", "terminal"]
LeaveAt = Annotated[str | None, Parameter(name="--exit")]
Words = list[str] | None
"""A flag that may be repeated."""


@Parameter(name="*")
@dataclass(frozen=True)
class ServerFlags:
    """Which server a client dials, and how.

    Args:
        to: The line that `tunnel serve` prints, or the name of a saved one.
        via: http:// or socks5:// URL of a proxy through which the server is reached;
            none: not even that of HTTPS_PROXY or ALL_PROXY.
        save_as: Save the server under this name.
        client_cert: CERT KEY: the client certificate, where the server wants one.
    """

    to: str | None = None
    via: str | None = None
    save_as: str | None = None
    client_cert: tuple[Path, Path] | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class RunFlags:
    """What every command that stays takes: its end, silence, output and log.

    Args:
        drain: How long running connections may go on after SIGTERM or Ctrl+C; the
            process is gone 1.5 s later at most.
        idle: End connections that carried nothing for so long, or up to a fifth more:
            2h; 0: never.
        udp_idle: End UDP flows that carried nothing for so long; before the first
            answer 60s at most. Give both ends the same.
        dead_after: Reset visitors, apps and targets whose machine has not answered for
            so long.
        max_head: Bytes that the head of an HTTP request or answer may have.
        max_fields: Header fields that it may have.
        body_timeout: End HTTP requests whose body pauses for so long; 0: never.
        as_json: Each line of stdout is a JSON object; --log json is for the log.
        log: Form of the log on stderr.
        log_file: Write the log to this file, which SIGUSR1 and SIGHUP open anew.
        access_log: Write a line for each visitor, at its end, to this file; `-`: where
            the log goes.
        metrics: [HOST:]PORT for Prometheus, with /livez and /readyz; a port alone is on
            127.0.0.1 and ::1.
    """

    drain: str = "8s"
    idle: str = "0"
    udp_idle: str = "180s"
    dead_after: str = "150s"
    max_head: int = 131_072
    max_fields: int = 300
    body_timeout: str = "0"
    as_json: Annotated[bool, Parameter(name="--json")] = False
    log: LogForm | None = None
    log_file: Path | None = None
    access_log: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    metrics: str | None = None

    def metrics_at(self) -> Address | None:
        """Return where Prometheus asks; None: nowhere."""
        return Address.parse(self.metrics, LOCALHOST) if self.metrics else None

    def drain_s(self) -> int:
        """Return the seconds of ``--drain``."""
        return seconds("--drain", self.drain)

    def timeouts(self) -> Timeouts:
        """Return how long silence is borne."""
        from tunnel.net.timeouts import Timeouts

        udp_idle_s = seconds("--udp-idle", self.udp_idle)
        if not udp_idle_s:
            raise UsageError("--udp-idle 0 would end every flow at once", "1s or more")
        dead_after_s = seconds("--dead-after", self.dead_after)
        if not LEAST_DEAD_AFTER_S <= dead_after_s <= MOST_DEAD_AFTER_S:
            raise UsageError(
                f"--dead-after {self.dead_after} is out of range", "it is 5s to 12h"
            )
        idle_s = seconds("--idle", self.idle) or math.inf
        return Timeouts(idle_s, udp_idle_s, dead_after_s)

    def limits(self) -> Limits:
        """Return how much HTTP is borne."""
        from tunnel.front.http.limits import Limits

        for flag, value, least, most in (
            ("--max-head", self.max_head, LEAST_HEAD_BYTES, MOST_HEAD_BYTES),
            ("--max-fields", self.max_fields, LEAST_FIELDS, MOST_FIELDS),
        ):
            if not least <= value <= most:
                raise UsageError(
                    f"{flag} {value} is out of range", f"it is {least} to {most}"
                )
        body_s = seconds("--body-timeout", self.body_timeout) or math.inf
        return Limits(self.max_head, self.max_fields, body_s)

    def show(self) -> Show:
        """Return what writes for the user; takes over the log.

        Raises:
            StateError: a file of the log cannot be opened.
        """
        from tunnel.ops.show import Show

        return Show(
            as_json=self.as_json,
            log=self.log,
            log_file=self.log_file,
            access_log=self.access_log,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class EntryFlags:
    """The entries of ``tunnel up``.

    Args:
        tcp: [REMOTE=]TARGET[,proxy=v1|v2]: a public port at the server leads to TARGET
            here; LOW-HIGH for several. TARGET `socks` is a proxy into the network here.
            Repeatable.
        udp: [REMOTE=]TARGET: a public UDP port leads to a UDP TARGET here. Repeatable.
        http: NAME=TARGET[,WORD=VALUE...]: a host name at the server leads to a web
            service, or a folder, here. The words are the flags of `tunnel share`; %2C
            is a comma. Repeatable.
        https: NAME=TARGET: as --http, but TLS passes through to TARGET. Repeatable.
        reach: LISTEN=TARGET: a port here leads to TARGET at the server's side.
            Repeatable.
        socks: LISTEN[,auth=USER:PASSWORD...]: a SOCKS and HTTP proxy here, leaving at
            the server. Repeatable.
        udp_public_address: IP address that SOCKS apps of other machines are told for
            their datagrams, where the proxy is behind NAT.
        leave_at: Leave at this client instead of the server.
        be_exit: NAME[,network=NET...]: other clients may leave here with --exit NAME;
            without networks they reach everything but this machine itself.
    """

    tcp: Words = None
    udp: Words = None
    http: Words = None
    https: Words = None
    reach: Words = None
    socks: Words = None
    udp_public_address: str | None = None
    leave_at: LeaveAt = None
    be_exit: str | None = None

    def entries(self) -> list[Entry]:
        """Return the entries, in the order of the flags."""
        from tunnel.ops import entry_syntax as syntax

        leave_at, public = self.leave_at, self.udp_public_address
        return [
            *map(syntax.parse_tcp, self.tcp or []),
            *map(syntax.parse_udp, self.udp or []),
            *map(syntax.parse_http, self.http or []),
            *map(syntax.parse_https, self.https or []),
            *(syntax.parse_reach(text, leave_at) for text in self.reach or []),
            *(syntax.parse_socks(text, leave_at, public) for text in self.socks or []),
            *([syntax.parse_exit(self.be_exit)] if self.be_exit else []),
        ]


@Parameter(name="*")
@dataclass(frozen=True)
class WebFlags:
    """The words of one web service: each is a row of ``web_words.WORDS``.

    Args:
        auth_header: `keep`: TARGET gets the Authorization of visitors too.
        cors: CORS preflights, which browsers send without a password, need none.
        host: The Host that TARGET is asked for: a name, or `rewrite` for its own
            address, which dev servers want; its redirects and cookies become public.
        header: +NAME:VALUE sets a field of requests, -NAME removes it (write
            --header=-NAME). Repeatable.
        response_header: The same for answers. Repeatable.
        ca: File of the authorities that are trusted about an https:// TARGET, in place
            of the system's.
        pin: Of the public key of an https:// TARGET (SHA-256 of its SPKI in base64).
        insecure: Believe any certificate of an https:// TARGET.
        allow: Address or network that visitors may come from; others get 403.
            Repeatable.
        deny: Address or network that visitors may not come from. Repeatable.
        expires: How long it is published, as 2h; then 410.
        requests: How many requests one address may send, as 10/s; others get 429.
        max_body: How much a request's body may have, as 10M; else 413.
        path: Serve only what is below /PATH; of several entries the longest path wins.
        strip: Take the path off for TARGET.
        group: Serve the name together with other clients that say the same group.
        check: Ask TARGET for /PATH every 5 s (`tcp`: connect), and lead nobody there
            while it fails.
    """

    auth_header: Literal["keep"] | None = None
    cors: bool = False
    host: str | None = None
    header: Words = None
    response_header: Words = None
    ca: str | None = None
    pin: str | None = None
    insecure: bool = False
    allow: Words = None
    deny: Words = None
    expires: str | None = None
    requests: str | None = None
    max_body: str | None = None
    path: str | None = None
    strip: bool = False
    group: str | None = None
    check: str | None = None

    def words(self) -> list[SaidWord]:
        """Return the words that were said."""
        from tunnel.ops.web_words import pairs_of

        return pairs_of(vars(self))


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
        trusted_proxy: Address or network of a proxy in front of this server that is
            believed about who its visitors are. Repeatable.
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
    client_ca: Path | None = None
    max_per_address: int | None = None
    trusted_proxy: list[str] | None = None

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
        return NameOptions(http, https, domain, self.certificate, self.redirect, acme)


def seconds(flag: str, text: str) -> int:
    """Read the duration of a flag: ``30``, ``30s``, ``5m``, ``2h``, ``30d``."""
    digits = text.rstrip("smhd")
    unit_s = _UNITS.get(text[len(digits) :], 0)
    number = whole_number(digits, MOST_S // unit_s) if unit_s else None
    if number is not None:
        return number * unit_s
    raise UsageError(
        f"{flag} {text!r} is not a duration",
        "it is a number with s, m, h or d, and at most a hundred years",
        f"for example {flag} 30s",
    )


def life(flag: str, text: str) -> int:
    """Read how long something lasts, with its unit: a number alone could be days."""
    if text.isascii() and text.isdigit():
        what, why = f"{flag} {text} has no unit", "30 could be seconds or days"
        raise UsageError(what, why, f"{flag} {text}d, or {text}s")
    return seconds(flag, text)


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
