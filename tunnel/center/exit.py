"""The far end of a virtual TCP connection: connect its target and join the two.

Both roles have this end: the center-client for reverse tunnels and as an exit, the
center-server for what leaves through it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from tunnel.access.target import connect, connect_unix
from tunnel.errors import Code, StreamError
from tunnel.link.relay import relay
from tunnel.log import say
from tunnel.proto.frames import Address, UnixPath

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import End

logger = logging.getLogger("tunnel.exit")


def anywhere(_ip: str, _port: int) -> bool:
    """Allow everything: for a target that this side's own user named."""
    return True


async def serve_exit(
    stream: VirtualStream,
    target: End,
    allow: Callable[[str, int], bool] = anywhere,
    *,
    header: bytes = b"",
) -> None:
    """Connect ``target``, tell the opener what came of it, and relay to the end.

    Nothing is accepted before the real connect; ``allow`` is asked about the very
    address that is dialled, for a unix path the caller has decided. ``header`` is what
    the target hears first. An opener who gives up ends the attempt.
    """
    local: trio.SocketStream | None = None
    with while_wanted(stream):
        try:
            if isinstance(target, UnixPath):
                local = await connect_unix(target)
            else:
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
    if header and not await _say_first(local, header):
        stream.reset(Code.RESET)
        return
    await relay(local, stream)


def while_wanted(stream: VirtualStream) -> trio.CancelScope:
    """Give a scope that ends when the opener gives up; end ``on_closed`` after it."""
    scope = trio.CancelScope()

    def gave_up(code: Code) -> None:
        if code is not Code.NORMAL:
            scope.cancel()

    stream.on_closed(gave_up)
    return scope


async def _say_first(local: trio.SocketStream, header: bytes) -> bool:
    """Send what comes before the visitor's bytes; say whether the target took it."""
    try:
        await local.send_all(header)
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(local)
        return False
    except BaseException:
        await trio.aclose_forcefully(local)
        raise
    return True


def bound_address(local: trio.SocketStream) -> Address | None:
    """Give our own end of a TCP connection, None if it is gone or there is none."""
    try:
        name = local.socket.getsockname()
    except OSError:
        return None
    if not isinstance(name, tuple):  # a unix socket
        return None
    host, port = name[:2]
    return Address(host.partition("%")[0], port)
