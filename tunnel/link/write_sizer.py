"""How much is committed to the wire at once: about 5 ms of what the line carries.

What is committed cannot be overtaken, so on a slow line a turn must be small; on a fast
one a small turn is all overhead (protocol.md#fairness). Knows sizes and times only.
"""

from __future__ import annotations

from typing import Final

TURN_S: Final = 0.005
"""A newcomer waits for one turn: too short for a person to notice."""
WAITED_S: Final = 0.001
"""Whoever is faster did not wait for the line."""
MIN_TURN_BYTES: Final = 16_384
"""One TLS record."""
MAX_TURN_BYTES: Final = 262_144
"""Above it nothing more is gained."""


class WriteSizer:
    """The size of the next turn, from how long the last ones took."""

    __slots__ = ("turn_bytes",)

    def __init__(self) -> None:
        self.turn_bytes = 4 * MIN_TURN_BYTES
        """DATA that the next turn should hold."""

    def took(self, size: int, seconds: float) -> None:
        """Count a turn of ``size`` bytes, which the kernel took within ``seconds``.

        Down at once, up by doubling: what the kernel swallows into an empty buffer
        says little about the line.
        """
        most = 2 * self.turn_bytes if size >= self.turn_bytes else self.turn_bytes
        if seconds >= WAITED_S and size >= MIN_TURN_BYTES:
            most = min(most, int(size * TURN_S / seconds))
        self.turn_bytes = min(max(most, MIN_TURN_BYTES), MAX_TURN_BYTES)
