"""A line between two programs that a test can cut."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from support import lossy
from support.processes import eventually

if TYPE_CHECKING:
    from support.processes import Machine, Server


class Relay:
    """A lossy relay in front of a server, as a program."""

    def __init__(self, machine: Machine, server: Server, *args: str) -> None:
        self._program = machine.start(
            sys.executable,
            str(lossy.__file__),
            str(server.port),
            *args,
            stdin=subprocess.PIPE,
        )
        self._said = 0
        self.port = int(self._program.out.wait("listening").split()[1])
        self.join = server.join.replace(f":{server.port}", f":{self.port}")

    def do(self, command: str) -> int:
        """Have it do something; give how many connections work behind that."""
        assert self._program.process.stdin is not None
        self._program.process.stdin.write(f"{command}\n".encode())
        self._program.process.stdin.flush()
        self._said += 1
        return int(self._program.out.wait("done", self._said).split()[-1])

    def cut(self, how: str) -> None:
        """Cut a link that is there, or wait until there is one."""
        eventually(lambda: self.do("count") > 0, "a link")
        self.do(how)

    def lose(self) -> None:
        """Cut the link and allow no other."""
        self.do("refuse")
        self.do("rst")
