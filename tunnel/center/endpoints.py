"""What the types of mappings open at a center-server, each behind the same few words.

A kind turns an entry into keys, and keys into an opening that carries visitors. Whose
key is whose it never knows: that is mappings.py's one rule for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from tunnel.errors import AddressError, Code, TunnelError
from tunnel.front.ports import serve_port
from tunnel.front.udp import open_udp_port, serve_udp_port
from tunnel.link.datagrams import DatagramStream
from tunnel.link.virtual import VirtualStream
from tunnel.net.bind import is_in_use
from tunnel.net.listen import open_listener
from tunnel.proto.frames import Address, MappingType, NameTarget, Target, UdpTarget

if TYPE_CHECKING:
    from collections.abc import Container

    from tunnel.net.listen import PortListener
    from tunnel.proto.frames import MappingEntry

MAX_VISITORS: Final = 16_384
"""At once on one mapping: what a session carries."""

MAX_RANGE: Final = 1_000
"""Ports of one entry: each is a descriptor, and a task or more."""

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


class Endpoint(Protocol):
    """A mapping that is open."""

    @property
    def public(self) -> Address:
        """Where, as the client is told."""
        ...

    @property
    def note(self) -> str:
        """What else the client is told, as the reason of the answer."""
        ...

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        """Carry visitors to ``NameTarget(name)`` until closed and all have left."""
        ...

    def close(self) -> None:
        """Let nobody in from now on; those inside stay. A second time does nothing."""
        ...


class EndpointType(Protocol):
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

        It is asked anew behind each candidate, for it may have grown.

        Raises:
            TunnelError: it can never be given; ``code`` says why.
        """
        ...

    async def open(self, keys: tuple[Key, ...]) -> Endpoint:
        """Open one candidate.

        Raises:
            KeyInUse: of one of the keys, the first that was tried.
            AddressError: no other candidate will do either. Nothing is open then.
        """
        ...


class TcpPorts:
    """Public TCP ports: each visitor is one virtual TCP connection.

    Args:
        host: where an entry listens that names no host.
        ports: from which an entry gets one that names no port.
    """

    max_count = MAX_RANGE
    _type = MappingType.TCP

    def __init__(self, host: str, ports: range) -> None:
        self._host = host
        self._ports = ports

    @property
    def none_left(self) -> str:
        """See ``EndpointType``."""
        if not self._ports:
            return "this server chooses no port: name one"
        return f"every port from {self._ports[0]} to {self._ports[-1]} is taken"

    def host(self, entry: MappingEntry) -> str:
        """See ``EndpointType``."""
        return entry.host or self._host

    def candidates(
        self, entry: MappingEntry, taken: Container[Key]
    ) -> Iterator[tuple[Key, ...]]:
        """See ``EndpointType``."""
        host, count = self.host(entry), entry.count
        if entry.port:
            yield self._row(host, entry.port, count)
            return
        # Each port is looked at once, and rows are made only of free ones.
        free = 0
        for port in self._ports:
            free = 0 if Key(self._type, host, port) in taken else free + 1
            if free < count:
                continue
            row = self._row(host, port - count + 1, count)
            yield row
            # By now another program may be known to have one of them.
            free = next((at for at in range(count) if row[-1 - at] in taken), free)

    def _row(self, host: str, first: int, count: int) -> tuple[Key, ...]:
        return tuple(Key(self._type, host, first + at) for at in range(count))

    async def open(self, keys: tuple[Key, ...]) -> Endpoint:
        """See ``EndpointType``."""
        rows: list[list[PortListener]] = []
        try:
            for key in keys:
                with _named(key):
                    rows.append(await open_listener(key.host, key.port))
        except BaseException:
            _close_all(rows)
            raise
        return _TcpPorts(Address(keys[0].host, keys[0].port), rows)


class KeyInUse(AddressError):
    """Another program has the port of ``key``; another key may do."""

    def __init__(self, key: Key, error: AddressError) -> None:
        super().__init__(error.what, error.cause, error.fix, error.exit_status)
        self.key = key


@contextmanager
def _named(key: Key) -> Iterator[None]:
    """Say of which key it is that a port is in use."""
    try:
        yield
    except AddressError as error:
        if is_in_use(error):
            raise KeyInUse(key, error) from error.__cause__
        raise


def _close_all(rows: list[list[PortListener]]) -> None:
    for listeners in rows:
        for listener in listeners:
            listener.socket.close()


class _TcpPorts:
    """See ``Endpoint``. The visitor of each port is told from those of the others."""

    note = ""

    def __init__(self, public: Address, rows: list[list[PortListener]]) -> None:
        self.public = public
        self._rows = rows

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        async with trio.open_nursery() as nursery:
            for index, listeners in enumerate(self._rows):
                open_now = partial(open_target, NameTarget(name, index))
                serve_one = partial(
                    serve_port, listeners, open_now, max_visitors=MAX_VISITORS
                )
                nursery.start_soon(serve_one)

    def close(self) -> None:
        _close_all(self._rows)


class UdpPorts(TcpPorts):
    """Public UDP ports: each visitor is one UDP association.

    They are numbered apart from the TCP ports, so both may have the same.
    """

    _type = MappingType.UDP

    async def open(self, keys: tuple[Key, ...]) -> Endpoint:
        """See ``EndpointType``."""
        rows: list[list[trio.socket.SocketType]] = []
        opening = _UdpPorts(Address(keys[0].host, keys[0].port), rows)
        try:
            for key in keys:
                with _named(key):
                    rows.append(await open_udp_port(key.host, key.port))
        except BaseException:
            opening.close()
            raise
        return opening


class _UdpPorts:
    """See ``Endpoint``. The visitor of each port is told from those of the others."""

    note = ""

    def __init__(
        self, public: Address, rows: list[list[trio.socket.SocketType]]
    ) -> None:
        self.public = public
        self._rows = rows

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        def open_datagrams(index: int, visitor: Address) -> DatagramStream:
            return DatagramStream(open_target(UdpTarget(name, index), visitor))

        async with trio.open_nursery() as nursery:
            for index, sockets in enumerate(self._rows):
                open_now = partial(open_datagrams, index)
                nursery.start_soon(serve_udp_port, sockets, open_now)

    def close(self) -> None:
        for sockets in self._rows:
            for sock in sockets:
                sock.close()


class HostNames:
    """Names on the server's one HTTP or HTTPS port; the table of claims routes them.

    Args:
        type: ``HTTP`` or ``HTTPS``.
        port: the public one, for the answer.
        domain: completes names without a dot; None refuses those.
        note: see ``Endpoint``.
    """

    max_count = 1
    none_left = "there is no such name"

    def __init__(
        self,
        type: MappingType,  # noqa: A002 - as in Key
        port: int,
        domain: str | None,
        note: str = "",
    ) -> None:
        self._type = type
        self._note = note
        self._port = port
        self._domain = domain

    def host(self, entry: MappingEntry) -> str:
        """See ``EndpointType``."""
        name = entry.host.lower().removesuffix(".")
        if "." in name or not self._domain:
            return name
        return f"{name}.{self._domain}"

    def candidates(
        self, entry: MappingEntry, taken: Container[Key]
    ) -> Iterator[tuple[Key, ...]]:
        """See ``EndpointType``."""
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

    async def open(self, keys: tuple[Key, ...]) -> Endpoint:
        """See ``EndpointType``."""
        await trio.lowlevel.checkpoint()
        return _Name(Address(keys[0].host, self._port), self._note)


class Exits:
    """Clients that others may leave at: nobody visits them, CREATE names them."""

    max_count = 1
    none_left = ""  # there is always one candidate

    def host(self, entry: MappingEntry) -> str:
        """See ``EndpointType``."""
        return entry.host

    def candidates(
        self, entry: MappingEntry, taken: Container[Key]
    ) -> Iterator[tuple[Key, ...]]:
        """See ``EndpointType``."""
        del taken
        yield (exit_key(entry.host),)

    async def open(self, keys: tuple[Key, ...]) -> Endpoint:
        """See ``EndpointType``."""
        await trio.lowlevel.checkpoint()
        return _Name(Address(keys[0].host, 0))


def exit_key(name: str) -> Key:
    """Give the key of an exit."""
    return Key(MappingType.EXIT, name)


class _Name:
    """See ``Endpoint``: nothing is opened, the claim itself is what others look up."""

    def __init__(self, public: Address, note: str = "") -> None:
        self.public = public
        self.note = note
        self._closed = trio.Event()

    async def serve(self, name: str, open_target: OpenTarget) -> None:
        del name, open_target
        await self._closed.wait()

    def close(self) -> None:
        self._closed.set()
