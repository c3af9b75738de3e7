"""The center-server's HTTP and HTTPS ports, and which client a host name leads to.

A visitor who comes just after a link was lost waits for the next one; later visitors
are told that the client is away.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.asked_names import NotAskedError, rules_of
from tunnel.center.certificates import keep_renewed
from tunnel.center.cluster.handover import WEB
from tunnel.center.endpoints import (
    MAX_VISITORS,
    EndpointType,
    HostNames,
    NamesByTls,
)
from tunnel.center.listening import Listening
from tunnel.center.sites import HOSTS
from tunnel.errors import UsageError
from tunnel.front.http.forwarded import origin_of
from tunnel.front.http.names import Absent, Destination, serve_web
from tunnel.front.http.pages import HttpError
from tunnel.front.http.places import Place, Places, Rates
from tunnel.front.http.sni import Doors, serve_tls_names
from tunnel.front.http.terminations import Terminations, termination, why_unusable
from tunnel.proto.frames import MappingType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from trio.abc import Listener

    from tunnel.addresses import Address
    from tunnel.center.acme_options import AcmeOptions
    from tunnel.center.cluster.handover import HandOver
    from tunnel.center.mappings import MappingTable
    from tunnel.center.sites import Site
    from tunnel.front.http.names import Learn
    from tunnel.front.http.request import Request
    from tunnel.front.http.server import Visit
    from tunnel.front.http.terminations import Termination
    from tunnel.net.sockets import FastSocket


HTTPS_PORT: Final = 443
"""The one that a URL need not say."""
ACME_PATH: Final = "/.well-known/acme-challenge/"
"""Where a certificate authority looks (RFC 8555 §8.3)."""


@dataclass(frozen=True, slots=True)
class NameOptions:
    """Where a center-server serves host names."""

    http: Address | None = None
    https: Address | None = None
    domain: str | None = None
    """Completes names without a dot: ``shop`` becomes ``shop.DOMAIN``."""
    certificate: tuple[Path, Path] | None = None
    """Certificate chain and key, in PEM: ends TLS here for what is published as HTTP,
    which needs no HTTP port then. None passes TLS through, and only to what is
    published as HTTPS."""
    redirect: bool = False
    """Send visitors of the HTTP port to the HTTPS port, where TLS ends here."""
    acme: AcmeOptions | None = None
    """The authority whose certificates end TLS here for what is published as HTTP."""


class NamePorts:
    """The HTTP and HTTPS ports of a server, before and while they are served.

    Args:
        options: where they are; ``take`` changes that.
        table: tells which client a host name leads to.
    """

    def __init__(
        self,
        options: NameOptions,
        table: MappingTable,
    ) -> None:
        self.options = options
        """Where they are, and what else is asked for."""
        self.answers: dict[str, str] = {}
        """What a certificate authority wants to read at ``ACME_PATH``, by token."""
        self.leaves = False
        """Visitors are to come again, to another process: this one is about to end."""
        self._files: tuple[bytes, ...] = ()
        rates = Rates()
        self._route = web = partial(_route, table, rates, MappingType.HTTP)
        passed = partial(_route, table, rates, MappingType.HTTPS)
        most = MAX_VISITORS
        self.doors = Doors(passed, web, Terminations())
        self._hand_over: HandOver | None = None
        self.web = Listening(self._serve_web)
        self.tls = Listening(
            partial(serve_tls_names, doors=self.doors, max_visitors=most)
        )
        self._renewing = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    def share(self, learn: Learn | None, hand_over: HandOver | None) -> None:
        """Be the ports of one node of several, for who comes from now on.

        Args:
            learn: has the names of other nodes stand in the table; None without any.
            hand_over: has another process of this machine serve a visitor.
        """
        self.doors.learn, self._hand_over = learn, hand_over
        self.doors.hand_over = hand_over.tls if hand_over else None

    async def _serve_web(self, listeners: Sequence[Listener[FastSocket]]) -> None:
        await serve_web(
            listeners,
            self._route,
            self._before,
            self.doors.learn,
            self._hand_over.web if self._hand_over else None,
            max_visitors=MAX_VISITORS,
        )

    @property
    def http(self) -> Address | None:
        """Where HTTP is open."""
        return self.web.address

    @property
    def https(self) -> Address | None:
        """Where HTTPS is open."""
        return self.tls.address

    def places(self, options: NameOptions) -> dict[Listening, Address | None]:
        """Return what these options listen on, for ``open_places``."""
        return {self.web: options.http, self.tls: options.https}

    def ending(self, options: NameOptions) -> Termination | None:
        """Return what ends TLS by these options; None if that is as before.

        Raises:
            UsageError: the certificate cannot be used.
        """
        same = options.certificate == self.options.certificate
        if same and _files_of(options) == self._files:
            return None
        return termination_of(options)

    def take(self, options: NameOptions, ending: Termination | None) -> None:
        """Have these options, whose places are open, and what ``ending`` returned."""
        self.options = options
        if ending is None:
            return
        self._files = _files_of(options)
        self.doors.endings.usual = ending
        self._renewing.cancel()
        self._keep_renewed()

    def visited(self, port: str, stream: FastSocket) -> None:
        """Serve a visitor that another process has accepted at one of the ports."""
        at = self.web if port == WEB else self.tls
        if at.handed is None:
            stream.reset()
        else:
            at.handed.give(stream)

    def types(self) -> dict[int, EndpointType | None]:
        """Return how mappings are opened on the ports; None where they are not."""
        domain = self.options.domain
        types: dict[int, EndpointType | None] = dict.fromkeys(HOSTS)
        if self.https is not None:
            port = self.https.port
            types[MappingType.HTTPS] = HostNames(MappingType.HTTPS, port, domain)
        plain = None
        if self.http is not None:
            plain = HostNames(MappingType.HTTP, self.http.port, domain)
        types[MappingType.HTTP] = plain
        if self.https is not None and (self.doors.endings.usual or self.options.acme):
            port, why_not = self.https.port, self._why_no_certificate
            types[MappingType.HTTP] = NamesByTls(port, domain, plain, why_not)
        return types

    def _why_no_certificate(self, host: str) -> str:
        """Say why TLS cannot end here for a host name; empty if it can, or will."""
        acme = self.options.acme
        if acme is None or self.doors.endings.of(host):
            return ""
        try:
            rules_of(acme, self.options.domain).certificate_for(host, frozenset())
        except NotAskedError as why:
            return str(why)
        return ""

    async def serve(self) -> None:
        """Serve visitors until cancelled; closes the ports."""
        async with trio.open_nursery() as self._nursery:
            self._keep_renewed()
            self.web.run(self._nursery)
            self.tls.run(self._nursery)
            await trio.sleep_forever()

    def _before(self, visit: Visit, request: Request) -> bytes | None:
        """Answer what is not for who has published the name; None: it is."""
        visit.ends = self.leaves
        if self.answers and request.target.startswith(ACME_PATH):
            said = self.answers.get(request.target.removeprefix(ACME_PATH))
            if said is not None and request.method in ("GET", "HEAD"):
                return said.encode()
        self._redirect(visit, request)
        return None

    def _redirect(self, visit: Visit, request: Request) -> None:
        """Answer a visitor of the HTTP port that belongs at the HTTPS port."""
        host, port = request.host, self.https and self.https.port
        if not (self.options.redirect and port and self.doors.endings.of(host)):
            return
        if self.doors.web(host) is Absent.UNKNOWN:
            return
        # A proxy in front may have ended TLS, and would send the visitor in circles.
        if origin_of(request, visit.peer, secure=visit.secure).proto == "https":
            return
        path = request.target if request.target.startswith("/") else "/"
        to = f"https://{host}{'' if port == HTTPS_PORT else f':{port}'}{path}"
        raise HttpError(
            HTTPStatus.PERMANENT_REDIRECT,
            f"this site is at {to}",
            headers=[("Location", to)],
        )

    def _keep_renewed(self) -> None:
        if self._nursery is None or not (files := self.options.certificate):
            return
        self._renewing = trio.CancelScope()
        keep = partial(keep_renewed, files, self.doors.endings)
        self._nursery.start_soon(_within, self._renewing, keep)


async def _within(scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await work()


def _files_of(options: NameOptions) -> tuple[bytes, ...]:
    """Return the hashes of the certificate and its key, as far as they can be read."""
    found = []
    for path in options.certificate or ():
        with suppress(OSError):
            found.append(sha256(path.read_bytes()).digest())
    return tuple(found)


def termination_of(options: NameOptions) -> Termination:
    """Return what ends TLS here, empty for nothing; UsageError: it cannot be used."""
    if options.certificate is None:
        return {}
    certificate, key = options.certificate
    try:
        return termination(certificate, key)
    except OSError as error:
        raise UsageError(
            f"the certificate {certificate} with the key {key} cannot be used",
            why_unusable(error),
            "both are files in PEM, the certificate with its whole chain",
        ) from error


def _route(
    table: MappingTable, rates: Rates, of_type: MappingType, host: str
) -> Destination | Places | Absent:
    """Return how to open at the client that has a host name, or why nobody can."""
    site = table.find(of_type, host)
    if site is None:
        return Absent.AWAY if table.is_known(of_type, host) else Absent.UNKNOWN
    mapping = site.only
    if mapping is None:
        if site.places is None:
            site.places = _places(site, rates)
        return site.places
    if mapping.owner.away:
        return Absent.AWAY
    return Destination(mapping, mapping.open)


def _places(site: Site, rates: Rates) -> Places:
    places: dict[str, Place] = {}
    for mapping in site.mappings:
        rules, name = mapping.rules, mapping.names[0].host
        place = places.get(rules.path)
        if place is None:
            place = places[rules.path] = Place(name, rules, mapping.expires_at, [])
        place.members.append(mapping)
        place.expires_at = min(place.expires_at, mapping.expires_at)
    return Places(places.values(), rates)
