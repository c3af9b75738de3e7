"""Programs that tests start by a fork are as those that start by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.processes import Machine
from support.warm import FORKS, Forked

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux forks")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def told(pid: int) -> dict[str, object]:
    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":\t", 1) for line in (folder / "status").read_text().splitlines()
    )
    stat = (folder / "stat").read_text().rpartition(")")[2].split()
    return {
        "arguments": (folder / "cmdline").read_bytes().rstrip(b"\0"),
        "limits": (folder / "limits").read_text(),
        "folder": (folder / "cwd").readlink(),
        "parent": int(stat[1]),
        "leads": (int(stat[2]) == pid, int(stat[3]) == pid),
        "signals": [status[name] for name in ("SigIgn", "SigBlk", "SigCgt")],
        "umask": status["Umask"],
        "name": status["Name"],
        "files": sorted(int(fd.name) for fd in (folder / "fd").iterdir()),
    }


def test_a_fork_is_as_the_program_itself(machine: Machine) -> None:
    """But for Python's hash seed, and for the environment that ``/proc`` shows."""
    command = ("serve", "--listen", "127.0.0.1:0", "--state", str(machine.home / "s"))
    warm = machine.tunnel(*command, env={"TUNNEL_LOG_LEVEL": "debug"})
    assert isinstance(warm.process, Forked)
    warm.out.wait("tunnel://")
    of_fork = told(warm.pid)
    assert warm.stop(signal.SIGINT) == 130
    cold = machine.tunnel(
        *command, env={"TUNNEL_LOG_LEVEL": "debug", "PYTHONDONTWRITEBYTECODE": ""}
    )
    assert not isinstance(cold.process, Forked)
    cold.out.wait("tunnel://")
    assert told(cold.pid) == of_fork
    assert cold.stop(signal.SIGINT) == 130
    assert of_fork["parent"] == os.getpid()


def test_a_line_with_a_secret_starts_by_itself(machine: Machine) -> None:
    line = "tunnel://default:" + "A" * 42 + "E@127.0.0.1:1/"
    argv = (sys.executable, "-m", "tunnel", "up", "--to", line, "--socks", "0")
    assert not FORKS.can_start(argv, machine.env)
    assert FORKS.can_start(argv[:4], machine.env)


def test_a_status_and_what_comes_on_stdin_are_passed(machine: Machine) -> None:
    asked = machine.tunnel("join", "-", stdin=subprocess.PIPE)
    assert isinstance(asked.process, Forked)
    assert asked.process.stdin is not None
    asked.process.stdin.write(b"no line\n")
    asked.process.stdin.close()
    assert asked.wait() == 2
    assert "error: " in asked.errors()
