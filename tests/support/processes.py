"""Real programs for the system tests: ``tunnel``, sshd, curl and their friends.

Everything is started through a ``Machine``, which ends it. Tests wait for lines and for
the end of sockets; where the kernel has no such event (``/proc``), ``eventually`` looks
again and again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

import pytest
from support.ports import OF_PROGRAMS
from support.warm import FORKS, Forked

import tunnel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WAIT_S: Final = 20.0
"""How long a test waits for what should come at once, on a busy machine."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
WORKERS: Final = int(os.environ.get("TUNNEL_WORKERS") or 1)
"""Processes that serve together as each ``tunnel serve``."""
PROCESSES: Final = WORKERS + (WORKERS > 1)
"""Those of a server: several have a parent, which serves nobody."""
PEER_DESCRIPTORS: Final = 4 * WORKERS * (WORKERS - 1)
"""Of links between workers, which are made when they are needed: one from each to each
other, whose ends each have a socket and an epoll."""
PACKAGE: Final = Path(tunnel.__file__).parents[1]


def eventually(holds: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Look until ``holds``; fail with ``what`` when it never does."""
    deadline = time.monotonic() + timeout_s
    never = threading.Event()
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        never.wait(0.02)


_LISTENED_ON: Final = range(10_000, 20_000)
_GIVEN: Final[set[int]] = set()
"""A test that asks for several gets different ones."""


def free_port() -> int:
    """Give a port that nobody has, and that nobody is given by chance.

    A port to be listened on later must not become the own end of a connection before,
    nor a public port of another test's server.
    """
    choice = random.SystemRandom()
    for _ in range(100):
        port = choice.choice(_LISTENED_ON)
        with contextlib.suppress(OSError):
            if port not in _GIVEN:
                _GIVEN.add(_bindable(port))
                return port
    return _bindable(0)


def _bindable(port: int) -> int:
    with socket.create_server(("127.0.0.1", port)) as listener:
        number: int = listener.getsockname()[1]
        return number


def program(name: str) -> str:
    """Find a system program, or skip the test and say so."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"NOT TESTED: {name} is not installed on this machine")
    return path


class Lines:
    """The lines that a program writes, as they come."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._begun = b""
        """Of a line that has not ended."""
        self._over = False
        self._news = threading.Condition()

    def take(self, data: bytes) -> None:
        """Take what was read; nothing: the end of the file."""
        with self._news:
            *whole, self._begun = (self._begun + data).split(b"\n")
            if not data and self._begun:
                whole.append(self._begun)
            self._lines += [line.decode(errors="replace") for line in whole]
            self._over = not data
            self._news.notify_all()

    def all(self) -> list[str]:
        """What has come so far."""
        with self._news:
            return list(self._lines)

    def count(self, text: str) -> int:
        """How many lines so far hold ``text``."""
        return sum(text in line for line in self.all())

    def wait(self, text: str, count: int = 1, timeout_s: float = WAIT_S) -> str:
        """Wait for the ``count``-th line that holds ``text``; fail when none comes."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                found = [line for line in self._lines if text in line]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if self._over or left <= 0:
                    why = "the program has ended" if self._over else "too late"
                    written = "\n".join(self._lines)
                    pytest.fail(f"no line {count} with {text!r}, {why}:\n{written}")
                self._news.wait(left)

    def first(self, timeout_s: float = WAIT_S) -> str | None:
        """Wait for the first line; None when the file ends without one."""
        with self._news:
            self._news.wait_for(lambda: self._lines or self._over, timeout_s)
            return self._lines[0] if self._lines else None


def _read_lines(files: Sequence[tuple[IO[bytes], Lines]]) -> None:
    """Read to the end of all; what is written on the first is there first.

    A test that has seen a line on stdout may look at what was logged before.
    """
    left, ready = dict(files), select.poll()
    for file in left:
        os.set_blocking(file.fileno(), False)
        ready.register(file, select.POLLIN)
    while left:
        ready.poll()
        for file, lines in list(left.items()):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(file.fileno(), 65_536):
                    lines.take(data)
                lines.take(b"")
                ready.unregister(file)
                del left[file]


def children_of(pid: int) -> list[int]:
    """List the children of a process, whichever of its threads has started them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(one) for task in tasks for one in task.read_text().split())


def descriptors_of(pid: int) -> int:
    """Count the files and sockets that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Program:
    """A running program with its lines; a process group of its own."""

    def __init__(
        self, argv: Sequence[str], env: dict[str, str], stdin: int | None
    ) -> None:
        self.argv = tuple(argv)
        self.process: subprocess.Popen[bytes]
        if FORKS.can_start(tuple(argv), env):
            self.process = Forked(FORKS, list(argv), env, stdin)
        else:
            self.process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out, self.err = Lines(), Lines()
        self._files = {self.process.stderr: self.err, self.process.stdout: self.out}
        self._reader = threading.Thread(
            target=_read_lines, args=(list(self._files.items()),), daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the end; give the exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join(WAIT_S)
        for file in self._files:
            file.close()
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; give the exit status."""
        self.send(number)
        return self.wait()

    def end(self) -> None:
        """Kill it with all its children, if it still runs."""
        if self.process.returncode is None:  # else its number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def pids(self) -> list[int]:
        """Its process; of a server that has workers theirs too."""
        found = [self.pid]
        if WORKERS > 1 and "serve" in self.argv:
            found += children_of(self.pid)
        return found

    def rss_bytes(self) -> int:
        """Memory that it holds now."""
        texts = (Path(f"/proc/{pid}/statm").read_text() for pid in self.pids())
        return sum(int(text.split()[1]) for text in texts) * PAGE_BYTES

    def computed_s(self) -> float:
        """Processor time that it has used: the machine's other load does not count."""
        # clock_getcpuclockid(3), which Python has for its own threads only.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return sum(map(descriptors_of, self.pids()))

    def errors(self) -> str:
        """All that it wrote on stderr so far."""
        return "\n".join(self.err.all())


@dataclass(frozen=True)
class Server:
    """A running ``tunnel serve``."""

    program: Program
    join: str
    port: int


class Machine:
    """A home folder, and the programs that were started in it.

    Args:
        home: empty; keeps configuration, state and keys.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.command: tuple[str, ...] = (sys.executable, "-m", "tunnel")
        """What starts a ``tunnel``."""
        self.descriptors: tuple[int, int] | None = None
        """Soft and hard limit of the ``tunnel`` commands that start from now on."""
        self._programs: list[Program] = []
        self._runtime = ""
        known = "PATH LANG LC_ALL TMPDIR USER LOGNAME TUNNEL_NET TUNNEL_WORKERS"
        kept = known.split()
        self.env = {k: os.environ[k] for k in kept if k in os.environ} | {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "PYTHONPATH": str(PACKAGE),
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def alone(self) -> Self:
        """Have its commands see no process of another test; returns itself.

        Where a socket has no room in the home, it is in a folder of the user.
        """
        self._runtime = tempfile.mkdtemp(prefix="t")
        self.env |= {"XDG_RUNTIME_DIR": self._runtime, "TMPDIR": self._runtime}
        return self

    def close(self) -> None:
        """End everything."""
        while self._programs:
            self._programs.pop().end()
        if self._runtime:
            shutil.rmtree(self._runtime, ignore_errors=True)

    def start(
        self,
        *argv: str,
        stdin: int | None = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
    ) -> Program:
        """Start a program that ends with this machine at the latest."""
        started = Program(argv, self.env | (env or {}), stdin)
        self._programs.append(started)
        return started

    def tunnel(
        self,
        *args: str,
        to: str = "",
        stdin: int | None = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
    ) -> Program:
        """Start a ``tunnel`` command.

        Args:
            args: its words. A secret among them costs two more starts of Python.
            to: a join line, which it gets by a variable.
            stdin: as for ``Popen``.
            env: more variables.
        """
        if to:
            env = (env or {}) | {"TUNNEL_TO": to}
        command = (*self.command, *args)
        if self.descriptors is not None:
            limit = 'ulimit -Sn "$1" && ulimit -Hn "$2" && shift 2 && exec "$@"'
            soft, hard = map(str, self.descriptors)
            command = ("sh", "-c", limit, "sh", soft, hard, *command)
        return self.start(*command, stdin=stdin, env=env)

    def serve(self, *args: str, listen: str = "127.0.0.1:0") -> Server:
        """Start ``tunnel serve`` and wait until it listens."""
        state = ("--state", str(self.home / "server"))
        ports = (
            ()
            if "--ports" in args
            else ("--ports", f"{OF_PROGRAMS[0]}-{OF_PROGRAMS[-1]}")
        )
        running = self.tunnel("serve", "--listen", listen, *state, *ports, *args)
        join = running.out.wait("tunnel")
        return Server(running, join, int(join.split("#")[0].strip("/").split(":")[-1]))

    def up(self, join: str, *entries: str, ready: int | None = None) -> Program:
        """Start ``tunnel up`` and wait for a stdout line of each entry."""
        running = self.tunnel("up", *entries, to=join)
        for number in range(len(entries) // 2 if ready is None else ready):
            running.out.wait(" ", number + 1)
        return running

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        cwd: Path | None = None,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end."""
        return subprocess.run(
            argv,
            env=self.env,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            input=stdin,
            cwd=cwd,
        )

    def digest_of(self, *argv: str, timeout_s: float = 60.0) -> str:
        """Run a program; give the SHA-256 of its stdout, which is never held."""
        running = subprocess.Popen(
            argv,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with running:
            clock = threading.Timer(timeout_s, running.kill)
            clock.start()
            assert running.stdout is not None
            assert running.stderr is not None
            digest = hashlib.sha256()
            while data := running.stdout.read(1 << 20):
                digest.update(data)
            words = running.stderr.read().decode()
            status = running.wait()
            clock.cancel()
        assert status == 0, f"{argv[0]} ended with {status}: {words}"
        return digest.hexdigest()


def curl(*args: str) -> tuple[str, ...]:
    """Give a curl command that uses nothing but what is said here."""
    return (program("curl"), "-q", "--silent", "--show-error", "--fail", *args)


class Sshd:
    """An OpenSSH server on a loopback port, with keys made for this test."""

    def __init__(self, machine: Machine) -> None:
        sshd, keygen = program("sshd"), program("ssh-keygen")
        self._folder = machine.home / "sshd"
        self._folder.mkdir(mode=0o700)
        if os.geteuid() == 0:  # sshd's place for it is compiled in
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for name in ("host_key", "user_key"):
            path = str(self._folder / name)
            made = machine.run(keygen, "-q", "-t", "ed25519", "-N", "", "-f", path)
            assert made.returncode == 0, made.stderr
        self.port = free_port()
        config = self._folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nPidFile none\n"
            f"HostKey {self._folder}/host_key\n"
            f"AuthorizedKeysFile {self._folder}/user_key.pub\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        )
        running = machine.start(sshd, "-D", "-e", "-f", str(config))
        running.err.wait("Server listening")

    def options(self, proxy: str) -> tuple[str, ...]:
        """Give the options of ssh and scp that reach it through ``proxy``."""
        settings = {
            "ProxyCommand": proxy,
            "IdentityFile": f"{self._folder}/user_key",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "ControlPath": "none",
            "LogLevel": "ERROR",
        }
        pairs = [("-o", f"{key}={value}") for key, value in settings.items()]
        return ("-F", "/dev/null", *(word for pair in pairs for word in pair))
