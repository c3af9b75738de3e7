"""What the visitors of each entry have sent and received, while they are in and after.

A stream is counted when it ends; while it lives, its own counters are looked at, so
that bytes on their way cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from tunnel.proto.frames import NameTarget, UdpTarget

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.frames import Target


class Tally:
    """Bytes of one entry's visitors that have left; seen from this side of the link."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0

    def passed(self, live: Live) -> tuple[int, int]:
        """Return the bytes sent and received, those of its live streams too."""
        sent, received = live.get(self, (0, 0))
        return self.sent + sent, self.received + received


Live = Mapping[Tally, tuple[int, int]]
"""What live streams have sent and received, by their tallies."""


class Counted(Protocol):
    """What a tally needs of a stream, whose module imports this one."""

    conn: VirtualConn
    tally: Tally | None


class Tallies:
    """The tallies of a session's entries, by the names of their mappings.

    ``opened`` says that visitors are streams opened from this side: a server's.
    """

    def __init__(self, *, opened: bool) -> None:
        self.begun = 0
        """Streams that have begun, from either side, whatever they are for."""
        self._opened = opened
        self._of: dict[str, Tally] = {}
        self._exit: Tally | None = None

    def begin(self, name: str, tally: Tally, *, is_exit: bool = False) -> None:
        """Count the streams for a mapping, or those that leave at an exit, from now."""
        self._of[name] = tally
        if is_exit:
            self._exit = tally

    def end(self, name: str) -> None:
        """Count no new stream for a mapping; harmless twice."""
        if self._of.pop(name, None) is self._exit:
            self._exit = None

    def of(self, target: Target | None, *, opened: bool) -> Tally | None:
        """Return where a new stream to a target counts; None: nowhere.

        ``opened``: from this side. It counts as one that has begun.
        """
        self.begun += 1
        if opened is not self._opened or not self._of:
            return None
        if isinstance(target, NameTarget | UdpTarget) and target.name:
            return self._of.get(target.name)
        return self._exit


def has_left(stream: Counted | None) -> None:
    """Count a stream that has ended, if it is a visitor's."""
    if stream is not None and (tally := stream.tally) is not None:
        sent, received = bytes_of(stream.conn)
        tally.sent += sent
        tally.received += received


def bytes_of(conn: VirtualConn) -> tuple[int, int]:
    """Return the bytes that were sent to a connection's peer, and came from it."""
    if (flow := conn.datagrams) is not None:
        return flow.sent_bytes, flow.received_bytes
    return conn.send.taken, conn.recv.received
