"""Output: the one way in which what a session has to send gets to its wire.

The first task that has something to send writes it itself, without a wait. For what is
left, for further turns and for every end it wakes the link's writer. What is committed
to the wire cannot be overtaken, so on a slow line a turn must be small; on a fast one a
small turn is all overhead (protocol.md#fairness).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import TunnelError
from tunnel.net.notify import Notify

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.link.transport import Transport
    from tunnel.proto.events import Event
    from tunnel.proto.mux import MuxCore

TURN_S: Final = 0.005
"""A newcomer waits for one turn: too short for a person to notice."""
WAITED_S: Final = 0.001
"""A write that took less did not wait for the line."""
MIN_TURN_BYTES: Final = 16_384
"""One TLS record."""
MAX_TURN_BYTES: Final = 262_144
"""Larger turns gain nothing more."""


class WriteSizer:
    """The size of the next turn: about ``TURN_S`` of what the line carries."""

    def __init__(self) -> None:
        self.turn_bytes = 4 * MIN_TURN_BYTES
        """DATA that the next turn should hold."""

    def took(self, size: int, seconds: float) -> None:
        """Count a turn of ``size`` bytes, which the kernel took within ``seconds``.

        The size falls at once and rises by doubling: what the kernel swallows into an
        empty buffer says little about the line.
        """
        most = 2 * self.turn_bytes if size >= self.turn_bytes else self.turn_bytes
        if seconds >= WAITED_S and size >= MIN_TURN_BYTES:
            most = min(most, int(size * TURN_S / seconds))
        self.turn_bytes = min(max(most, MIN_TURN_BYTES), MAX_TURN_BYTES)


class Output:
    """The gate between a session's core and the link that carries it, if one does.

    It lives as long as the session, so that a stream can hold on to ``wake``. A link
    opens it when it begins to run, shuts it for the last words, and closes it. While no
    link runs, what there is to send waits in the core.
    """

    def __init__(self, core: MuxCore) -> None:
        self._core = core
        self.transport: Transport | None
        """The wire of the link that runs."""
        self._dispatch: Callable[[list[Event]], None]
        self._broke: Callable[[TunnelError], None]
        self.writer = Notify()
        """Where the link's writer waits for output."""
        self.gathering = False
        """``wake`` does nothing: ``flush`` follows, and sends a whole turn's output."""
        self.close()

    def open(
        self,
        transport: Transport,
        dispatch: Callable[[list[Event]], None],
        broke: Callable[[TunnelError], None],
    ) -> None:
        """Write to ``transport`` from now on: its link begins to run.

        ``dispatch`` takes the events that a write sets free, ``broke`` the error of a
        write that was not the writer's.
        """
        self.close()
        self.transport = transport
        self._dispatch = dispatch
        self._broke = broke
        self._is_open = True

    def shut(self, transport: Transport) -> None:
        """Leave every write to the writer of this link, if it is the one that runs."""
        if self.transport is transport:
            self._is_open = False

    def close(self) -> None:
        """Forget the link: nothing is written until the next one opens it."""
        self.transport = None
        self._dispatch = self._broke = _ignore
        self._is_open = False
        self.sizer = WriteSizer()
        self._turn_bytes = 0
        self._turn_began = 0.0

    @property
    def is_stuck(self) -> bool:
        """Whether the kernel has not taken the last turn whole."""
        return self._turn_bytes > 0

    def wake(self) -> None:
        """Have the core's output sent, if there is a link.

        The first frames go out at once; what else comes up in this turn of the
        scheduler goes together, from the writer's task.
        """
        if self.writer.waiting and not self.gathering:
            self.flush()
            self.writer.ring()

    def wake_soon(self) -> None:
        """Have it sent in the next turn: what follows at once may go with it."""
        self.writer.ring()

    def flush(self) -> None:
        """Write one turn while the writer rests, and leave the rest to the writer."""
        if not self.writer.waiting:
            return
        transport = self.transport
        if transport is not None and self._is_open and not transport.owes_output():
            try:
                self.write_turn(transport)
            except TunnelError as error:
                self._broke(error)
            if not transport.owes_output() and not self._core.has_output():
                return
        self.writer.ring()

    def write_turn(self, transport: Transport) -> None:
        """Write what is next; the wire owes nothing.

        Raises:
            LocalLinkError: ``LINK_LOST``.
        """
        core = self._core
        self._turn_began = trio.current_time()
        pieces = core.data_to_send(self.sizer.turn_bytes, self._turn_began)
        self._turn_bytes = sum(map(len, pieces))
        transport.write(pieces)
        if not transport.owes_output():
            self.turn_is_out()
        # Behind the write: a stream that has room now reads its socket at once.
        if notices := core.take_notices():
            self._dispatch(notices)

    def turn_is_out(self) -> None:
        """Count the turn that the kernel has taken whole."""
        # Less says nothing of the line: a word, or what TLS had to say.
        if self._turn_bytes >= MIN_TURN_BYTES:
            took_s = trio.current_time() - self._turn_began
            self.sizer.took(self._turn_bytes, took_s)
        self._turn_bytes = 0


def _ignore(_: object) -> None:
    """Stand in for a link."""
