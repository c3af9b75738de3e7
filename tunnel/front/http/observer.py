"""Who looks on while requests are answered: ``ops.inspector``.

An observer is told, and asked nothing: it can neither wait nor change what passes. One
that fails is told nothing more, and the request goes on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.front.http.access_line import Asked
from tunnel.log import log_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import trio

    from tunnel.addresses import Address
    from tunnel.front.http.access_line import RequestLine
    from tunnel.front.http.bodies import BodyReader
    from tunnel.front.http.heads import Field
    from tunnel.net.virtual_connection import (
        Bytes,
        LocalEnd,
        OnClosed,
        ResettableStream,
    )

LOG: Final = logging.getLogger(__name__)
Piece = bytes | bytearray | memoryview
"""Of a body, without what frames it; lent for the time of the call."""


class Observer(Protocol):
    """Sees one request and its answer. No method may wait."""

    def connected(self) -> None:  # pragma: no cover
        """Note that a connection to the target was made for it, or made anew."""
        ...

    def asked(self, pieces: Sequence[Piece]) -> None:  # pragma: no cover
        """Take what came of the request's body."""
        ...

    def answers(self, status: int, head: bytes) -> None:  # pragma: no cover
        """Take the head of the final answer, or of 101, as the visitor gets it."""
        ...

    def answered(self, pieces: Sequence[Piece]) -> None:  # pragma: no cover
        """Take what goes to the visitor of the answer's body."""
        ...

    def trailers(self, lines: Sequence[bytes]) -> None:  # pragma: no cover
        """Take the field lines behind the answer's body."""
        ...

    def passed(self, data: Piece, *, to_visitor: bool) -> None:  # pragma: no cover
        """Take what passes behind 101."""
        ...

    def failed(self, why: str) -> None:  # pragma: no cover
        """Note why the target has given no whole answer, on this connection."""
        ...

    def over(self, *, whole: bool) -> None:  # pragma: no cover
        """Note the end; ``whole``: all of the request has come."""
        ...


class Watch(Protocol):
    """Makes the observers of the requests of one entry."""

    def begin(self, visitor: Address, raw: bytes) -> Observer:  # pragma: no cover
        """Return who looks at a request; ``raw`` is its head as it came, or a part."""
        ...

    def known_as(self, name: str) -> None:  # pragma: no cover
        """Note what the entry is called in commands."""
        ...

    def served_by(self, serve: ServeSeen) -> None:  # pragma: no cover
        """Note what serves visitors of the entry, to ask it something again."""
        ...


class ServeSeen(Protocol):
    """Serves a visitor to its end, while somebody looks on; owns the stream."""

    def __call__(
        self, stream: trio.abc.HalfCloseableStream, peer: Address, watch: Watch | None
    ) -> Awaitable[None]:  # pragma: no cover
        """Serve it."""
        ...


class Guarded:
    """Tells an observer, and bears that it fails: the same methods."""

    __slots__ = ("_head_bytes", "_observer")

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._head_bytes = 0
        """Of the answer's head, that ``sent`` has not seen."""

    @classmethod
    def begin(cls, watch: Watch, visitor: Address, raw: bytes) -> Guarded:
        """Have a request observed: see ``Watch.begin``."""
        try:
            return cls(watch.begin(visitor, raw))
        except Exception as error:
            _say_failed(error)
            return cls(None)

    def connected(self) -> None:
        """See ``Observer``."""
        self._tell(lambda one: one.connected())

    def asked(self, pieces: Sequence[Piece]) -> None:
        """See ``Observer``."""
        self._tell(lambda one: one.asked(pieces))

    def answers(self, status: int, head: bytes) -> None:
        """See ``Observer``."""
        self._head_bytes = len(head)
        self._tell(lambda one: one.answers(status, head))

    def answered(self, pieces: Sequence[Piece]) -> None:
        """See ``Observer``."""
        self._tell(lambda one: one.answered(pieces))

    def trailers(self, fields: Sequence[Field]) -> None:
        """Take the trailers behind the answer's body, if there are some."""
        if fields:
            self._tell(lambda one: one.trailers([field.line for field in fields]))

    def sent(self, data: bytes) -> None:
        """Take what goes to the visitor of an answer of our own: its head, then all."""
        behind = data[self._head_bytes :]
        self._head_bytes = max(self._head_bytes - len(data), 0)
        if behind:
            self.answered([behind])

    def sank(self, pieces: Sequence[Piece], size: int) -> None:
        """Take the first bytes of pieces of the answer's body, so many."""
        for piece in pieces:
            if size <= 0:
                return
            self.answered([piece[:size]])
            size -= len(piece)

    def passed(self, data: Piece, *, to_visitor: bool) -> None:
        """See ``Observer``."""
        self._tell(lambda one: one.passed(data, to_visitor=to_visitor))

    def failed(self, why: str) -> None:
        """See ``Observer``."""
        self._tell(lambda one: one.failed(why))

    def over(self, *, whole: bool) -> None:
        """See ``Observer``."""
        self._tell(lambda one: one.over(whole=whole))

    def _tell(self, what: Callable[[Observer], None]) -> None:
        if self._observer is None:
            return
        try:
            what(self._observer)
        except Exception as error:
            _say_failed(error)
            self._observer = None


def _say_failed(error: Exception) -> None:
    log_event(LOG, logging.ERROR, "observer.failed", reason=type(error).__name__,
        exc_info=error)  # fmt: skip


class Seen(Asked, Protocol):
    """What is used of a ``Visit``."""

    body: BodyReader
    gone: bool
    tunnel: ResettableStream | None
    line: RequestLine | None
    observer: Guarded | None


def request_over(visit: Seen) -> None:
    """Say that a request is over; a tunnel that follows says its end itself."""
    tunnel = visit.tunnel is not None
    if visit.line is not None:
        visit.line.over(visit, tunnel=tunnel)
    if visit.observer is not None and not tunnel:
        end_observation(visit, visit.observer)


def end_observation(visit: Seen, observer: Guarded) -> None:
    """Tell who looks on that the answer has ended.

    The visitor's task may find that out only when it needs to.
    """
    visit.observer = None
    if visit.gone:
        observer.failed("the visitor has left, or was cut off")
    request = visit.request
    bodiless = request is not None and request.body.size == 0
    observer.over(whole=bodiless or visit.body.done)


class Tapped:
    """A virtual TCP connection whose bytes an observer sees; owned as that is."""

    def __init__(self, stream: ResettableStream, observer: Guarded) -> None:
        self.bound = stream.bound
        self._stream = stream
        self._observer = observer
        self.wait_room = stream.wait_room
        self.finish = stream.finish
        self.aclose = stream.aclose
        self.close = stream.close
        self.reset = stream.reset

    async def receive_some(self, max_bytes: int | None = None) -> Bytes:
        """Do as the stream does."""
        data = await self._stream.receive_some(max_bytes)
        self._observer.passed(data, to_visitor=True)
        return data

    async def receive_piece(self) -> Bytes:
        """Do as the stream does."""
        data = await self._stream.receive_piece()
        self._observer.passed(data, to_visitor=True)
        return data

    async def send_all(self, data: Piece) -> None:
        """Do as the stream does."""
        self._observer.passed(data, to_visitor=False)
        await self._stream.send_all(data)

    async def put(self, data: Piece) -> None:
        """Do as the stream does."""
        self._observer.passed(data, to_visitor=False)
        await self._stream.put(data)

    def carry(self, local: LocalEnd, idle_s: float, *, ready: bool = False) -> None:
        """Carry nothing: who reads and writes is seen here."""
        del local, idle_s, ready

    def on_closed(self, call: OnClosed | None) -> None:
        """Do as the stream does."""
        self._stream.on_closed(call)
