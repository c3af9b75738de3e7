"""Where a center-server listens, and how that changes while it runs.

What is to be listened on is opened before anything is closed: who comes in meanwhile
finds an open port, and who is in stays.
"""

from __future__ import annotations

import logging
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from itertools import chain
from typing import TYPE_CHECKING

import trio

from tunnel.addresses import Address
from tunnel.errors import AddressError
from tunnel.log import log_event
from tunnel.net.bind import is_in_use
from tunnel.net.handed import Handed
from tunnel.net.listen import open_listener

if TYPE_CHECKING:
    import socket

    from tunnel.net.given import Given
    from tunnel.net.listen import PortListener
    from tunnel.net.sockets import FastSocket

logger = logging.getLogger("tunnel.server")

Serve = Callable[["Sequence[trio.abc.Listener[FastSocket]]"], Awaitable[None]]
"""Serves who comes in until its listeners are closed and all have left."""


class Listening:
    """One address that is listened on, or none; ``serve`` gets who comes in."""

    def __init__(self, serve: Serve) -> None:
        self.where: Address | None = None
        """As it was asked for."""
        self.address: Address | None = None
        """With its real port."""
        self._serve = serve
        self._listeners: list[PortListener] = []
        self._left = trio.Event()
        """Set when all have left, after it has stopped listening."""
        self.handed: Handed | None = None
        """Takes who came to another process, while this one listens."""
        self._start: Callable[[list[PortListener]], None] | None = None

    def run(self, nursery: trio.Nursery) -> None:
        """Serve in this nursery from now on, also what is listened on later."""

        def start(listeners: list[PortListener]) -> None:
            if listeners:
                self.handed, self._left = Handed(), trio.Event()
                served = [*listeners, self.handed]
                nursery.start_soon(self._serve_all, served, self._left)

        start(self._listeners)
        self._start = start

    def take(self, place: Place) -> None:
        """Listen there and nowhere else, without a checkpoint; who is in stays."""
        self.close()
        self.where, self._listeners, self.address = place
        if self._start is not None:
            self._start(self._listeners)

    async def _serve_all(
        self, listeners: Sequence[trio.abc.Listener[FastSocket]], left: trio.Event
    ) -> None:
        await self._serve(listeners)
        left.set()

    def leave(self) -> None:
        """Stop listening, without a checkpoint; who has come is served still."""
        if self.handed is not None:
            for visitor in chain(*(one.pending() for one in self._listeners)):
                self.handed.give(visitor)
            self.handed.finish()
        close_all(self._listeners)

    async def wait_left(self) -> None:
        """Wait until all have left who have come, if somebody could."""
        if self.handed is not None:
            await self._left.wait()

    @property
    def count(self) -> int:
        """How many sockets are listened on."""
        return len(self._listeners)

    def copies(self) -> list[socket.socket]:
        """Return copies of the sockets that are listened on; the caller owns them."""
        return [one.copy() for one in self._listeners]

    def pause(self) -> None:
        """Stop listening until the next ``take``, without a checkpoint."""
        close_all(self._listeners)
        if self.handed is not None:
            self.handed.close()

    def close(self) -> None:
        """Listen nowhere, without a checkpoint."""
        self.pause()
        self.where, self._listeners, self.address = NOWHERE


class Entrances:
    """The addresses that are listened on for one purpose; each is served alike."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._open: list[Listening] = []
        self._next: list[Listening] = []
        self._nursery: trio.Nursery | None = None

    def __iter__(self) -> Iterator[Listening]:
        return iter(self._open)

    @property
    def addresses(self) -> list[Address]:
        """Where they are, with their real ports, in the order they were asked for."""
        return [one.address for one in self._open if one.address is not None]

    def places(self, wanted: Iterable[Address]) -> dict[Listening, Address | None]:
        """Return what is to be listened on, and no more, for ``open_places``.

        What is listened on already stays; call ``take`` after ``take_places``.
        """
        had, places = list(self._open), {}
        for where in wanted:
            one = next((one for one in had if one.where == where), None)
            if one is None:
                one = Listening(self._serve)
            else:
                had.remove(one)
            places[one] = where
        self._next = list(places)
        return places | dict.fromkeys(had)

    def take(self) -> None:
        """Have those that ``places`` has named; serve the new ones."""
        before, self._open = self._open, self._next
        if self._nursery is not None:
            for one in self._open:
                if one not in before:
                    one.run(self._nursery)

    def run(self, nursery: trio.Nursery) -> None:
        """Serve in this nursery from now on, also what is listened on later."""
        self._nursery = nursery
        for one in self._open:
            one.run(nursery)


Place = tuple[Address | None, "list[PortListener]", Address | None]
"""What was asked for, what is open there, and its address with the real port."""
NOWHERE: Place = (None, [], None)


async def open_places(
    wanted: Mapping[Listening, Address | None], given: Given
) -> dict[Listening, Place]:
    """Open what is to be listened on instead, for ``take_places``.

    What stays where it is is left out. Only a port that one of ``wanted`` has itself,
    on another address or for another purpose, is closed before it is opened again.

    What was ``given`` is taken, and not opened.

    Raises:
        AddressError: also for a given socket that is wanted nowhere. Nothing has
            changed. Nor has it where this is cancelled.
    """
    given.check(wanted.values())
    moves = {one: to for one, to in wanted.items() if one.where != to}
    opened: dict[Listening, Place] = {}
    freed: dict[Listening, Address] = {}
    try:
        for one, to in moves.items():
            opened[one] = await _open(to, moves, freed, given)
    except BaseException:
        for _where, listeners, _address in opened.values():
            close_all(listeners)
        with trio.CancelScope(shield=True):  # whoever does not wait for it
            for one, was in freed.items():
                await _again(one, was, given)
        raise
    return opened


async def _again(one: Listening, was: Address, given: Given) -> None:
    """Listen where it was; nowhere, if another program was faster."""
    try:
        listeners, address = await listen_on(was, given)
    except AddressError as error:
        one.close()  # the next change opens it
        log_event(logger, logging.ERROR, "listening.lost", address=str(was),
            reason=str(error))  # fmt: skip
    else:
        one.take((one.where, listeners, address))


def take_places(opened: Mapping[Listening, Place]) -> None:
    """Listen there instead, without a checkpoint."""
    for one, place in opened.items():
        one.take(place)


async def _open(
    where: Address | None,
    moves: Mapping[Listening, Address | None],
    freed: dict[Listening, Address],
    given: Given,
) -> Place:
    """Open one place; what of ours stands in its way is closed, and noted."""
    if where is None:
        return NOWHERE
    try:
        return (where, *await listen_on(where, given))
    except AddressError as error:
        ours = {
            one: one.address
            for one in moves
            if one.address is not None and one.address.port == where.port
        }
        if not is_in_use(error) or not ours:
            raise
        for one, address in ours.items():
            freed[one] = address
            one.pause()
        return (where, *await listen_on(where, given))


async def listen_on(where: Address, given: Given) -> tuple[list[PortListener], Address]:
    """Listen as ``open_listener`` does; return also the address with its real port."""
    listeners = await given.listeners(where)
    if not listeners:
        listeners = await open_listener(where.host, where.port)
    port = listeners[0].socket.getsockname()[1]
    return listeners, Address(where.host, port)


def close_all(listeners: list[PortListener]) -> None:
    """Stop listening, without a checkpoint."""
    for listener in listeners:
        listener.close()
