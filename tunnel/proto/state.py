"""The life of one virtual TCP connection as a table, and nothing else.

A pair that is not in the table is illegal: whoever sent the signal broke a rule.
protocol.md#states is written from this table, and each change of a state follows it
(``VirtualConn.on_send``, ``on_recv``), but for the end of a session, which frees every
number at once.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class StreamState(Enum):
    """Where a virtual TCP connection stands, seen from one side."""

    IDLE = "the number is free"
    OPENING = "we sent CREATE and wait for the answer"
    OPENING_FINISHED = "as OPENING, and we have sent FIN"
    OFFERED = "the peer sent CREATE and waits for our answer"
    OFFERED_FINISHED = "as OFFERED, and the peer has sent FIN"
    OPEN = "bytes pass both ways"
    LOCAL_FINISHED = "we sent FIN, the peer may go on"
    REMOTE_FINISHED = "the peer sent FIN, we may go on"
    FINISHED = "both sent FIN, neither sent CLOSE"
    CLOSING = "we sent CLOSE and wait for the peer's; what still comes is dropped"
    CLOSED_BY_PEER = "the peer sent CLOSE; our CLOSE is due at once"

    __hash__ = object.__hash__  # Enum's own is Python, twice in each step


class Signal(Enum):
    """What can happen to it."""

    SEND_CREATE = "send CREATE"
    RECV_CREATE = "recv CREATE"
    SEND_ACCEPT = "send CREATE|ACK"
    RECV_ACCEPT = "recv CREATE|ACK"
    SEND_DATA = "send DATA"
    RECV_DATA = "recv DATA"
    SEND_FINISH = "send FIN"
    RECV_FINISH = "recv FIN"
    SEND_WINDOW = "send WINDOW"
    RECV_WINDOW = "recv WINDOW"
    SEND_CLOSE = "send CLOSE"
    RECV_CLOSE = "recv CLOSE"

    __hash__ = object.__hash__


_S = StreamState
_G = Signal

_LIVE: Final = tuple(_S)[1:-2]
"""Neither side has sent CLOSE: every state from OPENING to FINISHED."""

TRANSITIONS: Final[Mapping[tuple[StreamState, Signal], StreamState]] = {
    (_S.IDLE, _G.SEND_CREATE): _S.OPENING,
    (_S.IDLE, _G.RECV_CREATE): _S.OFFERED,
    # The opener may send within the initial window before it has an answer.
    (_S.OPENING, _G.RECV_ACCEPT): _S.OPEN,
    (_S.OPENING, _G.SEND_DATA): _S.OPENING,
    (_S.OPENING, _G.SEND_FINISH): _S.OPENING_FINISHED,
    (_S.OPENING_FINISHED, _G.RECV_ACCEPT): _S.LOCAL_FINISHED,
    # The other side sends nothing but its answer and its windows before the answer.
    (_S.OFFERED, _G.SEND_ACCEPT): _S.OPEN,
    (_S.OFFERED, _G.RECV_DATA): _S.OFFERED,
    (_S.OFFERED, _G.RECV_FINISH): _S.OFFERED_FINISHED,
    (_S.OFFERED_FINISHED, _G.SEND_ACCEPT): _S.REMOTE_FINISHED,
    (_S.OPEN, _G.SEND_DATA): _S.OPEN,
    (_S.OPEN, _G.RECV_DATA): _S.OPEN,
    (_S.OPEN, _G.SEND_FINISH): _S.LOCAL_FINISHED,
    (_S.OPEN, _G.RECV_FINISH): _S.REMOTE_FINISHED,
    (_S.LOCAL_FINISHED, _G.RECV_DATA): _S.LOCAL_FINISHED,
    (_S.LOCAL_FINISHED, _G.RECV_FINISH): _S.FINISHED,
    (_S.REMOTE_FINISHED, _G.SEND_DATA): _S.REMOTE_FINISHED,
    (_S.REMOTE_FINISHED, _G.SEND_FINISH): _S.FINISHED,
    # The peer did not know yet that we closed.
    (_S.CLOSING, _G.RECV_WINDOW): _S.CLOSING,
    (_S.CLOSING, _G.RECV_ACCEPT): _S.CLOSING,
    (_S.CLOSING, _G.RECV_DATA): _S.CLOSING,
    (_S.CLOSING, _G.RECV_FINISH): _S.CLOSING,
    (_S.CLOSING, _G.RECV_CLOSE): _S.IDLE,
    (_S.CLOSED_BY_PEER, _G.SEND_CLOSE): _S.IDLE,
    **{(state, _G.SEND_CLOSE): _S.CLOSING for state in _LIVE},
    **{(state, _G.RECV_CLOSE): _S.CLOSED_BY_PEER for state in _LIVE},
    # Before the accept and behind a FIN a grant changes nothing; nobody is at fault.
    **{(state, _G.SEND_WINDOW): state for state in _LIVE},
    **{(state, _G.RECV_WINDOW): state for state in _LIVE},
}


def step(state: StreamState, signal: Signal) -> StreamState | None:
    """Return the next state, or None when ``signal`` is illegal in ``state``."""
    return TRANSITIONS.get((state, signal))
