"""What a virtual TCP connection waits for, and what it was found to wait for lately."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

MINUTE: Final = 60
"""Looks that are kept: those of a minute, at one a second."""


class Wait(IntEnum):
    """What a virtual TCP connection waits for, as this end of it can see."""

    NOTHING = 0
    """It moves, or is over, or what holds it up is at the other end."""
    CREDIT = 1
    """The reader at the other end has not taken what was sent."""
    TURN = 2
    """Its bytes may go, and others of the link go first, or the program is busy."""
    LINE = 3
    """Its bytes may go, and the network takes no more."""
    RATE = 4
    """The rate of its user, or of its entry, lets no more pass."""
    LOCAL = 5
    """The program at this end has not taken what came."""
    TARGET = 6
    """The target was asked, or is being connected, and is silent."""
    PROGRAM = 7
    """The program that opened it sends nothing: all that it asked was answered."""
    LINK = 8
    """The link is lost, and another may take its place."""

    @property
    def word(self) -> str:
        """How it is called in what people and scripts read."""
        return self.name.lower()


Shares = dict[Wait, float]

_STEADY: Final[dict[bytes, bytes]] = {
    looks: looks
    for wait in Wait
    for count in range(1, MINUTE + 1)
    for looks in (bytes((wait,)) * count,)
}
"""Most connections rest: those share what is kept of them."""


class Looks:
    """What was found at the looks of the last minute, and at the last one how far.

    80 bytes for a connection that rests, 100 more for one that does not.
    """

    __slots__ = ("down", "found", "up")

    def __init__(self, up: int, down: int) -> None:
        self.found = b""
        """A ``Wait`` for each look, the last one last."""
        self.up = up
        """Bytes that this end had sent to the other."""
        self.down = down
        """Bytes that the program at this end had taken."""

    def add(self, wait: Wait, most: int) -> None:
        """Note what a look has found; so many are those of a minute."""
        found = (self.found + bytes((wait,)))[-most:]
        self.found = _STEADY.get(found, found)

    def shares(self) -> Shares:
        """Return the part of the looks, above 0 and up to 1, of each that was found."""
        found = self.found
        return {
            wait: count / len(found) for wait in Wait if (count := found.count(wait))
        }
