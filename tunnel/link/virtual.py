"""VirtualStream: one virtual TCP connection as a trio stream.

It never touches the wire: it gives bytes to the core and takes them from its memory
channel, which the session fills. For a relay it has the session ``carry`` a socket:
read whenever there is room, and written to as long as it takes what comes. The session
calls ``deliver``, ``finished``, ``closed``, ``opened``, ``woken`` and ``rested``;
everything else is for the stream's user.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import index
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.errors import CODES, Code, LocalStreamError, RemoteStreamError
from tunnel.net.notify import Notify
from tunnel.net.sockets import CHUNK_BYTES
from tunnel.platform.sockets import HAS_EPOLL
from tunnel.proto.state import StreamState

if TYPE_CHECKING:
    from tunnel.errors import StreamError
    from tunnel.net.poller import Poller
    from tunnel.net.virtual_connection import LocalEnd
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.datagrams import DatagramRoom
    from tunnel.proto.frames import Address, ProtCreate
    from tunnel.proto.mux import MuxCore

LARGE_PIECE_BYTES: Final = 16_376
"""Pieces from this size on are passed as they are; smaller ones are joined while they
wait, for a small object costs many times its bytes."""
JOINED_BYTES: Final = 65_536
REST_STEP_S: Final = 36.0
"""How often to look which connections rest, at the most: a hundredth of an hour."""
REST_MORE_S: Final = 45.0
"""How much longer than asked a connection may rest: a step, and a turn of the link's
clock."""

_CLOSING: Final = StreamState.CLOSING
_IDLE: Final = StreamState.IDLE

Piece = bytes | bytearray | memoryview
Deliver = Callable[["Address", bytes], None]


class Carrier(Protocol):
    """What a stream needs of its session."""

    core: MuxCore
    poller: Poller

    def wake(self) -> None:
        """Tell the link that the core has output."""
        ...

    def wake_soon(self) -> None:
        """Tell it so, when more may follow at once."""
        ...

    def forget(self, conn: VirtualConn) -> None:
        """Dispatch nothing more to this connection's stream."""
        ...

    def deliver_to(self, conn: VirtualConn, deliver: Deliver) -> DatagramRoom:
        """Call ``deliver`` with an association's datagrams; give where they count."""
        ...


class VirtualStream(trio.abc.HalfCloseableStream):
    """Bytes to and from the other end of one virtual TCP connection.

    A ``trio.abc.HalfCloseableStream``. Only ``trio.ClosedResourceError``,
    ``trio.BusyResourceError`` and ``trio.BrokenResourceError`` leave it; the last is
    raised from a ``StreamError`` whose ``code`` says why (protocol.md#codes).

    * ``send_all`` returns when the bytes have credit and a place in the queue, which
      holds at most 256 KiB of them; waiting there is the backpressure. Cancelled, it
      has sent some of them.
    * ``send_eof`` ends our direction behind what was sent; the peer's goes on.
    * ``aclose`` ends both behind what was sent, and does not wait. Cancelled, or with
      received bytes unread, it is a reset instead, as with TCP.

    Args:
        carrier: the session.
        conn: the core's record of it.
        create: what the peer asked for, when the peer opened it.
    """

    __slots__ = (
        "_answered",
        "_carrier",
        "_closed",
        "_conn",
        "_core",
        "_eof_sent",
        "_filling",
        "_finished",
        "_inbox",
        "_into_inbox",
        "_lent",
        "_local",
        "_moved_bytes",
        "_on_closed",
        "_patience_s",
        "_progress",
        "_receive_error",
        "_receiving",
        "_rest",
        "_rested_s",
        "_send_error",
        "_sending",
        "_tail",
        "_unread",
        "_wake",
        "_watched",
        "bound",
        "create",
    )

    def __init__(
        self,
        carrier: Carrier,
        conn: VirtualConn,
        create: ProtCreate | None = None,
    ) -> None:
        self.create = create
        self.bound: Address | None = None
        self._on_closed: Callable[[Code], None] | None = None
        self._core = carrier.core
        self._conn = conn
        self._carrier = carrier
        self._wake = carrier.wake
        self._into_inbox: trio.MemorySendChannel[Piece] | None = None
        self._inbox: trio.MemoryReceiveChannel[Piece] | None = None
        """None until something has to wait in it: see ``_open_inbox``."""
        self._finished = False
        """Nothing comes any more: the peer's direction, or all of it, has ended."""
        self._tail: bytearray | None = None
        self._rest: Piece = b""
        self._unread = 0
        self._lent = 0
        """Bytes that were lent by ``take_piece``: held until the next call."""
        self._answered = create is not None
        self._progress = Notify()
        self._send_error: StreamError | None = None
        self._receive_error: StreamError | None = None
        self._eof_sent = False
        self._closed = False
        self._local: LocalEnd | None = None
        """The socket that the session carries."""
        self._filling = False
        """It is read."""
        self._patience_s = 0.0
        self._rested_s = 0.0
        self._moved_bytes = 0
        self._watched = False
        """The poller looks at it: there is room."""
        self._sending = False
        self._receiving = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._send_error else "open"
        return f"<VirtualStream {state} unread={self._unread} {self._conn!r}>"

    @property
    def conn(self) -> VirtualConn:
        """The core's record of it."""
        return self._conn

    @property
    def carrier(self) -> Carrier:
        """Its session."""
        return self._carrier

    @property
    def unread_bytes(self) -> int:
        """Bytes that were received and not taken."""
        return self._unread

    # Receiving -------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Wait for bytes and give at most ``max_bytes`` of them; empty at the end.

        Raises:
            trio.BrokenResourceError: the peer reset the connection or the link is
                lost; what came before has been given.
            trio.ClosedResourceError: closed here.
        """
        self._begin_receiving(1 if max_bytes is None else index(max_bytes))
        try:
            if self._rest:
                await trio.lowlevel.checkpoint()
                if self._closed:
                    raise trio.ClosedResourceError
            piece = self._rest or await self._next_in_inbox()
        except trio.EndOfChannel:
            end = self._end_of_channel()
            await trio.lowlevel.checkpoint()
            return end
        finally:
            self._receiving = False
        data = self._take(piece, max_bytes)
        self._consumed(len(data))
        return data

    def _open_inbox(self) -> trio.MemoryReceiveChannel[Piece]:
        """Give the memory channel, made when first something has to wait in it.

        Most of what a relay carries never does, and a channel is 1.8 KB.
        """
        if self._inbox is None:
            # No bound on items: credit bounds what the channel holds, in bytes, and the
            # link's reader must never wait for a stream (protocol.md#credit).
            self._into_inbox, self._inbox = trio.open_memory_channel[Piece](math.inf)
            if self._finished:
                self._into_inbox.close()
        return self._inbox

    async def _next_in_inbox(self) -> Piece:
        piece = await self._open_inbox().receive()
        if not self._unread:
            # Given up for memory since trio handed the piece over: it is nobody's.
            raise trio.EndOfChannel
        return piece

    def _begin_receiving(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        if self._closed:
            raise trio.ClosedResourceError
        self._receiving = True

    def _end_of_channel(self) -> bytes:
        if self._receive_error is not None:
            raise trio.BrokenResourceError from self._receive_error
        return b""

    async def receive_piece(self) -> bytes | bytearray:
        """Wait for bytes and lend them; empty at the end.

        They count as held until the next call, which says that they are on their way.

        Raises:
            trio.BrokenResourceError: as ``receive_some`` does.
            trio.ClosedResourceError: closed here.
        """
        while (piece := self.take_piece()) is None:
            self._begin_receiving(1)
            try:
                self._rest = await self._next_in_inbox()
            except trio.EndOfChannel:
                return self._end_of_channel()
            finally:
                self._receiving = False
        return piece

    def take_piece(self) -> bytes | bytearray | None:
        """Do the same without a wait: None when nothing has come."""
        if self._lent:
            lent, self._lent = self._lent, 0
            self._consumed(lent)
        if self._closed:
            raise trio.ClosedResourceError
        piece = self._rest
        if not piece and self._unread and self._inbox is not None:
            piece = self._inbox.receive_nowait()
        if piece:
            data = self._take(piece, None)
            self._lent = len(data)
            return data
        return self._end_of_channel() if self._finished else None

    def _take(self, piece: Piece, max_bytes: int | None) -> bytes | bytearray:
        if piece is self._tail:
            self._tail = None
        if max_bytes is not None and len(piece) > max_bytes:
            view = memoryview(piece)
            piece, self._rest = bytes(view[:max_bytes]), view[max_bytes:]
        else:
            self._rest = b""
            if isinstance(piece, memoryview):
                piece = bytes(piece)
        self._unread -= len(piece)
        return piece

    def _consumed(self, size: int) -> None:
        if self._core.consumed(self._conn, size):
            self._wake()

    # Sending -----------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue all of ``data``, waiting for credit and room; see the class.

        ``bytes`` are kept by reference, anything else is copied.

        Raises:
            trio.BrokenResourceError: from a ``StreamError``: NORMAL when the peer reads
                no more (what it sent is still to be had), else the reset's code.
            trio.ClosedResourceError: closed here, or after ``send_eof``.
        """
        self._check_sendable()
        await trio.lowlevel.checkpoint()
        await self.put(data)

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        """Do as ``send_all`` does, but be no checkpoint when there is room at once.

        For a loop that has another checkpoint: a turn of the scheduler for each piece
        costs as much as copying it.
        """
        self._check_sendable()
        self._sending = True
        try:
            await self._queue(data)
        finally:
            self._sending = False

    async def _queue(self, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        if type(data) is bytes and size <= self._core.send_room(self._conn):
            if size:
                self._core.send_data(self._conn, data)
                self._wake()
            return
        rest = memoryview(data)
        while len(rest):
            room = self._core.send_room(self._conn)
            if room:
                self._core.send_data(self._conn, bytes(rest[:room]))
                rest = rest[room:]
                self._wake()
            else:
                await self._progress.wait()
                self._check_alive()

    def carry(
        self, local: LocalEnd, idle_s: float, *, ready: bool = False
    ) -> Callable[[], bytes | bytearray | None] | None:
        """Have the session carry a socket: no task waits for a piece.

        It is read whenever there is room, so no byte is taken before it has credit, and
        written to as long as it takes all that comes. What it does not take waits, and
        everything behind it: local hears ``news``, and takes piece by piece with what
        this returns (``take_piece``) until that gives None.

        It goes on until ``local.read`` gives the end, and the connection is closed, by
        whomever.

        Args:
            local: the socket.
            idle_s: it hears ``idle`` when nothing has passed for so long, while there
                is a link, or up to ``REST_MORE_S`` later.
            ready: it has something to be read already.

        Returns:
            None: it is closed already, or nobody can watch; and nothing was read.
        """
        if self._closed or self._send_error is not None or not HAS_EPOLL:
            return None
        self._local, self._filling, self._patience_s = local, True, idle_s
        self._rested_s, self._moved_bytes = 0.0, -1
        if ready or self.create is None:
            self._fill()  # a visitor mostly speaks first
            if self._conn.lane.size:
                self._carrier.wake_soon()
        else:
            self._watch(wanted=True)  # a target mostly has to be asked
        return self.take_piece

    def _fill(self) -> None:
        """Read once the room there is; be watched as long as there is any."""
        core, conn, local = self._core, self._conn, self._local
        while self._filling and local is not None:
            # Closed in the core, it is about to be closed here: by a later event.
            is_over = conn.state is _CLOSING or conn.state is _IDLE
            # Beside what is queued a small piece is not worth a frame.
            room = min(CHUNK_BYTES, core.send_room(conn, LARGE_PIECE_BYTES))
            if is_over or not room:
                return self._watch(wanted=False)
            data = local.read(room)
            if data is None:
                return self._watch(wanted=True)
            if not data:
                return self._stop_filling()
            core.send_data(conn, data)
            if len(data) < room:
                return self._watch(wanted=True)

    def _watch(self, *, wanted: bool) -> None:
        if wanted is not self._watched and self._local is not None and self._filling:
            self._watched = wanted
            if wanted:
                self._carrier.poller.watch(self._local.number(), self._fill)
            else:
                self._carrier.poller.forget(self._local.number())

    def _stop_filling(self) -> None:
        self._watch(wanted=False)
        self._filling = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until ``send_all`` of one byte would not wait."""
        self._check_sendable()
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            self._check_alive()
            while not self._core.send_room(self._conn):
                await self._progress.wait()
                self._check_alive()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """End our direction behind what was sent; harmless when repeated."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        if self._closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.checkpoint()
        self.finish()

    def finish(self) -> None:
        """Do as ``send_eof`` does, at once and without a checkpoint."""
        if self._eof_sent:
            return
        self._check_alive()
        self._core.finish(self._conn)
        self._eof_sent = True
        self._wake()

    def _check_sendable(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        if self._eof_sent:
            raise trio.ClosedResourceError("send_eof was called")
        self._check_alive()

    def _check_alive(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if self._send_error is not None:
            raise trio.BrokenResourceError from self._send_error

    # Opening and closing -------------------------------------------------------------

    async def wait_open(self) -> None:
        """Wait for the peer's answer to our CREATE.

        Raises:
            RemoteStreamError: refused, with the peer's code and reason.
            trio.ClosedResourceError: closed here meanwhile.
        """
        await trio.lowlevel.checkpoint()
        while not self._answered:
            if self._closed:
                raise trio.ClosedResourceError
            if self._send_error is not None:
                raise self._send_error.again()
            await self._progress.wait()

    async def wait_closed(self) -> None:
        """Wait until this side has closed or reset it."""
        while not self._closed:
            await self._progress.wait()

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Have ``call`` called when the peer closes it or the link is lost.

        At once, if that has happened. It must not wait; None takes it back.
        """
        self._on_closed = call
        if call is not None and self._send_error is not None:
            call(self._send_error.code)

    def accept(self, bound: Address | None = None) -> None:
        """Tell the peer that the target of its CREATE is connected; at most once."""
        if not self._closed and self._send_error is None:
            self._core.accept(self._conn, bound)
            self._carrier.wake_soon()

    def reset(self, code: Code, reason: str = "") -> None:
        """Give it up: the peer hears ``code``. Harmless when it is over.

        RESET stays behind the bytes that were sent; every other code drops those.
        """
        if not self._closed:
            self._close(code, reason)

    async def aclose(self) -> None:
        """End both directions; see the class. Returns after one checkpoint."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            self.reset(Code.RESET)
            raise
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Do as ``aclose`` does, at once and without a checkpoint."""
        if not self._closed:
            self._close(Code.RESET if self._unread else Code.NORMAL)

    def _close(self, code: Code, reason: str = "") -> None:
        self._closed = True
        self._core.close(self._conn, code, reason)
        self._stop_filling()
        local, self._local = self._local, None
        if self._inbox is not None and self._into_inbox is not None:
            self._inbox.close()
            self._into_inbox.close()
        self._tail = None
        self._rest = b""
        self._progress.ring()
        self._carrier.forget(self._conn)
        self._wake()
        if local is not None:
            local.news()

    # For the session ---------------------------------------------------------------

    def opened(self, bound: Address | None) -> None:
        """Take the peer's acceptance."""
        self._answered = True
        self.bound = bound
        self._progress.ring()

    def deliver(self, pieces: list[bytes | memoryview], size: int) -> None:
        """Take ``size`` bytes: a copy of what no socket takes waits to be taken."""
        if self._closed:
            return
        local, taken = self._local, 0
        if local is not None and not self._unread and not self._lent:
            taken = local.write(*pieces)
            if taken:
                self._consumed(taken)
            if taken == size:
                return
        self._queue_unread(b"".join(pieces)[taken:], size - taken)
        if local is not None:
            local.news()

    def _queue_unread(self, payload: bytes, size: int) -> None:
        self._unread += size
        tail = self._tail
        if size >= LARGE_PIECE_BYTES:
            self._tail = None
            self._queue_piece(payload)
        elif tail is not None and len(tail) + size <= JOINED_BYTES:
            tail += payload
        else:
            self._tail = tail = bytearray(payload)
            self._queue_piece(tail)

    def _queue_piece(self, piece: Piece) -> None:
        if self._into_inbox is None and not self._rest:
            self._rest = piece
            return
        self._open_inbox()
        assert self._into_inbox is not None  # noqa: S101 - made with the other end
        self._into_inbox.send_nowait(piece)

    def finished(self) -> None:
        """Take the end of the peer's direction."""
        self._finished = True
        if self._into_inbox is not None:
            self._into_inbox.close()
        if self._local is not None:
            if self._unread or self._lent:
                self._local.news()
            else:
                self._local.ended()

    def woken(self) -> None:
        """Take news of credit or room."""
        self._progress.ring()
        self._fill()

    def rested(self, step_s: float) -> None:
        """Take that another ``step_s`` of the link's time have passed."""
        conn = self._conn
        moved_bytes = conn.send.taken + conn.recv.received + conn.recv.consumed
        if moved_bytes != self._moved_bytes:
            self._moved_bytes, self._rested_s = moved_bytes, 0.0
            return
        self._rested_s += step_s
        if self._local is not None and self._rested_s >= self._patience_s:
            self._local.idle()

    def closed(self, code: Code, reason: str, *, local: bool = False) -> None:
        """Take the end of the connection: nothing follows.

        What was received stays to be read, but for a ``local`` end, which frees memory.
        """
        kind = LocalStreamError if local else RemoteStreamError
        error = kind(code, reason or CODES[code].meaning)
        self._send_error = error
        if code is not Code.NORMAL:
            self._receive_error = error
        if not self._closed:
            self._finished = True
            if self._into_inbox is not None:
                self._into_inbox.close()
            if local:
                self._forget_unread()
        self._progress.ring()
        self._stop_filling()
        if self._local is not None:
            self._local.news()
        if self._on_closed is not None:
            self._on_closed(code)

    def _forget_unread(self) -> None:
        self._tail = None
        self._rest = b""
        self._unread = 0
        try:
            while self._inbox is not None:
                self._inbox.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
