"""Structured logging: an event's name, its fields, and three ways to write them.

Modules log through ``log_event``; records of other libraries pass through the same
formatters. Whatever a record holds, a peer's words too, one event is one line, and no
control character reaches a terminal.

This module writes nothing by itself: handlers, levels and the choice of a formatter
belong to the program. The ``str`` of a secret is ``***``.
"""

from __future__ import annotations

import json
import logging
import math
import re
from datetime import UTC, datetime
from typing import Final

from tunnel.redaction import redact
from tunnel.words import escaped

Value = str | int | float | bool | None

# In a program that set up no logging, Python would write our warnings to its stderr.
logging.getLogger("tunnel").addHandler(logging.NullHandler())

ACCESS: Final = logging.getLogger("tunnel.access")
"""Of one line for each visitor and each request, at its end. It is for programs that
want that: off until they set its level."""
ACCESS.setLevel(logging.CRITICAL)

FIELDS: Final = "tunnel_fields"
"""The attribute of a record that holds all fields: attributes of their own would clash
with those of logging (``name``, ``args``, ``message``)."""

_BARE: Final = re.compile(r'[^\s"=]+')
_NOT_IN_KEYS: Final = re.compile(r"[^\w.-]", re.ASCII)

_HEAD: Final = ("ts", "level", "event")

_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_COLOURS: Final = (
    (logging.ERROR, "\x1b[31m"),
    (logging.WARNING, "\x1b[33m"),
    (logging.INFO, "\x1b[32m"),
    (0, _DIM),
)


def log_event(
    logger: logging.Logger,
    level: int,
    event: str,
    /,
    *,
    exc_info: BaseException | None = None,
    **fields: Value,
) -> None:
    """Log ``event``, a stable dotted name such as ``link.up``, with its fields.

    Costs one look-up while the level is off; the formatter makes text of the values, so
    give them as they are.

    Args:
        event: the same for every record of its kind; what varies is a field.
        exc_info: the exception behind it; written as the field ``error``.
        **fields: None means that there is no such value this time.
    """
    if logger.isEnabledFor(level):
        extra = {FIELDS: fields}
        logger.log(level, event, exc_info=exc_info, extra=extra, stacklevel=2)


class _Structured(logging.Formatter):
    """What the formatters share: it splits a record into an event and plain fields.

    Args:
        traceback: write tracebacks too; for when the level is DEBUG.
    """

    def __init__(self, *, traceback: bool = False) -> None:
        super().__init__()
        self._traceback = traceback

    def _fields(self, record: logging.LogRecord) -> dict[str, Value]:
        given = getattr(record, FIELDS, None)
        if isinstance(given, dict):
            fields = {_key(str(key)): _plain(value) for key, value in given.items()}
        else:
            fields = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = redact(_describe(record.exc_info[1]))
        return fields

    def _traceback_of(self, record: logging.LogRecord) -> str:
        """Return the traceback if there is one and it is wanted, else nothing."""
        if not (self._traceback and record.exc_info and record.exc_info[1]):
            return ""
        return redact(self.formatException(record.exc_info))

    def _row(self, record: logging.LogRecord) -> dict[str, Value]:
        """Return the fields for a machine, in the order of the line."""
        row: dict[str, Value] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            # log_event gives no arguments: then getMessage() changes nothing.
            "event": redact(record.getMessage()),
            **self._fields(record),
        }
        if traceback := self._traceback_of(record):
            row["traceback"] = traceback
        return row


class LogfmtFormatter(_Structured):
    """``ts=… level=info event=link.up peer=192.0.2.1:7443``: for files and journals.

    A value that is not one plain word stands in quotes, escaped as in JSON, in ASCII if
    any of it is unprintable. Fields without a value are left out.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, without its line end."""
        return _pairs(self._row(record))


class JsonFormatter(_Structured):
    """One JSON object per line, with the keys of ``LogfmtFormatter``; all ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, without its line end."""
        return json.dumps(self._row(record), allow_nan=False)


class TerminalFormatter(_Structured):
    """``12:00:00 info link.up peer=192.0.2.1:7443``: for a person, in local time.

    A traceback follows on lines of its own. ``colour`` is for a terminal that takes it.
    """

    def __init__(self, *, colour: bool = False, traceback: bool = False) -> None:
        super().__init__(traceback=traceback)
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return one line and those of the traceback, without the last line end."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        colour = next(one for least, one in _COLOURS if record.levelno >= least)
        level = self._paint(record.levelname.lower(), colour)
        event = escaped(redact(record.getMessage()))
        line = f"{self._paint(at, _DIM)} {level} {event}"
        if pairs := _pairs(self._fields(record)):
            line += f" {pairs}"
        traced = self._traceback_of(record).splitlines()
        return "\n  ".join([line, *map(escaped, traced)])

    def _paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour else text


def _timestamp(created: float) -> str:
    at = datetime.fromtimestamp(created, UTC).replace(tzinfo=None)
    return at.isoformat(timespec="milliseconds") + "Z"


def _describe(error: BaseException) -> str:
    # A nursery wraps errors in groups; the first error says more than "group".
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    name, text = type(error).__name__, str(error)
    return f"{name}: {text}" if text else name


def _key(key: str) -> str:
    """Return ``key`` as one word that is none of the head's."""
    key = _NOT_IN_KEYS.sub("_", key) or "_"
    return f"{key}_" if key in _HEAD else key


def _plain(value: object) -> Value:
    """Return ``value`` as JSON can hold it: as it is, or as its redacted ``str``."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return redact(str(value))


def _pairs(fields: dict[str, Value]) -> str:
    return " ".join(
        f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None
    )


def _quoted(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
