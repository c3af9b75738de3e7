"""Three nodes and a Redis are one server, whichever of them somebody comes to."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.balancer import TcpBalancer
from support.processes import Machine, curl, eventually, free_port
from support.redis_server import RedisServer
from support.targets import Target, echo, visit
from support.web_server import Hello, web_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.processes import Program

NODES = 3
NAMES = 6


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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        machines = []
        for number in range(NODES):
            home = tmp_path / f"n{number}"
            home.mkdir()
            machines.append(Machine(home))
            machines[-1].env["TUNNEL_WORKERS"] = "1"  # a node is one process
            stack.callback(machines[-1].close)
        (tmp_path / "redis").mkdir()
        redis = RedisServer(machines[0], tmp_path / "redis")
        # One state folder for all: the same identity, tokens and secret.
        nodes = [_start(machines[0], redis, "n0")]
        aside = shutil.ignore_patterns("control", "lock")
        for number, machine in enumerate(machines[1:], 1):
            folder = machine.home / "server"
            shutil.copytree(machines[0].home / "server", folder, ignore=aside)
            nodes.append(_start(machine, redis, f"n{number}"))
        join = nodes[0].program.out.wait("tunnel")
        balancer = stack.enter_context(TcpBalancer([node.link for node in nodes]))
        line = join.replace(f":{nodes[0].link}/", f":{balancer.port}/")
        yield Cluster(nodes, redis, balancer, line)


def _start(machine: Machine, redis: RedisServer, name: str) -> Node:
    link, web = free_port(), free_port()
    server = machine.serve(
        "--cluster", redis.url, "--node", name, "--advertise", f"127.0.0.1:{link}",
        "--http", f"127.0.0.1:{web}", "--domain", "t.test",
        listen=f"127.0.0.1:{link}",
    )  # fmt: skip
    return Node(machine, server.program, link, web)


@pytest.fixture
def far_end(cluster: Cluster, tmp_path: Path) -> Iterator[list[Program]]:
    """Have a client for each of the names, all of one web server."""
    with ExitStack() as stack:
        to = stack.enter_context(web_server(Hello))
        machine = Machine(tmp_path / "far")
        machine.home.mkdir()
        stack.callback(machine.close)
        yield [
            machine.up(cluster.join, "--http", f"w{number}={to}")
            for number in range(NAMES)
        ]


def served(nodes: list[Node]) -> bool:
    """Say whether each of these nodes serves all names."""
    return all(
        node.said(f"w{number}") == "200" for node in nodes for number in range(NAMES)
    )


def test_each_node_serves_the_names_of_all(
    cluster: Cluster, far_end: list[Program]
) -> None:
    assert len(far_end) == NAMES
    assert served(cluster.nodes)
    assert cluster.nodes[0].said("none") == "404"
    # A visitor costs no question to Redis in the steady state.
    before = cluster.redis.calls().get("mget", 0)
    assert served(cluster.nodes)
    assert cluster.redis.calls().get("mget", 0) == before


def test_a_killed_node_is_replaced_by_the_others(
    cluster: Cluster, far_end: list[Program]
) -> None:
    assert served(cluster.nodes)
    alive = cluster.nodes[1:]
    cluster.nodes[0].program.stop(signal.SIGKILL)
    eventually(lambda: served(alive), "the names are served again")
    assert all(client.process.poll() is None for client in far_end)


def test_without_redis_what_is_known_is_served(
    cluster: Cluster, far_end: list[Program]
) -> None:
    assert len(far_end) == NAMES
    assert served(cluster.nodes)
    cluster.redis.kill()
    assert served(cluster.nodes)
    assert cluster.nodes[1].said("unknown") == "503"
    cluster.redis.start()  # empty: every node claims again
    eventually(
        lambda: cluster.nodes[1].said("unknown") == "404", "the directory is back"
    )
    eventually(lambda: served(cluster.nodes), "each node knows the others again")


def test_a_connection_goes_on_wherever_its_link_comes_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "other")
    machine.home.mkdir()
    with Target(echo) as target:
        client = machine.up(cluster.join, "--tcp", f"127.0.0.1:{target.port}")
        port = int(client.out.wait("tcp ").split()[1].rpartition(":")[2])
        with visit(port) as visitor:
            for number in range(12):
                said = b"%d" % number
                visitor.sendall(said)
                assert visitor.recv(10) == said
                assert cluster.balancer.cut()
                client.err.wait("link.resumed", number + 1)
    machine.close()
