"""A port whose every visitor gets one virtual TCP connection, in either direction.

The same for a public port of a mapping and for a local port that leads to the far side:
who owns the port and what is behind it is known to the function that opens.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from tunnel.errors import StreamError
from tunnel.log import log_event
from tunnel.net.listen import LOG, MAX_VISITORS, carry, serve
from tunnel.net.relay import ResettableStream, reset_socket
from tunnel.proto.frames import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from tunnel.net.sockets import FastSocket

OpenNow = Callable[[Address], ResettableStream]
"""Open for a visitor without waiting; raise StreamError to refuse at once. Bytes may be
sent before the far side has answered, and its refusal breaks the stream."""


async def serve_port(
    listeners: Sequence[trio.abc.Listener[FastSocket]],
    open_now: OpenNow,
    *,
    max_visitors: int = MAX_VISITORS,
) -> None:
    """Serve the visitors of one port until cancelled; closes the listeners."""
    handle = partial(handle_visitor, open_now=open_now)
    await serve(listeners, handle, max_visitors=max_visitors)


def handle_visitor(
    visitor: trio.abc.HalfCloseableStream,
    peer: Address,
    open_now: OpenNow,
) -> Awaitable[None]:
    """Carry one visitor to its end; owns the stream.

    Does not wait for the far side's answer: what the visitor says first travels with
    the CREATE. Whoever is refused gets a RST, as from a port where nobody listens.

    No coroutine itself: an idle visitor would wait in it too, and each is 400 bytes.
    """
    try:
        virtual = open_now(peer)
    except StreamError as error:
        log_event(LOG, logging.INFO, "visitor.refused", peer=str(peer),
            reason=error.code.name)  # fmt: skip
        return reset_socket(visitor)
    return carry(visitor, virtual, peer)
