"""What is alive in a session, for whoever wants to look at each of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.link.tally import bytes_of

if TYPE_CHECKING:
    from tunnel.link.session import Session
    from tunnel.link.tally import Live, Tally
    from tunnel.link.virtual import VirtualStream


def open_streams(session: Session) -> tuple[VirtualStream, ...]:
    """Return what is alive in a session, UDP associations too."""
    return tuple(session._streams.values())


def live_bytes(session: Session | None) -> Live:
    """Return what the visitors that are in have sent and received, by entry."""
    found: dict[Tally, tuple[int, int]] = {}
    for stream in open_streams(session) if session else ():
        if stream.tally is not None:
            before = found.get(stream.tally, (0, 0))
            sent, received = bytes_of(stream.conn)
            found[stream.tally] = before[0] + sent, before[1] + received
    return found
