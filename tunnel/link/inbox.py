"""Inbox: received bytes of one stream that wait to be taken."""

from __future__ import annotations

from collections import deque
from typing import Final

from tunnel.net.notify import Notify

LARGE_PIECE_BYTES: Final = 16_376
"""Pieces from this size on are passed as they are; smaller ones are joined while they
wait, for a small object costs many times its bytes."""
JOINED_BYTES: Final = 65_536

Piece = bytes | bytearray | memoryview


class Inbox:
    """Pieces in order. Credit alone bounds them, in bytes (protocol.md#credit): the
    link's reader never waits for a stream.
    """

    __slots__ = ("_pieces", "_tail", "arrived")

    def __init__(self) -> None:
        self.arrived = Notify()
        """Where the receiver waits for bytes or for an end."""
        self._pieces: deque[Piece] = deque()
        self._tail: bytearray | None = None
        """The last piece, while small ones may be joined to it."""

    def put(self, payload: bytes, size: int) -> None:
        """Keep ``payload``, which is ``size`` bytes long, until it is taken."""
        tail = self._tail
        if size >= LARGE_PIECE_BYTES:
            self._tail = None
            self._pieces.append(payload)
        elif tail is not None and len(tail) + size <= JOINED_BYTES:
            tail += payload
        else:
            self._tail = bytearray(payload)
            self._pieces.append(self._tail)
        self.arrived.ring()

    def take(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the first piece, or ``max_bytes`` of it; there must be one."""
        piece = self._pieces[0]
        if piece is self._tail:
            self._tail = None
        if max_bytes is not None and len(piece) > max_bytes:
            view = memoryview(piece)
            self._pieces[0] = view[max_bytes:]
            return bytes(view[:max_bytes])
        self._pieces.popleft()
        return bytes(piece) if isinstance(piece, memoryview) else piece

    def clear(self) -> None:
        """Forget what waits, and wake the receiver."""
        self._pieces.clear()
        self._tail = None
        self.arrived.ring()
