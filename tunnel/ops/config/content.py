"""The bytes of a configuration file: read whole, and replaced whole."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunnel.errors import StateError, UsageError
from tunnel.platform.files import copy_owner, open_file, set_mode, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 4_194_304
"""Ten thousand users or entries with a dozen lines each; read in some seconds."""
TRIES: Final = 5
"""How often a file is read that changes meanwhile: an editor writes it in one go."""


def content(path: Path) -> tuple[str, os.stat_result]:
    """Return the text of a file; as ``raw_content``."""
    raw, status = raw_content(path)
    return decoded(raw), status


def raw_content(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a file, which did not change while they were read.

    Raises:
        UsageError: it is none, or cannot be read.
    """
    never: int = getattr(os, "O_NONBLOCK", 0)  # a FIFO has no writer perhaps
    for _ in range(TRIES):
        try:
            with open(open_file(path, os.O_RDONLY | never, 0), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    why = "it is read again at each reload"
                    raise UsageError("this is no file", why)
                raw = file.read(MAX_BYTES + 1)
                after = os.fstat(file.fileno())
        except (OSError, ValueError) as error:  # a name with a NUL
            why = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"cannot be read: {why}") from error
        if len(raw) > MAX_BYTES:
            raise UsageError(f"it has more than {MAX_BYTES} bytes")
        if (status.st_mtime_ns, len(raw)) == (after.st_mtime_ns, after.st_size):
            return raw, status
    raise UsageError("it changes while it is read")


def decoded(raw: bytes) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        why = f"its line {line} is in another encoding"
        raise UsageError("it is not UTF-8", why) from None


class Replacement:
    """What a file is to have instead of what it has: written beside it, on the disk.

    It has the mode of the file, and its owner as far as this user may give it away. A
    link is followed. The caller calls ``put`` or ``drop``.

    Args:
        path: of the file.
        raw: what it is to have.
        status: of the file when it was read.

    Raises:
        StateError: it cannot be written.
    """

    def __init__(self, path: Path, raw: bytes, status: os.stat_result) -> None:
        self._named = path
        self._status = status
        self._path = path.resolve()
        self._beside = self._path.with_name(
            f".{self._path.name}.{secrets.token_hex(8)}.tmp"
        )
        try:
            self._write(raw)
        except OSError as error:
            self.drop()
            raise self._failed(error) from error
        except BaseException:
            self.drop()
            raise

    def put(self) -> None:
        """Have the file be this; done whole or not at all.

        Raises:
            StateError: it cannot be replaced, or is not what it was when it was read.
        """
        try:
            now, then = self._path.stat(), self._status
            if _stamp(now) != _stamp(then):
                why = "somebody else has changed it in this moment"
                raise StateError(f"cannot write {self._named}", why, "once more")
            self._beside.replace(self._path)
            with suppress(OSError):  # it is there, and may not outlive a power cut
                sync_folder(self._path.parent)
        except OSError as error:
            raise self._failed(error) from error

    def drop(self) -> None:
        """Leave nothing beside the file; does nothing after ``put``."""
        with suppress(OSError):
            self._beside.unlink(missing_ok=True)

    def _write(self, raw: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(open_file(self._beside, flags, 0o600), "wb") as file:
            file.write(raw)
            file.flush()
            mode = self._status.st_mode & 0o777
            if not copy_owner(file.fileno(), self._status):
                mode &= 0o707  # what one group might is not for another
            set_mode(file.fileno(), mode)
            os.fsync(file.fileno())

    def _failed(self, error: OSError) -> StateError:
        return StateError(f"cannot write {self._named}", error.strerror or str(error))


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino
