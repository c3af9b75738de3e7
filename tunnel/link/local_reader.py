"""Sockets that a session carries: read whenever there is room, without a task each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.link.inbox import LARGE_PIECE_BYTES
from tunnel.net.sockets import CHUNK_BYTES
from tunnel.proto.state import StreamState

if TYPE_CHECKING:
    from tunnel.net.poller import Poller
    from tunnel.net.virtual_connection import LocalEnd
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.mux import MuxCore

_CLOSING: Final = StreamState.CLOSING
_IDLE: Final = StreamState.IDLE


class LocalReader:
    """Reads one socket into the core, until the socket ends or ``stop``.

    No byte is taken before it has credit: that is the backpressure.
    """

    __slots__ = ("_conn", "_core", "_local", "_poller", "_stopped", "_watched")

    def __init__(
        self, local: LocalEnd, core: MuxCore, conn: VirtualConn, poller: Poller
    ) -> None:
        self._local = local
        self._core = core
        self._conn = conn
        self._poller = poller
        self._stopped = False
        self._watched = False
        """The poller looks at the socket: there is room."""

    def fill(self) -> None:
        """Fill the room there is by one read; be watched as long as there is any."""
        core, conn, local = self._core, self._conn, self._local
        while not self._stopped:
            # Closed in the core, it is about to be closed here: by a later event.
            is_over = conn.state is _CLOSING or conn.state is _IDLE
            # Beside what is queued a small piece is not worth a frame.
            room = min(CHUNK_BYTES, core.send_room(conn, LARGE_PIECE_BYTES))
            if is_over or not room:
                return self.watch(wanted=False)
            data = local.read(room)
            if data is None:
                return self.watch(wanted=True)
            if not data:
                return self.stop()
            core.send_data(conn, data)
            if len(data) < room:
                return self.watch(wanted=True)

    def watch(self, *, wanted: bool) -> None:
        """Have the poller call ``fill`` when the socket has bytes, or no more."""
        if wanted is not self._watched and not self._stopped:
            self._watched = wanted
            if wanted:
                self._poller.watch(self._local.number(), self.fill)
            else:
                self._poller.forget(self._local.number())

    def stop(self) -> None:
        """Read no more; harmless when repeated."""
        self.watch(wanted=False)
        self._stopped = True
