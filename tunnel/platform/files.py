"""Files and pipes: locks, modes, opening with care, and pipes as trio streams."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.platform.process import user_id

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
_MayOpen = Callable[[bytes, os.stat_result], bool]
_Opened = tuple[int, os.stat_result] | None


def open_file(path: Path, flags: int, mode: int) -> int:
    """Open a file for bytes; return its descriptor, which the caller closes."""
    return os.open(path, flags | _BINARY, mode)


def open_to_append(path: Path, mode: int) -> int:
    """Open a file to write behind its end; return its descriptor, to be closed.

    One that is made has exactly this mode; another keeps its own. It may be a pipe or a
    terminal: a pipe without a reader is an error, and no wait.

    In a folder that everybody may write, a file or a link that is neither this user's
    nor root's is refused: somebody may have put it there to be written to, or to have
    something else overwritten.

    Raises:
        OSError: its folder is not there, it is refused, or the like.
    """
    _refuse_planted(path)
    _refuse_planted(path.resolve())
    flags = os.O_WRONLY | os.O_APPEND | _TO_A_FILE
    if not path.is_symlink():
        flags |= _NO_LINK  # not even one of this moment
    try:
        number = open_file(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        number = open_file(path, flags | os.O_CREAT, mode)
    else:
        set_mode(number, mode)
    if sys.platform != "win32":
        os.set_blocking(number, True)
    return number


_NO_LINK: Final[int] = getattr(os, "O_NOFOLLOW", 0)
_TO_A_FILE: Final[int] = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def _refuse_planted(path: Path) -> None:
    """Raise PermissionError if somebody else put a part of the path where all may."""
    user = user_id()
    if user is None:
        return
    at = path.absolute()
    for part, folder in zip((at, *at.parents), at.parents, strict=False):
        if not folder.stat().st_mode & 0o002:
            continue
        with suppress(FileNotFoundError):
            owner = part.lstat().st_uid
            if owner not in (user, 0):
                why = f"{part} belongs to user {owner}, in a folder open to everybody"
                raise PermissionError(errno.EPERM, why)


def set_mode(descriptor: int, mode: int) -> None:
    """Give an open file exactly this mode; does nothing on Windows."""
    if sys.platform != "win32" and os.fstat(descriptor).st_mode & 0o777 != mode:
        os.fchmod(descriptor, mode)


def copy_owner(descriptor: int, status: os.stat_result) -> bool:
    """Give an open file the owner and group of another, as far as this user may.

    Returns:
        Whether it has that group now. Windows has none: its folders say who may what.
    """
    if sys.platform == "win32":
        return True
    else:
        own = os.fstat(descriptor)
        for user, group in ((status.st_uid, -1), (-1, status.st_gid)):
            if (user, group) not in ((own.st_uid, -1), (-1, own.st_gid)):
                with suppress(PermissionError):
                    os.fchown(descriptor, user, group)
        return os.fstat(descriptor).st_gid == status.st_gid


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive a power cut; Windows does without being asked.

    Raises:
        OSError: the folder cannot be read, or the disk failed.
    """
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_lockable(folder: Path) -> int:
    """Return what ``lock_file`` takes for a folder; the caller closes it.

    It is the folder itself, which need not be writable; on Windows, where a folder
    cannot be locked, a file ``lock`` in it.

    Raises:
        OSError: it cannot be opened.
    """
    if sys.platform == "win32":
        return open_file(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    else:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def lock_file(descriptor: int) -> None:
    """Lock a file against other processes until the descriptor is closed.

    Raises:
        BlockingIOError: another descriptor holds the lock.
        OSError: there are no locks here.
    """
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # readers are kept off that byte
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)


def lock_holder(descriptor: int) -> int | None:
    """Return the process that holds the lock of a file; None if not known."""
    inode = os.fstat(descriptor).st_ino
    with suppress(OSError), open("/proc/locks", encoding="ascii") as locks:
        for words in map(str.split, locks):
            if "FLOCK" in words and f":{inode} " in f"{' '.join(words)} ":
                return int(words[words.index("WRITE") + 1])
    return None


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read from a place in a file that nobody else reads."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def open_real(path: bytes, may_open: _MayOpen) -> _Opened:
    """Open a file or a folder to read it, if what it really is may be opened.

    Links are followed. ``may_open`` is given the path without links, and the status;
    a device or a pipe does not notice that. On Linux nothing can change in between.
    Elsewhere a folder that becomes a link and a folder again at two certain moments
    would not be noticed.

    Returns:
        A descriptor, which the caller closes, and the status. None: it is not there, or
        may not be opened.
    """
    if sys.platform == "linux":
        try:
            place = os.open(path, os.O_PATH)  # touches nothing
        except (OSError, ValueError):
            return None
        with ExitStack() as stack:
            stack.callback(os.close, place)
            status = os.fstat(place)
            if may_open(os.readlink(b"/proc/self/fd/%d" % place), status):
                with suppress(OSError):
                    return os.open(f"/proc/self/fd/{place}", os.O_RDONLY), status
        return None
    else:
        return _open_twice_looked_at(path, may_open)


def _open_twice_looked_at(path: bytes, may_open: _MayOpen) -> _Opened:
    try:
        really = os.path.realpath(path, strict=True)
        before = os.lstat(really)
        if not may_open(really, before):
            return None
        number = os.open(really, os.O_RDONLY | _BINARY)
    except (OSError, ValueError):
        return None
    status = os.fstat(number)
    if os.path.samestat(before, status) and os.path.realpath(path) == really:
        return number, status
    os.close(number)
    return None


def stream_of(descriptor: int) -> trio.abc.Stream | None:
    """Return a stream that owns a pipe, a socket or a terminal; None on Windows."""
    if sys.platform == "win32":
        return None
    else:
        return trio.lowlevel.FdStream(descriptor)
