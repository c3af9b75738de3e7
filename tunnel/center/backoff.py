"""How long to wait before the next attempt (protocol.md#liveness)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_S: Final = 0.2
"""A link that was lost is usually to be had again at once."""
MOST_S: Final = 20.0
"""Nobody should wait longer for a server that is back."""


class Backoff:
    """Doubles from 0.2 s to 20 s, each with ±50 % jitter, so that clients spread out.

    Args:
        random: gives numbers from 0 to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next_s = FIRST_S

    def next_s(self) -> float:
        """Give the next wait; the one after will be twice as long."""
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, MOST_S)
        return min(wait_s * (0.5 + self._random()), MOST_S)

    def reset(self) -> None:
        """An attempt reached the server's proof: begin again with the shortest."""
        self._next_s = FIRST_S
