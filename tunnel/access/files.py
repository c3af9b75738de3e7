"""Files that only their owner may read or write: whole or not at all, and locked.

A secret is never read from a file that other users can read or write.
"""

from __future__ import annotations

import os
import secrets
import shlex
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from tunnel.errors import StateError
from tunnel.platform.files import (
    lock_file,
    lock_holder,
    open_file,
    open_lockable,
    set_mode,
    sync_folder,
)
from tunnel.platform.process import user_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TRUST_FILES: Final = "TUNNEL_TRUST_FILES"
"""The environment variable that has secrets read whoever may read or write them: for
mounts whose owner and mode nobody can choose. ``yes``, ``true`` or ``1``."""
T = TypeVar("T")
DAMAGED: Final = "the file is damaged"
LOCK_S: Final = 5.0
"""How long a lock is waited for that others hold for some milliseconds."""
LOCK_PAUSE_S: Final = 0.01
"""The kernel has no event for a lock that is free again within a time."""


def exists(path: Path) -> bool:
    """Say whether a file is there.

    Raises:
        StateError: that cannot be told, as in a folder that may not be searched.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, "read", error) from error
    return True


def read_private(path: Path) -> str:
    """Return the text of a file that is ours alone or that only root can write.

    The latter is how Docker, Kubernetes and systemd mount secrets, whoever may read
    them there. A symbolic link is followed, and the owners of folders do not matter.

    Raises:
        StateError: it is absent, unreadable, not UTF-8, not ours or open to others.
    """
    try:
        with path.open(encoding="utf-8") as file:
            insist_private(path, os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise _unusable(path, "read", error) from error
    except UnicodeDecodeError as error:
        raise StateError(f"cannot use {path}", DAMAGED) from error


def insist_private(path: Path, status: os.stat_result) -> None:
    """Raise StateError if a file with that status is not as ``read_private`` wants."""
    user = user_id()
    if user is None or (status.st_uid == 0 and not status.st_mode & 0o022):
        return
    if _all_are_trusted():
        return
    name = shlex.quote(str(path))
    if status.st_uid != user:
        cause = "it belongs to another user"
        # Root would take it away from a service that needs it.
        fix = f"chown {user} {name}" if user else f"run this as user {status.st_uid}"
    elif status.st_mode & 0o077:
        cause = f"others may use it: its mode is {status.st_mode & 0o777:03o}"
        fix = f"chmod 600 {name}"
    else:
        return
    switch = f"or set {TRUST_FILES}=yes if you trust whoever can read and write it"
    raise StateError(f"will not use {path}", cause, f"{fix}, {switch}")


def insist_unwritable(path: Path, status: os.stat_result) -> None:
    """Raise StateError if everybody may write a file with that status."""
    if status.st_mode & 0o002 and user_id() is not None and not _all_are_trusted():
        cause = f"everybody may write it: its mode is {status.st_mode & 0o777:03o}"
        fix = f"chmod o-w {shlex.quote(str(path))}, or set {TRUST_FILES}=yes"
        raise StateError(f"will not use {path}", cause, fix)


def _all_are_trusted() -> bool:
    return os.environ.get(TRUST_FILES, "").lower() in ("1", "yes", "true")


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, whole or not at all; an old one is replaced.

    Missing folders are made with mode 0700; existing ones stay as they are.

    Raises:
        StateError: it cannot be written; what was there before is still there.
    """
    _write(path, text, os.replace)


def rename_private(path: Path, to: Path) -> None:
    """Give a file the name of another, which is gone then; survives a power cut.

    Raises:
        StateError: it cannot be done; both are as they were.
    """
    try:
        path.replace(to)
        sync_folder(to.parent)
    except OSError as error:
        raise _unusable(to, "write", error) from error


def insist_writable(path: Path) -> None:
    """Raise StateError if ``write_private`` could not write a file; leaves no trace."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}.probe")
    try:
        make_private_dir(path.parent)
        os.close(open_private(probe, os.O_WRONLY | os.O_EXCL))
        probe.unlink()
    except OSError as error:
        raise _unusable(path, "write", error) from error


def create_private(path: Path, text: str) -> bool:
    """Write a file that is not there, whole; return False if another was first.

    Raises:
        StateError: it cannot be written.
    """
    return _write(path, text, _link)


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here: a server is alone in its folder, so none was first.
        temporary.replace(path)
    return True


def _write(path: Path, text: str, place: Callable[[Path, Path], T]) -> T:
    """Write a file beside ``path``, have ``place`` name it, and return its answer."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        make_private_dir(path.parent)
        try:
            with open(open_private(temporary, os.O_WRONLY | os.O_EXCL), "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            placed = place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)  # or the name may not outlive a power cut
        return placed
    except OSError as error:
        raise _unusable(path, "write", error) from error


def make_private_dir(folder: Path) -> None:
    """Make a folder and those above it, each with mode 0700 whatever the umask is."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_private_dir(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)  # in /proc it says "not found" again
    folder.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """Open a file; one that is made has mode 0600 whatever the umask is."""
    descriptor = open_file(path, flags | os.O_CREAT, 0o600)
    try:
        set_mode(descriptor, 0o600)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _unusable(path: Path, verb: str, error: OSError) -> StateError:
    return StateError(f"cannot {verb} {path}", error.strerror or str(error))


# Locks -----------------------------------------------------------------------------


def try_lock(descriptor: int) -> bool:
    """Lock a file until the descriptor is closed; return False if another process has.

    The kernel's lock: it ends with the process, however that ends. Raises OSError where
    the file system has no locks.
    """
    try:
        lock_file(descriptor)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, within_s: float = LOCK_S) -> Iterator[None]:
    """Hold the lock of a file, which is made, while the context is open.

    It is waited for, in this thread, for ``within_s`` at most. Where there are no
    locks, nobody is kept off.

    Raises:
        StateError: another process keeps it, or the file cannot be made.
    """
    try:
        make_private_dir(path.parent)
        lock = open_private(path, os.O_RDWR)
    except OSError as error:
        raise _unusable(path, "lock", error) from error
    try:
        until = time.monotonic() + within_s
        with suppress(OSError):
            while not try_lock(lock):
                if time.monotonic() > until:
                    why = f"another process has it for longer than {within_s:.0f} s"
                    raise StateError(f"cannot lock {path}", why)
                time.sleep(LOCK_PAUSE_S)
        yield
    finally:
        os.close(lock)


@contextmanager
def sole_server(state_dir: Path, held: int | None = None) -> Iterator[int]:
    """Keep other servers off the state folder while the context is open.

    Gives the descriptor that holds the lock: whoever has a copy of it holds it too.
    ``held`` is such a copy, from a server that hands over; it is closed at the end.

    The lock is that of the folder itself: it needs no right to write. Where there are
    no locks, nobody is kept off.

    Raises:
        StateError: another process has it, or the folder cannot be made.
    """
    try:
        if not exists(state_dir):
            make_private_dir(state_dir)
        folder = open_lockable(state_dir) if held is None else held
    except OSError as error:
        raise _unusable(state_dir, "use", error) from error
    try:
        with suppress(OSError):
            if held is None and not try_lock(folder):
                number = lock_holder(folder)
                holder = "another process" if number is None else f"process {number}"
                raise StateError(
                    f"another server uses {state_dir}",
                    f"{holder} has its lock; two would share one key and one token",
                    "stop that one, or give this one a folder of its own: --state DIR",
                )
        yield folder
    finally:
        os.close(folder)
