"""Offers: streams that the peer opens, begun in its order and served side by side."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tunnel.errors import Code
from tunnel.log import log_event
from tunnel.net.in_order import InOrder, begun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.mux import MuxCore

    ServeOffer = Callable[[VirtualStream], Awaitable[None]]

logger = logging.getLogger("tunnel.session")


class Offers:
    """Serves each offered stream in a task of its own.

    Args:
        core: is told when a task is over.
        serve: called for each stream, in the peer's order; it must not wait. What it
            returns is awaited in the stream's task.
    """

    def __init__(self, core: MuxCore, serve: ServeOffer) -> None:
        self._core = core
        self._serve = serve
        self._in_order: InOrder[VirtualStream, Awaitable[None]] = InOrder()

    def start(self, stream: VirtualStream, nursery: trio.Nursery) -> None:
        """Start a task that serves ``stream`` to its end."""
        self._in_order.add(stream)
        nursery.start_soon(self._supervise, stream)

    def let_go(self) -> None:
        """Forget what serves: nothing more is offered."""
        self._serve = _refuse

    async def _supervise(self, stream: VirtualStream) -> None:
        """Serve one stream: its failure ends nothing else."""
        try:
            await self._in_order.take(stream, self._begin)
        except Exception as error:
            log_event(logger, logging.ERROR, "stream.failed", exc_info=error,
                sock_map=stream.conn.sock_map)  # fmt: skip
            stream.reset(Code.INTERNAL)
        finally:
            stream.reset(Code.RESET)
            self._core.released(stream.conn)

    def _begin(self, stream: VirtualStream) -> Awaitable[None]:
        return begun(self._serve, stream)


async def _refuse(stream: VirtualStream) -> None:
    """Serve what comes after the end."""
    stream.reset(Code.LINK_LOST)
