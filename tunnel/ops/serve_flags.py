"""The flags of ``tunnel serve``, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING

from cyclopts import Parameter

from tunnel.addresses import EVERYWHERE, LOCALHOST, Address, host_of
from tunnel.errors import UsageError
from tunnel.ops.flags import seconds

if TYPE_CHECKING:
    from tunnel.center.names import NameOptions
    from tunnel.center.server import ServerOptions


@Parameter(name="*")
@dataclass(frozen=True)
class ServeFlags:
    """How a center-server is set up.

    Args:
        listen: [HOST:]PORT for links; a port alone is on every address, IPv4 and IPv6.
            Public ports without a host are where this is.
        ports: Public ports for entries that name none.
        public_host: Host that the join line names.
        state: Folder for the server's key and tokens.
        plain: No TLS: only for loopback or your own net.
        resume: How long connections wait for a lost link; 0: not at all.
        max_sessions: Clients of one user at once; above it, one is refused.
        max_waiting_sessions: Of those, without a link; above it one without
            connections, or the longest waiting, is given up.
        http: [HOST:]PORT for web services by name.
        https: [HOST:]PORT for TLS by name.
        domain: Completes names without a dot: NAME.DOMAIN.
        certificate: CERT KEY: end TLS here for names published with --http.
        print_join: Print the join line that is kept, and end.
        max_per_address: Visitors of one address at once; without it a quarter of the
            process's descriptors, at most 4096. This machine has no limit.
        trusted_proxy: Address or network of a proxy in front of this server that is
            believed about who its visitors are. Repeatable.
    """

    listen: str = "7443"
    ports: str = "20000-20999"
    public_host: str | None = None
    state: Path | None = None
    plain: bool = False
    resume: str = "120s"
    max_sessions: int = 1_024
    max_waiting_sessions: int = 1_024
    http: str | None = None
    https: str | None = None
    domain: str | None = None
    certificate: tuple[Path, Path] | None = None
    print_join: bool = False
    max_per_address: int | None = None
    trusted_proxy: list[str] | None = None

    def options(self) -> ServerOptions:
        """Return the options of the center-server.

        Raises:
            UsageError: a flag cannot be read, or is out of range.
        """
        from tunnel.access.networks import Networks
        from tunnel.center.server import ServerOptions

        return ServerOptions(
            Address.parse(self.listen, EVERYWHERE),
            _port_range(self.ports),
            self.plain,
            seconds("--resume", self.resume),
            name_options(self.http, self.https, self.domain, self.certificate),
            max_sessions=_count("--max-sessions", self.max_sessions, least=1),
            max_waiting_sessions=_count(
                "--max-waiting-sessions", self.max_waiting_sessions
            ),
            max_per_address=None
            if self.max_per_address is None
            else _count("--max-per-address", self.max_per_address, least=1),
            trusted_proxies=Networks.parse(self.trusted_proxy or []).allowed,
        )

    def host(self) -> str | None:
        """Return the host that the join line is to name; None if none is given.

        Raises:
            UsageError: it is no host.
        """
        text = self.public_host
        host = None if text is None else host_of(text)
        if text is not None and host is None:
            raise UsageError(
                f"--public-host {text!r} is not a host",
                "it is a name or an IP address, without a port",
                "for example --public-host t.example.net",
            )
        return host


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
    from tunnel.addresses import is_loopback
    from tunnel.center.names import NameOptions

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


def _count(flag: str, number: int, least: int = 0) -> int:
    if number < least:
        raise UsageError(f"{flag} {number} is too few", f"it is {least} or more")
    return number
