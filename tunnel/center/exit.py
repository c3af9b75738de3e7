"""The far end of a virtual TCP connection: connect its target and join the two.

Both roles have this end: the center-client for reverse tunnels, the center-server for
what leaves through it. Each form of target has a function of its own here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from tunnel.access.target import connect
from tunnel.center.exit_udp import serve_association
from tunnel.errors import Code, StreamError
from tunnel.link.datagrams import DatagramStream
from tunnel.link.relay import relay
from tunnel.log import say
from tunnel.proto.frames import Address, TcpTarget, UdpTarget

if TYPE_CHECKING:
    from tunnel.center.publisher import Serve
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Target

Allow = Callable[[str, int], bool]
"""Say whether an IP address and port may be connected to."""

logger = logging.getLogger("tunnel.exit")


async def serve_exit(
    stream: VirtualStream, target: Target | None, allow: Allow
) -> None:
    """Serve an offer to its end, as the form of ``target`` wants it."""
    match target:
        case TcpTarget(address):
            await _serve_tcp(stream, address, allow)
        case UdpTarget(""):
            await serve_association(DatagramStream(stream), allow)
        case _:
            stream.reset(Code.UNSUPPORTED)


def exit_to(target: Target) -> Serve:
    """Serve visitors with a target that this side's own user named: it may be anywhere.

    For ``Publisher.publish``.
    """
    return partial(serve_exit, target=target, allow=_anywhere)


def udp_exit_to(target: Address) -> Serve:
    """Serve the visitors of a UDP mapping, as ``exit_to`` does those of others."""

    async def serve(stream: VirtualStream) -> None:
        await serve_association(DatagramStream(stream), _anywhere, target=target)

    return serve


def _anywhere(_ip: str, _port: int) -> bool:
    return True


async def _serve_tcp(stream: VirtualStream, target: Address, allow: Allow) -> None:
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
