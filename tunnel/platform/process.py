"""The process: signals, descriptors, its name in ``ps``, and the clock.

Imports nothing heavy: it is used before the rest of the program is loaded.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

MANY: Final = 1 << 30

# Signals -----------------------------------------------------------------------------

HANGUP: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)
"""The terminal was closed; None where nobody says so."""
REOPEN: Final[signal.Signals | None] = getattr(signal, "SIGUSR1", None)
"""The log file was renamed, as logrotate does; None where nobody says so."""


def bury_strangers() -> None:
    """Leave no zombies where this is the first process, as of a container.

    A process there that loses its parent becomes a child of the first one, and only
    that can wait for it. Who starts programs has to be in ``told_of_children``.
    """
    if sys.platform != "win32" and os.getpid() == 1:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def buries_strangers() -> bool:
    """Say whether ``bury_strangers`` has had an effect."""
    if sys.platform == "win32":
        return False
    else:
        return signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN


def bury_all_but(ours: Container[int]) -> None:
    """Bury strangers that have ended, where the kernel keeps how children end.

    One of ``ours`` that has ended is waited for by who started it; until then it may
    stand before others.
    """
    if sys.platform == "linux":  # elsewhere Python has it from 3.13 on only
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, ended)) is not None:
                if found.si_pid in ours:
                    return
                os.waitpid(found.si_pid, 0)


@contextmanager
def told_of_children() -> Iterator[None]:
    """Have the kernel keep how children end, also where strangers are buried.

    These wait for the end of the block. One such block at a time, in the main thread.
    """
    if sys.platform != "win32" and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    """One that has ended meanwhile."""
    else:
        yield


def cores() -> int:
    """Return how many cores this process may use; those of the machine, if unknown."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def has_terminal() -> bool:
    """Say whether a terminal controls this process; without one SIGHUP is a word."""
    if sys.platform == "win32":
        return False
    else:
        try:
            os.close(os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY))
        except OSError:
            return False
        return True


def hold_back(number: signal.Signals) -> None:
    """Have a signal wait, also while the program executes another; not on Windows."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})


def let_through(number: signal.Signals) -> None:
    """Undo ``hold_back``."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


# Descriptors -------------------------------------------------------------------------


def descriptor_limits() -> tuple[int, int]:
    """Return how many descriptors may be open, and how far that may be raised.

    ``MANY`` if not known.
    """
    if sys.platform == "win32":
        return MANY, MANY
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (soft if soft != resource.RLIM_INFINITY else MANY), hard


def raise_descriptor_limit() -> None:
    """Raise the limit as far as the process may.

    Raises:
        OSError, ValueError: it does not work; nothing has changed.
    """
    if sys.platform != "win32":
        _soft, hard = descriptor_limits()
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def inherited(content: bytes) -> int:
    """Return a descriptor that gives ``content`` and then ends; an exec passes it on.

    It is a file in memory, or else a pipe, which holds 16 KiB at least.

    Raises:
        OSError: no program can be executed in the place of this one, or a pipe is too
            small.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "this system starts another program beside it")
    else:
        number = _file_in_memory()
        if number is None:
            return _filled_pipe(content)
        _write_all(number, content)
        os.lseek(number, 0, os.SEEK_SET)
        return number


def _file_in_memory() -> int | None:
    """Open one; None where that is not on this system, or forbidden."""
    if sys.platform != "linux":
        return None
    else:
        try:
            return os.memfd_create("arguments", 0)
        except (AttributeError, OSError):
            return None


if sys.platform != "win32":

    def _filled_pipe(content: bytes) -> int:
        reader, writer = os.pipe()
        try:
            os.set_blocking(writer, False)
            _write_all(writer, content)
            os.set_inheritable(reader, True)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return reader


def _write_all(number: int, content: bytes) -> None:
    while content:
        content = content[os.write(number, content) :]


# Pipes and terminals -----------------------------------------------------------------

PIPE_BYTES: Final[int] = getattr(select, "PIPE_BUF", 512)
"""What fits into a pipe that has room at all (POSIX)."""


def has_room(descriptor: int, wait_s: float) -> bool:
    """Say whether a write would not block, after so long at most; yes if not known."""
    if sys.platform == "win32":
        return True
    else:
        room = select.poll()
        room.register(descriptor, select.POLLOUT)
        return bool(room.poll(wait_s * 1000))


# Who and when ------------------------------------------------------------------------


def user_id() -> int | None:
    """Return the user whose rights this process has; None on Windows."""
    if sys.platform == "win32":
        return None
    else:
        return os.geteuid()


_COMM: Final = "/proc/self/comm"


def short_name() -> str:
    """Return the name that ``ps`` and ``killall`` know; empty if not known.

    An exec makes it that of the new program: ``python``.
    """
    try:
        with open(_COMM) as file:
            return file.read().strip()
    except OSError:
        return ""


def set_short_name(name: str) -> None:
    """Set the name that ``ps`` and ``killall`` know.

    Raises:
        OSError: that is not possible here.
    """
    with open(_COMM, "w") as file:
        file.write(name)


def asleep_s() -> float:
    """Return for how long this machine was suspended; trio's clock stood still then.

    0 if not known: a link then notices the sleep by the silence of its peer.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    else:
        return 0.0
