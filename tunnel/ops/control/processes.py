"""Which tunnel processes this user runs: a folder with a socket for each.

``up-4711`` is the control socket of a client, ``serve-4711`` that of a server, or a
link to the one in its state folder. The folder has mode 0700 and belongs to this user,
else it is not looked at. Loads nothing heavy: a command asks and is gone.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, Exit, StateError, TunnelError, UsageError
from tunnel.ops.control.ask import ask_at, is_nobody, open_question, read_answer
from tunnel.platform.process import user_id

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

NAME: Final = re.compile(r"(serve|up)-\d+(?:-\d)?")
MAX_NAMESAKES: Final = 9
"""Processes with one number: those of containers that share a folder are all 1."""
GREETING_S: Final = 2.0
"""How long a process may take to say who it is: one that was stopped never does."""
YOUNG_S: Final = 2.0
"""A socket that nobody listens on may be about to be listened on, for so long."""
NOT_HERE: Final = "nothing of tunnel runs here for this user"
"""Said where no process is left to ask."""


class NotRunningError(TunnelError):
    """Nothing runs that could be asked."""

    _status: Exit | None = Exit.NOT_RUNNING

    def __init__(self, what: str, cause: str = "") -> None:
        super().__init__(Code.GENERAL, what, cause, "tunnel ps")


@dataclass(frozen=True, slots=True)
class Process:
    """The control socket of a process."""

    name: str
    path: Path

    def ask(self, do: str, **args: object) -> dict[str, object]:
        """Have it do a command.

        Raises:
            StateError: it does not answer, or is another user's.
            AnswerError: it has refused.
            NotRunningError: it is gone, perhaps since it was asked.
        """
        try:
            answer = ask_at(self.path, self.name, do, args)
        except StateError:
            if self.is_there:
                raise
            answer = None
        if answer is None:
            raise NotRunningError(f"{self.name} runs no more")
        return answer

    @property
    def is_there(self) -> bool:
        """Whether somebody listens on its socket."""
        try:
            open_question(self.path, self.name, "ps", {}, GREETING_S).close()
        except OSError as error:
            return not is_nobody(error)
        return True


def folders() -> Iterator[Path]:
    """Yield the folders in which processes may be, that for new ones first.

    Where the runtime folder of this user goes with the last login, or its home cannot
    be written, another one does.
    """
    user = user_id()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}"
    if runtime.startswith("/") and os.path.isdir(runtime):
        yield Path(runtime) / "tunnel"
    from platformdirs import user_state_path  # slow, and seldom needed

    with suppress(RuntimeError):
        if (state := user_state_path("tunnel")).is_absolute():
            yield state / "run"
    yield Path(os.environ.get("TMPDIR") or "/tmp") / f"tunnel-{user}"  # noqa: S108


def is_ours(folder: Path) -> bool:
    """Say whether a folder is this user's, and only its."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    is_private = not (stat.S_IMODE(found.st_mode) & 0o077)
    mine = user_id() in (None, found.st_uid)
    return stat.S_ISDIR(found.st_mode) and mine and is_private


def entries() -> list[Process]:
    """Return all sockets, of dead processes too."""
    found: dict[str, Process] = {}
    for folder in folders():
        if is_ours(folder):
            with suppress(OSError):
                for name in os.listdir(folder):
                    if NAME.fullmatch(name):
                        found.setdefault(name, Process(name, folder / name))
    return sorted(found.values(), key=lambda one: _order(one.name))


def _order(name: str) -> tuple[str, list[int]]:
    role, *numbers = name.split("-")
    return role, [int(number) for number in numbers]


def is_listed(pid: int) -> bool:
    """Say whether a process is one of those that answer here."""
    names = f"serve-{pid}", f"up-{pid}"
    return any(os.path.lexists(f / name) for f in folders() for name in names)


def greet_all() -> list[tuple[Process, dict[str, object] | TunnelError]]:
    """Ask every process who it is, all at once; sweep what the dead have left.

    One that does not answer comes with the reason.
    """
    asked: list[tuple[Process, socket.socket | TunnelError]] = []
    for process in entries():
        try:
            question = open_question(process.path, process.name, "ps", {}, GREETING_S)
        except TunnelError as error:
            asked.append((process, error))
        except OSError as error:
            if is_nobody(error):
                _sweep(process)
            else:
                asked.append((process, _mute(process)))
        else:
            asked.append((process, question))
    until = time.monotonic() + GREETING_S
    heard: list[tuple[Process, dict[str, object] | TunnelError]] = []
    for process, opened in asked:
        if isinstance(opened, TunnelError):
            heard.append((process, opened))
            continue
        answer = _hear(process, opened, until)
        if isinstance(answer, dict) and answer.get("name") != process.name:
            # The link to a server's folder, in which another runs now.
            _sweep(process)
        else:
            heard.append((process, answer))
    return heard


def _hear(
    process: Process, question: socket.socket, until: float
) -> dict[str, object] | TunnelError:
    with question:
        question.settimeout(max(until - time.monotonic(), 0.01))
        try:
            return read_answer(question, process.name)
        except OSError:
            return _mute(process)
        except TunnelError as error:
            return error


def _mute(process: Process) -> StateError:
    return StateError(f"{process.name} does not answer", "it may be stopped or busy")


def _sweep(process: Process) -> None:
    with suppress(OSError):
        age_s = time.time() - os.lstat(process.path).st_mtime
        if not 0 <= age_s < YOUNG_S:
            os.unlink(process.path)


def find_all(word: str | None) -> list[Process]:
    """Return the processes that a word means: a name, a beginning of it, or None: all.

    Raises:
        NotRunningError: there is none.
        UsageError: the word fits several, and none exactly.
    """
    known = [process for process, _answer in greet_all()]
    if not known:
        raise NotRunningError(NOT_HERE)
    if word is None:
        return known
    exact = [one for one in known if one.name == word]
    fits = exact or [one for one in known if one.name.startswith(word)]
    if not fits:
        raise NotRunningError(
            f"no process is called {word!r}", f"running here: {_names(known)}"
        )
    if len(fits) > 1:
        raise UsageError(f"{word!r} may be several processes", _names(fits))
    return fits


def find(word: str | None, role: str = "") -> Process:
    """Return the one process that is meant; ``role`` says which may be at all.

    Raises:
        NotRunningError: there is none.
        UsageError: there are several, or it has another role.
    """
    known = find_all(word)
    fits = [one for one in known if one.name.startswith(role)]
    if not fits:
        what = f"no `tunnel {role}` of this user runs here"
        raise NotRunningError(what, _names(known))
    if len(fits) > 1:
        command = "say which one: a name of `tunnel ps`, or a beginning of it"
        raise UsageError("several processes run", _names(fits), command)
    return fits[0]


def _names(known: list[Process]) -> str:
    return ", ".join(one.name for one in known)


# The own place -----------------------------------------------------------------------


def own_places(role: str) -> Iterator[Path]:
    """Yield where the socket of this process may be; makes the folders.

    The caller takes the first that works.
    """
    # Here, for a command that only looks for processes loads as little as it can.
    from tunnel.access.files import make_private_dir

    for folder in folders():
        try:
            make_private_dir(folder)
        except OSError:
            continue
        if is_ours(folder) and os.access(folder, os.W_OK):
            for number in range(1, MAX_NAMESAKES + 1):
                more = f"-{number}" if number > 1 else ""
                yield folder / f"{role}-{os.getpid()}{more}"


def link_to(socket_path: Path, place: Path) -> bool:
    """Lead from a place to a socket elsewhere; False if a live process has it.

    Raises:
        OSError: no link can be made there.
    """
    try:
        os.symlink(socket_path, place)
    except FileExistsError:
        held = Process(place.name, place)
        if os.path.islink(place) and os.readlink(place) == str(socket_path):
            return True  # of a server that was killed, with our number
        if held.is_there:
            return False
        os.unlink(place)
        os.symlink(socket_path, place)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP):  # a disk without links
            return False
        raise
    return True
