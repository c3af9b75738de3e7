"""A target's connection, which is kept for the requests of one visitor's connection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.errors import Code, StreamError
from tunnel.net.sockets import quick

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tunnel.front.http.bodies import BodyReader
    from tunnel.front.http.server import Visit
    from tunnel.net.relay import ResettableStream
    from tunnel.net.virtual_connection import Sink

TURN_BYTES: Final = 262_144
"""Carried in one turn while neither side has to be waited for."""


MAX_KEPT: Final = 256
"""Targets' connections of a process that may wait for a next request: each costs 5 KB
here, and a descriptor at the client and at the target. More may be in use."""
_TRIED: Final = 8
"""Connections that are looked at for one to be given up: most of them wait."""


class Listener(Protocol):
    """Who waits for an answer: an ``Exchange``."""

    switched: bool

    async def hear(self, data: bytes) -> None:  # pragma: no cover
        """Take what the target says."""
        ...

    async def hear_end(self) -> None:  # pragma: no cover
        """Take the end of what the target says."""
        ...

    def broke(self, code: Code) -> None:  # pragma: no cover
        """Take that the target's connection is no more."""
        ...


class Upstream:
    """A connection to a target, for one visitor's connection alone.

    Args:
        visit: the visitor.
        virtual: the connection; owned.
        key: what it may be used again for.
    """

    __slots__ = (
        "_visit",
        "exchange",
        "idle_until",
        "is_over",
        "key",
        "virtual",
    )

    def __init__(self, visit: Visit, virtual: ResettableStream, key: Hashable) -> None:
        self.virtual = virtual
        self.key = key
        self.exchange: Listener | None = None
        """What is being answered."""
        self.idle_until = math.inf
        self.is_over = False
        """It was closed, or has broken."""
        self._visit = visit

    def drop(self) -> None:
        """Close it, or reset it if something was under way."""
        if not self.is_over:
            self.is_over = True
            exchange, self.exchange = self.exchange, None  # they held each other
            if exchange is None:
                self.virtual.close()
            else:
                self.virtual.reset(Code.RESET)

    async def carry(self) -> None:
        """Bring the answers, until it is over or has left HTTP."""
        carried = 0
        _keep(self)
        try:
            while not self.is_over:
                piece = await self.virtual.receive_piece()
                exchange = self.exchange
                if exchange is None:  # its end, or bytes that nobody asked for
                    self.drop()
                    self._visit.poke()
                elif not piece:
                    await exchange.hear_end()
                    return
                else:
                    carried += len(piece)
                    await exchange.hear(bytes(piece))
                    if exchange.switched:
                        return
                    if carried >= TURN_BYTES:
                        carried = 0
                        await trio.lowlevel.checkpoint()
                del piece, exchange  # until the next answer, they would be held here
        except trio.ClosedResourceError:
            pass  # dropped by the visitor's task
        except trio.BrokenResourceError as error:
            self.is_over = True
            if self.exchange is not None:
                self.exchange.broke(_code_of(error))
            else:
                self._visit.poke()
        finally:
            _kept().pop(self, None)

    def expire(self) -> bool:
        """Have the visitor's task close it now, unless a request is under way."""
        if self.idle_until == math.inf:
            return False
        self.idle_until = -math.inf
        self._visit.poke()
        return True


_KEPT: Final = trio.lowlevel.RunVar[dict[Upstream, None]]("kept")


def _kept() -> dict[Upstream, None]:
    try:
        return _KEPT.get()
    except LookupError:
        kept: dict[Upstream, None] = {}
        _KEPT.set(kept)
        return kept


def _keep(upstream: Upstream) -> None:
    """Count a connection that was opened; give up one that waits if they are many."""
    kept = _kept()
    kept[upstream] = None
    for _ in range(_TRIED if len(kept) > MAX_KEPT else 0):
        oldest = next(iter(kept))
        del kept[oldest]
        if oldest.expire():
            break
        kept[oldest] = None


def _code_of(error: trio.BrokenResourceError) -> Code:
    cause = error.__cause__
    return cause.code if isinstance(cause, StreamError) else Code.RESET


def sink_of(visit: Visit, body: BodyReader) -> Sink:
    """Return what passes on the middle of a body of known size as it comes.

    A turn of the carrier for each piece would cost as much as copying it. The first
    piece, the last, and what the visitor's socket does not take at once are the
    carrier's; while it has something, nothing comes here.
    """
    write_now, observer = quick(visit.stream).write_now, visit.observer

    def take(pieces: list[bytes | memoryview], size: int) -> int:
        if size > body.certain:
            return 0
        taken = write_now(*pieces)
        if observer is not None:
            observer.sank(pieces, taken)
        body.skip(taken)
        visit.moved()
        return taken

    return take
