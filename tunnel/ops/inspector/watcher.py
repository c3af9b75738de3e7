"""What the HTTP engine tells of one request, noted in its record."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from tunnel.ops.inspector.messages import Conversation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.addresses import Address
    from tunnel.front.http.observer import Piece, ServeSeen
    from tunnel.ops.inspector.record import Body, Record
    from tunnel.ops.inspector.store import Store

SWITCHED: Final = 101
_WEBSOCKET: Final = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)


class EntryWatch:
    """Looks at the requests of one entry.

    Args:
        store: where the records are.
        entry: what the entry is called.
    """

    def __init__(self, store: Store, entry: str) -> None:
        self._store = store
        self._entry = entry
        self.serve: ServeSeen | None = None
        """Serves a visitor of it."""
        self.name = ""
        """In commands, as ``tunnel status`` shows it."""

    def begin(self, visitor: Address, raw: bytes) -> Looker:
        """Begin the record of a request."""
        return Looker(self._store, self._store.add(self._entry, visitor, raw))

    def known_as(self, name: str) -> None:
        """Note its name in commands."""
        self.name = name

    def served_by(self, serve: ServeSeen) -> None:
        """Note what serves visitors now."""
        self.serve = serve


Watches = WeakValueDictionary[str, EntryWatch]
"""By what their entries are called; the entry and its visitors keep them."""


class Looker:
    """Notes one request: an ``Observer``."""

    __slots__ = ("_conversation", "_record", "_store")

    def __init__(self, store: Store, record: Record) -> None:
        self._store = store
        self._record = record
        self._conversation: Conversation | None = None

    def connected(self) -> None:
        """Note when; what failed before is done again."""
        self._record.connected, self._record.failure = self._record.age, ""

    def asked(self, pieces: Sequence[Piece]) -> None:
        """Keep a part of the request's body."""
        self._keep(self._record.request, pieces)

    def answers(self, status: int, head: bytes) -> None:
        """Keep the head of the answer."""
        record = self._record
        record.status, record.first_byte = status, record.age
        record.state = "answering"
        if status == SWITCHED:
            record.state = "tunnel"
            if _WEBSOCKET.search(head):
                self._conversation = Conversation(head)
                record.messages = deque()
                self._store.grow(record, self._conversation.held_bytes)
        if record.is_kept:
            record.answer_head = head
            self._store.grow(record, len(head))
        self._store.touch(record)

    def answered(self, pieces: Sequence[Piece]) -> None:
        """Keep a part of the answer's body."""
        self._keep(self._record.answer, pieces)

    def trailers(self, lines: Sequence[bytes]) -> None:
        """Keep what is behind the answer's body."""
        if self._record.is_kept:
            self._record.trailers = b"".join(line + b"\r\n" for line in lines)
            self._store.grow(self._record, len(self._record.trailers))

    def passed(self, data: Piece, *, to_visitor: bool) -> None:
        """Count it; read the messages of a WebSocket."""
        record = self._record
        if to_visitor:
            record.down_bytes += len(data)
        else:
            record.up_bytes += len(data)
        if not record.is_kept:
            self._part()  # what reads it was counted with the record
            return
        if self._conversation is not None:
            self._hear(self._conversation, data, to_visitor)
        self._store.moved(record)

    def _hear(self, said: Conversation, data: Piece, to_visitor: bool) -> None:
        record, had = self._record, said.held_bytes
        for message in said.hear(data, record.age, to_visitor):
            self._store.grow(record, record.say(message))
        self._store.grow(record, said.held_bytes - had)
        if said.fault:
            record.failure = said.fault

    def failed(self, why: str) -> None:
        """Note why."""
        self._record.failure = why

    def gave_up(self, why: str) -> None:
        """Note why there is no whole answer, behind the end."""
        self._record.state, self._record.failure = "failed", why
        self._store.touch(self._record)

    def over(self, *, whole: bool) -> None:
        """Note the end."""
        record = self._record
        record.ended, record.whole = record.age, whole
        is_tunnel = record.state == "tunnel"
        record.state = "failed" if record.failure and not is_tunnel else "done"
        freed = record.request.settle() + record.answer.settle()
        if self._conversation is not None:
            freed -= self._conversation.held_bytes
            self._part()
        self._store.grow(record, freed)
        self._store.touch(record)

    def _part(self) -> None:
        if self._conversation is not None:
            self._conversation.part()
            self._conversation = None

    def _keep(self, body: Body, pieces: Sequence[Piece]) -> None:
        record = self._record
        if record.is_kept:
            self._store.grow(record, body.add(pieces))
            self._store.moved(record)
