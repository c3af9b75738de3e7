"""The far end of a virtual TCP connection: connect its target and join the two.

Both roles have this end: the center-client for its mappings and as an exit, the
center-server for what leaves through it. ``serve_exit`` is where an offer comes in;
``serve_chained`` is the server between an opener and an exit at another client.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.addresses import Address, UnixPath
from tunnel.center.denials import denial
from tunnel.center.exit.served import say_left
from tunnel.center.exit.udp import serve_association
from tunnel.center.who import WHO
from tunnel.errors import Code, StreamError
from tunnel.link.datagrams import DatagramStream
from tunnel.link.virtual import VirtualStream
from tunnel.log import log_event
from tunnel.net.access_log import wanted
from tunnel.net.descriptors import DESCRIPTORS, TARGETS, Arrivals
from tunnel.net.dial import begin
from tunnel.net.heard import Ear, HeardSocket
from tunnel.net.proxy_protocol import encode_proxy_header
from tunnel.net.relay import GRACE_S, Traffic, relay
from tunnel.net.sockets import FastSocket, tune_local
from tunnel.proto.frames import NameTarget, TcpTarget, UdpTarget

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tunnel.addresses import End
    from tunnel.net.dial import Allow, Dial
    from tunnel.net.proxy_protocol import ProxyVersion
    from tunnel.proto.frames import Target

Serve = Callable[[VirtualStream], Awaitable[None]]
"""Accept or reset the stream of a visitor, and serve it to its end."""


class Hearer(Ear, Protocol):
    """Hears all of a visitor's connection to its target."""

    def connected(self) -> None:  # pragma: no cover
        """Hear that the target was connected."""
        ...

    def unserved(self, why: str) -> None:  # pragma: no cover
        """Hear that it was not, behind what was asked for."""
        ...


Hear = Callable[[Address | None], Hearer]
"""Makes the one of a visitor; it is told only what passes, and can change nothing."""
ASKED_S: Final = 0.1
"""For what a visitor asks of a target that refuses: it mostly came with the offer."""

logger = logging.getLogger("tunnel.exit")


def serve_exit(
    stream: VirtualStream,
    target: Target | None,
    allow: Allow,
    *,
    unix: bool = False,
) -> Awaitable[None]:
    """Serve an offer to its end, as the form of ``target`` wants it; owns the stream.

    ``allow`` is asked about each address before it is dialled. This is done before this
    returns, so that visitors come to the target in the order in which they were
    offered. ``unix`` says whether unix sockets are served; which ones the caller has
    decided. It is no coroutine, like the others that only choose: an idle connection
    waits in each coroutine on the way, and each is 400 bytes.
    """
    match target:
        case UnixPath() if not unix:
            why = f"{target} may not be reached from here"
            _say_refused(target, Code.NOT_ALLOWED, why)
            return refuse(stream, Code.NOT_ALLOWED, why)
        case TcpTarget(end) | (UnixPath() as end):
            dial = _TargetDial(stream, end, allow, TARGETS, 0)
            return _serve_target(stream, dial, TARGETS)
        case UdpTarget(""):
            return serve_association(DatagramStream(stream), allow)
        case _:
            return refuse(stream, Code.UNSUPPORTED)


async def refuse(stream: VirtualStream, code: Code, reason: str = "") -> None:
    """Serve an offer by telling the peer why not.

    Where a right is missing, whoever asked for the right has logged it.
    """
    if code is not Code.NOT_ALLOWED:
        _say_refused(stream.create.target if stream.create else None, code, reason)
    stream.reset(code, reason)


def _say_refused(target: Target | End | None, code: Code, reason: str) -> None:
    log_event(logger, logging.INFO, "exit.refused", **WHO.get(),
        target=str(target or "nothing"), code=code.name, reason=reason)  # fmt: skip


def exit_to(
    target: End,
    *,
    count: int = 1,
    proxy: ProxyVersion | None = None,
    public: Callable[[str], Address | None] = lambda _name: None,
    hear: Hear | None = None,
) -> Serve:
    """Serve visitors with a target that this side's own user named: it may be anywhere.

    Args:
        target: of the first port.
        count: ports of the mapping; the target of each is as far from the first.
        proxy: which PROXY header the target hears first, if any.
        public: returns where a mapping is open, for that header.
        hear: makes who hears what passes.
    """
    kind = FastSocket if hear is None else HeardSocket
    arrivals = Arrivals()

    def serve(stream: VirtualStream) -> Awaitable[None]:
        create = stream.create
        asked = create.target if create else None
        if create is None or not isinstance(asked, NameTarget) or asked.index >= count:
            return refuse(stream, Code.NO_MAPPING)
        header = b""
        if proxy is not None:
            came_to = public(asked.name)
            came_to = came_to and _in_row(came_to, asked.index)
            header = encode_proxy_header(proxy, create.visitor, came_to)
        here = target
        if isinstance(target, Address) and asked.index:
            here = _in_row(target, asked.index)
        dial = _TargetDial(stream, here, anywhere, arrivals, len(header), kind)
        ear = None if hear is None else hear(create.visitor)
        return _serve_target(stream, dial, arrivals, header, ear)

    return serve


def udp_exit_to(target: Address, *, count: int = 1) -> Serve:
    """Serve the visitors of a UDP mapping, as ``exit_to`` does those of others."""

    def serve(stream: VirtualStream) -> Awaitable[None]:
        asked = stream.create.target if stream.create else None
        if not isinstance(asked, UdpTarget) or asked.index >= count:
            return refuse(stream, Code.NO_MAPPING)
        here = _in_row(target, asked.index)
        return serve_association(DatagramStream(stream), anywhere, target=here)

    return serve


def _in_row(first: Address, index: int) -> Address:
    return Address(first.host, first.port + index)


def anywhere(_ip: str, _port: int) -> bool:
    """Allow each address."""
    return True


async def _serve_target(
    stream: VirtualStream,
    dial: _TargetDial,
    arrivals: Arrivals,
    header: bytes = b"",
    ear: Hearer | None = None,
) -> None:
    """Wait for the connection, tell the opener how it went, and relay to the end.

    Nothing is accepted before the real connect. An opener that gives up ends the dial.
    """
    if dial.opener_gone:
        dial.close()
        return  # before this task began: nobody is bothered
    try:
        local = await dial.finish()
    except StreamError as error:
        why = dial.refused(error)
        if ear is not None:
            await _hear_unserved(stream, ear, why)
        stream.reset(error.code, why)
        if error.code is Code.RESOURCE:  # the limit may be another by now
            DESCRIPTORS.look()
        return
    del dial  # an idle connection does not need it
    began, traffic, code = time.monotonic(), Traffic(), Code.RESET
    try:
        asked = stream.create.target if stream.create else None
        # A visitor of a public name has no use for our end towards what is behind it.
        bound = None if isinstance(asked, NameTarget) else bound_address(local.socket)
        stream.accept(bound)
        if not header or await _say_first(local, header):
            if isinstance(local, HeardSocket) and ear is not None:
                ear.connected()
                local.ear = ear
            code = (await relay(local, stream, traffic=traffic)).code
        else:
            stream.reset(Code.RESET)
    finally:
        arrivals.left(local)
        if wanted():
            say_left(stream, began, (traffic.received, traffic.sent), code)


async def _hear_unserved(stream: VirtualStream, ear: Hearer, why: str) -> None:
    """Tell who hears what was asked for in vain: it mostly came with the offer."""
    with trio.move_on_after(ASKED_S), suppress(trio.BrokenResourceError):
        ear.wrote(await stream.receive_some())
    ear.unserved(why)


class Opener:
    """The side that opened a stream, until a relay watches the stream instead."""

    __slots__ = ("_waiting", "opener_gone")

    def __init__(self, stream: VirtualStream) -> None:
        self.opener_gone = False
        self._waiting: trio.CancelScope | None = None
        stream.on_closed(self._closed)

    @contextmanager
    def waits(self, until: float) -> Iterator[None]:
        """End a wait inside by TooSlowError: at ``until``, or when the opener goes."""
        with trio.CancelScope(deadline=until) as self._waiting:
            if self.opener_gone:
                self._waiting.cancel()
            yield
        if self._waiting.cancelled_caught:
            raise trio.TooSlowError

    def _closed(self, code: Code) -> None:
        if code is not Code.NORMAL:
            self.opener_gone = True
            if self._waiting is not None:
                self._waiting.cancel()


async def serve_chained(
    stream: VirtualStream, onward: VirtualStream, *, logged: bool = True
) -> None:
    """Join an opener and the exit at another client; owns both streams.

    The exit alone decides what it dials, and its answer is the answer: refusals keep
    their code and reason, half-closes and resets pass (protocol.md#exits).

    Args:
        stream: the opener.
        onward: the exit.
        logged: whether it is a line of the access log.
    """
    refused: StreamError | None = None
    try:
        with Opener(stream).waits(math.inf):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_early, stream, onward)
                try:
                    await onward.wait_open()
                except StreamError as error:
                    refused = error
                nursery.cancel_scope.cancel()
    except BaseException as error:
        onward.reset(Code.RESET)
        stream.reset(Code.RESET)
        if isinstance(error, trio.TooSlowError):
            return
        raise
    if refused is not None:
        onward.reset(Code.RESET)
        stream.reset(refused.code, refused.what)
        return
    stream.on_closed(None)
    stream.accept(onward.bound)
    began, traffic, code = time.monotonic(), Traffic(), Code.RESET
    with trio.CancelScope() as scope:

        def opener_lost(code: Code) -> None:
            # Reading would tell, but not while the exit takes nothing. What the opener
            # sent before its reset gets the time that it has on any way.
            if code is not Code.NORMAL:
                scope.deadline = trio.current_time() + GRACE_S

        stream.on_closed(opener_lost)
        try:
            code = (await relay(stream, onward, traffic=traffic)).code
        finally:
            if logged and wanted():
                say_left(stream, began, (traffic.sent, traffic.received), code)


async def _pass_early(stream: VirtualStream, onward: VirtualStream) -> None:
    """Pass on what an opener says before the answer, until cancelled: nothing is lost.

    It saves a program that speaks first a round trip to the exit.
    """
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            room = await onward.wait_room()
            said = await stream.receive_some(room)
            if not said:
                return  # the end is the relay's to pass on
            await onward.put(bytes(said))  # there is room: without a wait


class _TargetDial(Opener):
    """A dial for an opener; begun at once, if there are descriptors.

    Each of its sockets is among the arrivals and may have to give way meanwhile.
    """

    __slots__ = (
        "_allow", "_arrivals", "_dial", "_kind", "_said_bytes", "_sockets", "target"
    )  # fmt: skip

    def __init__(
        self,
        stream: VirtualStream,
        target: End,
        allow: Allow,
        arrivals: Arrivals,
        said_bytes: int,
        kind: type[FastSocket] = FastSocket,
    ) -> None:
        super().__init__(stream)
        self._kind = kind
        self.target = target
        self._allow = allow
        self._arrivals = arrivals
        self._said_bytes = said_bytes
        self._sockets: dict[socket.socket, FastSocket] = {}
        self._dial: Dial | None = None
        if not (self.opener_gone or DESCRIPTORS.leaving):
            self._dial = self._begin()

    def _begin(self) -> Dial:
        return begin(self.target, allow=self._allow, opened=self._opened)

    def _opened(self, sock: socket.socket) -> None:
        if sock.fileno() >= DESCRIPTORS.edge:
            DESCRIPTORS.admit(sock)
        local = self._sockets[sock] = self._kind(sock)
        self._arrivals.add(local, self._said_bytes)

    async def finish(self) -> FastSocket:
        """Return the connected socket, which stays among the arrivals.

        Raises as ``connect`` does; no socket is open then.
        """
        try:
            if self._dial is None:
                await self._arrivals.wait_for_leavers()
                self._dial = self._begin()
            sock = await self._dial.finish(self.waits)
        except BaseException:
            self.close()
            raise
        self._dial = None  # it knows this object: they would be a cycle
        tune_local(sock)
        local = self._sockets.pop(sock)
        if self._sockets:
            self.close()
        return local

    def refused(self, error: StreamError) -> str:
        """Log why there is no connection, while somebody waits; return the reason."""
        if reason := denial(self._allow, error.code, str(self.target)):
            return reason
        if not self.opener_gone:
            _say_refused(self.target, error.code, error.what)
        return error.what

    def close(self) -> None:
        """Give up what is not finished."""
        if self._dial is not None:
            self._dial.close()
            self._dial = None
        for local in self._sockets.values():
            self._arrivals.left(local)


async def _say_first(local: FastSocket, header: bytes) -> bool:
    """Send what comes before the visitor's bytes; return whether the target took it."""
    try:
        await local.send_all(header)
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(local)
        return False
    except BaseException:
        local.reset()
        raise
    return True


def bound_address(sock: socket.socket) -> Address | None:
    """Return our own end of a TCP connection, None if it is gone or there is none."""
    try:
        name = sock.getsockname()
    except OSError:
        return None
    if not isinstance(name, tuple):  # a unix socket
        return None
    return Address(name[0].partition("%")[0], name[1])
