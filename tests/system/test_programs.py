"""The programs that people use: ssh, scp, git."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from support.processes import Machine, Sshd, program
from support.targets import Content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def repository(machine: Machine) -> Iterator[int]:
    """Serve a git repository with one file over HTTP; give the port."""
    git = program("git")
    work = machine.home / "work"
    work.mkdir()
    (work / "file").write_bytes(bytes(range(256)) * 4000)
    who = ("-c", "user.name=n", "-c", "user.email=e@example.net")
    for words in (
        ("init", "-q", "-b", "main"),
        ("add", "file"),
        (*who, "commit", "-q", "-m", "first"),
        ("update-server-info",),
    ):
        done = machine.run(git, *words, cwd=work)
        assert done.returncode == 0, done.stderr
    handler = partial(_Quiet, directory=str(work))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(20)


def test_git_clones_over_socks5h(
    world: World, machine: Machine, repository: int
) -> None:
    clone = machine.home / "clone"
    proxy = f"socks5h://127.0.0.1:{world.port('C', 'web')}"
    url = f"http://localhost:{repository}/.git"
    command = (
        program("git"),
        "-c",
        f"http.proxy={proxy}",
        "clone",
        "-q",
        url,
        str(clone),
    )
    done = machine.run(*command)
    assert done.returncode == 0, done.stderr
    original: Path = machine.home / "work" / "file"
    assert (clone / "file").read_bytes() == original.read_bytes()
