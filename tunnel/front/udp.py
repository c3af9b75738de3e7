"""A public UDP port: each visitor, an address and a port, has one association.

Datagrams are carried between the port and what a given function opens. A UDP visitor
never says goodbye, so silence ends an association, and a newcomer ends the one that was
silent longest.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import NOWHERE, Address, bare_ip
from tunnel.errors import StreamError
from tunnel.front.dialer import Association
from tunnel.log import log_event
from tunnel.net.access_log import say_served, wanted
from tunnel.net.bind import bind_all
from tunnel.net.descriptors import DESCRIPTORS, Flows
from tunnel.net.listen import LOG
from tunnel.net.timeouts import TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ASSOCIATIONS: Final = 4_096
"""Visitors of one port at once: each is a task here, a number on the link and a socket
at the exit. The addresses of UDP visitors are easily forged, so the bound is hard."""
ALL_ASSOCIATIONS: Final = 16_384
"""Visitors of all ports of the process at once: as many as a session carries, and not
more than ``SHARE`` of the descriptors, for the exit has a socket for each."""
SHARE: Final = 1 / 2
MAX_DATAGRAM_BYTES: Final = 65_535
"""More than UDP can carry: nothing is ever cut short."""
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Asked of the kernel for the port: a burst of a thousand datagrams waits there while
other tasks have their turn. The kernel may give less."""

OpenAssociation = Callable[[Address], Association]
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
    open_association: OpenAssociation,
    *,
    max_associations: int = MAX_ASSOCIATIONS,
) -> None:
    """Serve the visitors of one UDP port until cancelled, or until it is closed.

    Closes the sockets, and every association that it opened.
    """
    port = _Port(open_association, max_associations)
    try:
        async with trio.open_nursery() as port.nursery:
            async with trio.open_nursery() as readers:
                for sock in sockets:
                    readers.start_soon(port.read, sock)
            port.nursery.cancel_scope.cancel()  # closed: no answer can be sent
    finally:
        for sock in sockets:
            sock.close()


_Source = tuple[str, int]

FLOWS: Final = Flows("udp.given_up")
"""Visitors of all ports, the one that was silent longest first."""


class _Visitor:
    """One visitor, and the task that carries what comes back to it."""

    __slots__ = ("_among", "_source", "answered", "association", "scope")

    def __init__(
        self,
        association: Association,
        source: _Source,
        among: dict[_Source, _Visitor],
    ) -> None:
        self.association = association
        self.answered = False
        """Something came back, so its address is not forged."""
        self.scope = trio.CancelScope()
        self._source = source
        self._among = among

    def give_way(self) -> None:
        """Give the descriptors up at once, as ``Flow`` says."""
        if self._among.get(self._source) is self:
            del self._among[self._source]
        self.scope.cancel()


class _Port:
    """The visitors of one port, the one that was silent longest first."""

    nursery: trio.Nursery

    def __init__(self, open_association: OpenAssociation, most: int) -> None:
        self._open = open_association
        self._most = most
        self._timeouts = TIMEOUTS.get()
        self._visitors: dict[_Source, _Visitor] = {}
        self._refusing = False

    async def read(self, sock: trio.socket.SocketType) -> None:
        """Pass every datagram to the association of its sender, until ``sock`` ends."""
        while sock.fileno() >= 0:
            try:
                payload, source = await sock.recvfrom(MAX_DATAGRAM_BYTES)
            except trio.ClosedResourceError:
                return
            except OSError:
                await trio.lowlevel.checkpoint()
                continue
            visitor = self._visitors.get(source)
            visitor = visitor or self._admit(sock, source)
            if visitor is not None:
                self._touch(source, visitor)
                visitor.association.send(NOWHERE, payload)

    def _touch(self, source: _Source, visitor: _Visitor) -> None:
        """Move a visitor to the end of those that are silent, and its deadline away."""
        self._visitors.pop(source, None)
        self._visitors[source] = visitor
        FLOWS.touch(visitor)
        idle_s = self._timeouts.udp_s(answered=visitor.answered)
        visitor.scope.deadline = trio.current_time() + idle_s

    def _admit(self, sock: trio.socket.SocketType, source: _Source) -> _Visitor | None:
        address = visitor_of(source)
        try:
            association = self._open(address)
        except StreamError as error:
            if not self._refusing:  # one line for each bad period: anybody can knock
                log_event(LOG, logging.INFO, "visitor.refused", peer=str(address),
                    reason=error.code.name)  # fmt: skip
            self._refusing = True
            return None
        self._refusing = False
        while len(self._visitors) >= self._most:
            oldest = self._visitors[next(iter(self._visitors))]
            FLOWS.drop(oldest)
            oldest.give_way()
        visitor = _Visitor(association, source, self._visitors)
        FLOWS.add(visitor, DESCRIPTORS.share(SHARE, ALL_ASSOCIATIONS))
        self.nursery.start_soon(self._answer, sock, source, visitor)
        return visitor

    async def _answer(
        self, sock: trio.socket.SocketType, source: _Source, visitor: _Visitor
    ) -> None:
        """Carry the answers to one visitor, until silence or the far side's end."""
        association, began = visitor.association, time.monotonic()
        try:
            with visitor.scope:
                while True:
                    _, payload = await association.receive()
                    # An answer counts as life, unless a newcomer has the place by now.
                    if self._visitors.get(source) is visitor:
                        visitor.answered = True
                        self._touch(source, visitor)
                    with suppress(OSError):  # too large, or no route: UDP loses it
                        await sock.sendto(payload, source)
        except trio.BrokenResourceError:
            pass  # refused or ended there: the next datagram opens anew
        finally:
            FLOWS.drop(visitor)
            visitor.give_way()
            with trio.CancelScope(shield=True):
                await association.aclose()
            if wanted():
                say_flow(began, association, visitor_of(source))


def say_flow(began: float, association: Association, peer: Address | None) -> None:
    """Write the line of the access log about a flow of datagrams that is over."""
    stream = getattr(association, "stream", None)
    say_served(time.monotonic() - began, stream, peer=peer, passed=association.passed)


def visitor_of(source: _Source) -> Address:
    """Return the sender of a datagram, as a visitor is known by."""
    return Address(bare_ip(source[0]), source[1])
