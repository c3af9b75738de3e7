"""VirtualStream: one virtual TCP connection as a trio stream.

It never touches the wire: bytes go to the core, and come from the session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import index
from typing import TYPE_CHECKING, Protocol

import trio

from tunnel.errors import CODES, Code, LocalStreamError, RemoteStreamError
from tunnel.link.inbox import Inbox
from tunnel.link.local_reader import LocalReader
from tunnel.link.rest import ROUNDING_S, Rest
from tunnel.net.notify import Notify
from tunnel.platform.sockets import HAS_EPOLL

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.errors import StreamError
    from tunnel.link.looks import Looks
    from tunnel.link.output import Output
    from tunnel.link.tally import Tally
    from tunnel.net.poller import Poller
    from tunnel.net.virtual_connection import LocalEnd, Sink
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.datagrams import DatagramRoom
    from tunnel.proto.frames import ProtCreate
    from tunnel.proto.mux import MuxCore

Deliver = Callable[["Address", bytes], None]


class Carrier(Protocol):
    """What a stream needs of its session, which imports this module."""

    core: MuxCore
    output: Output
    poller: Poller
    rest: Rest

    def forget(self, conn: VirtualConn) -> None:
        """Dispatch nothing more to this connection's stream."""

    def deliver_to(self, conn: VirtualConn, deliver: Deliver) -> DatagramRoom:
        """Call ``deliver`` with an association's datagrams; return where they count."""


class VirtualStream(trio.abc.HalfCloseableStream):
    """Bytes to and from the other end of one virtual TCP connection.

    Only ``trio.ClosedResourceError``, ``trio.BusyResourceError`` and
    ``trio.BrokenResourceError`` leave it; the last is raised from a ``StreamError``
    whose ``code`` says why (protocol.md#codes).

    * ``send_all`` returns when the bytes have credit and a place in the queue, which
      holds at most 256 KiB of them; waiting there is the backpressure. Cancelled, it
      has sent some of them.
    * ``send_eof`` ends our direction behind what was sent; the peer's goes on.
    * ``aclose`` ends both behind what was sent, and does not wait. Cancelled, or with
      received bytes unread, it is a reset instead, as with TCP.

    Its 28 methods share one state: trio's interface, the same without a checkpoint for
    relays and front ends, and six that only the session calls.

    Args:
        carrier: the session.
        conn: the core's record of the connection.
        create: what the peer asked for, when the peer opened it.
    """

    __slots__ = (
        "_closed", "_core", "_eof_sent", "_finished", "_inbox", "_moved_bytes",
        "_on_closed", "_patience_s", "_progress", "_reader", "_receive_error",
        "_receiving", "_rested_s", "_send_error", "_sending", "_wake", "answered",
        "bound", "carrier", "conn", "create", "entry", "lent", "local", "looks",
        "sink", "tally", "unread_bytes", "visitor", "whose",
    )  # fmt: skip

    whose: Mapping[str, str]
    """Set where it is another's than the session says, as its ``whose``."""

    def __init__(
        self,
        carrier: Carrier,
        conn: VirtualConn,
        create: ProtCreate | None = None,
        visitor: Address | None = None,
    ) -> None:
        self.carrier = carrier
        self.create = create
        self.bound: Address | None = None
        """The far side's own end, once the connection is open and if it was told."""
        self.visitor = visitor if create is None else create.visitor
        """For whom it was opened, at either side."""
        self.entry: object = ""
        """Of this end, which it comes to; its ``str`` is for the access log."""
        self._core = carrier.core
        self.conn = conn
        self._wake = carrier.output.wake
        self.answered = create is not None
        """The peer has accepted it, or has opened it."""
        self._progress = Notify()
        """News of credit, of the peer's answer, or of an end."""
        self._sending = False
        self._send_error: StreamError | None = None
        self._eof_sent = False
        self._closed = False
        self._on_closed: Callable[[Code], None] | None = None
        self._inbox: Inbox | None = None
        """None until something waits in it: most of what a relay carries never does."""
        self.unread_bytes = 0
        """Bytes that were received and not taken."""
        self.lent = 0
        """Bytes that were lent by ``take_piece``: held until the next call."""
        self._receiving = False
        self._receive_error: StreamError | None = None
        self._finished = False
        """Nothing comes any more: the peer's direction, or all of it, has ended."""
        self.sink: Sink | None = None
        """Takes what comes before it would wait to be taken, or a part of it."""
        self.local: LocalEnd | None = None
        """The socket that the session carries."""
        self._reader: LocalReader | None = None
        self._patience_s = 0.0
        self._rested_s = 0.0
        self._moved_bytes = 0
        self.tally: Tally | None = None  # where its bytes count in the end
        self.looks: Looks | None = None
        """What it was found to wait for lately; of ``link.waits`` alone."""

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._send_error else "open"
        return f"<VirtualStream {state} unread={self.unread_bytes} {self.conn!r}>"

    # Receiving -------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Wait for bytes and return at most ``max_bytes`` of them; empty at the end.

        Raises:
            trio.BrokenResourceError: the peer reset the connection or the link is
                lost; what came before has been returned.
            trio.ClosedResourceError: closed here.
        """
        if max_bytes is not None and index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        self._begin_receiving()
        try:
            if self.unread_bytes or self._finished:
                await trio.lowlevel.checkpoint()
            while not (self.unread_bytes or self._finished or self._closed):
                await self._open_inbox().arrived.wait()
        finally:
            self._receiving = False
        if self._closed:
            raise trio.ClosedResourceError
        if self._inbox is None or not self.unread_bytes:
            return _end(self._receive_error)
        data = self._inbox.take(max_bytes)
        self.unread_bytes -= len(data)
        if self._core.consumed(self.conn, len(data)):
            self._wake()
        return data

    async def receive_piece(self) -> bytes | bytearray:
        """Do as ``receive_some`` does, but lend the bytes and be no checkpoint.

        They count as held until the next call, which says that they are on their way.
        """
        while (piece := self.take_piece()) is None:
            self._begin_receiving()
            try:
                await self._open_inbox().arrived.wait()
            finally:
                self._receiving = False
        return piece

    def take_piece(self) -> bytes | bytearray | None:
        """Do as ``receive_piece`` does, but return None when nothing has come."""
        if self.lent:
            lent, self.lent = self.lent, 0
            if self._core.consumed(self.conn, lent):
                self._wake()
        if self._closed:
            raise trio.ClosedResourceError
        if self._inbox is not None and self.unread_bytes:
            data = self._inbox.take()
            self.lent = len(data)
            self.unread_bytes -= self.lent
            return data
        return _end(self._receive_error) if self._finished else None

    def _begin_receiving(self) -> None:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        if self._closed:
            raise trio.ClosedResourceError
        self._receiving = True

    def _open_inbox(self) -> Inbox:
        if self._inbox is None:
            self._inbox = Inbox()
        return self._inbox

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

        For loops with another one: a turn for each piece costs as much as copying it.
        """
        self._check_sendable()
        size = len(data)
        if type(data) is bytes and size <= self._core.send_room(self.conn):
            if size:
                self._core.send_data(self.conn, data)
                self._wake()
            return
        self._sending = True
        try:
            rest = memoryview(data)
            while len(rest):
                room = self._core.send_room(self.conn)
                if room:
                    self._core.send_data(self.conn, bytes(rest[:room]))
                    rest = rest[room:]
                    self._wake()
                else:
                    await self._progress.wait()
                    self._check_alive()
        finally:
            self._sending = False

    def put_now(self, pieces: list[bytes | memoryview], size: int) -> int:
        """Take all pieces at once, or none: see ``Joinable``."""
        if self._closed or self._send_error is not None or self._eof_sent:
            return 0
        if self._sending or self._core.send_room(self.conn) < size:
            return 0
        for piece in pieces:
            self._core.send_data(self.conn, bytes(piece))
        self.carrier.output.wake_soon()
        return size

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until ``send_all`` of one byte would not wait."""
        self._check_sendable()
        await trio.lowlevel.checkpoint()
        await self.wait_room()

    async def wait_room(self) -> int:
        """Wait until bytes could be sent, and return how many ``put`` takes at once.

        No checkpoint when there is room. Raises as ``put`` does.
        """
        self._check_sendable()
        self._sending = True
        try:
            while not (room := self._core.send_room(self.conn)):
                await self._progress.wait()
                self._check_alive()
            return room
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
        self._core.finish(self.conn)
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

    # A socket that the session carries -----------------------------------------------

    def carry(
        self, local: LocalEnd, idle_s: float, *, ready: bool = False
    ) -> Callable[[], bytes | bytearray | None] | None:
        """Have the session carry a socket: see ``ResettableStream``.

        It is read as ``LocalReader`` says, and written to as long as it takes all that
        comes. What it does not take waits, and everything behind it: ``local`` hears
        ``news``. This goes on until ``local.read`` has given the end and the connection
        is closed, by either side. ``idle`` is said while there is a link, and a little
        late: see ``Rest``. None, with nothing read: it is closed, or nobody can watch.
        """
        if self._closed or self._send_error is not None or not HAS_EPOLL:
            return None
        self.local, self._patience_s = local, idle_s
        self._rested_s, self._moved_bytes = 0.0, -1
        if idle_s < self.carrier.rest.shortest_s:
            self.carrier.rest.follow(idle_s)
        self._reader = LocalReader(local, self._core, self.conn, self.carrier.poller)
        if ready or self.create is None:
            self._reader.fill()  # a visitor mostly speaks first
            if self.conn.lane.size:
                self.carrier.output.wake_soon()
        else:
            self._reader.watch(wanted=True)  # a target mostly has to be asked
        return self.take_piece

    # Opening and closing -------------------------------------------------------------

    async def wait_open(self) -> None:
        """Wait for the peer's answer to our CREATE; no turn if it is there.

        Raises:
            RemoteStreamError: refused, with the peer's code and reason.
            trio.ClosedResourceError: closed here meanwhile.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.answered:
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
        """Have ``call`` called at the peer's end of it: see ``ResettableStream``."""
        self._on_closed = call
        if call is not None and self._send_error is not None:
            call(self._send_error.code)

    def accept(self, bound: Address | None = None) -> None:
        """Tell the peer that the target of its CREATE is connected; at most once."""
        if not self._closed and self._send_error is None:
            self._core.accept(self.conn, bound)
            self.carrier.output.wake_soon()

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
        self.reset(Code.RESET if self.unread_bytes else Code.NORMAL)

    def reset(self, code: Code, reason: str = "") -> None:
        """Give the connection up; the peer is told ``code``. Harmless when it is over.

        RESET stays behind the bytes that were sent; every other code drops those.
        """
        if self._closed:
            return
        self._closed = True
        self._core.close(self.conn, code, reason)
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        local, self.local = self.local, None
        if self._inbox is not None:
            self._inbox.clear()
        self._progress.ring()
        self.carrier.forget(self.conn)
        self._wake()
        if local is not None:
            local.news()

    # For the session ---------------------------------------------------------------

    def opened(self, bound: Address | None) -> None:
        """Take the peer's acceptance."""
        self.answered, self.bound = True, bound
        self._progress.ring()

    def deliver(self, pieces: list[bytes | memoryview], size: int) -> None:
        """Take ``size`` bytes: a copy of what no socket takes waits to be taken."""
        if self._closed:
            return
        local, taken = self.local, 0
        if local is not None and not self.unread_bytes and not self.lent:
            taken = local.write(*pieces)
            if taken and self._core.consumed(self.conn, taken):
                self._wake()
            if taken == size:
                return
        elif self.sink is not None and not self.unread_bytes and not self.lent:
            taken = self.sink(pieces, size)
            if taken and self._core.consumed(self.conn, taken):
                self._wake()
            if taken == size:
                return
        self.unread_bytes += size - taken
        self._open_inbox().put(b"".join(pieces)[taken:], size - taken)
        if local is not None:
            local.news()

    def finished(self) -> None:
        """Take the end of the peer's direction."""
        self._finished = True
        if self._inbox is not None:
            self._inbox.arrived.ring()
        if self.local is not None:
            if self.unread_bytes or self.lent:
                self.local.news()
            else:
                self.local.ended()

    def woken(self) -> None:
        """Take news of credit or room."""
        self._progress.ring()
        if self._reader is not None:
            self._reader.fill()

    def rested(self, step_s: float) -> None:
        """Take that another ``step_s`` of the link's time have passed."""
        conn = self.conn
        moved_bytes = conn.send.taken + conn.recv.received + conn.recv.consumed
        if moved_bytes != self._moved_bytes:
            self._moved_bytes, self._rested_s = moved_bytes, 0.0
            return
        self._rested_s += step_s
        if self.local is not None and self._rested_s > self._patience_s - ROUNDING_S:
            self.local.idle()

    def closed(self, code: Code, reason: str, *, local: bool = False) -> None:
        """Take the end of the connection: nothing follows.

        What was received stays to be read, but for a ``local`` end, which frees memory.
        """
        kind = LocalStreamError if local else RemoteStreamError
        self._send_error = kind(code, reason or CODES[code].meaning)
        if code is not Code.NORMAL:
            self._receive_error = self._send_error
        if not self._closed:
            self._finished = True
            if local:
                self.unread_bytes = 0
            if self._inbox is not None:
                self._inbox.clear() if local else self._inbox.arrived.ring()
        self._progress.ring()
        if self._reader is not None:
            self._reader.stop()
        if self.local is not None:
            self.local.news()
        if self._on_closed is not None:
            self._on_closed(code)


def _end(error: StreamError | None) -> bytes:
    """Return what a receiver gets at the end, or raise how the connection broke."""
    if error is not None:
        raise trio.BrokenResourceError from error
    return b""
