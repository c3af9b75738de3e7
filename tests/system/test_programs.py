"""The programs that people use with ``tunnel pipe``: ssh, scp."""

from __future__ import annotations

import shlex
import sys
import time
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from support.processes import Machine, Sshd, program
from support.targets import Content

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world import World

PROXY = f"{shlex.quote(sys.executable)} -m tunnel pipe %h:%p"


@pytest.fixture
def sshd(world: World, machine: Machine) -> Sshd:
    """Start sshd behind the server, and save the server's line for ``tunnel pipe``."""
    program("ssh")
    running = Sshd(machine)
    joined = machine.run(sys.executable, "-m", "tunnel", "join", world.server.join)
    assert joined.returncode == 0, joined.stderr
    return running


def ssh(machine: Machine, sshd: Sshd, command: str, stdin: bytes = b"") -> bytes:
    where = ("-p", str(sshd.port), "127.0.0.1")
    words = (program("ssh"), *sshd.options(PROXY), *where, command)
    done = machine.run(*words, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ssh_logs_in_through_tunnel_pipe(machine: Machine, sshd: Sshd) -> None:
    assert ssh(machine, sshd, "echo logged in") == b"logged in\n"


def test_ssh_carries_input_and_its_end_through_tunnel_pipe(
    machine: Machine, sshd: Sshd
) -> None:
    data = bytes(range(256)) * 10_000
    assert (
        ssh(machine, sshd, "sha256sum", data).split()[0].decode()
        == sha256(data).hexdigest()
    )


def scp(machine: Machine, sshd: Sshd, content: Content, timeout_s: float) -> None:
    there, back = machine.home / "there", machine.home / "back"
    options = (*sshd.options(PROXY), "-P", str(sshd.port))
    for source, target in (
        (str(content.path), f"127.0.0.1:{there}"),
        (f"127.0.0.1:{there}", str(back)),
    ):
        command = (program("scp"), "-q", *options, source, target)
        done = machine.run(*command, timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr
    assert machine.digest_of("cat", str(back)) == content.digest()
    there.unlink()
    back.unlink()


def test_scp_copies_a_file_there_and_back(
    machine: Machine, sshd: Sshd, content: Content
) -> None:
    scp(machine, sshd, content, 60)


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_scp_copies_500_mb_there_and_back(
    machine: Machine, sshd: Sshd, figures: Callable[[str], None]
) -> None:
    content = Content(machine.home / "large", 30)
    began = time.monotonic()
    scp(machine, sshd, content, 120)
    took_s = time.monotonic() - began
    figures(f"scp 503 MB there and back: {2 * content.size / took_s / 1e6:.0f} MB/s")
