"""A public UDP port: each visitor, an address and a port, is one association.

Carries datagrams between the port and a function that opens associations; what is
behind that function it does not know. A UDP visitor never says goodbye, so silence
ends an association, and a newcomer ends the one that was silent longest.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.addresses import NOWHERE, Address, bare_ip
from tunnel.errors import StreamError
from tunnel.log import log_event
from tunnel.net.bind import bind_all
from tunnel.net.descriptors import DESCRIPTORS, Flows
from tunnel.net.listen import LOG
from tunnel.net.timeouts import TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ASSOCIATIONS: Final = 4_096
"""Visitors of one port at once: each is a task here, a number on the link and a socket
at the exit. The addresses of UDP visitors are easily forged, so it is a hard bound."""
ALL_ASSOCIATIONS: Final = 16_384
"""Visitors of all ports of the process at once, what a session carries, and not more
than ``SHARE`` of the descriptors: who is the exit for them has a socket for each."""
SHARE: Final = 1 / 2
MAX_DATAGRAM_BYTES: Final = 65_535
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Asked of the kernel for the port: a burst of a thousand datagrams waits there while
other tasks have their turn. The kernel may give less."""


class Datagrams(Protocol):
    """One association, as its opener has it."""

    def send(self, address: Address, payload: bytes) -> None:  # pragma: no cover
        """Send or drop; never waits."""
        ...

    async def receive(self) -> tuple[Address, bytes]:  # pragma: no cover
        """Wait for a datagram; ``trio.BrokenResourceError`` when it is over."""
        ...

    async def aclose(self) -> None:  # pragma: no cover
        """End it; harmless when it is over."""
        ...


_NUMERIC: Final = socket.AI_PASSIVE | socket.AI_NUMERICHOST

OpenDatagrams = Callable[[Address], Datagrams]
"""Open for a visitor without waiting; raise StreamError to refuse. What is sent before
the far side has answered waits for it."""


async def open_udp_port(host: str, port: int) -> list[trio.socket.SocketType]:
    """Bind a UDP port on every address of ``host``; the caller closes the sockets.

    Raises:
        AddressError: taken, not of this machine, or not allowed; nothing is open.
    """
    bound = await bind_all(host, port, socket.SOCK_DGRAM, _make_room)
    return [trio.socket.from_stdlib_socket(sock) for sock in bound]


def _make_room(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


async def serve_udp_port(
    sockets: Sequence[trio.socket.SocketType],
    open_datagrams: OpenDatagrams,
    *,
    max_associations: int = MAX_ASSOCIATIONS,
) -> None:
    """Serve the visitors of one UDP port until cancelled or until it is closed.

    Closes the sockets, and every association that it opened.
    """
    port = _Port(open_datagrams, max_associations)
    try:
        async with trio.open_nursery() as port.nursery:
            async with trio.open_nursery() as readers:
                for sock in sockets:
                    readers.start_soon(port.read, sock)
            port.nursery.cancel_scope.cancel()  # closed: nobody can be answered
    finally:
        for sock in sockets:
            sock.close()


_Source = tuple[str, int]


FLOWS: Final = Flows("udp.given_up")
"""Visitors of all ports, the one that was silent longest first."""


class _Association:
    """One visitor, and the task that carries what comes back to it."""

    __slots__ = ("_among", "_source", "answered", "datagrams", "scope")

    def __init__(
        self,
        datagrams: Datagrams,
        source: _Source,
        among: dict[_Source, _Association],
    ) -> None:
        self.datagrams = datagrams
        self.answered = False
        """Something came back: it is no stranger with a forged address."""
        self.scope = trio.CancelScope()
        self._source = source
        self._among = among

    def give_way(self) -> None:
        """See ``Flow``."""
        if self._among.get(self._source) is self:
            del self._among[self._source]
        self.scope.cancel()


class _Port:
    """The associations of one port, the one that was silent longest first."""

    nursery: trio.Nursery

    def __init__(self, open_datagrams: OpenDatagrams, most: int) -> None:
        self._open = open_datagrams
        self._most = most
        self._patience = TIMEOUTS.get()
        self._associations: dict[_Source, _Association] = {}
        self._refusing = False

    async def read(self, sock: trio.socket.SocketType) -> None:
        """Give every datagram to its visitor's association, until it is closed."""
        while sock.fileno() >= 0:
            try:
                payload, source = await sock.recvfrom(MAX_DATAGRAM_BYTES)
            except trio.ClosedResourceError:
                return
            except OSError:
                await trio.lowlevel.checkpoint()
                continue
            association = self._associations.get(source)
            if association is None:
                association = self._admit(sock, source)
            if association is not None:
                self._touch(source, association)
                association.datagrams.send(NOWHERE, payload)

    def _touch(self, source: _Source, association: _Association) -> None:
        self._associations.pop(source, None)
        self._associations[source] = association
        FLOWS.touch(association)
        idle_s = self._patience.udp_s(answered=association.answered)
        association.scope.deadline = trio.current_time() + idle_s

    def _admit(
        self, sock: trio.socket.SocketType, source: _Source
    ) -> _Association | None:
        visitor = visitor_of(source)
        try:
            datagrams = self._open(visitor)
        except StreamError as error:
            if not self._refusing:  # one line for each bad time: anybody can knock
                log_event(LOG, logging.INFO, "visitor.refused", peer=str(visitor),
                    reason=error.code.name)  # fmt: skip
            self._refusing = True
            return None
        self._refusing = False
        while len(self._associations) >= self._most:
            oldest = self._associations[next(iter(self._associations))]
            FLOWS.drop(oldest)
            oldest.give_way()
        association = _Association(datagrams, source, self._associations)
        FLOWS.add(association, DESCRIPTORS.share(SHARE, ALL_ASSOCIATIONS))
        self.nursery.start_soon(self._answer, sock, source, association)
        return association

    async def _answer(
        self,
        sock: trio.socket.SocketType,
        source: _Source,
        association: _Association,
    ) -> None:
        """Carry the answers to one visitor, until silence or the far side's end."""
        datagrams = association.datagrams
        try:
            with association.scope:
                while True:
                    _, payload = await datagrams.receive()
                    self._touch_answered(source, association)
                    await _send(sock, source, payload)
        except trio.BrokenResourceError:
            pass  # refused or ended there: the next datagram opens anew
        finally:
            FLOWS.drop(association)
            if self._associations.get(source) is association:
                del self._associations[source]
            with trio.CancelScope(shield=True):
                await datagrams.aclose()

    def _touch_answered(self, source: _Source, association: _Association) -> None:
        """An answer counts as life, unless a newcomer has its place by now."""
        if self._associations.get(source) is association:
            association.answered = True
            self._touch(source, association)


async def _send(sock: trio.socket.SocketType, source: _Source, payload: bytes) -> None:
    try:
        await sock.sendto(payload, source)
    except OSError:
        return  # too large for the way, or no way: UDP loses it


def visitor_of(source: _Source) -> Address:
    """Return the sender of a datagram, as a visitor is known by."""
    return Address(bare_ip(source[0]), source[1])
