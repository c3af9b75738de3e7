"""Asks again what was asked: by a visitor that is in memory, of the same entry.

The request takes the way of every other, password and rewriting included, and so the
answer is seen as every other is; nobody reads it besides.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import UsageError
from tunnel.log import log_event
from tunnel.ops.inspector.bodies import charset_of, text_in
from tunnel.ops.inspector.heads import bytes_of, read_head, request_line
from tunnel.ops.inspector.masks import HIDDEN, HIDDEN_JSON, Masks, edit_pairs
from tunnel.ops.inspector.watcher import Looker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnel.addresses import Address
    from tunnel.front.http.observer import ServeSeen
    from tunnel.ops.inspector.heads import Head
    from tunnel.ops.inspector.record import Record
    from tunnel.ops.inspector.store import Store

LOG: Final = logging.getLogger(__name__)
MOST_AT_ONCE: Final = 8
REPLAY_S: Final = 120.0
"""An answer that has not ended by then is given up: nobody waits for it."""
_FRAMING: Final = frozenset(
    ("connection", "content-length", "expect", "transfer-encoding", "trailer")
)


class ReplayedVisitor(trio.abc.HalfCloseableStream):
    """A visitor that says one request, and takes whatever comes.

    Args:
        request: head and body.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._left = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next part of the request; then wait until it is closed."""
        await trio.lowlevel.checkpoint()
        if not self._request:
            await self._left.wait()
            return b""
        size = len(self._request) if max_bytes is None else max_bytes
        piece, self._request = self._request[:size], self._request[size:]
        return piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take a part of the answer, which was seen already."""
        del data
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Leave: the answer has ended."""
        await self.aclose()

    async def aclose(self) -> None:
        """Leave."""
        self._left.set()
        await trio.lowlevel.checkpoint()


class ReplayWatch:
    """Looks at a request that is asked again; it is one, whatever its visitor says."""

    def __init__(self, store: Store, origin: Record) -> None:
        self._store = store
        self._origin = origin
        self.record: Record | None = None
        self.began = trio.Event()
        """Or there is nothing to begin."""

    def begin(self, visitor: Address, raw: bytes) -> Looker:
        """Begin its record."""
        origin = self._origin
        record = self._store.add(origin.entry, visitor, raw, origin.number)
        if self.record is None:
            self.record = record
            self.began.set()
        return Looker(self._store, record)

    def fail(self, why: str) -> None:
        """Note why the answer has not ended."""
        if self.record is not None:
            Looker(self._store, self.record).gave_up(why)

    def known_as(self, name: str) -> None:
        """Do nothing: it has no entry of its own."""

    def served_by(self, serve: ServeSeen) -> None:
        """Do nothing: it is served once."""


async def replay(request: bytes, watch: ReplayWatch, origin: Record, serve: ServeSeen
) -> None:  # fmt: skip
    """Have a request served to its end, or until ``REPLAY_S`` are over.

    A fault of what serves it ends nothing else, as for every other visitor.
    """
    try:
        with trio.move_on_after(REPLAY_S) as patience:
            await serve(ReplayedVisitor(request), origin.visitor, watch)
        if patience.cancelled_caught:
            watch.fail(f"given up after {REPLAY_S:.0f} s")
    except Exception as error:
        log_event(LOG, logging.ERROR, "replay.failed", entry=origin.entry,
            exc_info=error)  # fmt: skip
        watch.fail("what serves the entry has failed")
    finally:
        watch.began.set()


def request_of(record: Record) -> bytes:
    """Return a request as it is asked again.

    Raises:
        UsageError: it is not kept as a whole, or was a WebSocket.
    """
    _check(record)
    return _framed(record.head, record.request.data)


def _check(record: Record) -> None:
    if record.messages is not None or record.state == "tunnel":
        raise UsageError("a WebSocket cannot be asked again", "it is a conversation")
    if not record.whole:
        raise UsageError(
            "this request was not whole", "its visitor has left, or still sends"
        )
    if record.request.is_cut:
        raise UsageError("this request cannot be asked again",
            f"of its body only {record.request.kept} bytes are kept")  # fmt: skip


def _framed(head: bytes, body: bytes) -> bytes:
    """Return a request with a body of known length, which is the last."""
    line, *fields = head.rstrip(b"\r\n").split(b"\r\n")
    kept = [
        one
        for one in fields
        if one.partition(b":")[0].lower().strip().decode("latin-1") not in _FRAMING
    ]
    had_body = len(kept) < len(fields) and b"content-length:" in head.lower()
    if body or had_body:
        kept.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([line, *kept, b"Connection: close", b"", body])


# Edited ------------------------------------------------------------------------------


def edited(record: Record, edit: Mapping[str, object], masks: Masks) -> bytes:
    """Return a request with what a person has changed of it.

    A hidden value that still reads ``***`` is what it was. ``masks`` says which are
    hidden.

    Raises:
        UsageError: it cannot be asked again, or the edit is none.
    """
    _check(record)
    head = read_head(record.head)
    method, target = request_line(record.head)
    method = _text(edit, "method", method)
    path = put_back_pairs(target, _text(edit, "path", target), masks, at_start=False)
    fields = _fields(edit, head, masks)
    for part in (method, path, *(part for pair in fields for part in pair)):
        if any(char in part for char in "\r\n\0"):
            raise UsageError("a line end cannot be a part of a head")
    body = _body(edit, record, head, masks)
    version = head.line.rpartition(" ")[2]
    lines = [
        f"{method} {path} {version}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    raw = b"\r\n".join(bytes_of(line, record.head) for line in lines)
    return _framed(raw + b"\r\n\r\n", body)


def _text(edit: Mapping[str, object], key: str, usual: str) -> str:
    said = edit.get(key, usual)
    if not isinstance(said, str):
        raise UsageError(f"{key} is not a text")
    return said


def _fields(
    edit: Mapping[str, object], head: Head, masks: Masks
) -> list[tuple[str, str]]:
    said = edit.get("fields")
    if said is None:
        return head.fields
    if not isinstance(said, list):
        raise UsageError("fields is not a list of names and values")
    had: defaultdict[str, deque[str]] = defaultdict(deque)
    for name, value in head.fields:
        had[name.lower()].append(value)
    fields = []
    for one in said:
        match one:
            case [str(name), str(value)]:
                before = had[name.lower()]
                old = before.popleft() if before else ""
                if value == HIDDEN and old and masks.hides(name):
                    value = old
                elif old:
                    value = put_back_pairs(old, value, masks, at_start=False)
                fields.append((name, value))
            case _:
                raise UsageError("fields is not a list of names and values")
    return fields


def _body(
    edit: Mapping[str, object], record: Record, head: Head, masks: Masks
) -> bytes:
    said, data = edit.get("body"), record.request.data
    if said is None:
        return data
    if not isinstance(said, str):
        raise UsageError("body is not a text")
    if head.coding:
        raise UsageError("a body that is packed cannot be edited")
    said = put_back_text(text_in(data, head) or "", said, head.kind, masks)
    return said.encode(charset_of(head), "replace")


def put_back_pairs(old: str, new: str, masks: Masks, *, at_start: bool = True) -> str:
    """Return a URL or a form with the values that are hidden as they were."""
    had, back = _remembering(masks)
    edit_pairs(old, had, at_start=at_start)
    return edit_pairs(new, back, at_start=at_start)


def put_back_text(old: str, new: str, kind: str, masks: Masks) -> str:
    """Do the same with the text of a body, whatever is hidden in it."""
    had, back = _remembering(masks)
    masks.edit_text(old, kind, had)
    return masks.edit_text(new, kind, back)


def _remembering(
    masks: Masks,
) -> tuple[Callable[[str, str], str], Callable[[str, str], str]]:
    """Return what remembers values, and what puts them in the place of ``***``."""
    values: defaultdict[str, deque[str]] = defaultdict(deque)

    def had(name: str, value: str) -> str:
        if masks.hides(name):
            values[name].append(value)
        return value

    def back(name: str, value: str) -> str:
        old = values[name].popleft() if values[name] else None
        is_hidden = value.strip() in (HIDDEN, HIDDEN_JSON)
        return old if is_hidden and old is not None else value

    return had, back
