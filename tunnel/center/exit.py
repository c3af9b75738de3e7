"""The far end of a virtual TCP connection: connect its target and join the two.

Both roles have this end: the center-client for reverse tunnels, the center-server for
what leaves through it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from tunnel.access.target import connect
from tunnel.errors import Code, StreamError
from tunnel.link.relay import relay
from tunnel.log import say
from tunnel.proto.frames import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.link.virtual import VirtualStream

logger = logging.getLogger("tunnel.exit")


async def serve_exit(
    stream: VirtualStream, target: Address, allow: Callable[[str, int], bool]
) -> None:
    """Connect ``target``, tell the opener what came of it, and relay to the end.

    Nothing is accepted before the real connect; ``allow`` is asked about the very
    address that is dialled. An opener who gives up ends the attempt.
    """
    local: trio.SocketStream | None = None
    with trio.CancelScope() as scope:

        def gave_up(code: Code) -> None:
            if code is not Code.NORMAL:
                scope.cancel()

        stream.on_closed(gave_up)
        try:
            local = await connect(target, allow=allow)
        except StreamError as error:
            say(logger, logging.INFO, "exit.refused", target=str(target),
                code=error.code.name, reason=error.what)  # fmt: skip
            stream.reset(error.code, error.what)
            return
    stream.on_closed(None)
    if local is None:
        stream.reset(Code.RESET)
        return
    stream.accept(bound_address(local))
    await relay(local, stream)


def bound_address(local: trio.SocketStream) -> Address | None:
    """Give our own end of a TCP connection, None if it is gone already."""
    try:
        host, port = local.socket.getsockname()[:2]
    except OSError:
        return None
    return Address(host.partition("%")[0], port)
