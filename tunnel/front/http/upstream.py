"""A target's connection, which is kept for the requests of one visitor's connection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.errors import Code, StreamError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tunnel.front.http.server import Visit
    from tunnel.net.relay import ResettableStream

TURN_BYTES: Final = 262_144
"""Carried in one turn while neither side has to be waited for."""


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


def _code_of(error: trio.BrokenResourceError) -> Code:
    cause = error.__cause__
    return cause.code if isinstance(cause, StreamError) else Code.RESET
