"""The lines of the access log about requests; see ``net.access_log``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from tunnel.net.access_log import ENTRY, say_served, wanted
from tunnel.proto.conn import VirtualConn

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.errors import Code
    from tunnel.front.http.heads import RequestHead


class Asked(Protocol):
    """What is used of a ``Visit``."""

    peer: Address
    stream: trio.abc.HalfCloseableStream
    request: RequestHead | None
    host: str
    idle_since: float | None

    @property
    def upstream(self) -> object:
        """The target's connection."""


def new_line(visit: Asked) -> RequestLine | None:
    """Begin the line of a request that is about to be read, if somebody wants it."""
    if not wanted():
        return None
    return RequestLine(visit.peer, visit.stream, visit.upstream)


class RequestLine:
    """What is to be said of one request of a visitor, which is about to be read.

    Its bytes are those of the virtual TCP connection, heads included: the one that the
    visitor came by, or the one to its target. Where there is none, as for an answer of
    our own, none are said.

    Args:
        peer: the visitor.
        stream: by which it came.
        upstream: the target's connection, if one was kept.
    """

    def __init__(self, peer: Address, stream: object, upstream: object) -> None:
        self._began = trio.current_time()
        self._ended: float | None = None
        self.peer = peer
        self.status: int | None = None
        self._method: str | None = None
        self._path: str | None = None
        self._entry = ""
        self._comes_by = _conn_of(stream) is not None
        """The visitor does, by a virtual TCP connection."""
        self._stream = stream
        if not self._comes_by:
            self._stream = getattr(upstream, "virtual", None)
        self._before = self._counts()

    def connected(self, stream: object) -> None:
        """Note the connection to its target, if that is none that was kept."""
        if not self._comes_by:
            self._stream, self._before = stream, (0, 0)

    def _counts(self) -> tuple[int, int]:
        conn = _conn_of(self._stream)
        if conn is None:
            return 0, 0
        sent, received = conn.send.taken, conn.recv.received
        return (received, sent) if self._comes_by else (sent, received)

    def over(self, visit: Asked, *, tunnel: bool) -> None:
        """Write the line, unless a tunnel begins: then that is done at its end."""
        request, host, ended = visit.request, visit.host, visit.idle_since
        # Before it began: of the request that was waited for.
        self._ended = ended if ended and ended >= self._began else None
        if request is not None:
            self._method = request.method.decode("latin-1")
            self._path = request.target.decode("latin-1")
        if host and not self._comes_by and not ENTRY.get():
            self._entry = f"http {host}"
        if tunnel:
            self._ended = None
        else:
            self.say(None)

    def say(self, code: Code | None) -> None:
        """Write the line; ``code`` is how a tunnel ended."""
        passed = None
        if _conn_of(self._stream) is not None:
            up, down = self._counts()
            passed = up - self._before[0], down - self._before[1]
        ended = self._ended or trio.current_time()
        seconds = ended - self._began
        say_served(seconds, self._stream, peer=self.peer, entry=self._entry,
            passed=passed, code=code, method=self._method, path=self._path,
            status=self.status)  # fmt: skip


def _conn_of(stream: object) -> VirtualConn | None:
    """Return the record of a virtual TCP connection; None if it is none."""
    conn = getattr(stream, "conn", None)
    return conn if isinstance(conn, VirtualConn) else None
