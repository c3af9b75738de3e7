"""A tunnel of two processes, its three ways in, and what is behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import pytest
from support.processes import curl
from support.targets import (
    Target,
    answer_at_end,
    answer_early,
    ask_socks,
    deaf,
    echo,
    flood,
    reset_midway,
    visit,
    web,
)

if TYPE_CHECKING:
    import socket

    from support.processes import Machine, Program, Server
    from support.targets import Content

MODES: Final = {"tls": (), "plain": ("--plain",)}
WAYS: Final = ("A", "B", "C")
"""A public port at the server; a port at the client; SOCKS5 at the client."""


class World:
    """``tunnel serve`` and ``tunnel up`` with an entry of every kind per target."""

    def __init__(self, machine: Machine, content: Content, *serve: str) -> None:
        self.machine = machine
        self.content = content
        self.targets = {
            "web": Target(web(content)),
            "echo": Target(echo),
            "watched": Target(echo),  # for tests that look at what it has seen
            "answer_at_end": Target(answer_at_end),
            "answer_early": Target(answer_early),
            "flood": Target(flood),
            "deaf": Target(deaf),
            "reset_midway": Target(reset_midway),
            "nobody": Target(echo),
        }
        self.targets["nobody"].close()
        self.server: Server = machine.serve(*serve)
        entries = ["--socks", "127.0.0.1:0"]
        for target in self.targets.values():
            entries += ["--tcp", f"0=127.0.0.1:{target.port}"]
            entries += ["--reach", f"127.0.0.1:0=127.0.0.1:{target.port}"]
        self.client: Program = machine.up(self.server.join, *entries)
        self._ports = {
            (kind, target): int(where.rpartition(":")[2])
            for kind, where, target in (x.split() for x in self.client.out.all())
        }

        for name, target in self.targets.items():
            if name != "nobody":
                target.next_seen()  # the client has tried whether it answers

    def close(self) -> None:
        for target in self.targets.values():
            target.close()
        self.machine.close()

    def port(self, way: str, name: str) -> int:
        if way == "C":
            return self._ports["socks", "-"]
        kind = {"A": "tcp", "B": "reach"}[way]
        return self._ports[kind, f"127.0.0.1:{self.targets[name].port}"]

    def visit(self, way: str, name: str) -> socket.socket:
        """Connect to a target by one of the ways."""
        if way != "C":
            return visit(self.port(way, name))
        target = self.targets[name].port
        reply, app = ask_socks(self.port(way, name), "127.0.0.1", target)
        if reply:
            app.close()
            pytest.fail(f"SOCKS reply {reply}")
        return app

    def curl(self, way: str, path: str, *args: str) -> tuple[str, ...]:
        """Give the curl command for a path of ``web`` by one of the ways."""
        if way != "C":
            return curl(f"http://127.0.0.1:{self.port(way, 'web')}{path}", *args)
        proxy = f"127.0.0.1:{self.port(way, 'web')}"
        url = f"http://localhost:{self.targets['web'].port}{path}"
        return curl("--socks5-hostname", proxy, url, *args)


class MakeWorld(Protocol):
    """The fixture ``make_world``."""

    def __call__(self, *serve: str) -> World:
        """Start one; ``serve`` is given to ``tunnel serve``."""
        ...
