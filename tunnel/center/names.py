"""The center-server's HTTP and HTTPS ports, and which client a host name leads to.

Routes by what the table of claims says at that moment; owns the two ports and nothing
else. A visitor who comes in the moments after a link was lost waits for the next one;
later it is told that the client is away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.endpoints import MAX_VISITORS, HostNames
from tunnel.errors import Code, LocalStreamError, UsageError
from tunnel.front.http.names import Absent, Open, serve_web
from tunnel.front.http.sni import serve_tls_names, termination
from tunnel.net.listen import open_listener
from tunnel.proto.frames import TLS_ONLY, Address, MappingType, NameTarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnel.center.endpoints import EndpointType
    from tunnel.center.mappings import MappingTable, Member
    from tunnel.front.http.sni import Termination
    from tunnel.net.listen import PortListener
    from tunnel.net.relay import ResettableStream

_LOOK_S: Final = 0.05


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
    """The open HTTP and HTTPS ports of a server, before and while they are served.

    Args:
        options: what is to be opened.
    """

    def __init__(self, options: NameOptions) -> None:
        self._options = options
        self._http: list[PortListener] = []
        self._https: list[PortListener] = []
        self._ending: Termination | None = None

    @property
    def http(self) -> Address | None:
        """Where HTTP is open."""
        return _bound(self._options.http, self._http)

    @property
    def https(self) -> Address | None:
        """Where HTTPS is open."""
        return _bound(self._options.https, self._https)

    async def open(self) -> dict[int, EndpointType]:
        """Open the ports; give the kinds of names that can be had on them.

        Raises:
            AddressError: one cannot be listened on.
            UsageError: the certificate cannot be used.
        """
        options = self._options
        self._ending = _termination_of(options)
        kinds: dict[int, EndpointType] = {}
        try:
            if options.http is not None:
                self._http = await open_listener(options.http.host, options.http.port)
                kinds[MappingType.HTTP] = self._kind(MappingType.HTTP, self.http)
            if options.https is not None:
                where = options.https
                self._https = await open_listener(where.host, where.port)
                kinds[MappingType.HTTPS] = self._kind(MappingType.HTTPS, self.https)
                if self._ending is not None and options.http is None:
                    web = self._kind(MappingType.HTTP, self.https, TLS_ONLY)
                    kinds[MappingType.HTTP] = web
        except BaseException:
            self.close()
            raise
        return kinds

    def _kind(
        self,
        type: MappingType,  # noqa: A002 - as in Key
        where: Address | None,
        note: str = "",
    ) -> EndpointType:
        return HostNames(type, where.port if where else 0, self._options.domain, note)

    def close(self) -> None:
        """Close the ports; for who does not come to ``serve``."""
        for listener in (*self._http, *self._https):
            listener.socket.close()

    async def serve(self, table: MappingTable) -> None:
        """Serve visitors until cancelled; closes the ports."""

        def route_web(host: str) -> Open | Absent:
            return _route(table, MappingType.HTTP, host)

        def route_passed(host: str) -> Open | Absent:
            return _route(table, MappingType.HTTPS, host)

        async with trio.open_nursery() as nursery:
            if self._http:
                nursery.start_soon(_serve_http, self._http, route_web)
            if self._https:
                nursery.start_soon(
                    _serve_https, self._https, route_passed, route_web, self._ending
                )


async def _serve_http(
    listeners: list[PortListener], route: Callable[[str], Open | Absent]
) -> None:
    await serve_web(listeners, route, max_visitors=MAX_VISITORS)


async def _serve_https(
    listeners: list[PortListener],
    route_passed: Callable[[str], Open | Absent],
    route_web: Callable[[str], Open | Absent],
    ending: Termination | None,
) -> None:
    await serve_tls_names(
        listeners, route_passed, route_web, ending, max_visitors=MAX_VISITORS
    )


def _bound(wanted: Address | None, opened: list[PortListener]) -> Address | None:
    if wanted is None or not opened:
        return None
    port: int = opened[0].socket.getsockname()[1]
    return Address(wanted.host, port)


def _termination_of(options: NameOptions) -> Termination | None:
    if options.certificate is None:
        return None
    certificate, key = options.certificate
    try:
        return termination(certificate, key)
    except OSError as error:
        raise UsageError(
            f"the certificate {certificate} with the key {key} cannot be used",
            str(error.strerror or error),
            "both are files in PEM, the certificate with its whole chain",
        ) from error


def _route(table: MappingTable, kind: MappingType, host: str) -> Open | Absent:
    found = table.find(kind, host)
    if found is None:
        return Absent.AWAY if table.is_known(kind, host) else Absent.UNKNOWN
    owner, name = found
    if owner.away:
        return Absent.AWAY

    async def open_one(visitor: Address) -> ResettableStream:
        await _wait_for_link(owner)
        return owner.open_now(NameTarget(name), visitor)

    return open_one


async def _wait_for_link(owner: Member) -> None:
    while owner.waiting and not owner.gone:
        if owner.away:
            raise LocalStreamError(Code.LINK_LOST, "the client is not connected")
        await trio.sleep(_LOOK_S)
