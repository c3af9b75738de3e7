"""Flags that commands share, and those of ``tunnel up`` and ``tunnel serve``.

Each class is one parameter of a command: cyclopts makes a flag of every field, and its
help of the docstring. The methods read what the flags say, and only they load trio;
they raise UsageError where a flag cannot be read, or is out of range.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

from cyclopts import Parameter

from tunnel.addresses import (
    LOCALHOST,
    Address,
    is_loopback,
)
from tunnel.errors import UsageError
from tunnel.words import whole_number

if TYPE_CHECKING:
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

LEAST_KEEP_BYTES: Final = 8_388_608
MOST_KEEP_BYTES: Final = 10**12
LEAST_TOKEN: Final = 16
"""Characters: the ten wrong ones a minute that an address has find none of them."""
_PAGE_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+-]+")

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
        dashboard: [HOST:]PORT of a page that shows what happens, live; a port alone is
            on 127.0.0.1 and ::1. `tunnel dashboard` prints its URL.
        dashboard_auth: The token of that page, 16 characters or more; without it each
            start makes another. Other machines reach the page only with it.
            TUNNEL_DASHBOARD_AUTH_FILE may name a file with it.
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
    dashboard: str | None = None
    dashboard_auth: str | None = None

    def metrics_at(self) -> Address | None:
        """Return where Prometheus asks; None: nowhere."""
        return Address.parse(self.metrics, LOCALHOST) if self.metrics else None

    def ports(self) -> Ports:
        """Return where those who look at the process ask it."""
        return Ports(self.metrics_at(), self.dashboard_at())

    def dashboard_at(self) -> Dashboard | None:
        """Return where the page is, and its token; None: nowhere."""
        from tunnel.ops.saved import secret_file

        token = self.dashboard_auth
        if token is None:
            token = secret_file("TUNNEL_DASHBOARD_AUTH_FILE", str)
        if token is not None:
            check_page_token(token)
        if not self.dashboard:
            return None
        at = Address.parse(self.dashboard, LOCALHOST)
        if token is None and not is_loopback(at.host):
            raise UsageError(
                f"--dashboard {self.dashboard} is open to other machines",
                "who has its token may do what this user may",
                f"a token of yours: --dashboard-auth, or --dashboard {at.port}",
            )
        return Dashboard(at, token)

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
class UpFlags(RunFlags):
    """What a command takes that stays and may publish web services.

    Args:
        inspect_keep: How much memory the requests of inspected entries may take: 64MiB.
        inspect_hide: Name of a header field, or of a field of queries, forms and JSON,
            whose values the inspector hides too. Repeatable.
    """

    inspect_keep: str = "64MiB"
    inspect_hide: Words = None

    def keep_bytes(self) -> int:
        """Return how many bytes the inspector may keep."""
        from tunnel.access.limits import bytes_in

        size = bytes_in(self.inspect_keep)
        if size is None or not LEAST_KEEP_BYTES <= size <= MOST_KEEP_BYTES:
            raise UsageError(
                f"--inspect-keep {self.inspect_keep!r} is out of range",
                "it is 8MiB to 1TB, with its unit",
                "for example --inspect-keep 64MiB",
            )
        return size


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
        protocol: What TARGET speaks if not HTTP/1.1: HTTP/2 as `h2c`, which gRPC
            servers do, or as `h2` if it is https://.
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
        inspect: Keep its requests and answers to be looked at: in the page, and with
            `tunnel tail`.
    """

    auth_header: Literal["keep"] | None = None
    cors: bool = False
    host: str | None = None
    header: Words = None
    response_header: Words = None
    ca: str | None = None
    pin: str | None = None
    insecure: bool = False
    protocol: Literal["h2c", "h2"] | None = None
    allow: Words = None
    deny: Words = None
    expires: str | None = None
    requests: str | None = None
    max_body: str | None = None
    path: str | None = None
    strip: bool = False
    group: str | None = None
    check: str | None = None
    inspect: bool = False

    def words(self) -> list[SaidWord]:
        """Return the words that were said."""
        from tunnel.ops.web_words import pairs_of

        return pairs_of(vars(self))


class Dashboard(NamedTuple):
    """Where the page is asked for."""

    at: Address
    token: str | None
    """The owner's; None: one for this run."""


class Ports(NamedTuple):
    """Where those who look at a process ask it."""

    metrics: Address | None = None
    """Prometheus."""
    dashboard: Dashboard | None = None


def check_page_token(token: str) -> None:
    """Raise UsageError if a token of the page could be guessed, or not be said."""
    # What stands in a URL's fragment and in a header field as it is.
    if len(token) < LEAST_TOKEN or not _PAGE_TOKEN.fullmatch(token):
        raise UsageError(
            "the token of the page cannot be used",
            f"it has {LEAST_TOKEN} or more letters, digits, and . _ ~ + - signs",
            "openssl rand -hex 16 makes one",
        )


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
