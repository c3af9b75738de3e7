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

from tunnel.center.exit.udp import serve_association
from tunnel.errors import Code, StreamError
from tunnel.link.datagrams import DatagramStream
from tunnel.log import log_event
from tunnel.net.descriptors import DESCRIPTORS, TARGETS, Arrivals
from tunnel.net.dial import begin
from tunnel.net.proxy_protocol import encode_proxy_header
from tunnel.net.relay import relay
from tunnel.net.sockets import FastSocket, tune_local
from tunnel.proto.frames import (
    Address,
    NameTarget,
    TcpTarget,
    UdpTarget,
    UnixPath,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tunnel.center.publisher import Serve
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.dial import Dial, Opened
    from tunnel.net.proxy_protocol import ProxyVersion
    from tunnel.proto.frames import Target

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
    arrivals: Arrivals = TARGETS,
) -> Awaitable[None]:
    """Serve an offer to its end, as the form of ``target`` wants it.

    The target is dialled before this returns, so that visitors come to it in the order
    in which they were offered. ``header`` is what the target hears before the first
    byte of its visitor, and ``arrivals`` has all that were dialled for the same entry.
    No coroutine itself, as the others that only choose: an idle connection waits in
    each one on the way, and each is 400 bytes.
    """
    match target:
        case TcpTarget(address):
            return _serve(
                stream,
                target,
                lambda opened: begin(address, allow=allow, opened=opened),
                header,
                arrivals,
            )
        case UnixPath(path) if not allow_unix(path):
            why = f"{target} may not be reached from here"
            return refuse(stream, Code.NOT_ALLOWED, why)
        case UnixPath():
            return _serve(
                stream,
                target,
                lambda opened: begin(target, opened=opened),
                header,
                arrivals,
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

    arrivals = Arrivals()

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
        return serve_exit(
            stream, here, _anywhere, _any_path, header=header, arrivals=arrivals
        )

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


def _any_path(_path: str) -> bool:
    return True


def _serve(
    stream: VirtualStream,
    target: Target,
    begin_dial: Callable[[Opened], Dial],
    header: bytes,
    arrivals: Arrivals,
) -> Awaitable[None]:
    """Connect, tell the opener what came of it, and relay to the end.

    Nothing is accepted before the real connect. An opener who gives up ends the
    attempt.
    """
    attempt = _Attempt(stream, begin_dial, _Dialling(arrivals, len(header)))
    return _serve_attempt(stream, target, attempt, header, arrivals)


async def _serve_attempt(
    stream: VirtualStream,
    target: Target,
    attempt: _Attempt,
    header: bytes,
    arrivals: Arrivals,
) -> None:
    opener, dialling = attempt.opener, attempt.dialling
    if opener.gone:
        attempt.drop()
        return  # before this task began: nobody is bothered
    try:
        local = dialling.succeeded(await attempt.dial(arrivals))
    except StreamError as error:
        dialling.failed()
        if not opener.gone:
            log_event(logger, logging.INFO, "exit.refused", target=str(target),
                code=error.code.name, reason=error.what)  # fmt: skip
        stream.reset(error.code, error.what)
        if error.code is Code.RESOURCE:  # the limit may be another by now
            DESCRIPTORS.look()
        return
    except BaseException:
        dialling.failed()
        raise
    del attempt, opener, dialling  # an idle connection needs none of them
    try:
        asked = stream.create.target if stream.create else None
        # Who came to a public name has no use for our end towards what is behind it.
        stream.accept(None if isinstance(asked, NameTarget) else bound_address(local))
        if not header or await _say_first(local, header):
            await relay(local, stream)
        else:
            stream.reset(Code.RESET)
    finally:
        arrivals.left(local)


class _Attempt:
    """To reach a target for an opener; begun at once, if there are descriptors."""

    __slots__ = ("_begin", "_begun", "dialling", "opener")

    def __init__(
        self,
        stream: VirtualStream,
        begin_dial: Callable[[Opened], Dial],
        dialling: _Dialling,
    ) -> None:
        self.opener = Opener(stream)
        self.dialling = dialling
        self._begin = begin_dial
        self._begun: Dial | None = None
        if not (self.opener.gone or DESCRIPTORS.leaving):
            self._begun = begin_dial(dialling.opened)

    async def dial(self, arrivals: Arrivals) -> socket.socket:
        """Give the connected socket.

        Raises:
            LocalStreamError: as ``connect`` does.
        """
        if self._begun is None:
            await arrivals.wait_for_leavers()
            self._begun = self._begin(self.dialling.opened)
        return await self._begun.finish(self.opener.waits)

    def drop(self) -> None:
        """Give it up before ``dial``."""
        if self._begun is not None:
            self._begun.close()
        self.dialling.failed()


class _Dialling:
    """The sockets that try to reach a target: each may have to give way meanwhile."""

    __slots__ = ("_arrivals", "_said_bytes", "_sockets")

    def __init__(self, arrivals: Arrivals, said_bytes: int) -> None:
        self._arrivals = arrivals
        self._said_bytes = said_bytes
        self._sockets: list[FastSocket] = []

    def opened(self, sock: socket.socket) -> None:
        if sock.fileno() >= DESCRIPTORS.edge:
            DESCRIPTORS.admit(sock)
        local = FastSocket(sock)
        self._sockets.append(local)
        self._arrivals.dialled(local, self._said_bytes)

    def succeeded(self, sock: socket.socket) -> FastSocket:
        """Give the one that is connected; it stays among the arrivals."""
        tune_local(sock)
        if len(self._sockets) == 1:  # as it mostly is
            return self._sockets.pop()
        for local in self._sockets:
            if local.socket is sock:
                self._sockets.remove(local)
                self.failed()
                return local
        raise LookupError  # pragma: no cover - each was opened here

    def failed(self) -> None:
        for local in self._sockets:
            self._arrivals.left(local)


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


async def _say_first(local: FastSocket, header: bytes) -> bool:
    """Send what comes before the visitor's bytes; say whether the target took it."""
    try:
        await local.send_all(header)
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(local)
        return False
    except BaseException:
        local.reset()
        raise
    return True


def bound_address(local: FastSocket) -> Address | None:
    """Give our own end of a TCP connection, None if it is gone or there is none."""
    try:
        name = local.socket.getsockname()
    except OSError:
        return None
    if not isinstance(name, tuple):  # a unix socket
        return None
    host, port = name[:2]
    return Address(host.partition("%")[0], port)
