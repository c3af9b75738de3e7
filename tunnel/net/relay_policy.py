"""What the end of one direction of a relay means for the other: a table, without IO.

A relay carries two directions: *up*, from a local stream to the peer of a virtual TCP
connection, and *down*, from that peer to the local stream. ``TABLE`` has, for each
event in each state of the two directions, the state that follows, what the engine does,
and how the relay ends as soon as that is certain (protocol.md#close). When both
directions are over, so is the relay, and no event means anything.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.errors import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

GRACE_S: Final = 1.0
"""How long a local side that does not read may delay an end that is certain."""


class Event(IntEnum):
    """What happens to an end of a relay."""

    LOCAL_FINISHED = auto()
    """The local stream is at its end of file; everything before it is sent."""
    LOCAL_BROKE = auto()
    """The local stream is reset, or broken in both directions."""
    LOCAL_DEAF = auto()
    """A write finds the local socket reset; what it sent before can still be read."""
    LOCAL_VANISHED = auto()
    """The machine behind the local socket answers no more."""
    PEER_FINISHED = auto()
    """The peer is at its end of file; everything before it is written."""
    PEER_DEAF = auto()
    """The peer reads no more: CLOSE(NORMAL). What it sent still comes."""
    PEER_BROKE = auto()
    """The peer resets the connection, or its link is lost. Bytes may wait for local."""
    PEER_DRAINED = auto()
    """The peer is broken, and everything that came from it is written."""
    IDLE = auto()
    """No byte has passed for as long as the relay may rest."""
    GRACE_OVER = auto()
    """The time for what was left to be done is over."""


class Up(IntEnum):
    """The direction from the local stream to the peer."""

    OPEN = auto()
    DROPPED = auto()
    """The peer reads no more: what local still sends is read and thrown away."""
    OVER = auto()


class Down(IntEnum):
    """The direction from the peer to the local stream."""

    OPEN = auto()
    DEAD = auto()
    """Local takes no more. The end of what it sent is a reset, however it looks."""
    OVER = auto()


class Act(Enum):
    """What the engine does about an event."""

    GO_ON = "nothing"
    TELL_PEER = "pass the end of file on to the peer"
    TELL_LOCAL = "pass the end of file on to the local stream"
    READ_REST = "write no more, and read what local sent before"
    DROP = "read local for nobody, so that it can hear the rest"
    STOP = "stop both directions and close both ends"


class Farewell(Enum):
    """How the local stream is closed."""

    FIN = "a clean end behind what was written"
    RST = "a reset at once"
    LATE_RST = "a reset as soon as the other kernel has what was written"


class Verdict(NamedTuple):
    """How a relay ends."""

    code: Code
    """Its result."""
    to_peer: Code
    """What the peer is told: NORMAL is a close, any other code a reset."""
    to_local: Farewell


CLEAN: Final = Verdict(Code.NORMAL, Code.NORMAL, Farewell.FIN)
RESET: Final = Verdict(Code.RESET, Code.RESET, Farewell.RST)
IDLE: Final = Verdict(Code.IDLE, Code.IDLE, Farewell.RST)
UNHEARD: Final = Verdict(Code.RESET, Code.NORMAL, Farewell.RST)
"""Local died after its own true end: the peer has all of it, and hears a close."""
BROKEN: Final = Verdict(Code.RESET, Code.NORMAL, Farewell.LATE_RST)
"""The peer is gone. Its own code, if it gave one, takes the place of RESET."""


class Row(NamedTuple):
    """What follows from one event."""

    up: Up
    down: Down
    act: Act
    verdict: Verdict | None = None
    """None: not certain yet. The first verdict stands; without any it is CLEAN."""
    grace: bool = False
    """What is left to be done gets ``GRACE_S``, and then comes GRACE_OVER."""


class _Rule(NamedTuple):
    event: Event
    ups: tuple[Up, ...]
    downs: tuple[Down, ...]
    act: Act
    up: Up | None = None  # None: as it was
    down: Down | None = None
    verdict: Verdict | None = None
    grace: bool = False


_ANY_UP: Final = tuple(Up)
_READ: Final = (Up.OPEN, Up.DROPPED)
_OPEN: Final = (Up.OPEN,)
_DROPPED: Final = (Up.DROPPED,)
_SENT: Final = (Up.OVER,)
_ANY_DOWN: Final = tuple(Down)
_WRITTEN: Final = (Down.OPEN,)
_DEAD: Final = (Down.DEAD,)
_NOT_OVER: Final = (Down.OPEN, Down.DEAD)
_TOLD: Final = (Down.OVER,)

_RULES: Final = (
    _Rule(Event.LOCAL_FINISHED, _OPEN, _WRITTEN, Act.TELL_PEER, up=Up.OVER),
    _Rule(Event.LOCAL_FINISHED, _DROPPED, _WRITTEN, Act.GO_ON, up=Up.OVER),
    _Rule(Event.LOCAL_FINISHED, _READ, _DEAD, Act.STOP, verdict=RESET),
    _Rule(Event.LOCAL_FINISHED, _READ, _TOLD, Act.STOP),
    _Rule(Event.LOCAL_BROKE, _READ, _ANY_DOWN, Act.STOP, verdict=RESET),
    _Rule(Event.LOCAL_BROKE, _SENT, _ANY_DOWN, Act.STOP, verdict=UNHEARD),
    _Rule(Event.LOCAL_DEAF, _READ, _ANY_DOWN, Act.READ_REST, down=Down.DEAD),
    _Rule(Event.LOCAL_DEAF, _SENT, _ANY_DOWN, Act.STOP, verdict=UNHEARD),
    _Rule(Event.LOCAL_VANISHED, _ANY_UP, _ANY_DOWN, Act.STOP, verdict=RESET),
    _Rule(Event.PEER_FINISHED, _OPEN, _WRITTEN, Act.TELL_LOCAL, down=Down.OVER),
    _Rule(
        Event.PEER_FINISHED,
        _DROPPED,
        _WRITTEN,
        Act.TELL_LOCAL,
        down=Down.OVER,
        grace=True,
    ),
    _Rule(Event.PEER_FINISHED, _SENT, _WRITTEN, Act.STOP),
    _Rule(Event.PEER_DEAF, _OPEN, _NOT_OVER, Act.DROP, up=Up.DROPPED),
    _Rule(Event.PEER_DEAF, _OPEN, _TOLD, Act.DROP, up=Up.DROPPED, grace=True),
    _Rule(Event.PEER_BROKE, _ANY_UP, _NOT_OVER, Act.GO_ON, verdict=BROKEN, grace=True),
    _Rule(Event.PEER_BROKE, _ANY_UP, _TOLD, Act.STOP, verdict=BROKEN),
    _Rule(Event.PEER_DRAINED, _ANY_UP, _ANY_DOWN, Act.STOP, verdict=BROKEN),
    _Rule(Event.IDLE, _ANY_UP, _ANY_DOWN, Act.STOP, verdict=IDLE),
    _Rule(Event.GRACE_OVER, _ANY_UP, _ANY_DOWN, Act.STOP),
)
"""What is not here changes nothing."""


def closed(code: Code) -> Event:
    """Return what it means that the peer closed the connection with ``code``."""
    return Event.PEER_DEAF if code is Code.NORMAL else Event.PEER_BROKE


def _row(event: Event, up: Up, down: Down) -> Row:
    if (up, down) != (Up.OVER, Down.OVER):
        for rule in _RULES:
            if rule.event is event and up in rule.ups and down in rule.downs:
                if rule.act is Act.STOP:
                    return Row(Up.OVER, Down.OVER, Act.STOP, rule.verdict)
                up, down = rule.up or up, rule.down or down
                return Row(up, down, rule.act, rule.verdict, rule.grace)
    return Row(up, down, Act.GO_ON)


TABLE: Final[Mapping[tuple[Event, Up, Down], Row]] = {
    case: _row(*case) for case in product(Event, Up, Down)
}
