"""Standard files that cannot fail: stdin, stdout and stderr, whatever became of them.

A tunnel outlives the terminal, the reader and the disk that it writes to. Lines for
scripts, the log, the help and Python's own reports all go through ``sys.stdout`` and
``sys.stderr``, so these two are replaced once, at the start. Imports nothing heavy: a
command line with secrets makes the program start twice.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING, Final

from tunnel.platform.process import PIPE_BYTES, has_room

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STUCK_S: Final = 1.0
"""How long a write waits for a reader that does not read (Ctrl+S, a full pipe): above
what a busy machine needs, below what a link takes for the death of its peer. After one
such wait no other follows until something is read."""
PIECE_BYTES: Final = PIPE_BYTES
"""As much fits into every pipe that has room (POSIX), so that a write returns."""

_PLAIN: Final = str.maketrans(
    {"→": "->", "…": "...", "—": "-", "–": "-", "·": "-", "×": "x"}
)
_PLAIN_ERRORS: Final = "tunnel-plain"


class EnduringFile(io.FileIO):
    """A file to write to; what cannot be written is dropped.

    Each write is tried anew: a disk that was full may take the next line.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self.lost: OSError | None = None
        """Why something was dropped, for a command that exists only to print."""
        self._stuck = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of ``data``, or drop it all; never blocks for more than 1 s."""
        size = memoryview(data).nbytes
        try:
            self._stuck = not has_room(self.fileno(), 0 if self._stuck else STUCK_S)
            if not self._stuck:
                written = super().write(memoryview(data)[:PIECE_BYTES])
                if written is not None:
                    return written
            self.lost = BlockingIOError("its reader stands still")
        except OSError as error:
            self.lost = error.with_traceback(None)  # which would hold this frame
        return size


def secure_standard_files() -> None:
    """Replace stdin, stdout and stderr by files that cannot fail.

    Closed ones (``>&-``) are opened on ``/dev/null`` first: else the next socket or
    file would get their number, and the program's words would be written into it.
    """
    codecs.register_error(_PLAIN_ERRORS, _plainly)
    for fd in range(3):
        _fill(fd)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    sys.stdout = _enduring(1, sys.stdout)
    sys.stderr = _enduring(2, sys.stderr)


def lost_output() -> OSError | None:
    """Return why output to stdout was dropped; None if all of it was written."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, EnduringFile) else None


def _fill(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != fd:
            os.dup2(opened, fd)
            os.close(opened)
        os.set_inheritable(fd, True)


def _enduring(fd: int, before: io.TextIOBase | object) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(EnduringFile(fd)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors=_PLAIN_ERRORS,
        line_buffering=True,
    )


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what the terminal's character set lacks as ``->``, or ``\\xe4``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
    return shown, error.end
