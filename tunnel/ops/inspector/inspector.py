"""The inspector of a client: what the control socket and the page ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import UsageError
from tunnel.ops.inspector.bodies import text_in, unpack
from tunnel.ops.inspector.curl import curl
from tunnel.ops.inspector.har import har
from tunnel.ops.inspector.heads import read_head, text_of
from tunnel.ops.inspector.masks import Masks
from tunnel.ops.inspector.replay import (
    MOST_AT_ONCE,
    ReplayWatch,
    edited,
    replay,
    request_of,
)
from tunnel.ops.inspector.shown import shown, summary
from tunnel.ops.inspector.store import Store
from tunnel.ops.inspector.watcher import EntryWatch, Watches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.ops.control import Answer, Args
    from tunnel.ops.inspector.record import Body, Record

MOST_LISTED: Final = 500
MOST_IN_HAR: Final = 1_000
TURN_BYTES: Final = 262_144
"""Looked at before others have their turn: some ms."""
TURN_RECORDS: Final = 64
"""The same for records that have hardly any."""
MOST_UNPACKED_BYTES: Final = 67_108_864
"""For one search: what is packed may be a bomb, each of it."""
MOST_FOUND: Final = 5_000


class Inspector:
    """Keeps the requests of the entries that ask for it.

    Args:
        nursery: where requests that are asked again run.
        limit_bytes: kept in all.
        hide: names whose values are hidden besides those that say it themselves.
    """

    def __init__(
        self, nursery: trio.Nursery, limit_bytes: int, hide: Iterable[str]
    ) -> None:
        self.store = Store(limit_bytes)
        self._nursery = nursery
        self._hide = tuple(hide)
        self._watches: Watches = Watches()
        self._replays = 0

    def watch(self, entry: str) -> EntryWatch:
        """Return who looks at the requests of an entry."""
        watch = self._watches[entry] = EntryWatch(self.store, entry)
        return watch

    def list(self, args: Args) -> Answer:
        """Return what has changed after a version."""
        store, masks = self.store, Masks(self._hide)
        after, most = _number(args, "after", 0), _number(args, "most", MOST_LISTED)
        changes = store.changes(after, max(min(most, MOST_LISTED), 1))
        version = store.version
        if after > 0 and changes:  # there may be more: they come next
            version = changes[-1].version
        return {
            "began_at": store.began_at,
            "version": version,
            "first": store.first,
            "kept_bytes": store.kept_bytes,
            "limit_bytes": store.limit_bytes,
            "forgotten": store.forgotten,
            "entries": {one.name: entry for entry, one in self._watches.items()},
            "seen": [summary(record, masks) for record in changes],
        }

    def show(self, args: Args) -> Answer:
        """Return all of a request."""
        return shown(self._record(args), self._masks(args))

    def curl(self, args: Args) -> Answer:
        """Return a command that asks the same."""
        return {"command": curl(self._record(args), self._masks(args))}

    async def har(self, args: Args) -> Answer:
        """Return an archive of some requests, or of the last ones."""
        numbers = args.get("numbers")
        records = list(self.store)
        if isinstance(numbers, list):
            wanted = set(map(str, numbers))
            records = [one for one in records if str(one.number) in wanted]
        left_out = max(len(records) - MOST_IN_HAR, 0)
        chosen = records[:MOST_IN_HAR]
        return {"har": await har(chosen, self._masks(args), left_out)}

    def clear(self) -> Answer:
        """Forget all."""
        self.store.clear()
        return {}

    async def find(self, args: Args) -> Answer:
        """Return the numbers of the requests that have a text in them, newest first."""
        text = args.get("text")
        if not isinstance(text, str) or not text:
            raise UsageError("text is what is looked for")
        found: list[int] = []
        looker, until = _Looking(text, self._hide), TURN_BYTES
        for count, record in enumerate(self.store):
            if looker.looked_bytes >= until or count % TURN_RECORDS == 0:
                until = looker.looked_bytes + TURN_BYTES
                await trio.lowlevel.checkpoint()
            if looker.is_in(record):
                found.append(record.number)
                if len(found) >= MOST_FOUND:
                    break
        return {"numbers": found}

    async def replay(self, args: Args) -> Answer:
        """Ask again; return the number of the new request."""
        record, edit = self._record(args), args.get("edit")
        watch = self._watches.get(record.entry)
        serve = watch.serve if watch is not None else None
        if serve is None:
            what = f"the entry {record.entry} is there no more, or paused"
            raise UsageError(what)
        if self._replays >= MOST_AT_ONCE:
            what = f"{MOST_AT_ONCE} requests are asked again at this moment"
            raise UsageError(what, fix="try again")
        request = request_of(record)
        if isinstance(edit, dict):
            request = edited(record, edit, Masks(self._hide))
        elif edit is not None:
            raise UsageError("edit is no object")
        seen = ReplayWatch(self.store, record)

        async def run() -> None:
            self._replays += 1
            try:
                await replay(request, seen, record, serve)
            finally:
                self._replays -= 1

        self._nursery.start_soon(run)
        await seen.began.wait()
        if seen.record is None:
            raise UsageError("it was not asked", "what serves the entry has failed")
        return {"number": seen.record.number}

    def _record(self, args: Args) -> Record:
        number = _number(args, "number", 0)
        record = self.store.get(number)
        if record is None:
            what = f"request {number} is not kept"
            raise UsageError(what, "the oldest are forgotten", "tunnel tail lists them")
        return record

    def _masks(self, args: Args) -> Masks:
        return Masks(self._hide, reveal=args.get("reveal") is True)


class _Looking:
    """Looks for a text, in any case, in what is shown of a record."""

    def __init__(self, text: str, hide: Iterable[str]) -> None:
        self._text = text.lower()
        self._bytes = self._text.encode("utf-8", "surrogatepass")
        self._hide = tuple(hide)
        self.looked_bytes = 0
        self._unpacked_bytes = 0

    def is_in(self, record: Record) -> bool:
        heads = (record.head, record.request), (record.answer_head, record.answer)
        return any(self._is_in_part(*one) for one in heads) or any(
            one.kind == "text" and self._is_in_text(one.data)
            for one in record.messages or ()
        )

    def _is_in_text(self, data: bytes) -> bool:
        self.looked_bytes += len(data)
        if self._bytes not in data.lower():
            return False
        text = Masks(self._hide).text(data.decode("utf-8", "ignore"))
        return self._text in text.lower()

    def _is_in_part(self, raw: bytes, body: Body) -> bool:
        masks = Masks(self._hide)
        if self._bytes in raw.lower():  # but perhaps in what is hidden
            head = read_head(raw)
            lines = [masks.url(head.line)]
            lines += (f"{name}: {value}" for name, value in masks.fields(head.fields))
            if any(self._text in line.lower() for line in lines):
                return True
        if not body.kept:
            return False
        head = read_head(raw)
        data = self._inside(body, head.coding)
        self.looked_bytes += len(data)
        if self._bytes not in data.lower():
            return False
        text = text_in(data, head)
        shown_text = text_of(data) if text is None else masks.text(text, head.kind)
        return self._text in shown_text.lower()

    def _inside(self, body: Body, coding: str) -> bytes:
        if not coding or self._unpacked_bytes >= MOST_UNPACKED_BYTES:
            return body.data
        data = unpack(body, coding).data
        self._unpacked_bytes += len(data)
        return data


def _number(args: Args, key: str, usual: int) -> int:
    number = args.get(key, usual)
    if not isinstance(number, int) or isinstance(number, bool):
        raise UsageError(f"{key} is no number")
    return number
