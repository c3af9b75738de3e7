"""A public UDP port: each visitor, an address and a port, has one association.

Datagrams are carried between the port and what a given function opens. A UDP visitor
never says goodbye, so silence ends an association, and a newcomer ends the one that was
silent longest. No visitor has a task: one reads the port, one ends what is silent.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import NOWHERE, Address, bare_ip
from tunnel.errors import StreamError
from tunnel.front.dialer import Association
from tunnel.log import log_event
from tunnel.net.access_log import say_served, wanted
from tunnel.net.bind import bind_all
from tunnel.net.datagrams import (
    DatagramSocket,
    Source,
    make_room,
    read_turn,
    when_readable,
)
from tunnel.net.descriptors import DESCRIPTORS, Flows
from tunnel.net.listen import LOG
from tunnel.net.notify import Notify
from tunnel.net.timeouts import TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ASSOCIATIONS: Final = 4_096
"""Visitors of one port at once: each is a number on the link and a socket at the exit.
The addresses of UDP visitors are easily forged, so the bound is hard."""
ALL_ASSOCIATIONS: Final = 16_384
"""Visitors of all ports of the process at once: as many as a session carries, and not
more than ``SHARE`` of the descriptors, for the exit has a socket for each."""
SHARE: Final = 1 / 2
OpenAssociation = Callable[[Address], Association]
"""Open for a visitor without waiting; raise StreamError to refuse. What is sent before
the far side has answered waits for it."""


async def open_udp_port(host: str, port: int) -> list[DatagramSocket]:
    """Bind a UDP port on every address of ``host``; the caller closes the sockets.

    Raises:
        AddressError: taken, not of this machine, or not allowed; nothing is open.
    """
    bound = await bind_all(host, port, socket.SOCK_DGRAM, make_room)
    return [DatagramSocket.of(sock) for sock in bound]


async def serve_udp_port(
    sockets: Sequence[DatagramSocket],
    open_association: OpenAssociation,
    *,
    max_associations: int = MAX_ASSOCIATIONS,
) -> None:
    """Serve the visitors of one UDP port until cancelled, or until it is closed.

    Closes the sockets, and every association that it opened.
    """
    port = _Port(open_association, max_associations)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(port.watch)
            async with trio.open_nursery() as readers:
                for sock in sockets:
                    turn = partial(port.read, sock)
                    readers.start_soon(when_readable, sock, turn)
            nursery.cancel_scope.cancel()  # closed: no answer can be sent
    finally:
        port.close()
        for sock in sockets:
            sock.close()


FLOWS: Final = Flows("udp.given_up")
"""Visitors of all ports, the one that was silent longest first."""


class _Visitor:
    """One visitor; what comes back to it is sent as it comes."""

    __slots__ = (
        "_port",
        "_send",
        "answered",
        "association",
        "began",
        "seen",
        "source",
    )

    def __init__(
        self,
        port: _Port,
        sock: DatagramSocket,
        source: Source,
        association: Association,
    ) -> None:
        self._port = port
        self._send = sock.sendto
        self.association = association
        self.source = source
        self.answered = False
        """Something came back, so its address is not forged."""
        self.began = time.monotonic()
        self.seen = 0.0
        """When the last datagram passed, either way."""

    def take(self, _whence: Address, payload: bytes) -> bool:
        """Send an answer, which is life; False if the kernel does not take it."""
        self.answered = True
        self._port.touch(self, trio.current_time())
        try:
            self._send(payload, self.source)
        except OSError:  # too large, no route, or no room: UDP loses it
            return False
        return True

    def give_way(self) -> None:
        """Leave at once; the next datagram opens anew. See ``Flow``."""
        self._port.leave(self)


class _Port:
    """The visitors of one port, the one that was silent longest first."""

    def __init__(self, open_association: OpenAssociation, most: int) -> None:
        self._open = open_association
        self._most = most
        self._timeouts = TIMEOUTS.get()
        self._visitors: dict[Source, _Visitor] = {}
        self._left: list[_Visitor] = []
        """Their lines in the access log are to be written."""
        self._news = Notify()
        self._look_at = math.inf
        """When ``watch`` looks for silence next."""
        self._refusing = False

    def read(self, sock: DatagramSocket) -> None:
        """Pass what has come to the associations of its senders; send it at once."""
        now = trio.current_time()
        visitor: _Visitor | None = None

        def take(payload: bytes, source: Source) -> None:
            nonlocal visitor
            known = self._visitors.get(source) or self._admit(sock, source, now)
            if known is not None:
                visitor = known
                self.touch(known, now)
                known.association.put(NOWHERE, payload)

        read_turn(sock, take)
        if visitor is not None:
            visitor.association.flush()

    def touch(self, visitor: _Visitor, now: float) -> None:
        """Note a datagram: the visitor is the last of those that are silent."""
        visitor.seen = now
        del self._visitors[visitor.source]
        self._visitors[visitor.source] = visitor
        FLOWS.touch(visitor)

    def _admit(
        self, sock: DatagramSocket, source: Source, now: float
    ) -> _Visitor | None:
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
            self.leave(self._visitors[next(iter(self._visitors))])
        visitor = _Visitor(self, sock, source, association)
        FLOWS.add(visitor, DESCRIPTORS.share(SHARE, ALL_ASSOCIATIONS))
        self._visitors[source] = visitor
        association.deliver_to(visitor.take, visitor.give_way)
        if self._visitors.get(source) is not visitor:
            return None  # it was over at once
        if now + self._timeouts.udp_s(answered=False) < self._look_at:
            self._news.ring()
        return visitor

    def leave(self, visitor: _Visitor) -> None:
        """End the association of one that is in."""
        if self._visitors.get(visitor.source) is not visitor:
            return
        del self._visitors[visitor.source]
        FLOWS.drop(visitor)
        visitor.association.close()
        if wanted():  # by the port's own task, which knows the entry
            self._left.append(visitor)
            self._news.ring()

    async def watch(self) -> None:
        """End those that are silent too long, and say who has left; until cancelled."""
        while True:
            self._look_at = self._end_silent(trio.current_time())
            self._say_left()
            with trio.move_on_at(self._look_at):
                await self._news.wait()

    def _end_silent(self, now: float) -> float:
        """End those that are silent too long; return when the next one will be."""
        over: list[_Visitor] = []
        next_at, shortest_s = math.inf, self._timeouts.udp_s(answered=False)
        for visitor in self._visitors.values():
            if visitor.seen + shortest_s >= next_at:
                break  # and so it is with all behind it
            until = visitor.seen + self._timeouts.udp_s(answered=visitor.answered)
            if until <= now:
                over.append(visitor)
            else:
                next_at = min(next_at, until)
        for visitor in over:
            self.leave(visitor)
        return next_at

    def _say_left(self) -> None:
        left, self._left = self._left, []
        for visitor in left:
            say_flow(visitor.began, visitor.association, visitor_of(visitor.source))

    def close(self) -> None:
        """End all associations."""
        for visitor in tuple(self._visitors.values()):
            self.leave(visitor)
        self._say_left()


def say_flow(began: float, association: Association, peer: Address | None) -> None:
    """Write the line of the access log about a flow of datagrams that is over."""
    stream = getattr(association, "stream", None)
    say_served(time.monotonic() - began, stream, peer=peer, passed=association.passed)


def visitor_of(source: Source) -> Address:
    """Return the sender of a datagram, as a visitor is known by."""
    return Address(bare_ip(source[0]), source[1])
