"""What the types of mappings open at a center-server, each behind the same few words.

A kind turns an entry into keys, and keys into an opening that carries visitors. Whose
key is whose it never knows: that is mappings.py's one rule for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from tunnel.errors import Code, TunnelError
from tunnel.front.listen import open_listener
from tunnel.front.ports import serve_port
from tunnel.front.udp import open_udp_port, serve_udp_port
from tunnel.link.datagrams import DatagramStream
from tunnel.link.virtual import VirtualStream
from tunnel.proto.frames import Address, MappingType, NameTarget, Target, UdpTarget

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from tunnel.proto.frames import MappingEntry

MAX_VISITORS: Final = 16_384
"""At once on one mapping: what a session carries."""

OpenTarget = Callable[[Target, Address], VirtualStream]
"""Open at the owner for a visitor, without waiting; see ``front.ports.OpenNow``."""


_NAME: Final = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
)


class Key(NamedTuple):
    """What one mapping alone can have: a port of an address, or a host name."""

    type: MappingType
    """What shares one space of ports or names: SOCKS ports are TCP ports."""
    host: str
    port: int = 0
    """0 where the host name is all."""

    def __str__(self) -> str:
        return f"port {self.port}" if self.port else self.host


class Opening(Protocol):
    """A mapping that is open."""

    @property
    def public(self) -> Address:
        """Where, as the client is told."""
        ...

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        """Carry visitors to ``NameTarget(name)`` until closed and all have left."""
        ...

    def close(self) -> None:
        """Let nobody in from now on; those inside stay. A second time does nothing."""
        ...


class Kind(Protocol):
    """How entries of one type are opened."""

    @property
    def max_count(self) -> int:
        """How many ports an entry may have; 1 where it has none."""
        ...

    @property
    def none_left(self) -> str:
        """Say why ``candidates`` gave nothing."""
        ...

    def host(self, entry: MappingEntry) -> str:
        """Give the whole host, where the entry says a part of it or nothing."""
        ...

    def candidates(
        self, entry: MappingEntry, taken: Container[Key]
    ) -> Iterator[tuple[Key, ...]]:
        """Give what would do, best first; ``taken`` matters where there is a choice.

        Raises:
            TunnelError: it can never be given; ``code`` says why.
        """
        ...

    async def open(self, keys: tuple[Key, ...]) -> Opening:
        """Open one candidate.

        Raises:
            AddressError: nothing is open then.
        """
        ...


class TcpPorts:
    """Public TCP ports: each visitor is one virtual TCP connection.

    Args:
        host: where an entry listens that names no host.
        ports: from which an entry gets one that names no port.
    """

    max_count = 1
    _type = MappingType.TCP

    def __init__(self, host: str, ports: range) -> None:
        self._host = host
        self._ports = ports

    @property
    def none_left(self) -> str:
        """See ``Kind``."""
        if not self._ports:
            return "this server chooses no port: name one"
        return f"every port from {self._ports[0]} to {self._ports[-1]} is taken"

    def host(self, entry: MappingEntry) -> str:
        """See ``Kind``."""
        return entry.host or self._host

    def candidates(
        self, entry: MappingEntry, taken: Container[Key]
    ) -> Iterator[tuple[Key, ...]]:
        """See ``Kind``."""
        for port in (entry.port,) if entry.port else self._ports:
            key = Key(self._type, self.host(entry), port)
            if entry.port or key not in taken:
                yield (key,)

    async def open(self, keys: tuple[Key, ...]) -> Opening:
        """See ``Kind``."""
        (key,) = keys
        public = Address(key.host, key.port)
        return _TcpPort(public, await open_listener(public.host, public.port))


class _TcpPort:
    """See ``Opening``."""

    def __init__(self, public: Address, listeners: list[trio.SocketListener]) -> None:
        self.public = public
        self._listeners = listeners

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        open_now = partial(open_target, NameTarget(name))
        await serve_port(self._listeners, open_now, max_visitors=MAX_VISITORS)

    def close(self) -> None:
        for listener in self._listeners:
            listener.socket.close()


class UdpPorts(TcpPorts):
    """Public UDP ports: each visitor is one UDP association.

    They are numbered apart from the TCP ports, so both may have the same.
    """

    _type = MappingType.UDP

    async def open(self, keys: tuple[Key, ...]) -> Opening:
        """See ``Kind``."""
        (key,) = keys
        public = Address(key.host, key.port)
        return _UdpPort(public, await open_udp_port(public.host, public.port))


class _UdpPort:
    """See ``Opening``."""

    def __init__(self, public: Address, sockets: list[trio.socket.SocketType]) -> None:
        self.public = public
        self._sockets = sockets

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        def open_datagrams(visitor: Address) -> DatagramStream:
            return DatagramStream(open_target(UdpTarget(name), visitor))

        await serve_udp_port(self._sockets, open_datagrams)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


class HostNames:
    """Names on the server's one HTTP or HTTPS port; the table of claims routes them.

    Args:
        type: ``HTTP`` or ``HTTPS``.
        port: the public one, for the answer.
        domain: completes names without a dot; None refuses those.
    """

    max_count = 1
    none_left = "there is no such name"

    def __init__(self, type: MappingType, port: int, domain: str | None) -> None:  # noqa: A002 - as in Key
        self._type = type
        self._port = port
        self._domain = domain

    def host(self, entry: MappingEntry) -> str:
        """See ``Kind``."""
        name = entry.host.lower().removesuffix(".")
        if "." in name or not self._domain:
            return name
        return f"{name}.{self._domain}"

    def candidates(
        self, entry: MappingEntry, taken: Container[Key]
    ) -> Iterator[tuple[Key, ...]]:
        """See ``Kind``."""
        del taken
        host = self.host(entry)
        if "." not in host:
            raise TunnelError(
                Code.ADDRESS_UNSUPPORTED,
                f"this server has no --domain for {host!r}: name the whole host",
            )
        if not _NAME.fullmatch(host):
            raise TunnelError(Code.ADDRESS_UNSUPPORTED, f"{host!r} is no host name")
        yield (Key(self._type, host),)

    async def open(self, keys: tuple[Key, ...]) -> Opening:
        """See ``Kind``."""
        await trio.lowlevel.checkpoint()
        return _HostName(Address(keys[0].host, self._port))


class _HostName:
    """See ``Opening``: nothing is opened, the claim itself is what visitors need."""

    def __init__(self, public: Address) -> None:
        self.public = public
        self._closed = trio.Event()

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        del name, open_target
        await self._closed.wait()

    def close(self) -> None:
        self._closed.set()
