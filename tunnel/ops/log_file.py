"""A log file that cannot hold anybody up: written by a thread, bounded, reopened.

What is written waits in memory for a thread of its own: a disk that stalls costs
lines and no time. A disk that is full takes the next line once it has room.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tunnel.errors import StateError
from tunnel.platform.files import open_to_append

if TYPE_CHECKING:
    from pathlib import Path

MODE: Final = 0o600
"""Of a file that is made: addresses of visitors are nobody else's business. One that is
there, as made by logrotate's ``create``, keeps its mode and owner."""
MAX_WAITING_BYTES: Final = 1_048_576
"""Of lines that the disk has not taken: some seconds of the busiest access log."""
LAST_S: Final = 1.0
"""How long the end of the program waits for the disk."""

Trouble = Callable[[str, int], None]
"""Told why lines are lost, once until it works again; then "", and how many were. In
any thread."""


class LogFile:
    """A file that lines are appended to; give it to a ``logging.StreamHandler``.

    Args:
        path: its folder is there; the file is made if it is not.
        trouble: is told what cannot be done with it.

    Raises:
        StateError: it cannot be opened.
    """

    def __init__(self, path: Path, trouble: Trouble) -> None:
        self.path = path
        self._trouble = trouble
        try:
            self._number = open_to_append(path, MODE)
        except OSError as error:
            why = error.strerror or str(error)
            raise StateError(f"cannot write the log {path}", why) from error
        self._news = threading.Condition()
        self._waiting: list[bytes] = []
        self._size = 0
        self._lost = 0
        """Lines, since it worked last."""
        self._broken = False
        """The last thing written was no whole line."""
        self._in_trouble = False
        self._reopen = self._over = self._idle = False
        self._writer: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Have whole lines written; those that there is no room for are lost."""
        data = text.encode(errors="backslashreplace")
        with self._news:
            full = self._size + len(data) > MAX_WAITING_BYTES
            if full:
                self._lost += data.count(b"\n")
            else:
                self._waiting.append(data)
                self._size += len(data)
                self._wake()
        if full:
            self._complain("the disk does not take it")

    def flush(self) -> None:
        """Do nothing: the thread writes what there is."""

    def reopen(self) -> None:
        """Open the file anew: it was renamed. Where it cannot, the old one stays."""
        with self._news:
            self._reopen = True
            self._wake()

    def close(self) -> None:
        """Write what waits, for a second at most; nothing can be written then."""
        with self._news:
            self._over = True
            self._wake()
        if self._writer is not None:
            self._writer.join(LAST_S)

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(
                target=self._write_on, name="log", daemon=True
            )
            self._writer.start()
        elif self._idle:
            self._idle = False
            self._news.notify()

    # The thread ----------------------------------------------------------------------

    def _write_on(self) -> None:
        while True:
            with self._news:
                while not (self._waiting or self._reopen or self._over):
                    self._idle = True
                    self._news.wait()
                waiting, self._waiting = self._waiting, []
                reopen, self._reopen = self._reopen, False
                over = self._over
            if reopen:
                self._open_again()
            if waiting:
                self._append(b"".join(waiting))
            elif over:
                os.close(self._number)
                return

    def _open_again(self) -> None:
        try:
            number = open_to_append(self.path, MODE)
        except OSError as error:
            why = error.strerror or str(error)
            self._trouble(f"cannot open it anew, the old one goes on: {why}", 0)
            return
        old, self._number = self._number, number
        self._broken = False
        os.close(old)

    def _append(self, data: bytes) -> None:
        left = memoryview(b"\n" + data if self._broken else data)
        why = ""
        try:
            while left:
                written = os.write(self._number, left)
                self._broken = left[written - 1] != ord("\n")
                left = left[written:]
        except OSError as error:
            why = error.strerror or str(error)
        with self._news:
            self._size -= len(data)
            self._lost += bytes(left[-len(data) :]).count(b"\n")
        if why:
            self._complain(why)
        elif self._in_trouble:
            lost, self._lost, self._in_trouble = self._lost, 0, False
            self._trouble("", lost)

    def _complain(self, why: str) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            self._trouble(why, 0)
