"""The recipe of docs/container.md, as far as it goes without an engine."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.processes import PROCESSES, Machine, children_of, eventually, program
from support.tables import ROOT
from support.targets import RESET, Target, echo, is_alive, read_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Program, Server

PAGE = (ROOT / "docs/container.md").read_text("utf-8")


@dataclass
class Container:
    """A namespace of processes whose first one is a server."""

    machine: Machine
    outside: Program
    server: Server
    first: int
    """The server's number outside."""

    def run(self, *argv: str) -> int:
        """Run a program inside, as `docker exec` does; return its status."""
        inside = program("nsenter"), "--target", str(self.first), "--pid", "--mount"
        return self.machine.run(*inside, *argv).returncode


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can make namespaces of processes")
    with closing(Machine(tmp_path_factory.mktemp("container")).alone()) as machine:
        plain = machine.command
        machine.command = (
            program("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc",
            *plain,
        )  # fmt: skip
        server = machine.serve()
        machine.command = plain
        children = Path(
            f"/proc/{server.program.pid}/task/{server.program.pid}/children"
        )
        (first,) = children.read_text().split()
        yield Container(machine, server.program, server, int(first))


def test_the_health_check_is_content(container: Container) -> None:
    (check,) = re.findall(r"(?m)^HEALTHCHECK .*CMD (\[.*\])$", PAGE)
    words = re.findall(r'"(.*?)"', check)
    assert Path(words[0]).name == "tunnel"
    assert container.run(*container.machine.command, *words[1:]) == 0


def test_the_first_process_buries_what_others_leave_behind(
    container: Container,
) -> None:
    workers = children_of(container.first)
    assert len(workers) == PROCESSES - 1
    # The shell ends before its child, which then is the first process's.
    assert container.run("sh", "-c", "sleep 0.1 & true") == 0
    eventually(lambda: children_of(container.first) == workers, "no zombie is left")


def test_a_first_sigterm_drains_and_a_second_one_ends(container: Container) -> None:
    with Target(echo) as target:
        client = container.machine.up(
            container.server.join, "--tcp", f"0=127.0.0.1:{target.port}"
        )
        port = int(client.out.wait("tcp ").split()[1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as conn:
            assert is_alive(conn)
            os.kill(container.first, signal.SIGTERM)
            container.outside.err.wait("draining")
            assert is_alive(conn)
            os.kill(container.first, signal.SIGTERM)
            assert container.outside.wait(5) == 0
            assert read_to_end(conn)[1] == RESET


def test_what_the_recipes_start_are_commands_with_flags_that_there_are() -> None:
    from tunnel.ops.cli import app

    found = re.findall(r"(?m)(?:command|args): (\[.*\])$", PAGE)
    assert len(found) >= 2
    for one in found:
        app.parse_args(shlex.split(" ".join(re.findall(r'"(.*?)"', one))),
                       print_error=False, exit_on_error=False)  # fmt: skip
