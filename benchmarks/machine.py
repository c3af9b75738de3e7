"""The machine: processes and what they cost, and what the results were measured on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import resource
import select
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
READY_S: Final = 10.0
ENDING_S: Final = 3.0
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
SPARE_FILES: Final = 200
FILES: Final = 65_536
"""Descriptors of one process: 10,000 connections through a relay are 20,000."""


class BenchError(Exception):
    """Something did not start or did not end well; the text says what."""


class NotInstalledError(BenchError):
    """A program that is needed is not on this machine."""


# Processes


def process_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none when it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """Return ``root`` and its descendants; sshd's are not in its process group."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := process_stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, []))
    return found


def alive(pid: int) -> bool:
    stat = process_stat(pid)
    return bool(stat) and stat[0] != "Z"


def send_signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def cpu_seconds(pids: list[int]) -> float:
    stats = filter(None, map(process_stat, pids))
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS_PER_S


def resident_bytes(pids: list[int]) -> int:
    stats = filter(None, map(process_stat, pids))
    return sum(int(stat[21]) for stat in stats) * PAGE_BYTES


def clean_environment() -> dict[str, str]:
    """Return our environment without the options of a tunnel in daily use."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TUNNEL_")}


def raise_limits() -> None:
    """Allow ourselves, and so all that we start, as many descriptors as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in ((FILES, max(FILES, hard)), (min(FILES, hard), hard)):
        with contextlib.suppress(ValueError, OSError):
            if limit[0] > soft:
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            return


def check_descriptors(count: int) -> None:
    """Raise when a process that needs so many, and some, may not have them."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + SPARE_FILES > most:
        raise BenchError(f"one end needs {count:,} descriptors, may have {most:,}")


@dataclasses.dataclass(frozen=True)
class Program:
    """A running program; what it says on stderr is in the file ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, log: Path, *command: str, talks: bool = False, **environment: str
    ) -> Program:
        """Start ``command`` in a session of its own; ``talks``: we read its stdout."""
        with log.open("wb") as said:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else said,
                stderr=said,
                cwd=ROOT,
                env=clean_environment() | environment,
                start_new_session=True,
            )
        return cls(process, log)

    def first_line(self, timeout_s: float = READY_S) -> str:
        """Wait for the first line on stdout, or raise with the end of the log."""
        assert self.process.stdout is not None
        line, deadline = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            wait_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], wait_s)
            byte = os.read(self.process.stdout.fileno(), 1) if ready else b""
            if not byte:
                raise BenchError(f"no line on stdout from {self}")
            line += byte
        return line.decode().strip()

    def pids(self) -> list[int]:
        return tree(self.process.pid) if self.process.poll() is None else []

    def __str__(self) -> str:
        last = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        return f"{self.log.stem}: {' | '.join(last) or 'it said nothing'}"


def end(programs: list[Program]) -> None:
    """End programs and all that they started: first politely, then for certain."""
    pids = [pid for program in programs for pid in program.pids()]
    send_signal(pids, signal.SIGCONT)
    send_signal(pids, signal.SIGTERM)
    deadline = time.monotonic() + ENDING_S
    for program in programs:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(max(0.0, deadline - time.monotonic()))
        program.process.kill()
        program.process.wait()
        for pipe in (program.process.stdin, program.process.stdout):
            if pipe:
                pipe.close()
    send_signal([pid for pid in pids if alive(pid)], signal.SIGKILL)


def find(*names: str) -> list[str]:
    """Return the paths of programs, or say which is not on PATH."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    found = {name: shutil.which(name, path=path) for name in names}
    if missing := [name for name, place in found.items() if not place]:
        raise NotInstalledError(f"not on PATH: {', '.join(missing)}")
    return [place for place in found.values() if place]


def compile_c(name: str, directory: Path) -> str:
    """Build a C program that lies here; return where it is."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not compiler:
        raise NotInstalledError(
            "no C compiler: the load program is built on the spot; install gcc"
        )
    binary, source = directory / name, HERE / f"{name}.c"
    command = [compiler, "-O2", "-o", str(binary), str(source)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise BenchError(f"{source.name} does not compile: {done.stderr[-500:]}")
    return str(binary)


# What the results were measured on


def output(*command: str, whole: bool = False) -> str:
    """Return the first line that a command prints, wherever; or why there is none."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    said = done.stdout.strip()
    return said if whole else said.partition("\n")[0]


def about() -> dict[str, str]:
    """Describe machine, versions, commit and date."""
    return {
        "processor": f"{len(os.sched_getaffinity(0))} cores, {processor_name()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "trio": importlib.metadata.version("trio"),
        "descriptors": f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} a process",
        "commit": commit(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"python -m benchmarks {' '.join(sys.argv[1:])}".strip(),
    }


def processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return "unknown"
    git = ("git", "-C", str(ROOT))
    name = output(*git, "rev-parse", "--short", "--verify", "HEAD")
    changed = output(*git, "status", "--porcelain", "-uno")
    return f"{name}, with changes" if changed else name
