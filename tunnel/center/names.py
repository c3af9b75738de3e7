"""The center-server's HTTP and HTTPS ports, and which client a host name leads to.

A visitor who comes just after a link was lost waits for the next one; later visitors
are told that the client is away.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.certificates import keep_renewed
from tunnel.center.endpoints import MAX_VISITORS, EndpointType, HostNames
from tunnel.errors import UsageError
from tunnel.front.http.names import Absent, Destination, serve_web
from tunnel.front.http.places import Place, Places, Rates
from tunnel.front.http.sni import serve_tls_names, termination
from tunnel.net.listen import open_listener
from tunnel.proto.frames import TLS_ONLY, MappingType

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.center.mappings import MappingTable
    from tunnel.center.sites import Site
    from tunnel.front.http.sni import Termination
    from tunnel.net.listen import PortListener


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


class NamePorts:
    """The HTTP and HTTPS ports of a server, before and while they are served."""

    def __init__(self, options: NameOptions) -> None:
        self.http: Address | None = None
        """Where HTTP is open."""
        self.https: Address | None = None
        """Where HTTPS is open."""
        self._options = options
        self._http: list[PortListener] = []
        self._https: list[PortListener] = []
        self._termination: Termination | None = None

    async def open(self) -> dict[int, EndpointType]:
        """Open the ports; return the types of mappings that can be had on them.

        Raises:
            AddressError: one cannot be listened on. None is open then.
            UsageError: the certificate cannot be used.
        """
        options, domain = self._options, self._options.domain
        self._termination = termination_of(options)
        types: dict[int, EndpointType] = {}
        try:
            if options.http is not None:
                self._http, self.http = await listen_on(options.http)
                port = self.http.port
                types[MappingType.HTTP] = HostNames(MappingType.HTTP, port, domain)
            if options.https is not None:
                self._https, self.https = await listen_on(options.https)
                port = self.https.port
                types[MappingType.HTTPS] = HostNames(MappingType.HTTPS, port, domain)
                if self._termination is not None:
                    web = HostNames(MappingType.HTTP, port, domain, TLS_ONLY)
                    types.setdefault(MappingType.HTTP, web)
        except BaseException:
            close_all(self._http)
            raise
        return types

    async def serve(self, table: MappingTable) -> None:
        """Serve visitors until cancelled; closes the ports."""
        rates = Rates()
        web = partial(_route, table, rates, MappingType.HTTP)
        passed = partial(_route, table, rates, MappingType.HTTPS)
        ending, most = self._termination, MAX_VISITORS
        async with trio.open_nursery() as nursery:
            if ending is not None and (files := self._options.certificate):
                nursery.start_soon(keep_renewed, files, ending)
            if ports := self._http:
                nursery.start_soon(partial(serve_web, ports, web, max_visitors=most))
            if ports := self._https:
                serve_https = partial(serve_tls_names, ports, passed, web, ending)
                nursery.start_soon(partial(serve_https, max_visitors=most))


async def listen_on(where: Address) -> tuple[list[PortListener], Address]:
    """Listen as ``open_listener`` does; return also the address with its real port."""
    listeners = await open_listener(where.host, where.port)
    port = listeners[0].socket.getsockname()[1]
    return listeners, Address(where.host, port)


def close_all(listeners: list[PortListener]) -> None:
    """Stop listening, without a checkpoint."""
    for listener in listeners:
        listener.socket.close()


_NO_PAIR: Final = (
    "KEY_VALUES_MISMATCH",
    "KEY_TYPE_MISMATCH",
    "NO_CERTIFICATE_ASSIGNED",
)
"""What OpenSSL says to a key that belongs to another certificate."""


def termination_of(options: NameOptions) -> Termination | None:
    """Return what ends TLS here, None for nothing; UsageError: it cannot be used."""
    if options.certificate is None:
        return None
    certificate, key = options.certificate
    try:
        return termination(certificate, key)
    except OSError as error:
        why = error.strerror or str(error)
        if isinstance(error, ssl.SSLError):
            said = error.reason or "one of them is not PEM"
            is_pair = error.reason not in _NO_PAIR
            why = said if is_pair else "the key is not that of the certificate"
        raise UsageError(
            f"the certificate {certificate} with the key {key} cannot be used",
            why,
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
