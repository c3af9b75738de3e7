"""DatagramStream: one UDP association for its user."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from tunnel.addresses import Address
from tunnel.errors import CODES, Code, LocalStreamError, RemoteStreamError
from tunnel.link.tally import bytes_of
from tunnel.net.notify import Notify
from tunnel.proto.datagrams import DatagramQueue

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.poller import Poller

Take = Callable[[Address, bytes], bool]
"""Take a datagram, which came from there; False if it is lost. Must not raise."""


class DatagramStream:
    """Datagrams to and from the other end of one UDP association.

    A virtual TCP connection without credit opens and closes it. Its datagrams take
    their own way, which loses rather than waits (protocol.md#datagrams).

    Make it in the turn in which its stream was opened, or before the stream is
    accepted. The owner closes it. Only ``trio.ClosedResourceError`` and, from a
    ``StreamError``, ``trio.BrokenResourceError`` leave it.

    Args:
        stream: opened for, or offered as, a ``UdpTarget``.
    """

    __slots__ = (
        "__weakref__",
        "_carrier",
        "_closed",
        "_conn",
        "_end",
        "_inbox",
        "_news",
        "_over",
        "_send",
        "_take",
        "received",
        "sent",
        "stream",
    )

    def __init__(self, stream: VirtualStream) -> None:
        self.stream = stream
        """To accept or refuse it, and to wait for the peer's answer."""
        self.sent = self.received = 0
        self._carrier = stream.carrier
        self._conn = stream.conn
        self._send = self._carrier.core.send_datagram
        room = self._carrier.deliver_to(stream.conn, self._deliver)
        self._inbox: DatagramQueue[tuple[Address, bytes]] = DatagramQueue(room)
        self._news = Notify()
        self._take: Take | None = None
        self._over: Callable[[], None] | None = None
        self._end: Code | None = None
        self._closed = False
        stream.on_closed(self._ended)

    def __repr__(self) -> str:
        counts = f"sent={self.sent} received={self.received} dropped={self.dropped}"
        return f"<DatagramStream {counts} {self._conn!r}>"

    @property
    def poller(self) -> Poller:
        """What reads sockets whose datagrams are ``put`` here, and then flushes."""
        return self._carrier.poller

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes that were sent to the far end, and came from it."""
        return bytes_of(self._conn)

    @property
    def dropped(self) -> int:
        """Datagrams that this end has thrown away, in both directions."""
        queue = self._conn.datagrams
        return self._inbox.dropped + (queue.dropped if queue is not None else 0)

    def send(self, address: Address, payload: bytes) -> None:
        """Send a datagram or drop it, without waiting or saying which.

        Raises:
            LocalStreamError: ``ADDRESS_UNSUPPORTED``: a host that cannot be written.
        """
        self.put(address, payload)
        self._carrier.output.wake()

    def put(self, address: Address, payload: bytes) -> None:
        """Do as ``send`` does, but leave it to ``flush`` to send what was put.

        One does for all associations of a session, in the same turn.
        """
        self.sent += 1
        self._send(self._conn, address, payload)

    def flush(self) -> None:
        """Send what was put, as far as the link takes it now."""
        if self._carrier.core.has_output():
            self._carrier.output.flush()

    def deliver_to(self, take: Take, over: Callable[[], None]) -> None:
        """Give each datagram to ``take`` in the turn in which it comes, from now on.

        ``receive`` has no more then. ``over`` is called when the peer or the session
        ends it, once. Neither may wait, and neither is called after ``close``.
        """
        self._take, self._over = take, over
        while self._inbox and self._take is not None:
            self._deliver(*self._inbox.pop())
        if self._end is not None and self._over is not None:
            over()

    async def receive(self) -> tuple[Address, bytes]:
        """Wait for a datagram; return its sender as the far end sees it, and its bytes.

        Raises:
            trio.BrokenResourceError: ended by the peer or the session; what came before
                has been returned.
            trio.ClosedResourceError: closed here.
        """
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self._closed:
                raise trio.ClosedResourceError
            if self._end is not None:
                lost = self._end is Code.LINK_LOST
                error = LocalStreamError if lost else RemoteStreamError
                raise trio.BrokenResourceError from error(
                    self._end, CODES[self._end].meaning
                )
            await self._news.wait()
        self.received += 1
        return self._inbox.pop()

    def close(self, code: Code = Code.NORMAL, reason: str = "") -> None:
        """End the association, without waiting; harmless when it is over."""
        self._closed = True
        self._take = self._over = None  # they refer to this
        self._inbox.clear()
        self.stream.on_closed(None)
        self.stream.reset(code, reason)
        self._news.ring()

    async def aclose(self) -> None:
        """End the association; drop what has not been sent or taken."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _deliver(self, address: Address, payload: bytes) -> None:
        if self._take is not None:
            self.received += 1
            if not self._take(address, payload):
                self._inbox.dropped += 1
            return
        self._inbox.push((address, payload), len(payload))
        self._news.ring()

    def _ended(self, code: Code) -> None:
        self._end = code
        self._news.ring()
        if self._over is not None:
            self._over()
