"""One request and its answer, as they came."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from tunnel.addresses import Address
    from tunnel.front.http.observer import Piece

BODY_BYTES: Final = 1_048_576
"""Kept of each body: more is a download, and nobody reads it in a list of requests."""
SMALL_BYTES: Final = 4_096
"""A smaller piece is copied to the one before."""
PIECE_BYTES: Final = 48
"""What a piece costs besides its bytes."""
RECORD_BYTES: Final = 1_450
"""What a record costs besides its bytes: its own objects, and its places in the store
(measured; see the tests)."""
MESSAGE_BYTES: Final = 280
"""The same of a message."""
MESSAGES_BYTES: Final = 1_048_576
"""Kept of the messages of one WebSocket: the last ones. One that lives for days would
push out all else."""


class Body:
    """What is kept of a body, without what framed it.

    Large pieces are kept as they came, for a copy would cost as much as carrying them.
    """

    __slots__ = ("_pieces", "kept", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self.kept = 0
        """Bytes of it that are kept."""
        self.size = 0
        """Of all of it."""

    def add(self, pieces: Sequence[Piece]) -> int:
        """Keep what there is room for; return how many bytes of memory that took."""
        grown = 0
        for piece in pieces:
            self.size += len(piece)
            room = BODY_BYTES - self.kept
            if room > 0:
                grown += self._keep(piece if len(piece) <= room else piece[:room])
        return grown

    def _keep(self, piece: Piece) -> int:
        self.kept += len(piece)
        if len(piece) >= SMALL_BYTES or not self._pieces:
            self._pieces.append(bytes(piece))
            return len(piece) + PIECE_BYTES
        last = self._pieces[-1]
        if isinstance(last, bytearray) and len(last) < BODY_BYTES // 16:
            had = sys.getsizeof(last)
            last += piece
            return sys.getsizeof(last) - had
        self._pieces.append(bytearray(piece))
        return sys.getsizeof(self._pieces[-1]) + PIECE_BYTES

    def settle(self) -> int:
        """Take no more memory than its bytes; return how much more it takes: < 0."""
        grown = 0
        for at, piece in enumerate(self._pieces):
            if isinstance(piece, bytearray):
                self._pieces[at] = bytes(piece)
                grown += len(piece) - sys.getsizeof(piece)
        return grown

    @property
    def data(self) -> bytes:
        """What is kept of it, joined."""
        return b"".join(self._pieces)

    @property
    def is_cut(self) -> bool:
        """A part of it is not kept."""
        return self.kept < self.size


class Message(NamedTuple):
    """What one side of a WebSocket said."""

    at: float
    """Seconds since it was asked for."""
    to_visitor: bool
    kind: str
    """``text``, ``binary``, ``ping``, ``pong`` or ``close``."""
    size: int
    """Bytes, unpacked."""
    data: bytes
    """Its beginning; of a close the code as text, and the reason."""

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return MESSAGE_BYTES + len(self.data)


class Record:
    """One request and its answer.

    Args:
        number: by which it is known.
        entry: that was asked.
        visitor: who asked.
        head: of the request, as it came, or the part that did.
        replay_of: the number of the one that was asked again.
    """

    __slots__ = (
        "answer",
        "answer_head",
        "at",
        "began",
        "connected",
        "cost",
        "down_bytes",
        "ended",
        "entry",
        "failure",
        "first_byte",
        "head",
        "is_kept",
        "messages",
        "messages_bytes",
        "number",
        "replay_of",
        "request",
        "said",
        "state",
        "status",
        "touched",
        "trailers",
        "up_bytes",
        "version",
        "visitor",
        "whole",
    )

    def __init__(
        self,
        number: int,
        entry: str,
        visitor: Address,
        head: bytes,
        replay_of: int | None = None,
    ) -> None:
        self.number = number
        self.version = 0
        """Of the store, when it changed last."""
        self.entry = entry
        self.visitor = visitor
        self.at = time.time()
        self.began = self.touched = time.monotonic()
        self.head = head
        self.request = Body()
        self.whole = False
        """All of the request has come."""
        self.status: int | None = None
        self.answer_head = b""
        self.answer = Body()
        self.trailers = b""
        """Lines behind the answer's body, each with its end."""
        self.state = "asked"
        self.failure = ""
        # Seconds since it was asked:
        self.connected: float | None = None
        self.first_byte: float | None = None
        self.ended: float | None = None
        self.replay_of = replay_of
        self.up_bytes = 0
        """Behind 101, from the visitor."""
        self.down_bytes = 0
        self.messages: deque[Message] | None = None
        """The last ones, if it became a WebSocket."""
        self.messages_bytes = 0
        self.said = 0
        """Messages, those that are gone too."""
        self.is_kept = True
        """It is in the store."""
        self.cost = RECORD_BYTES + sys.getsizeof(head)

    @property
    def age(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self.began

    def say(self, message: Message) -> int:
        """Keep a message, and forget the oldest; return the growth in bytes."""
        assert self.messages is not None  # noqa: S101 - it is a WebSocket
        had = self.messages_bytes
        self.messages.append(message)
        self.said += 1
        self.messages_bytes += message.cost
        while self.messages_bytes > MESSAGES_BYTES:
            self.messages_bytes -= self.messages.popleft().cost
        return self.messages_bytes - had
