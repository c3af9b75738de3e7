"""A TCP port whose visitors get one virtual TCP connection each.

It may be the public port of a mapping, or a local port that leads to the far side: only
the function that opens knows the owner of the port and its target.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from tunnel.addresses import Address
from tunnel.errors import StreamError
from tunnel.log import log_event
from tunnel.net.carry import carry
from tunnel.net.listen import LOG, MAX_VISITORS, serve
from tunnel.net.relay import ResettableStream, reset_socket

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from tunnel.net.sockets import FastSocket

OpenNow = Callable[[Address], ResettableStream]
"""Open for a visitor without waiting; raise StreamError to refuse it. Bytes may be sent
before the far side has answered, whose refusal breaks the stream."""


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
    visitor: trio.abc.HalfCloseableStream, peer: Address, open_now: OpenNow
) -> Awaitable[None]:
    """Carry one visitor to its end; owns the stream.

    The far side's answer is not waited for: what the visitor says first travels with
    the CREATE. A visitor that is refused gets a RST, as from a port that is closed.

    No coroutine itself: an idle visitor would wait in it too, and each is 400 bytes.
    """
    try:
        virtual = open_now(peer)
    except StreamError as error:
        log_event(LOG, logging.INFO, "visitor.refused", peer=str(peer),
            reason=error.code.name)  # fmt: skip
        return reset_socket(visitor)
    return carry(visitor, virtual, peer)
