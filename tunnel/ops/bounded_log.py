"""A log handler that writes the first lines of a burst and counts the rest."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final, TextIO

from tunnel.log import FIELDS

WINDOW_S: Final = 10.0
"""Seconds for which lines of one kind are counted together; then the log says how many
were left out."""
LINES_IN_A_WINDOW: Final = 100
"""Lines of one kind in a window; further ones are only counted. More than people and
small fleets cause by hand; at 150 bytes a line, 1.5 KB a second in the worst flood."""
MAX_KINDS: Final = 4_096
"""Kinds that are told apart at a time; all others count as one. A kind is an event and
the user and client that it names. About 1.2 MB."""

_Key = tuple[str, str, str]
_REST: Final[_Key] = ("log.others", "", "")


@dataclass(slots=True)
class _Window:
    """The lines of one kind since ``began``."""

    began: float
    logger: str
    level: int
    lines: int = 0
    more: int = 0


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes the first records of each kind, and how many more there were.

    ``say_counts`` writes the latter: call it now and then, and at the end. The lines
    written and the numbers in ``more`` add up to all records.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._windows: dict[_Key, _Window] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it; the caller holds the handler's lock."""
        now = time.monotonic()
        window = self._window(record, now)
        if window.lines < LINES_IN_A_WINDOW:
            window.lines += 1
            super().emit(record)
        else:
            window.more += 1

    def say_counts(self, *, everything: bool = False) -> None:
        """Write what was left out of the windows that are over, or of all windows."""
        self.acquire()
        try:
            now = time.monotonic()
            for key, window in list(self._windows.items()):
                if everything or now - window.began >= WINDOW_S:
                    del self._windows[key]
                    self._say(key, window, now)
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without the log; logging itself would print the record unredacted."""

    def _window(self, record: logging.LogRecord, now: float) -> _Window:
        windows = self._windows
        key = _key_of(record)
        window = windows.get(key)
        if window is None and len(windows) >= MAX_KINDS:
            key = _REST
            window = windows.get(key)
        if window is not None and now - window.began >= WINDOW_S:
            self._say(key, window, now)
            window = None
        if window is None:
            window = windows[key] = _Window(now, record.name, record.levelno)
        return window

    def _say(self, key: _Key, window: _Window, now: float) -> None:
        if not window.more:
            return
        event, user, client = key
        more = logging.LogRecord(window.logger, window.level, "", 0, event, (), None)
        fields = {"user": user or None, "client": client or None, "more": window.more,
                  "in_s": round(now - window.began, 1)}  # fmt: skip
        setattr(more, FIELDS, fields)
        super().emit(more)


def _key_of(record: logging.LogRecord) -> _Key:
    fields = getattr(record, FIELDS, None)
    if not isinstance(fields, dict):
        return str(record.msg), "", ""  # another library's: its text without values
    return str(record.msg), str(fields.get("user", "")), str(fields.get("client", ""))
