"""Three nodes of a cluster on one machine, their Redis, and a balancer for links."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.balancer import TcpBalancer
from support.processes import Machine, curl, free_port
from support.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.processes import Program

NODES = 3


@dataclass
class Node:
    """One of the nodes: its machine, its program, and its port for visitors."""

    machine: Machine
    program: Program
    link: int
    web: int

    def said(self, host: str) -> str:
        """The status that a visitor of a name hears at this node."""
        words = ("-s", "-o", os.devnull, "-w", "%{http_code}", "-m", "10")
        asked = self.machine.run(
            *curl(*words, "-H", f"Host: {host}.t.test"), f"http://127.0.0.1:{self.web}/"
        )
        return asked.stdout.decode()


@dataclass
class Cluster:
    """The nodes, their Redis, and the join line, which leads to a balancer."""

    nodes: list[Node]
    redis: RedisServer
    balancer: TcpBalancer
    join: str


@contextmanager
def three_nodes(folder: Path, *options: str) -> Iterator[Cluster]:
    """Run three nodes with one Redis, and a balancer for links."""
    with ExitStack() as stack:
        machines = []
        for number in range(NODES):
            home = folder / f"n{number}"
            home.mkdir()
            machines.append(Machine(home))
            machines[-1].env["TUNNEL_WORKERS"] = "1"  # a node is one process
            stack.callback(machines[-1].close)
        (folder / "redis").mkdir()
        redis = RedisServer(machines[0], folder / "redis")
        # One state folder for all: the same identity, tokens and secret.
        nodes = [start_node(machines[0], redis, "n0", *options)]
        aside = shutil.ignore_patterns("control", "lock")
        for number, machine in enumerate(machines[1:], 1):
            to = machine.home / "server"
            shutil.copytree(machines[0].home / "server", to, ignore=aside)
            nodes.append(start_node(machine, redis, f"n{number}", *options))
        join = nodes[0].program.out.wait("tunnel")
        balancer = stack.enter_context(TcpBalancer([node.link for node in nodes]))
        line = join.replace(f":{nodes[0].link}/", f":{balancer.port}/")
        yield Cluster(nodes, redis, balancer, line)


def start_node(
    machine: Machine,
    redis: RedisServer,
    name: str,
    *options: str,
    at: tuple[int, int] | None = None,
) -> Node:
    """Start a node, where it was before or anywhere."""
    link, web = at or (free_port(), free_port())
    server = machine.serve(
        "--cluster", redis.url, "--node", name, "--advertise", f"127.0.0.1:{link}",
        "--http", f"127.0.0.1:{web}", "--domain", "t.test",
        *options,
        listen=f"127.0.0.1:{link}",
    )  # fmt: skip
    return Node(machine, server.program, link, web)
