"""Whether to try again, and after how long (protocol.md#liveness)."""

from __future__ import annotations

from random import random
from typing import TYPE_CHECKING, Final

from tunnel.errors import (
    Code,
    SessionError,
    StateError,
    TlsError,
    UsageError,
    ViaError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.errors import TunnelError

FIRST_S: Final = 0.2
"""Most links that are lost can be had again at once."""
MOST_S: Final = 20.0
"""While nothing waits: a server that is back is found within this time."""
WAITING_MOST_S: Final = 3.0
"""While connections wait: no pause, no dial and no step of a link start is longer."""
STEADY_S: Final = MOST_S
"""A link that lasted so long was a good one, however it ended: to try the next at once
costs no more than to try in vain for ever."""
_FINAL_ENDS: Final = (Code.TAKEN_OVER, Code.REVOKED)
"""Of a session, so of a server that is proved: coming back would be in vain."""
_FINAL_CODES: Final = (Code.AUTH, Code.VERSION, Code.ONCE)
_JITTER: Final = 0.5
"""Clients that lost their links together spread out by it."""


class Backoff:
    """Pauses that double from 0.2 s to the longest, each with ±50 % jitter."""

    def __init__(self, random: Callable[[], float] = random) -> None:
        self._random = random
        self._next_s = FIRST_S
        self._failed = False

    def next_s(self, *, waiting: bool = False, took_s: float = 0.0) -> float:
        """Return the next pause; the one after will be twice as long.

        Args:
            waiting: connections wait for the link.
            took_s: how long the failed attempt took. The pause is shorter by that, so
                that attempts begin at an even pace, but never shorter than the first.
        """
        most_s = (WAITING_MOST_S if waiting else MOST_S) / (1 + _JITTER)
        wait_s = min(self._next_s, most_s)
        self._next_s = min(2 * self._next_s, MOST_S)
        factor = 1 - _JITTER + 2 * _JITTER * self._random()
        return max(wait_s * factor - took_s, min(wait_s, FIRST_S) * factor)

    def carried(self, for_s: float, *, failed: bool) -> None:
        """Count a link that is over: after it the shortest pause comes next.

        Not after the second in a row that ``failed`` before it was steady: a server
        whose every session ends with a broken rule is as good as none.
        """
        failed = failed and for_s < STEADY_S
        if not (failed and self._failed):
            self._next_s = FIRST_S
        self._failed = failed


def is_final(reason: TunnelError, *, was_up: bool) -> bool:
    """Say whether no other attempt may follow; ``was_up``: one has succeeded before."""
    if reason.code in _FINAL_ENDS and isinstance(reason, SessionError):
        return True
    # A captive portal must not end what has worked before.
    return not was_up and (
        reason.code in _FINAL_CODES
        or isinstance(reason, TlsError | ViaError | StateError | UsageError)
    )
