"""Three nodes and a Redis are one server, whichever of them somebody comes to."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import Machine, eventually
from support.targets import Target, echo, reaches, read_exactly, visit
from support.three_nodes import NODES, Cluster, Node, start_node, three_nodes
from support.web_server import Hello, web_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.processes import Program

NAMES = 6


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with three_nodes(tmp_path) as nodes:
        yield nodes


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


# Users -------------------------------------------------------------------------------


@pytest.fixture
def people(cluster: Cluster, tmp_path: Path) -> Iterator[People]:
    with ExitStack() as stack:
        yield People(cluster, tmp_path, stack)


class People:
    """Users of a cluster, who come to the node that a test wants."""

    def __init__(self, cluster: Cluster, folder: Path, stack: ExitStack) -> None:
        self._cluster = cluster
        self._folder = folder
        self._stack = stack
        self.target = stack.enter_context(Target(echo))

    def ask(self, at: int, *words: str, status: int = 0) -> dict[str, Any]:
        """Have the server of a node do something about users."""
        machine = self._cluster.nodes[at].machine
        state = ("--json", "--state", str(machine.home / "server"))
        running = machine.tunnel(*words, *state)
        assert running.wait() == status, running.errors()
        found: dict[str, Any] = json.loads(running.out.all()[0])
        return found

    def come(self, join: str, at: int, name: str) -> Program:
        """Come to a node as a machine of its own, with a public port."""
        machine = Machine(self._folder / name)
        machine.home.mkdir()
        self._stack.callback(machine.close)
        host, end = join.split("@")
        line = f"{host}@127.0.0.1:{self._cluster.nodes[at].link}/{end.split('/')[1]}"
        return machine.tunnel("up", "--tcp", f"{self.target.port}", to=line)


def test_a_user_is_one_at_every_node_and_a_revoke_ends_it_at_all(
    cluster: Cluster, people: People
) -> None:
    join = people.ask(0, "invite", "ann")["join"]
    machines = [people.come(join, at, f"ann-{at}") for at in range(NODES)]
    for one in machines:
        one.out.wait("tcp ")
    eventually(lambda: people.ask(1, "users", "show", "ann")["links"] == 3, "all count")
    # What one node changes holds at the others: one machine and no more.
    people.ask(1, "users", "limit", "ann", "--limit", "links=3")
    late = people.come(join, 2, "late")
    late.err.wait("3 links at once, at all servers together")
    began = time.monotonic()
    people.ask(2, "users", "revoke", "ann")
    for one in machines:
        assert one.wait() == 6
        assert "the user ann was revoked" in one.errors()
    assert time.monotonic() - began < 2.5  # with the start of Python, twice
    for at in range(NODES):
        assert people.come(join, at, f"again-{at}").wait() == 6
    assert cluster.nodes[0].program.errors().count("users.overruled") == 0


def test_a_month_of_bytes_is_one_at_all_nodes(cluster: Cluster, people: People) -> None:
    join = people.ask(0, "invite", "ann", "--limit", "month=1MB")["join"]
    one, other = people.come(join, 0, "one"), people.come(join, 1, "other")
    said = [each.out.wait("tcp ").split()[1] for each in (one, other)]
    ports = [int(where.rpartition(":")[2]) for where in said]
    with visit(ports[0]) as visitor:
        visitor.sendall(bytes(300_000))
        assert len(read_exactly(visitor, 300_000)) == 300_000
    with visit(ports[1]) as visitor:
        visitor.sendall(bytes(300_000))
        with contextlib.suppress(OSError):
            read_exactly(visitor, 300_000)
            while visitor.recv(1):
                pass
    for at in (0, 1):
        eventually(lambda at=at: not reaches(ports[at]), "the month is used up")  # type: ignore[misc]
    del cluster


def test_a_node_that_did_not_hear_is_named_and_hears_later(
    cluster: Cluster, people: People
) -> None:
    join = people.ask(0, "invite", "ann")["join"]
    here = people.come(join, 2, "here")
    here.out.wait("tcp ")
    cluster.nodes[2].program.send(signal.SIGSTOP)
    missed = people.ask(0, "users", "revoke", "ann", status=9)["missed"]
    cluster.nodes[2].program.send(signal.SIGCONT)
    assert missed == ["n2"]
    assert here.wait() == 6
    # And where nobody can be told, it holds at once at the node that was asked.
    join = people.ask(1, "invite", "bob")["join"]
    one, other = people.come(join, 1, "bob-1"), people.come(join, 2, "bob-2")
    for program in (one, other):
        program.out.wait("tcp ")
    cluster.redis.kill()
    missed = people.ask(1, "users", "revoke", "bob", status=9)["missed"]
    assert missed == ["n0", "n2"]
    assert one.wait() == 6
    assert other.process.poll() is None
    cluster.redis.start()
    assert other.wait() == 6


def test_what_somebody_writes_into_redis_makes_no_user(
    cluster: Cluster, people: People
) -> None:
    key = "{tunnel}:c:users"
    join = people.ask(0, "invite", "ann")["join"]
    before = cluster.redis.ask("GET", key)
    assert isinstance(before, bytes)
    people.ask(0, "users", "revoke", "ann")
    for forged in (before, b"nonsense", before[:16] + before[:16] + before[16:]):
        cluster.redis.ask("SET", key, forged)
        people.ask(1, "invite", f"bob{len(forged)}")
        for at in range(NODES):
            folder = cluster.nodes[at].machine.home / "server"
            listed = (folder / "users.toml").read_text()
            assert "users.ann" not in listed
            assert f"users.bob{len(forged)}" in listed
    assert people.come(join, 2, "ann").wait() == 6
    log = "".join(node.program.errors() for node in cluster.nodes)
    assert "event=directory.refused key=users reason=replayed" in log
    assert "event=directory.refused key=users reason=forged" in log


def test_a_change_by_hand_and_one_of_a_node_that_was_away_are_told_too(
    cluster: Cluster, people: People
) -> None:
    people.ask(0, "invite", "ann", "--may", "tcp:*")
    path = cluster.nodes[1].machine.home / "server" / "users.toml"
    path.write_text(path.read_text().replace('"tcp:*"', '"udp:*"'))
    eventually(
        lambda: people.ask(2, "users", "show", "ann")["may"] == ["udp:*"], "it is heard"
    )
    machine = cluster.nodes[2].machine
    cluster.nodes[2].program.stop()
    people.ask(2, "users", "may", "ann", "tcp:1")  # nobody answers: the file is changed
    node = start_node(machine, cluster.redis, "n2")
    eventually(
        lambda: people.ask(0, "users", "show", "ann")["may"] == ["tcp:1"], "it is heard"
    )
    assert node.program.stop() == 0
