"""A relay's state, and the engine in which the session carries the relay's socket.

The session reads the socket whenever there is room, and writes to it what comes. The
relay's own task only waits: for the end, and for what the socket does not take at once.

    RelayState      what ``relay_policy`` says of the two ends, and their time
    Carried         reports to it what the session finds at the socket
"""

from __future__ import annotations

import math
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tunnel.errors import Code, StreamError
from tunnel.net.descriptors import PRESENT
from tunnel.net.notify import Notify
from tunnel.net.relay_policy import GRACE_S, TABLE, Act, Down, Event, Up, closed
from tunnel.net.sockets import FastSocket
from tunnel.platform.sockets import is_closed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tunnel.net.relay_policy import Verdict
    from tunnel.net.sockets import FastStream
    from tunnel.net.virtual_connection import ResettableStream, Take
    from tunnel.platform.sockets import Buffer


@dataclass(slots=True)
class Traffic:
    """Bytes of one relay so far, for a status line: read it at any time."""

    sent: int = 0
    """Local to virtual."""
    received: int = 0
    """Virtual to local."""


@dataclass(slots=True, eq=False)
class RelayState:
    """Both ends of one relay, what is known of them, and how long it may go on."""

    local: trio.abc.HalfCloseableStream
    fast: FastStream
    """The way to local's bytes."""
    virtual: ResettableStream
    traffic: Traffic
    idle_s: float
    early: bytes
    """Read from local before, and not sent."""
    late: bytes = b""
    """Taken from the peer before, and not written."""
    up: Up = Up.OPEN
    down: Down = Down.OPEN
    verdict: Verdict | None = None
    changed: Notify = field(default_factory=Notify)
    grace_until: float = math.inf
    _push_at: float = math.inf  # a task of ours watches the time from here on
    _scope: trio.CancelScope | None = None  # of the wait that may be ended

    def is_over(self) -> bool:
        """Say whether both directions are."""
        return self.up is Up.OVER and self.down is Down.OVER

    # What happens to an end ----------------------------------------------------------

    def happened(self, event: Event, code: Code = Code.NORMAL) -> Act:
        """Follow the table; return what is left to the engine.

        ``code`` is what a broken peer gave.
        """
        row = TABLE[event, self.up, self.down]
        self.up, self.down = row.up, row.down
        if row.verdict is not None and self.verdict is None:
            self.verdict = row.verdict._replace(code=code or row.verdict.code)
        if row.grace:
            self._push_at = math.inf
            self.grace_until = min(self.grace_until, in_grace())
            if self._scope is not None:
                self._scope.deadline = self.grace_until
            self.changed.ring()
        if row.act is Act.STOP:
            self.wake()
        return row.act

    def local_finished(self) -> None:
        """Take the end of file of local, which may be that of a dead socket."""
        if _is_dead(self.local):
            self.happened(Event.LOCAL_BROKE)
        elif self.happened(Event.LOCAL_FINISHED) is Act.TELL_PEER:
            try:
                self.virtual.finish()
            except trio.BrokenResourceError as error:
                self.peer_closed(code_of(error))

    def peer_closed(self, code: Code) -> None:
        """Take that the peer closed the connection, or lost it."""
        self.happened(closed(code), code)

    def local_write_failed(self) -> None:
        """Take that local is broken, as a write found."""
        if not isinstance(self.local, FastSocket):
            self.happened(Event.LOCAL_BROKE)
        elif self.happened(Event.LOCAL_DEAF) is Act.READ_REST:
            # What the kernel received before the RST can still be read, and is often
            # the reason for it ("413"). But the error was reported to our write: the
            # read will end as if by a FIN, and must not be believed.
            with suppress(OSError):  # should it live after all: the read still ends
                self.local.socket.shutdown(socket.SHUT_RD)

    def vanished(self) -> None:
        """End the relay: the machine at the other end of the socket is gone."""
        self.happened(Event.LOCAL_VANISHED)

    # Time ----------------------------------------------------------------------------

    @contextmanager
    def waiting(self, until: float = math.inf) -> Iterator[None]:
        """Wait inside this: it ends when ``wake`` is called, and when time is over."""
        scope = trio.CancelScope(deadline=min(until, self.grace_until))
        self._scope = scope
        try:
            with scope:
                yield
        finally:
            is_late = scope.cancelled_caught and self._scope is scope
            self._scope = None
        if is_late:
            grace_over = self.grace_until < math.inf
            self.happened(Event.GRACE_OVER if grace_over else Event.IDLE)

    def waiting_idly(self) -> AbstractContextManager[None]:
        """Wait for as long as something passes; what does puts the end off."""
        if self.grace_until == math.inf:
            self._push_at = trio.current_time() + self.idle_s / 100
        return self.waiting(self._push_at + self.idle_s)

    def wake(self) -> None:
        """End the waits: something changed."""
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.cancel()
        self.changed.ring()

    def count_sent(self, size: int) -> None:
        """Count bytes that went up."""
        self.traffic.sent += size
        if self._scope is not None and trio.current_time() >= self._push_at:
            self._push_deadline(self._scope)

    def count_received(self, size: int) -> None:
        """Count bytes that went down."""
        self.traffic.received += size
        if self._scope is not None and trio.current_time() >= self._push_at:
            self._push_deadline(self._scope)

    def _push_deadline(self, scope: trio.CancelScope) -> None:
        # Moving a deadline costs two operations on trio's heap and leaves a dead entry
        # in it. One move per hundredth of the limit keeps that off the path of a chunk;
        # the same hundredth is added, so that the limit is never cut short.
        self._push_at = trio.current_time() + self.idle_s / 100
        scope.deadline = self._push_at + self.idle_s


def _is_dead(local: trio.abc.AsyncResource) -> bool:
    """Tell an end of file that is none: the RST was reported to a write before.

    The kernel reports it once. The write that took it may not have come back yet, so
    its word cannot be waited for. After our own FIN nothing is written, and the state
    CLOSE is the regular end of both. Whoever was given up is as good as dead.
    """
    return isinstance(local, FastSocket) and (
        local.given_up or (not local.finished and is_closed(local.socket))
    )


def in_grace() -> float:
    """Return the end of the grace that begins now, by which all must be done."""
    return trio.current_time() + GRACE_S


def code_of(error: trio.BrokenResourceError) -> Code:
    """Return the code that broke a virtual TCP connection; RESET if none did."""
    cause = error.__cause__
    return cause.code if isinstance(cause, StreamError) else Code.RESET


class Carried(RelayState):
    """A relay of a socket; to the session it is a ``LocalEnd``."""

    __slots__ = ("_socket",)

    def __init__(
        self,
        local: FastSocket,
        virtual: ResettableStream,
        traffic: Traffic,
        idle_s: float,
        early: bytes,
    ) -> None:
        super().__init__(local, local, virtual, traffic, idle_s, early)
        self._socket = local

    async def run(self) -> None:
        """Return when both directions are over, or two tasks have to do the rest.

        The latter when the session carries nothing, and when the peer reads no more
        while local still sends, for a session does not read for nobody.
        """
        self.virtual.on_closed(self._heard_close)
        if self._socket in PRESENT:
            PRESENT[self._socket] = self
        take = self.virtual.carry(self, self.idle_s, ready=bool(self.early))
        if take is not None:
            await self._wait(take)

    async def _wait(self, take: Take) -> None:
        """Bring local what it does not take at once, and wait for the end."""
        while not self.is_over() and self.up is not Up.DROPPED:
            try:
                piece = take() if self.down is Down.OPEN else None
            except trio.BrokenResourceError as error:
                self.happened(Event.PEER_DRAINED, code_of(error))
                return
            if self.is_over():  # to take may tell others, and they us
                return
            try:
                if piece:
                    await self._write_out(piece)
                elif piece is not None:
                    self.ended()
                elif self.grace_until < math.inf:
                    with self.waiting():
                        await self.changed.wait()
                else:
                    await self.changed.wait()
            except trio.BrokenResourceError:
                self.local_write_failed()

    async def _write_out(self, piece: bytes | bytearray) -> None:
        rest = piece[self.write(piece) :]
        if rest:
            # The session watches the time no more if the peer has closed.
            with self.waiting_idly():
                await self._socket.put(rest)
            self.late = bytes(self._socket.unsent)  # the wait was ended
            self.count_received(len(rest) - len(self.late))

    def _heard_close(self, code: Code) -> None:
        if self.happened(closed(code), code) is Act.DROP:
            self.wake()

    # For the session: see ``LocalEnd`` ------------------------------------------------

    @property
    def tcp(self) -> socket.socket:
        """The socket; for what the kernel knows of it."""
        return self._socket.socket

    def number(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.number()

    def read(self, most: int) -> bytes | None:
        """Read local; nothing when it is over, however."""
        if self.early:
            early, self.early = self.early[:most], self.early[most:]
            self.count_sent(len(early))
            return early
        try:
            data = self._socket.read_now(most)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.happened(Event.LOCAL_BROKE)
            return b""
        if data:
            self.count_sent(len(data))
        elif data is not None:
            self.local_finished()
        return data

    def write(self, *pieces: Buffer) -> int:
        """Write to local what goes at once; the relay's task finds an error."""
        size = self._socket.write_now(*pieces)
        if size:
            self.count_received(size)
        return size

    def news(self) -> None:
        """Have the relay's task look at its ends."""
        self.changed.ring()

    def ended(self) -> None:
        """Pass the end on; the relay's task hears of it only when that was the last."""
        if self.happened(Event.PEER_FINISHED) is Act.TELL_LOCAL:
            try:
                self._socket.finish()
            except trio.BrokenResourceError:
                self.local_write_failed()

    def idle(self) -> None:
        """End the relay: nothing passed for too long."""
        self.happened(Event.IDLE)
