"""What a person or a script sees: data on stdout; words and the log on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TextIO, cast

import trio

from tunnel.log import (
    ACCESS,
    FIELDS,
    JsonFormatter,
    LogfmtFormatter,
    TerminalFormatter,
    log_event,
)
from tunnel.ops.log_file import LogFile
from tunnel.ops.recent import Recent
from tunnel.ops.texts import explained, shown
from tunnel.redaction import redact
from tunnel.words import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.errors import TunnelError

LOG: Final = logging.getLogger(__name__)
LABEL_WIDTH: Final = 18
WINDOW_S: Final = 10.0
"""Seconds for which lines of one kind are counted together; then the log says how many
were left out."""
LINES_IN_A_WINDOW: Final = 100
"""Lines of one kind in a window; further ones are only counted. More than people and
small fleets cause by hand; at 150 bytes a line, 1.5 KB a second in the worst flood."""
MAX_KINDS: Final = 4_096
"""Kinds that are told apart at a time; all others count as one. A kind is an event and
the user and client that it names. About 1.2 MB."""


class Show:
    """Writes for a terminal, for a script, or as JSON; takes over the log.

    Args:
        as_json: each line of stdout is a JSON object.
        log: ``logfmt``, ``json`` or ``terminal``; by default what suits stderr.
        log_file: where the log goes instead of stderr.
        access_log: the file of a line for each visitor, ``-`` for that of the log; None
            writes none.

    Raises:
        StateError: a file cannot be opened.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        log: str | None = None,
        log_file: Path | None = None,
        access_log: str | None = None,
    ) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() and not as_json
        self._talkative = sys.stderr.isatty() and not as_json
        self._status = ""
        talkative = self._talkative and log_file is None
        kind = log or ("terminal" if talkative else "logfmt")
        self.recent = Recent()
        self.files: list[LogFile] = []
        stream = sys.stderr if log_file is None else self._file(log_file)
        self._log = BoundedHandler(stream, self.recent)
        if kind == "terminal":
            self._log.setFormatter(TerminalFormatter(colour=talkative))
        else:
            to_json = kind == "json"
            self._log.setFormatter(JsonFormatter() if to_json else LogfmtFormatter())
        if access_log is not None:
            if access_log != "-":
                stream = self._file(Path(access_log))
            _write_access(stream, self._log.formatter)
        root = logging.getLogger("tunnel")
        root.handlers[:] = [self._log]
        root.propagate = False
        root.setLevel(logging.INFO)
        if kind == "terminal" and log_file is None:
            # There ``talk`` says better what the log would at INFO.
            self._log.least = logging.WARNING

    def _file(self, path: Path) -> TextIO:
        file = LogFile(path, partial(self._log_trouble, path))
        self.files.append(file)
        return cast("TextIO", file)

    def _log_trouble(self, path: Path, why: str, lost: int) -> None:
        """Say that a file of the log loses lines, or does no more; in any thread."""
        if why:
            log_event(LOG, logging.WARNING, "log.not_written", file=str(path),
                reason=why)  # fmt: skip
            _write(sys.stderr, shown(f"warning: the log {path}: {why}") + "\n")
        else:
            log_event(LOG, logging.INFO, "log.written_again", file=str(path),
                lost=lost)  # fmt: skip

    def reopen(self) -> None:
        """Open the files of the log anew: they were renamed, or are somewhere else."""
        for file in self.files:
            file.reopen()

    async def keep_log(self) -> NoReturn:
        """Write now and then how many lines the log left out."""
        while True:
            await trio.sleep(WINDOW_S)
            self._log.say_counts()

    def close(self) -> None:
        """Write how many lines the log left out; for the end of the program."""
        self._log.say_counts(everything=True)
        for file in self.files:
            file.close()

    def line(self, event: str, text: str, **fields: str | float) -> None:
        """Write one line of data, without secrets: ``text``, or ``fields`` as JSON."""
        for key, value in fields.items():
            fields[key] = redact(value) if isinstance(value, str) else value
        self.secret_line(event, redact(text), **fields)

    def secret_line(self, event: str, text: str, **fields: str | float) -> None:
        """Write one line of data whose purpose is to tell a secret."""
        self._clear_status()
        if self.as_json:
            text = json.dumps({"event": event, **fields})
        _write(sys.stdout, escaped(text) + "\n")

    def talk(self, label: str, text: str) -> None:
        """Write a line for the person at the terminal, if there is one."""
        if self._talkative:
            self._clear_status()
            _write(sys.stderr, shown(f"  {label:<{LABEL_WIDTH}} {text}") + "\n")

    def warn(self, event: str, text: str) -> None:
        """Tell the person at the terminal; without one, the log."""
        self.talk("warning", text)
        if not self._talkative:
            log_event(LOG, logging.WARNING, event, reason=text)

    def status(self, text: str) -> None:
        """Replace the last line of the terminal; an empty text removes it."""
        if self._talkative and text != self._status:
            self._clear_status()
            self._status = text
            _write(sys.stderr, shown(text))

    def _clear_status(self) -> None:
        if self._status:
            _write(sys.stderr, "\r\x1b[K")
            self._status = ""

    def error(self, error: TunnelError, word: str = "error") -> None:
        """Write what failed, why, and what can be done."""
        self._explain(f"{word}: {error.what}", error)

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines about a file, as its faults, to stderr."""
        self._clear_status()
        _write(sys.stderr, "".join(f"{shown(one)}\n" for one in lines))

    def trouble(self, error: TunnelError, instead: str) -> None:
        """Write what failed where the program goes on, and how it does."""
        self._explain(f"{error.what}; {instead}", error)

    def _explain(self, first: str, error: TunnelError) -> None:
        self._clear_status()
        _write(sys.stderr, explained(first, error))


def is_journal(file: TextIO) -> bool:
    """Say whether a file is systemd's journal (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _write(file: TextIO, text: str) -> None:
    """Write at once: a script may be waiting. ``ops.standard`` deals with failures."""
    file.write(text)
    file.flush()


# The log -----------------------------------------------------------------------------


class _AccessHandler(logging.StreamHandler[TextIO]):
    """Writes every line: those of a flood are what it is for."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without the line; logging itself would print it unredacted."""


def _write_access(stream: TextIO, formatter: logging.Formatter | None) -> None:
    handler = _AccessHandler(stream)
    handler.setFormatter(formatter)
    ACCESS.handlers[:] = [handler]
    ACCESS.propagate = False
    ACCESS.setLevel(logging.INFO)


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

    least = logging.INFO
    """Lines below are kept in ``recent`` alone."""

    def __init__(self, stream: TextIO, recent: Recent | None = None) -> None:
        super().__init__(stream)
        self._recent = recent or Recent()
        self._windows: dict[_Key, _Window] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it; the caller holds the handler's lock."""
        now = time.monotonic()
        window = self._window(record, now)
        if window.lines < LINES_IN_A_WINDOW:
            window.lines += 1
            self._write(record)
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
            key, window = _REST, windows.get(_REST)
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
        self._write(more)

    def _write(self, record: logging.LogRecord) -> None:
        self._recent.add(record)
        if record.levelno >= self.least:
            super().emit(record)


def _key_of(record: logging.LogRecord) -> _Key:
    # A record of another library has none: its key is its text without values.
    fields = getattr(record, FIELDS, {})
    return str(record.msg), str(fields.get("user", "")), str(fields.get("client", ""))
