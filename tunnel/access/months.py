"""Bytes that each user has passed in this calendar month (UTC), kept over restarts.

The file is a small one: names and numbers. It is written now and then while it changes,
and at the end; after a crash it lacks at most what passed since. One that is damaged is
replaced by the next write, and the server begins to count anew: it does not stop for
it.
"""

from __future__ import annotations

import json
import logging
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tunnel.access.files import exists, read_private, write_private
from tunnel.access.users import MAX_USERS
from tunnel.errors import StateError
from tunnel.log import log_event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE: Final = "months.json"
KEEP_EVERY_S: Final = 30.0
"""How often it is written at most: what a crash can lose."""
MAX_BYTES: Final = 4 * 1024 * 1024
_MOST: Final = 1 << 62

LOG: Final = logging.getLogger("tunnel.limits")


def this_month() -> str:
    """Return the month of now in UTC, such as ``2031-05``."""
    return datetime.now(UTC).strftime("%Y-%m")


class Months:
    """Bytes of this month by user.

    Args:
        folder: where the file is; None keeps nothing.
        month: returns the present month.
    """

    def __init__(
        self, folder: Path | None = None, month: Callable[[], str] = this_month
    ) -> None:
        self._path = None if folder is None else folder / FILE
        self._month_now = month
        self._month = month()
        self._bytes: dict[str, int] = {}
        self._changed = False
        self._failed = False
        self._next_at = 0.0
        if self._path is not None:
            self._bytes = _read(self._path, self._month)

    @property
    def month(self) -> str:
        """The month that is counted, such as ``2031-05``."""
        return self._month

    def bytes_of(self, name: str) -> int:
        """Return what a user has passed this month."""
        return self._bytes.get(name, 0)

    def all(self) -> dict[str, int]:
        """Return what each user has passed this month."""
        return dict(self._bytes)

    def has_turned(self) -> bool:
        """Say, once, whether another month has begun: everybody begins at 0."""
        month = self._month_now()
        if month == self._month:
            return False
        self._month, self._bytes, self._changed = month, {}, True
        return True

    def leave(self) -> None:
        """Write no more: another process keeps the file from now on."""
        self._path = None

    def note(self, name: str, size: int) -> None:
        """Set what a user has passed this month."""
        if size and self._bytes.get(name) != size:
            if name not in self._bytes and len(self._bytes) >= MAX_USERS:
                return
            self._bytes[name] = size
            self._changed = True

    def rename(self, was: str, name: str) -> None:
        """Count on under another name; it is due to be written at once."""
        size = self._bytes.pop(was, None)
        other = self._bytes.pop(name, None)  # of one who is no user any more
        if size is not None:
            self._bytes[name] = size
        if size is not None or other is not None:
            self._changed, self._next_at = True, 0.0

    def due(self, now: float = math.inf) -> str | None:
        """Return what is to be written at a time in seconds; None if nothing is."""
        if self._path is None or not self._changed or now < self._next_at:
            return None
        if now < math.inf:
            self._next_at = now + KEEP_EVERY_S
        self._changed = False
        return json.dumps({"month": self._month, "bytes": self._bytes}) + "\n"

    def write(self, text: str) -> None:
        """Write what was due, which may take as long as a disk does; logs a failure."""
        if self._path is None:
            return
        try:
            write_private(self._path, text)
        except StateError as error:
            if not self._failed:  # a read-only folder says so once
                log_event(LOG, logging.WARNING, "months.not_kept",
                    reason=str(error), cause=error.cause)  # fmt: skip
            self._failed = True
        else:
            self._failed = False


def _read(path: Path, month: str) -> dict[str, int]:
    """Return what the file says of this month; nothing, and a warning, if it cannot."""
    try:
        if not exists(path):
            return {}
        if path.stat().st_size > MAX_BYTES:
            raise StateError(f"cannot use {path}", "it is too large")
        kept = json.loads(read_private(path))
        if kept["month"] != month:
            return {}
        counts = {
            name: size
            for name, size in kept["bytes"].items()
            if type(size) is int and 0 <= size <= _MOST
        }
    except (StateError, OSError, ValueError, LookupError, TypeError, AttributeError,
            RecursionError) as error:  # fmt: skip
        log_event(LOG, logging.WARNING, "months.unreadable", path=str(path),
            reason=str(error), effect="this month is counted from now on")  # fmt: skip
        return {}
    return dict(list(counts.items())[:MAX_USERS])
