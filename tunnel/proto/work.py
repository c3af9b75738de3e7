"""How much of what came one turn of a link may do (protocol.md#fairness).

One read brings up to 256 KiB: four frames of bulk, or thirty thousand of a byte, or
eight thousand connections to open. Whoever shares the process waits for the turn to
end, so a turn ends when its work is done and not when the bytes are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.proto.frames import (
    ProtAccept,
    ProtClose,
    ProtCreate,
    ProtDatagram,
    ProtMapping,
    ProtMappingAnswer,
)

if TYPE_CHECKING:
    from tunnel.proto.frames import ProtFrame

TURN_WORK: Final = 96
"""Units of one turn, about 0.3 ms: the small frames of 64 busy connections fit, and
a turn of the scheduler, 20 µs, costs a flood a few percent and nobody else anything."""
CREATE_WORK: Final = 40
"""A task, a dial and an answer follow: a hundred times a small DATA, spread over the
next turns."""
DATAGRAM_WORK: Final = 6
"""An address to take apart, a queue, a task to wake, a system call."""
CLOSE_WORK: Final = 8
"""A socket to close and a task to end, or a task to begin the relay."""

_WORK: Final[dict[type, int]] = {
    ProtCreate: CREATE_WORK,
    ProtAccept: CLOSE_WORK,
    ProtClose: CLOSE_WORK,
    ProtDatagram: DATAGRAM_WORK,
}


def work_of(frame: ProtFrame) -> int:
    """Give the units that a frame costs; DATA, which is never asked about, costs 1."""
    if isinstance(frame, ProtMapping):
        return 2 + 4 * (len(frame.entries) + frame.too_many)
    if isinstance(frame, ProtMappingAnswer):
        return 2 + 4 * len(frame.answers)
    return _WORK.get(type(frame), 2)
