"""How fast the bytes of one entry pass at the client: one rate for all its visitors.

Unlike the rate of a user (``proto.pace``) it holds for some connections of a session,
and begins while they run. So it is kept by their windows: what may be sent is room that
the rate has given, what may come is a grant that it has paid for. Nothing is dropped
and nothing waits here: who sends feels it, at either end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.proto.pace import LEAST_PIECE_BYTES, Meter
from tunnel.proto.window import RecvWindow, SendWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.mux import MuxCore

AHEAD_BYTES: Final = 16_384
"""What a connection may send before it asks: a request need not wait for a tick."""
CATCH_UP_S: Final = 0.25
"""A tick that is late loses none of the rate, up to this: the machine may be busy."""


@dataclass(slots=True)
class PacedSendWindow(SendWindow):
    """A window of which the rate opens a part after the other."""

    passes: int = 0
    """Up to here the rate lets, as an offset like ``limit``."""

    def room(self) -> int:
        """Bytes that may still be queued."""
        return min(self.limit, self.passes) - self.taken


@dataclass(slots=True, eq=False)
class PacedRecvWindow(RecvWindow):
    """A window that grants what the rate has paid for, when it has."""

    passes: int = 0
    """Up to here the rate lets, as an offset like ``limit``."""

    def consume(self, size: int) -> bool:
        """Count bytes that the application took; a grant is due at a tick."""
        self.consumed += size
        return False

    def grant(self) -> int:
        """Raise the promise to what is paid for, and return the new limit."""
        # It must not grow: it is not a reader that keeps it small.
        self.measured_at = float("-inf")
        self.limit = max(self.limit, self.passes)
        return self.limit


class EntryPace:
    """A rate each way, in bytes per second, for the connections of one entry.

    ``clock`` returns the time in seconds; it does not jump.
    """

    def __init__(self, rate: int, clock: Callable[[], float]) -> None:
        self._out = Meter(rate, clock, _nobody)
        self._in = Meter(rate, clock, _nobody)
        self._turn = 0
        self.set_rate(rate)

    @property
    def rate(self) -> int:
        """Bytes per second."""
        return self._out.rate

    def set_rate(self, rate: int) -> None:
        """Let so many bytes per second pass from now on."""
        for meter in (self._out, self._in):
            meter.set_rate(rate)
            meter.burst = max(meter.burst, rate * CATCH_UP_S)

    def tick(self, core: MuxCore, conns: Sequence[VirtualConn]) -> None:
        """Give the connections what may pass by now; new ones are slowed first.

        The caller dispatches the core's notices, and writes its output.
        """
        self._turn += 1
        at = self._turn % len(conns) if conns else 0
        in_turn = [*conns[at:], *conns[:at]]
        for conn in in_turn:
            if not isinstance(conn.send, PacedSendWindow):
                slow(core, conn)
        self._give_room(in_turn)
        self._pay_grants(in_turn)
        for conn in in_turn:
            recv = conn.recv
            paid = isinstance(recv, PacedRecvWindow) and recv.passes > recv.limit
            core.go_on(conn, grant=paid)

    def _give_room(self, conns: list[VirtualConn]) -> None:
        wanted: list[tuple[PacedSendWindow | PacedRecvWindow, int]] = []
        for conn in conns:
            send = conn.send
            if isinstance(send, PacedSendWindow):
                most = send.limit - send.passes
                if most > 0 and send.passes - send.taken < AHEAD_BYTES:
                    wanted.append((send, most))
        _share_out(self._out, wanted)

    def _pay_grants(self, conns: list[VirtualConn]) -> None:
        wanted: list[tuple[PacedSendWindow | PacedRecvWindow, int]] = []
        for conn in conns:
            recv = conn.recv
            if isinstance(recv, PacedRecvWindow):
                most = recv.consumed + recv.size - recv.passes
                if most > 0:
                    wanted.append((recv, most))
        _share_out(self._in, wanted)


def _share_out(
    meter: Meter, wanted: list[tuple[PacedSendWindow | PacedRecvWindow, int]]
) -> None:
    """Give each the same, but no more than it wants; the first have the rest."""
    budget, left = meter.available(), len(wanted)
    for window, most in wanted:
        part = min(most, budget, max(budget // left, LEAST_PIECE_BYTES))
        if part <= 0:
            break
        window.passes += part
        meter.pay(part)
        budget -= part
        left -= 1


def slow(core: MuxCore, conn: VirtualConn) -> None:
    """Have a rate open the windows of a connection; what was granted stays granted."""
    send, recv = conn.send, conn.recv
    core.replace_windows(
        conn,
        PacedSendWindow(send.limit, send.taken, send.taken),
        PacedRecvWindow(
            recv.size, recv.limit, recv.received, recv.consumed, passes=recv.limit
        ),
    )


def let_go(core: MuxCore, conn: VirtualConn) -> None:
    """Let a connection pass as fast as the link takes it again."""
    if not isinstance(conn.send, PacedSendWindow):
        return
    send, recv = conn.send, conn.recv
    core.replace_windows(
        conn,
        SendWindow(send.limit, send.taken),
        RecvWindow(recv.size, recv.limit, recv.received, recv.consumed),
    )
    core.go_on(conn, grant=conn.recv.consume(0))


def _nobody() -> None:
    """Nobody waits in these meters: a tick comes anyway."""
