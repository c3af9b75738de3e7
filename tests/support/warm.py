"""``tunnel`` commands that start in a tenth of the time: forks of one that is loaded.

Half of what the system tests would compute is Python loading the same modules again
and again. So they are loaded once, in a process that does nothing but fork. What it
forks is a real process: a child of the test, with the arguments (in ``/proc`` too),
environment, files, folder and session that it would have had, and it runs
``tunnel.__main__`` from its first line. What it does not show is the start itself: a
command line with a secret in it, which is executed again, and whatever does not begin
with ``python -m tunnel`` start as they are, and so do all commands of ``Machine.run``.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import runpy
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

MESSAGE_BYTES: Final = 1 << 16
"""Of a command line and an environment."""
ARGUMENT_BYTES: Final = 4_096
"""Of a command line, as ``/proc`` shows it."""
LOADED_AT_START: Final = (
    "PYTHON",
    "LD_",
    "MALLOC_",
    "GLIBC_",
    "LC_",
    "LANG",
    "TUNNEL_NET",
)
"""Begins of variables that act while Python and the program load."""
LOADED: Final = (
    "cryptography.x509",
    "tunnel.center.client",
    "tunnel.ops.cli",
    "tunnel.ops.config.again",
    "tunnel.ops.pipe",
    "tunnel.ops.reload.client",
    "tunnel.ops.reload.server",
    "tunnel.ops.saved",
    "tunnel.ops.serve",
    "tunnel.ops.up",
)
_PR_SET_CHILD_SUBREAPER: Final = 36


class Forked(subprocess.Popen[bytes]):
    """A process that ``Forks`` has started, with all that ``Popen`` has."""

    def __init__(
        self, forks: Forks, argv: list[str], env: dict[str, str], stdin: int | None
    ) -> None:
        self._forks = forks
        super().__init__(
            argv, env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def _execute_child(self, args: list[str], *how: Any) -> None:  # noqa: ANN401
        stdin, _, _, stdout, _, stderr = pipes = how[9:15]
        try:
            files = max(stdin, 0), stdout, stderr
            self.pid = self._forks.fork(args, how[5], files)
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        self._child_created = True


class Forks:
    """The process that forks; started when it is first needed, ends with the tests."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._ours: socket.socket | None = None
        self._env: dict[str, str] = {}

    def can_start(self, argv: tuple[str, ...], env: dict[str, str]) -> bool:
        """Say whether a fork is as good as the program itself."""
        if sys.platform != "linux" or argv[:3] != (sys.executable, "-m", "tunnel"):
            return False
        from tunnel.redaction import masked

        words = list(argv[3:])
        if masked(words) != words or len("\0".join(argv)) >= ARGUMENT_BYTES:
            return False
        with self._one_at_a_time:
            if self._ours is None:
                self._start(env)
        return _at_start(env) == self._env

    def _start(self, env: dict[str, str]) -> None:
        self._env = _at_start(env)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, __file__, str(theirs.fileno()), "-" * ARGUMENT_BYTES]
        with theirs:
            self._process = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._ours = ours

    def fork(self, argv: list[str], env: dict[str, str], files: tuple[int, ...]) -> int:
        """Start a command; return its process, whose parent is this one."""
        umask = os.umask(0)
        os.umask(umask)
        wanted = json.dumps([argv, env, os.getcwd(), umask]).encode(
            "utf-8", "surrogatepass"
        )
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        with self._one_at_a_time:
            assert self._ours is not None
            _adopt(True)
            try:
                self._ours.sendmsg([wanted], passed)
                pid = int(self._ours.recv(MESSAGE_BYTES))
            finally:
                _adopt(False)
        return pid


FORKS: Final = Forks()


def _at_start(env: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if k.startswith(LOADED_AT_START)}


def _adopt(yes: bool) -> None:
    """Become the parent of what loses its own below this process, or stop that."""
    done = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)
    assert done == 0


# In the process that forks ----------------------------------------------------------


def _load() -> None:
    """Load what the commands load, and no dice that ``_throw_dice`` does not know."""
    thrown: list[int] = []
    token_bytes = secrets.token_bytes

    def throw(size: int) -> bytes:
        thrown.append(size)
        return token_bytes(size)

    vars(secrets)["token_bytes"] = throw
    for name in LOADED:
        import_module(name)
    vars(secrets)["token_bytes"] = token_bytes
    if sorted(thrown) != [4, 32]:
        sys.exit(f"modules choose secrets of {thrown} bytes: see _throw_dice")


def _throw_dice() -> None:
    """Give the process what every process chooses for itself while it loads."""
    from tunnel.front.http import guard, names

    name = f"tunnel-{secrets.token_hex(4)}"
    vars(names).update(
        PSEUDONYM=name, _PSEUDONYM=name.encode(), _VIA=f"Via: 1.1 {name}".encode()
    )
    vars(guard)["_KEY"] = secrets.token_bytes(32)


def _show(argv: list[str]) -> None:
    """Have ``/proc/PID/cmdline`` say ``argv``, filled up with empty words."""
    start, end = map(
        int, Path("/proc/self/stat").read_text().rsplit(")")[1].split()[45:47]
    )
    line = b"".join(os.fsencode(word) + b"\0" for word in argv)
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


def _wait_for_work(theirs: socket.socket) -> None:
    """Fork for each message; return in a fork that is to run the program."""
    while True:
        message, files, _, _ = socket.recv_fds(theirs, MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child:  # its child is now the child of the tests
                os.write(writer, str(child).encode())
                os._exit(0)
            _become(json.loads(message), files)
            return
        os.waitpid(between, 0)
        theirs.send(os.read(reader, 100))
        for fd in (reader, writer, *files):
            os.close(fd)


def _become(wanted: list[Any], files: list[int]) -> None:
    argv, env, folder, umask = wanted
    for number, fd in enumerate(files):
        os.dup2(fd, number)
    os.closerange(3, 1_024)
    os.setsid()
    os.chdir(folder)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    _show(argv)
    _throw_dice()
    sys.argv[1:], sys.orig_argv[:] = argv[3:], argv
    sys.path[0] = folder


def main() -> None:
    sys.path[0] = os.getcwd()  # as ``-m`` has it; not the folder of this file
    with suppress(KeyboardInterrupt):
        _load()
    gc.collect()
    gc.freeze()
    theirs = socket.socket(fileno=int(sys.argv[1]))
    _wait_for_work(theirs)
    theirs.detach()
    gc.unfreeze()
    runpy.run_module("tunnel", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
