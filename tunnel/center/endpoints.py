"""What mappings open at a center-server: public TCP and UDP ports, host names, exits.

An ``EndpointType`` turns an entry into public names, and those into an ``Endpoint``.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.addresses import Address
from tunnel.errors import AddressError, Code, TunnelError
from tunnel.front.ports import serve_port
from tunnel.front.udp import open_udp_port, serve_udp_port
from tunnel.link.datagrams import DatagramStream
from tunnel.link.virtual import VirtualStream
from tunnel.net.bind import is_in_use, try_port
from tunnel.net.datagrams import DatagramSocket
from tunnel.net.listen import PortListener, open_listener
from tunnel.proto.frames import BY_TLS, MappingType, NameTarget, Target, UdpTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Container, Iterator

    from tunnel.access.rules import Rights
    from tunnel.proto.frames import MappingEntry

MAX_VISITORS: Final = 16_384
"""At once on one mapping: what a session carries."""

MAX_RANGE: Final = 1_000
"""Ports of one entry: each is a descriptor, and a task or more."""

OpenTarget = Callable[[Target, Address], VirtualStream]
"""Open at the owner for a visitor, without waiting; see ``front.ports.OpenNow``."""

_HOST_NAME: Final = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
)


class PublicName(NamedTuple):
    """A port of an address, a host name or an exit: what one mapping alone can have."""

    type: MappingType
    """TCP and UDP ports are apart, and so are the names of HTTP, HTTPS and exits."""
    host: str
    port: int = 0
    """0 where the host name is all."""

    def __str__(self) -> str:
        return f"port {self.port}" if self.port else self.host


Had = Mapping[PublicName, Sequence[socket.socket]]
NOTHING: Final[Had] = {}


class NameInUse(AddressError):
    """Another program has the port of ``name``; another name may do."""

    def __init__(self, name: PublicName, error: AddressError) -> None:
        super().__init__(error.what, error.cause, error.fix, error.exit_status)
        self.name = name


class Endpoint:
    """A mapping that is open; this one listens nowhere: others look its names up."""

    def __init__(self, public: Address, note: str = "") -> None:
        self.public = public
        """Where it is, as the client is told."""
        self.note = note
        """What else the client is told, as the reason of the answer."""
        self._closed = trio.Event()

    async def serve(self, mapping: str, open_target: OpenTarget) -> None:
        """Lead visitors to the mapping of this name until closed and all have left."""
        del mapping, open_target
        await self._closed.wait()

    def copies(self) -> list[list[int]]:
        """Return copies of the sockets of each port, which the caller owns."""
        return []

    def close(self) -> None:
        """Let nobody in from now on; visitors that are in stay. Harmless twice."""
        self._closed.set()


class EndpointType:
    """How entries of one type are opened; this one has names that need no port."""

    max_count = 1
    """How many ports an entry may have; 1 where it has none."""
    none_left = ""
    """Why ``candidates`` gave nothing."""
    _port = 0
    _note = ""

    def __init__(self, of_type: MappingType) -> None:
        self._type = of_type

    def host(self, entry: MappingEntry) -> str:
        """Return the whole host, where the entry says a part of it or nothing."""
        return entry.host

    def missing(
        self, rights: Rights, entry: MappingEntry, users: Container[str]
    ) -> str:
        """Return the right that is missing for the entry; "" if none is.

        Args:
            rights: of the user who asks.
            entry: what is asked for.
            users: the names of all users.
        """
        del users
        return rights.may_be_exit(entry.host)

    def refresh(self, endpoint: Endpoint) -> bool:
        """Have an open endpoint say what one opened now says; return if it differs."""
        public = endpoint.public
        now = replace(public, port=self._port) if self._port else public
        differs = (public, endpoint.note) != (now, self._note)
        endpoint.public, endpoint.note = now, self._note
        return differs

    def counted(self, rights: Rights, entry: MappingEntry) -> int:
        """Return how many ports of the entry count against ``rights.most_ports``."""
        del rights, entry
        return 0

    def candidates(
        self, entry: MappingEntry, taken: Container[PublicName]
    ) -> Iterator[tuple[PublicName, ...]]:
        """Yield the names that would do for the entry, best first.

        Where there is a choice, ``taken`` may grow between two of them.

        Raises:
            TunnelError: the entry can never be open; ``code`` says why.
        """
        del taken
        yield (PublicName(self._type, self.host(entry)),)

    async def open(self, names: tuple[PublicName, ...], had: Had = NOTHING) -> Endpoint:
        """Open one candidate, or nothing.

        Args:
            names: the candidate.
            had: what another process has left of these ports; owned.

        Raises:
            NameInUse: for the first name that another program has.
            AddressError: no other candidate will do either.
        """
        await trio.lowlevel.checkpoint()
        return Endpoint(Address(names[0].host, self._port), self._note)

    async def probe(
        self, names: tuple[PublicName, ...], taken: Container[PublicName]
    ) -> Endpoint:
        """Do as ``open`` does and raises, but let nobody in.

        Those that are ``taken`` are mapped: the kernel is not asked about them.
        """
        del taken
        return await self.open(names)


class HostNames(EndpointType):
    """Names on the server's one HTTP or HTTPS port; the mapping table routes them.

    ``domain`` completes names without a dot; None refuses those.
    """

    def __init__(
        self, of_type: MappingType, port: int, domain: str | None, note: str = ""
    ) -> None:
        super().__init__(of_type)
        self._port = port
        self._domain = domain
        self._note = note

    def host(self, entry: MappingEntry) -> str:
        """Return the name in small letters, without a last dot, and with a domain."""
        name = entry.host.lower().removesuffix(".")
        if "." in name or not self._domain:
            return name
        return f"{name}.{self._domain}"

    def missing(
        self, rights: Rights, entry: MappingEntry, users: Container[str]
    ) -> str:
        """Decide about the whole name."""
        kind = self._type.name.lower()
        return rights.may_name(kind, self.host(entry), self._domain, users)

    def candidates(
        self, entry: MappingEntry, taken: Container[PublicName]
    ) -> Iterator[tuple[PublicName, ...]]:
        """Yield the name, or raise if no DNS knows such names."""
        host = self.host(entry)
        if "." not in host:
            raise TunnelError(
                Code.ADDRESS_UNSUPPORTED,
                f"this server has no --domain for {host!r}: name the whole host",
            )
        if not _HOST_NAME.fullmatch(host):
            raise TunnelError(Code.ADDRESS_UNSUPPORTED, f"{host!r} is no host name")
        return super().candidates(entry, taken)


class NamesByTls(HostNames):
    """Web services that TLS leads to, where there is a certificate or will be one.

    Others are at the HTTP port, ``plain``; without one they are refused.

    Args:
        port: of HTTPS.
        domain: completes names without a dot.
        plain: opens those that no TLS leads to.
        why_not: says why there is no certificate for a host; empty if there is.
    """

    def __init__(
        self,
        port: int,
        domain: str | None,
        plain: HostNames | None,
        why_not: Callable[[str], str],
    ) -> None:
        super().__init__(MappingType.HTTP, port, domain, BY_TLS)
        self._plain = plain
        self._why_not = why_not

    def candidates(
        self, entry: MappingEntry, taken: Container[PublicName]
    ) -> Iterator[tuple[PublicName, ...]]:
        """Yield the name, or raise if nobody could come by it."""
        found = super().candidates(entry, taken)
        if self._plain is None and (why := self._why_not(self.host(entry))):
            raise TunnelError(Code.UNSUPPORTED, f"no certificate: {why}")
        return found

    async def open(self, names: tuple[PublicName, ...], had: Had = NOTHING) -> Endpoint:
        """Open where the name can be had."""
        if self._plain is not None and self._why_not(names[0].host):
            return await self._plain.open(names)
        return await super().open(names)

    def refresh(self, endpoint: Endpoint) -> bool:
        """Have it say where the name is now."""
        if self._plain is not None and self._why_not(endpoint.public.host):
            return self._plain.refresh(endpoint)
        return super().refresh(endpoint)


class TcpPorts(EndpointType):
    """Public TCP ports: each visitor is one virtual TCP connection.

    Entries that name no host, or no port, get ``host`` and one of ``ports``.
    """

    max_count = MAX_RANGE
    _of_type = MappingType.TCP
    _kind = socket.SOCK_STREAM

    def __init__(self, host: str, ports: range) -> None:
        super().__init__(self._of_type)
        self._host = host
        self._ports = ports
        self.none_left = "this server chooses no port: name one"
        if ports:
            self.none_left = f"every port from {ports[0]} to {ports[-1]} is taken"

    def host(self, entry: MappingEntry) -> str:
        """Return the entry's host, or that of the server's links."""
        return entry.host or self._host

    def missing(
        self, rights: Rights, entry: MappingEntry, users: Container[str]
    ) -> str:
        """Decide about the ports, where they are asked for."""
        del users
        return self._missing(rights, entry, self._ports)

    def counted(self, rights: Rights, entry: MappingEntry) -> int:
        """Count ports that are allowed only because they are of the server's range."""
        if not rights.everything and self._missing(rights, entry, range(0)):
            return entry.count
        return 0

    def _missing(self, rights: Rights, entry: MappingEntry, of_server: range) -> str:
        if rights.everything:
            return ""
        kind, host = self._type.name.lower(), self.host(entry)
        ports = range(entry.port, entry.port + entry.count)
        if host != self._host:
            return rights.may_publish(kind, host, ports)
        named = rights.may_publish(kind, host, ports)
        return named and rights.may_publish(kind, "", ports, of_server)

    def candidates(
        self, entry: MappingEntry, taken: Container[PublicName]
    ) -> Iterator[tuple[PublicName, ...]]:
        """Yield the row of ports that the entry names, or those of the range."""
        host, count = self.host(entry), entry.count
        if entry.port:
            yield self._row(host, entry.port, count)
            return
        # Each port is looked at once, and rows are made only of free ones.
        free = 0
        for port in self._ports:
            free = 0 if PublicName(self._type, host, port) in taken else free + 1
            if free < count:
                continue
            row = self._row(host, port - count + 1, count)
            yield row
            # By now another program may be known to have one of them.
            free = next((at for at in range(count) if row[-1 - at] in taken), free)

    def _row(self, host: str, first: int, count: int) -> tuple[PublicName, ...]:
        return tuple(PublicName(self._type, host, first + at) for at in range(count))

    async def open(self, names: tuple[PublicName, ...], had: Had = NOTHING) -> Endpoint:
        """Open all ports or none."""
        ports: list[_Port] = []
        left = dict(had)
        endpoint = _Ports(Address(names[0].host, names[0].port), ports)
        try:
            for name in names:
                port = await self._open_port(name, left.pop(name, ()))
                ports.append(port)
        except BaseException as error:
            endpoint.close()
            for sock in chain(*left.values()):
                sock.close()
            if isinstance(error, AddressError) and is_in_use(error):
                raise NameInUse(names[len(ports)], error) from error.__cause__
            raise
        return endpoint

    async def probe(
        self, names: tuple[PublicName, ...], taken: Container[PublicName]
    ) -> Endpoint:
        """Ask the kernel about each port."""
        for name in names:
            try:
                if name not in taken:
                    await try_port(name.host, name.port, self._kind)
            except AddressError as error:
                if is_in_use(error):
                    raise NameInUse(name, error) from error.__cause__
                raise
        return Endpoint(Address(names[0].host, names[0].port))

    async def _open_port(self, name: PublicName, had: Sequence[socket.socket]) -> _Port:
        listeners = [PortListener(sock) for sock in had]
        if not listeners:
            listeners = await open_listener(name.host, name.port)

        def serve(mapping: str, index: int, open_target: OpenTarget) -> Awaitable[None]:
            open_now = partial(open_target, NameTarget(mapping, index))
            return serve_port(listeners, open_now, max_visitors=MAX_VISITORS)

        return _Port([listener.socket for listener in listeners], serve)


class UdpPorts(TcpPorts):
    """Public UDP ports, numbered apart: each visitor is one UDP association."""

    _of_type = MappingType.UDP
    _kind = socket.SOCK_DGRAM

    async def _open_port(self, name: PublicName, had: Sequence[socket.socket]) -> _Port:
        sockets = [DatagramSocket.of(sock) for sock in had]
        if not sockets:
            sockets = await open_udp_port(name.host, name.port)

        def serve(mapping: str, index: int, open_target: OpenTarget) -> Awaitable[None]:
            target = UdpTarget(mapping, index)
            return serve_udp_port(
                sockets, lambda visitor: DatagramStream(open_target(target, visitor))
            )

        return _Port(sockets, serve)


def port_types(host: str, ports: range) -> dict[int, EndpointType | None]:
    """Return how ports of ``host`` are opened; of ``ports``, where none is named."""
    return {
        MappingType.TCP: TcpPorts(host, ports),
        MappingType.UDP: UdpPorts(host, ports),
    }


class _Port(NamedTuple):
    sockets: Sequence[trio.socket.SocketType | DatagramSocket]
    serve: Callable[[str, int, OpenTarget], Awaitable[None]]


class _Ports(Endpoint):
    """Ports that are open; visitors of each are told from those of the others."""

    def __init__(self, public: Address, ports: list[_Port]) -> None:
        super().__init__(public)
        self._ports = ports

    async def serve(self, mapping: str, open_target: OpenTarget) -> None:
        async with trio.open_nursery() as nursery:
            for index, port in enumerate(self._ports):
                nursery.start_soon(port.serve, mapping, index, open_target)

    def copies(self) -> list[list[int]]:
        return [[os.dup(one.fileno()) for one in port.sockets] for port in self._ports]

    def close(self) -> None:
        for port in self._ports:
            for sock in port.sockets:
                sock.close()
