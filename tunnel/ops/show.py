"""What a person or a script sees: data on stdout; words and the log on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

import trio

from tunnel.log import JsonFormatter, LogfmtFormatter, TerminalFormatter
from tunnel.ops.bounded_log import WINDOW_S, BoundedHandler
from tunnel.redaction import redact
from tunnel.words import escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.errors import TunnelError

LABEL_WIDTH: Final = 18


class Show:
    """Writes for a terminal, for a script, or as JSON; takes over the log.

    Args:
        as_json: each line of stdout is a JSON object.
        log: ``logfmt``, ``json`` or ``terminal``; by default what suits stderr.
    """

    def __init__(self, *, as_json: bool = False, log: str | None = None) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() and not as_json
        self._talkative = sys.stderr.isatty() and not as_json
        self._status = ""
        kind = log or ("terminal" if self._talkative else "logfmt")
        self._log = BoundedHandler(sys.stderr)
        self._log.setFormatter(_formatter(kind, colour=self._talkative))
        root = logging.getLogger("tunnel")
        root.handlers[:] = [self._log]
        root.propagate = False
        # On a terminal, ``talk`` says better what the log would say at INFO.
        root.setLevel(logging.WARNING if kind == "terminal" else logging.INFO)

    async def keep_log(self) -> NoReturn:
        """Write now and then how many lines the log left out."""
        while True:
            await trio.sleep(WINDOW_S)
            self._log.say_counts()

    def close(self) -> None:
        """Write how many lines the log left out; for the end of the program."""
        self._log.say_counts(everything=True)

    def line(self, event: str, text: str, **fields: str | float) -> None:
        """Write one line of data, without secrets: ``text``, or ``fields`` as JSON."""
        safe = {
            key: redact(value) if isinstance(value, str) else value
            for key, value in fields.items()
        }
        self._data(event, redact(text), safe)

    def secret_line(self, event: str, text: str, **fields: str | float) -> None:
        """Write one line of data whose purpose is to tell a secret."""
        self._data(event, text, fields)

    def _data(self, event: str, text: str, fields: Mapping[str, str | float]) -> None:
        self._clear_status()
        if self.as_json:
            text = json.dumps({"event": event, **fields})
        _write(sys.stdout, escaped(text) + "\n")

    def talk(self, label: str, text: str) -> None:
        """Write a line for the person at the terminal, if there is one."""
        if self._talkative:
            self._clear_status()
            _write(sys.stderr, _shown(f"  {label:<{LABEL_WIDTH}} {text}") + "\n")

    def status(self, text: str) -> None:
        """Replace the last line of the terminal; an empty text removes it."""
        if self._talkative and text != self._status:
            self._clear_status()
            self._status = text
            _write(sys.stderr, _shown(text))

    def _clear_status(self) -> None:
        if self._status:
            _write(sys.stderr, "\r\x1b[K")
            self._status = ""

    def error(self, error: TunnelError, word: str = "error") -> None:
        """Write what failed, why, and what can be done."""
        self._explain(f"{word}: {error.what}", error)

    def trouble(self, error: TunnelError, instead: str) -> None:
        """Write what failed where the program goes on, and how it does."""
        self._explain(f"{error.what}; {instead}", error)

    def _explain(self, first: str, error: TunnelError) -> None:
        self._clear_status()
        parts = [first]
        if error.cause:
            parts.append(f"  cause  {error.cause}")
        if error.fix:
            parts.append(f"  fix    {error.fix}")
        _write(sys.stderr, "\n".join(map(_shown, parts)) + "\n")


def is_journal(file: TextIO) -> bool:
    """Say whether a file is systemd's journal (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _shown(text: str) -> str:
    """Return one line without secrets and without what moves the cursor."""
    return escaped(redact(text))


def _write(file: TextIO, text: str) -> None:
    """Write at once: a script may be waiting. ``ops.standard`` deals with failures."""
    file.write(text)
    file.flush()


def _formatter(kind: str, *, colour: bool) -> logging.Formatter:
    if kind == "terminal":
        return TerminalFormatter(colour=colour)
    return JsonFormatter() if kind == "json" else LogfmtFormatter()


def size_text(count: int) -> str:
    """Return a number of bytes for a person to read."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def connections(count: int, kind: str = "") -> str:
    """Return a number of connections for a person to read."""
    return f"{count} {kind}connection{'' if count == 1 else 's'}"
