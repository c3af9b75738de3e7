"""The far end of a virtual TCP connection: connect its target and join the two.

Both roles have this end: the center-client for reverse tunnels and as an exit, the
center-server for what leaves through it. Each form of target has a function of its own
here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from tunnel.access.target import connect, connect_unix
from tunnel.center.exit_udp import serve_association
from tunnel.errors import Code, StreamError
from tunnel.link.datagrams import DatagramStream
from tunnel.link.relay import relay
from tunnel.link.sockets import QuickSocket
from tunnel.log import say
from tunnel.proto.frames import (
    Address,
    NameTarget,
    TcpTarget,
    UdpTarget,
    UnixPath,
)
from tunnel.proto.proxy_header import encode_proxy_header

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tunnel.access.target import Within
    from tunnel.center.publisher import Serve
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Target
    from tunnel.proto.proxy_header import ProxyVersion

Allow = Callable[[str, int], bool]
"""Say whether an IP address and port may be connected to."""
AllowUnix = Callable[[str], bool]
"""Say whether a unix socket may be connected to."""

logger = logging.getLogger("tunnel.exit")


def _no_path(_path: str) -> bool:
    return False


def serve_exit(
    stream: VirtualStream,
    target: Target | None,
    allow: Allow,
    allow_unix: AllowUnix = _no_path,
    *,
    header: bytes = b"",
) -> Awaitable[None]:
    """Serve an offer to its end, as the form of ``target`` wants it.

    ``header`` is what the target hears before the first byte of its visitor. No
    coroutine itself, as the others that only choose: an idle connection waits in each
    one on the way, and each is 400 bytes.
    """
    match target:
        case TcpTarget(address):
            return _serve(
                stream,
                target,
                lambda within: connect(address, allow=allow, within=within),
                header,
            )
        case UnixPath(path) if not allow_unix(path):
            why = f"{target} may not be reached from here"
            return refuse(stream, Code.NOT_ALLOWED, why)
        case UnixPath():
            return _serve(
                stream,
                target,
                lambda within: connect_unix(target, within=within),
                header,
            )
        case UdpTarget(""):
            return serve_association(DatagramStream(stream), allow)
        case _:
            return refuse(stream, Code.UNSUPPORTED)


async def refuse(stream: VirtualStream, code: Code, reason: str = "") -> None:
    """Serve an offer by telling the peer why not."""
    stream.reset(code, reason)


def exit_to(
    target: TcpTarget | UnixPath,
    *,
    count: int = 1,
    proxy: ProxyVersion | None = None,
    public: Callable[[str], Address | None] = lambda _name: None,
) -> Serve:
    """Serve visitors with a target that this side's own user named: it may be anywhere.

    For ``Publisher.publish``.

    Args:
        target: of the first port.
        count: ports of the mapping; the target of each is as far from the first.
        proxy: which PROXY header the target hears first, if any.
        public: gives where a mapping is open, for that header.
    """

    def serve(stream: VirtualStream) -> Awaitable[None]:
        create = stream.create
        asked = create.target if create else None
        if create is None or not isinstance(asked, NameTarget) or asked.index >= count:
            return refuse(stream, Code.NO_MAPPING)
        header = b""
        if proxy is not None:
            came_to = _in_row(public(asked.name), asked.index)
            header = encode_proxy_header(proxy, create.visitor, came_to)
        here: Target = target
        if isinstance(target, TcpTarget) and asked.index:
            port = target.address.port + asked.index
            here = TcpTarget(Address(target.address.host, port))
        return serve_exit(stream, here, _anywhere, lambda _path: True, header=header)

    return serve


def _in_row(first: Address | None, index: int) -> Address | None:
    return None if first is None else Address(first.host, first.port + index)


def udp_exit_to(target: Address, *, count: int = 1) -> Serve:
    """Serve the visitors of a UDP mapping, as ``exit_to`` does those of others."""

    def serve(stream: VirtualStream) -> Awaitable[None]:
        asked = stream.create.target if stream.create else None
        if not isinstance(asked, UdpTarget) or asked.index >= count:
            return refuse(stream, Code.NO_MAPPING)
        here = Address(target.host, target.port + asked.index)
        return serve_association(DatagramStream(stream), _anywhere, target=here)

    return serve


def _anywhere(_ip: str, _port: int) -> bool:
    return True


async def _serve(
    stream: VirtualStream,
    target: Target,
    dial: Callable[[Within], Awaitable[socket.socket]],
    header: bytes,
) -> None:
    """Connect, tell the opener what came of it, and relay to the end.

    Nothing is accepted before the real connect. An opener who gives up ends the
    attempt.
    """
    opener = Opener(stream)
    if opener.gone:
        return  # before this task began: nobody is bothered
    try:
        local = QuickSocket.dialled(await dial(opener.waits))
    except StreamError as error:
        if not opener.gone:
            say(logger, logging.INFO, "exit.refused", target=str(target),
                code=error.code.name, reason=error.what)  # fmt: skip
        stream.reset(error.code, error.what)
        return
    asked = stream.create.target if stream.create else None
    # Who came to a public name has no use for our end towards what is behind it.
    stream.accept(None if isinstance(asked, NameTarget) else bound_address(local))
    if header and not await _say_first(local, header):
        stream.reset(Code.RESET)
        return
    await relay(local, stream)


class Opener:
    """Who asked for a target, until the relay hears the stream instead."""

    __slots__ = ("_scope", "gone")

    def __init__(self, stream: VirtualStream) -> None:
        self.gone = False
        """It has given up."""
        self._scope: trio.CancelScope | None = None
        stream.on_closed(self._closed)

    @contextmanager
    def waits(self, until: float) -> Iterator[None]:
        """Wait inside this: for as long as it wants to, and until that time.

        Raises:
            trio.TooSlowError: no longer.
        """
        with trio.CancelScope(deadline=until) as self._scope:
            if self.gone:
                self._scope.cancel()
            yield
        if self._scope.cancelled_caught:
            raise trio.TooSlowError

    def _closed(self, code: Code) -> None:
        if code is not Code.NORMAL:
            self.gone = True
            if self._scope is not None:
                self._scope.cancel()


async def _say_first(local: QuickSocket, header: bytes) -> bool:
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


def bound_address(local: QuickSocket) -> Address | None:
    """Give our own end of a TCP connection, None if it is gone or there is none."""
    try:
        name = local.socket.getsockname()
    except OSError:
        return None
    if not isinstance(name, tuple):  # a unix socket
        return None
    host, port = name[:2]
    return Address(host.partition("%")[0], port)
