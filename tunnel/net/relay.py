"""Join a local stream and a virtual TCP connection, so that both ends hear the truth.

A half-close stays a half-close, a reset stays a reset, and a reply that was sent before
an early close still arrives (protocol.md#close). This module opens nothing, and knows
no link: all that it is told of one is how a virtual TCP connection broke.

A socket is carried by the session (``VirtualStream.carry``): the relay's own task waits
for the end, and for what the socket does not take at once. Any other stream takes two
tasks. ``_Relay`` decides what the end of one direction means for the other. The ends,
in its order:

    end of file, either way      passed on; the other direction goes on; the last of
                                 both ends is told by the close
    local reset                  the peer is told RESET
    virtual reset or lost        what arrived is written out, then RST
    the peer reads no more       the local side is read and discarded until it has heard
                                 all that still comes from the peer
    local vanished               the peer is told RESET
    no byte for ``idle_s``       the peer is told IDLE, RST; never, unless asked for

A unix socket knows no RST: its end is a close, behind what was written.
"""

from __future__ import annotations

import fcntl
import math
import socket
import sys
import termios
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from tunnel.errors import Code, StreamError
from tunnel.net.descriptors import carried
from tunnel.net.notify import Notify
from tunnel.net.sockets import CHUNK_BYTES, FastSocket, quick
from tunnel.net.timeouts import TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tunnel.link.virtual import Local
    from tunnel.net.sockets import Buffer, FastStream
    from tunnel.proto.frames import Address

GRACE_S: Final = 1.0
"""How long a local side that does not read may delay an end that is certain."""
_POLL_S: Final = 0.01
_TCP_CLOSE: Final = 7


class ResettableStream(Protocol):
    """A virtual TCP connection: a half-closeable trio stream that can be reset.

    When the peer reset or refused it, or its link is lost, its methods raise
    ``trio.BrokenResourceError`` from a ``StreamError`` that carries the code. Code
    NORMAL, from ``send_all`` or ``send_eof`` only, means that the peer reads no more;
    what it sent still comes.
    """

    bound: Address | None
    """The far side's own end of the connection, once it is open and if it was told."""

    async def receive_some(
        self, max_bytes: int | None = None
    ) -> bytes | bytearray:  # pragma: no cover
        """Return what has come, at least one byte, or nothing at end of file."""
        ...

    def carry(
        self, local: Local, idle_s: float, *, ready: bool = False
    ) -> Callable[[], bytes | bytearray | None] | None:  # pragma: no cover
        """Carry a socket without a task; None: the caller has to do it."""
        ...

    async def receive_piece(self) -> bytes | bytearray:  # pragma: no cover
        """Wait for bytes and lend them until the next call; nothing at the end."""
        ...

    async def send_all(
        self, data: bytes | bytearray | memoryview
    ) -> None:  # pragma: no cover
        """Return when ``data`` is taken; waiting here is the backpressure."""
        ...

    async def put(
        self, data: bytes | bytearray | memoryview
    ) -> None:  # pragma: no cover
        """Do the same without a checkpoint when there is room at once."""
        ...

    def finish(self) -> None:  # pragma: no cover
        """End this direction behind what was sent."""
        ...

    async def aclose(self) -> None:  # pragma: no cover
        """End both directions behind what was sent; harmless when already over."""
        ...

    def close(self) -> None:  # pragma: no cover
        """Do the same without a checkpoint."""
        ...

    def on_closed(
        self, call: Callable[[Code], None] | None
    ) -> None:  # pragma: no cover
        """Have ``call`` called when the peer closes it or the link is lost.

        At once, if that has happened. It must not wait; None takes it back.
        """
        ...

    def reset(self, code: Code) -> None:  # pragma: no cover
        """Give it up at once and tell the peer why; harmless when already over."""
        ...


@dataclass(slots=True)
class Traffic:
    """Bytes of one relay so far, for a status line: read it at any time."""

    sent: int = 0
    """Local to virtual."""
    received: int = 0
    """Virtual to local."""


class RelayResult(NamedTuple):
    """What a relay moved, and why it ended."""

    sent_bytes: int
    """Local to virtual."""
    received_bytes: int
    """Virtual to local."""
    code: Code
    """NORMAL: both directions came to their end of file or were not wanted."""


async def relay(
    local: trio.abc.HalfCloseableStream,
    virtual: ResettableStream,
    *,
    early: bytes = b"",
    idle_s: float | None = None,
    traffic: Traffic | None = None,
) -> RelayResult:
    """Carry bytes both ways until both directions have ended or one side broke.

    Owns both streams: they are closed when it returns or raises. Cancellation resets
    both. What a stream raises besides ``trio.BrokenResourceError`` comes out after both
    were reset, maybe in an exception group.

    Args:
        local: a socket, or any stream; only a socket can be given a RST.
        virtual: may still wait for the peer's answer; a refusal is a reset.
        early: bytes that were read from ``local`` before.
        idle_s: without a byte either way for this long, and at most 1 % or
            ``REST_MORE_S`` more, the relay ends with IDLE. None: as ``TIMEOUTS`` says.
        traffic: counters to be kept up to date meanwhile.
    """
    if idle_s is None:
        idle_s = TIMEOUTS.get().idle_s
    joint = _Relay(local, virtual, traffic or Traffic(), idle_s)
    try:
        await joint.run(early)
    finally:
        await joint.close()
    return RelayResult(joint.traffic.sent, joint.traffic.received, joint.end.code)


class Ended(Enum):
    """Why a pump stopped."""

    FINISHED = "the source came to its end of file"
    SOURCE = "the source broke"
    SINK = "the sink broke"


class PumpEnd(NamedTuple):
    """Why a pump stopped, and the code that the broken stream gave."""

    how: Ended
    code: Code = Code.NORMAL


async def pump(
    receive: Callable[[], Awaitable[bytes | bytearray]],
    send: Callable[[bytes | bytearray], Awaitable[None]],
    count: Callable[[int], None],
    early: bytes = b"",
) -> PumpEnd:
    """Carry bytes from a source to a sink until one of them ends.

    ``receive`` is the checkpoint of the loop: ``send`` may return without one.
    ``early`` goes first. ``count`` is told what the sink took. The end of file is not
    passed on: only the caller knows whether it may be believed.
    """
    data: bytes | bytearray = early
    while True:
        try:
            if data:  # never empty but before the first read
                await send(data)
                count(len(data))
        except trio.BrokenResourceError as error:
            return PumpEnd(Ended.SINK, _code_of(error))
        try:
            data = await receive()
        except trio.BrokenResourceError as error:
            return PumpEnd(Ended.SOURCE, _code_of(error))
        if not data:
            return PumpEnd(Ended.FINISHED)


async def reset_socket(local: trio.abc.AsyncResource) -> None:
    """Close with a RST, so that nobody takes the end for a clean one.

    Bytes that the kernel has not sent are lost. A stream that is not a socket is only
    closed. Never raises ``OSError``; does not wait for a socket, so that it also works
    while being cancelled.
    """
    if isinstance(local, FastSocket):
        local.reset()
    else:
        await trio.aclose_forcefully(local)


class _End(NamedTuple):
    """How the relay ends: the result, and what the peer is told (NORMAL: a close)."""

    code: Code
    say: Code


_CLEAN: Final = _End(Code.NORMAL, Code.NORMAL)
_RESET: Final = _End(Code.RESET, Code.RESET)
_IDLE: Final = _End(Code.IDLE, Code.IDLE)


class _Relay:
    """The state that the two directions share."""

    __slots__ = (
        "_alone",
        "_bytes",
        "_changed",
        "_decided",
        "_down_over",
        "_early",
        "_hurry_until",
        "_idle_s",
        "_late",
        "_local",
        "_local_dead",
        "_push_at",
        "_scope",
        "_sending",
        "_socket",
        "_stopped",
        "_timed_out",
        "_unheard",
        "_up_over",
        "_virtual",
        "_virtual_broke",
        "end",
        "traffic",
    )

    def __init__(
        self,
        local: trio.abc.HalfCloseableStream,
        virtual: ResettableStream,
        traffic: Traffic,
        idle_s: float,
    ) -> None:
        self._local = local
        self._bytes = quick(local)
        self._socket = self._bytes if isinstance(self._bytes, FastSocket) else None
        self._virtual = virtual
        self.traffic = traffic
        self._idle_s = idle_s
        self._push_at = math.inf  # a task of ours watches the time from here on
        self._scope: trio.CancelScope | None = None  # around waits for a stream
        self._changed = Notify()
        self._early = b""
        self._sending = 0  # bytes that local is being given
        self._alone = False  # one task: the session carries local
        self._hurry_until = math.inf
        self._up_over = False  # local has sent its last byte, and that is settled
        self._down_over = False  # the peer has sent its last byte, and that is settled
        self._unheard = False  # the peer reads no more
        self._local_dead = False  # a write found the socket dead: no other follows
        self._virtual_broke = False
        self._decided: _End | None = None  # the first who knows decides
        self._late = _IDLE  # what it means when the time is over
        self._timed_out = False
        self._stopped = False
        self.end = _RESET  # unless ``run`` returns: a cancellation, or a fault

    async def run(self, early: bytes) -> None:
        """Return when both directions are over; ``end`` says how."""
        self._early = early
        self._virtual.on_closed(self._heard_close)
        if self._socket is not None:
            carried(self._socket, self)
            take = self._virtual.carry(self, self._idle_s, ready=bool(early))
            if take is not None:
                self._alone = True
                await self._carried(take)
                self._alone = False
        if not self._is_over():
            with self._waiting_idly():
                await self._in_two_tasks(self._early)
        self._virtual.on_closed(None)
        if self._virtual_broke:
            until = min(self._hurry_until, _in_grace())
            await _emptied(self._local, until)
            if self.traffic.received and _queued_bytes(self._local, termios.FIONREAD):
                # It is still sending, and has not looked at the answer: its next write
                # would meet the RST first. Whoever only reads hears the RST at once.
                with trio.move_on_at(until):
                    await _discard(self._bytes, pause_s=_POLL_S)
        undecided = self._late if self._timed_out else _CLEAN
        self.end = self._decided or undecided

    async def close(self) -> None:
        """Close both streams as ``end`` says; brief, and not to be cancelled."""
        try:
            if self.end.say is Code.NORMAL:
                self._virtual.close()
            else:
                self._virtual.reset(self.end.say)
        finally:
            if self.end.code is not Code.NORMAL:
                await reset_socket(self._local)
            elif self._socket is not None:
                self._socket.close()
            else:
                with trio.move_on_after(GRACE_S, shield=True):
                    await self._local.aclose()

    def _is_over(self) -> bool:
        return self._stopped or (self._up_over and self._down_over)

    @contextmanager
    def _waiting(self, until: float = math.inf) -> Iterator[None]:
        """Wait inside this: it ends when the relay must, however that is known."""
        until = min(until, self._hurry_until)
        try:
            with trio.CancelScope(deadline=until) as scope:
                self._scope = scope
                yield
        finally:
            self._scope = None
        if scope.cancelled_caught and not self._stopped and not self._needs_a_reader():
            self._timed_out = self._stopped = True

    def _waiting_idly(self) -> AbstractContextManager[None]:
        """Wait for as long as something passes; what does puts the end off."""
        if self._hurry_until == math.inf:
            self._push_at = trio.current_time() + self._idle_s / 100
        return self._waiting(self._push_at + self._idle_s)

    async def _carried(self, take: Callable[[], bytes | bytearray | None]) -> None:
        """Bring local what it does not take at once, and wait for the end.

        Returns too when the peer reads no more, but local still sends.
        """
        while not self._is_over() and not self._needs_a_reader():
            try:
                piece = None if self._down_over or self._local_dead else take()
            except trio.BrokenResourceError as error:
                self._virtual_failed(_code_of(error))
                return self._interrupt()
            if self._is_over():  # to take may tell others, and they us
                return
            try:
                if piece:
                    rest = piece[self.write(piece) :]
                    if rest:
                        # The session watches the time no more if the peer has closed.
                        with self._waiting_idly():
                            await self._send_down(rest)
                            self._count_received(len(rest))
                elif piece is not None:
                    self.ended()
                elif self._hurry_until < math.inf:
                    with self._waiting():
                        await self._changed.wait()
                else:
                    await self._changed.wait()
            except trio.BrokenResourceError:
                self._local_write_failed()

    async def _in_two_tasks(self, early: bytes) -> None:
        async with trio.open_nursery() as nursery:
            if not self._down_over:
                nursery.start_soon(self._downward)
            await self._upward(early)

    # For the session: see ``Local`` ---------------------------------------------------

    def number(self) -> int:
        """Give the socket's descriptor."""
        assert self._socket is not None  # noqa: S101 - nothing else is carried
        return self._socket.number()

    def read(self, most: int) -> bytes | None:
        """Read local; nothing when it is over, however."""
        if self._early:
            early, self._early = self._early[:most], self._early[most:]
            self._count_sent(len(early))
            return early
        assert self._socket is not None  # noqa: S101
        try:
            data = self._socket.read_now(most)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._up_ended(broken=True)
            return b""
        if data:
            self._count_sent(len(data))
        elif data is not None:
            self._up_ended(broken=False)
        return data

    def write(self, *pieces: Buffer) -> int:
        """Write to local what goes at once; what does not meets the error, if any."""
        size = self._bytes.write_now(*pieces)
        if size:
            self._count_received(size)
        return size

    def news(self) -> None:
        """Have our task look."""
        self._changed.ring()

    def ended(self) -> None:
        """Pass the end on; our task hears of it only when that was the last."""
        if self._down_over or self._local_dead or self._socket is None:
            return
        try:
            if not self._up_over:  # else both are, and the close says it
                self._socket.finish()
        except trio.BrokenResourceError:
            self._local_write_failed()
        else:
            self._down_ended()

    def idle(self) -> None:
        """End it."""
        self._stop(_IDLE)

    def vanished(self) -> None:
        """End it: see ``Carrier``."""
        self._stop(_RESET)

    # One direction each ---------------------------------------------------------------

    async def _upward(self, early: bytes) -> None:
        """Carry local to virtual."""
        end = await pump(
            partial(self._bytes.receive_some, CHUNK_BYTES),
            self._virtual.put,
            self._count_sent,
            early,
        )
        if end.how is Ended.SINK:
            self._heard_close(end.code)
            if end.code is not Code.NORMAL:
                return
            end = await _discard(self._bytes)
        self._up_ended(broken=end.how is Ended.SOURCE)

    def _up_ended(self, *, broken: bool) -> None:
        """Decide what the end of local-to-virtual means."""
        if not broken and _is_dead(self._local):
            self._local_dead = True
        if broken or self._local_dead:
            return self._stop(_RESET)
        if not self._down_over:  # else both are, and the close says it
            try:
                self._virtual.finish()
            except trio.BrokenResourceError as error:
                code = _code_of(error)
                self._heard_close(code)
                if code is not Code.NORMAL:
                    return
        self._up_over = True
        if self._down_over:
            self._changed.ring()

    async def _downward(self) -> None:
        """Carry virtual to local; first what a cancelled turn of this has left."""
        rest = b""
        if self._sending and self._socket is not None:
            rest = bytes(self._socket.unsent)
            self._count_received(self._sending - len(rest))
        end = await pump(
            self._virtual.receive_piece, self._send_down, self._count_received, rest
        )
        if end.how is Ended.FINISHED:
            end = await _pass_end(self._bytes.send_eof)
        if end.how is Ended.SOURCE:
            self._virtual_failed(end.code)
            self._interrupt()
        elif end.how is Ended.SINK:
            self._local_write_failed()
        else:
            self._down_ended()

    def _down_ended(self) -> None:
        self._down_over = True
        if self._up_over:
            self._changed.ring()
        self._linger_at_last()

    async def _send_down(self, data: bytes | bytearray) -> None:
        self._sending = len(data)
        await self._bytes.put(data)
        self._sending = 0

    def _local_write_failed(self) -> None:
        if self._up_over:
            # The peer has all that local sent, with its true end: a plain close says
            # "I read no more" and lets the far side hear it in peace.
            self._stop(_End(Code.RESET, Code.NORMAL))
        elif self._socket is not None:
            # What the kernel received before the RST can still be read, and is often
            # the reason for it ("413"). But the error was reported to our write: the
            # read will end as if by a FIN, and must not be believed.
            self._local_dead = True
            with suppress(OSError):  # should it live after all: the read still ends
                self._socket.socket.shutdown(socket.SHUT_RD)
        else:
            self._stop(_RESET)

    def _heard_close(self, code: Code) -> None:
        """Take the end that neither direction may notice while both wait for local."""
        if code is not Code.NORMAL:
            self._virtual_failed(code)
        else:
            self._unheard = True
            self._linger_at_last()
            if self._needs_a_reader():
                self._look()

    def _needs_a_reader(self) -> bool:
        """Say whether the session read local, and does no more.

        Who still sends must be able to hear the rest: it is read for nobody, by a task
        beside the one that may be waiting for local to take something.
        """
        return self._alone and self._unheard and not self._up_over

    def _virtual_failed(self, code: Code) -> None:
        self._virtual_broke = True
        self._decide(_End(code or Code.RESET, Code.NORMAL))
        if self._down_over:
            self._interrupt()
        else:  # what arrived before is being written, if local reads at all
            self._hurry()

    def _linger_at_last(self) -> None:
        """Once all is said, give a local side that still sends the time to hear it."""
        if self._unheard and self._down_over and not self._up_over:
            self._late = _CLEAN
            self._hurry()

    def _stop(self, end: _End) -> None:
        self._decide(end)
        self._interrupt()

    def _interrupt(self) -> None:
        self._stopped = True
        self._look()

    def _look(self) -> None:
        """Have our task, or tasks, see that something changed that ends a wait."""
        if self._scope is not None:
            self._scope.cancel()
        self._changed.ring()

    def _decide(self, end: _End) -> None:
        self._decided = self._decided or end

    def _hurry(self) -> None:
        self._push_at = math.inf
        self._hurry_until = min(self._hurry_until, _in_grace())
        if self._scope is not None:
            self._scope.deadline = self._hurry_until
        self._changed.ring()

    def _count_sent(self, size: int) -> None:
        self.traffic.sent += size
        if self._scope is not None and trio.current_time() >= self._push_at:
            self._push_deadline(self._scope)

    def _count_received(self, size: int) -> None:
        self.traffic.received += size
        if self._scope is not None and trio.current_time() >= self._push_at:
            self._push_deadline(self._scope)

    def _push_deadline(self, scope: trio.CancelScope) -> None:
        # Moving a deadline costs two operations on trio's heap and leaves a dead entry
        # in it. One move per hundredth of the limit keeps that off the path of a chunk;
        # the same hundredth is added, so that the limit is never cut short.
        now = trio.current_time()
        step = self._idle_s / 100
        self._push_at = now + step
        scope.deadline = now + self._idle_s + step


def _in_grace() -> float:
    return trio.current_time() + GRACE_S


def _code_of(error: trio.BrokenResourceError) -> Code:
    cause = error.__cause__
    return cause.code if isinstance(cause, StreamError) else Code.RESET


async def _pass_end(send_eof: Callable[[], Awaitable[None]]) -> PumpEnd:
    try:
        await send_eof()
    except trio.BrokenResourceError as error:
        return PumpEnd(Ended.SINK, _code_of(error))
    return PumpEnd(Ended.FINISHED)


async def _discard(source: FastStream, pause_s: float = 0.0) -> PumpEnd:
    """Read to the end for nobody; ``pause_s`` keeps a flood from costing much."""
    try:
        while await source.receive_some(CHUNK_BYTES):
            if pause_s:
                await trio.sleep(pause_s)
    except trio.BrokenResourceError as error:
        return PumpEnd(Ended.SOURCE, _code_of(error))
    return PumpEnd(Ended.FINISHED)


async def _emptied(local: trio.abc.AsyncResource, until: float) -> None:
    """Wait until the other kernel has all that was written: a RST discards the rest."""
    with trio.move_on_at(until):
        # TIOCOUTQ has the number of SIOCOUTQ; the module knows only the former.
        while _queued_bytes(local, termios.TIOCOUTQ):  # noqa: ASYNC110  # the kernel has no such event
            await trio.sleep(_POLL_S)


def _is_dead(local: trio.abc.AsyncResource) -> bool:
    """Tell an end of file that is none: the RST was reported to a write before.

    The kernel reports it once. The write that took it may not have come back yet, so
    its word cannot be waited for. After our own FIN nothing is written, and the state
    CLOSE is the regular end of both. Whoever was given up is as good as dead.
    """
    if not isinstance(local, FastSocket):
        return False
    if local.given_up or local.finished:
        return local.given_up
    try:
        state = local.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:  # not TCP
        return False
    return state[0] == _TCP_CLOSE


def _queued_bytes(local: trio.abc.AsyncResource, which: int) -> int:
    """Give how many bytes the kernel holds, unsent or unread; 0 if not a socket."""
    if not isinstance(local, FastSocket):
        return 0
    try:
        answer = fcntl.ioctl(local.number(), which, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)
