"""The last lines of the log, for ``tunnel logs`` and for the faults of a status."""

from __future__ import annotations

import logging
from collections import Counter, deque
from sys import getsizeof
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.errors import Code
from tunnel.log import FIELDS, LogfmtFormatter

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES: Final = 262_144
"""Of the texts of all lines that are kept, in memory: some fifteen hundred."""
MAX_FAULTS: Final = 20
"""Warnings and errors that are kept for longer than the lines around them."""
MAX_LINE: Final = 4_096
"""Characters of a line that are kept: a reason is words for people."""


OTHERS: Final = "(others)"
"""What is counted in place of the words of other libraries, which are no names."""


class KeptLine(NamedTuple):
    """One line of the log."""

    number: int
    """Grows by one with each line of this process."""
    at: float
    """When, in seconds since 1970."""
    level: int
    event: str
    text: str
    fix: str = ""
    """What would help, as the event says it, or what its code means."""


class Recent:
    """The last lines of this process, however few of them are written elsewhere."""

    def __init__(self) -> None:
        self._lines: deque[KeptLine] = deque()
        self._faults: deque[KeptLine] = deque(maxlen=MAX_FAULTS)
        self._size = 0
        self._count = 0
        self._formatter = LogfmtFormatter()
        self.counts = Counter[tuple[str, str]]()
        """How often each event was logged, by its name and its level."""

    def add(self, record: logging.LogRecord) -> None:
        """Keep a record; the oldest go for it."""
        text = self._formatter.format(record)[:MAX_LINE]
        self._count += 1
        fix = _fix_of(record) if record.levelno >= logging.WARNING else ""
        line = KeptLine(
            self._count, record.created, record.levelno, record.getMessage(), text, fix
        )
        event = line.event if hasattr(record, FIELDS) else OTHERS
        self.counts[event, record.levelname.lower()] += 1
        self._lines.append(line)
        self._size += getsizeof(text)
        while self._size > MAX_BYTES:
            self._size -= getsizeof(self._lines.popleft().text)
        if record.levelno >= logging.WARNING:
            self._faults.append(line)

    def after(self, number: int) -> Iterator[KeptLine]:
        """Yield the lines that are kept behind a line with this number."""
        # A thread may add one meanwhile.
        return (line for line in tuple(self._lines) if line.number > number)

    @property
    def faults(self) -> tuple[KeptLine, ...]:
        """The last warnings and errors, the oldest first."""
        return tuple(self._faults)


def _fix_of(record: logging.LogRecord) -> str:
    fields = getattr(record, FIELDS, {})
    code = Code.__members__.get(str(fields.get("code", "")))
    return str(fields.get("fix") or (code.info.meaning if code else ""))[:MAX_LINE]
