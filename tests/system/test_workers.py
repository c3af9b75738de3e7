"""`serve --workers`: several processes that are one server to everybody else."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import curl, eventually, free_port
from support.targets import visit
from support.web_server import Hello, web_server

from tunnel.center.drain import DRAIN_S

if TYPE_CHECKING:
    import socket

    from support.processes import Machine, Program, Server
    from support.targets import Target

CLIENTS = 8
"""As many that one of two workers has all of them once in 128 runs."""


@pytest.fixture
def web(machine: Machine) -> tuple[Server, int]:
    """Give a server of two workers, and the port of its names."""
    port = free_port()
    machine.alone()
    return machine.serve("--workers", "2", "--http", f"127.0.0.1:{port}"), port


def workers_of(server: Server) -> list[int]:
    """The processes that serve, the first one first."""
    tasks = Path(f"/proc/{server.program.process.pid}/task")
    each = (one.joinpath("children").read_text("ascii") for one in tasks.iterdir())
    return sorted(int(pid) for one in each for pid in one.split())


def status_of(machine: Machine) -> dict[str, Any]:
    running = machine.tunnel("status", "serve", "--json")
    assert running.wait() == 0, running.errors()
    found: dict[str, Any] = json.loads(running.out.all()[0])
    return found


def port_of(client: Program) -> int:
    """The public port of a client's one entry."""
    return int(client.out.wait("tcp ").split()[1].rpartition(":")[2])


def said(machine: Machine, port: int, host: str) -> str:
    """The status that a visitor of a name hears, on a connection of its own."""
    words = ("-s", "-o", os.devnull, "-w", "%{http_code}", "-H", f"Host: {host}")
    asked = machine.run(*curl(*words), f"http://127.0.0.1:{port}/")
    return asked.stdout.decode()


def publish(machine: Machine, server: Server, to: int, names: int) -> list[Program]:
    """Start a client for each name, `n0` and so on."""
    return [
        machine.up(server.join, "--http", f"n{number}={to}") for number in range(names)
    ]


def test_each_worker_leads_to_the_names_of_all(
    machine: Machine, web: tuple[Server, int]
) -> None:
    server, port = web
    assert len(workers_of(server)) == 2
    with web_server(Hello) as to:
        publish(machine, server, to, CLIENTS)
        for number in range(CLIENTS):
            # Each visitor comes to a worker that the kernel chooses.
            heard = {said(machine, port, f"n{number}.localhost") for _ in range(6)}
            assert heard == {"200"}
        assert said(machine, port, "none.localhost") == "404"
        status = status_of(machine)
        assert len(status["links"]) == len(status["entries"]) == CLIENTS
        assert status["pid"] == server.program.process.pid
        listed = machine.tunnel("ps")
        assert listed.wait() == 0
        assert len(listed.out.all()) == CLIENTS + 1


def test_a_killed_worker_costs_its_own_connections_only(
    machine: Machine, web: tuple[Server, int], target: Target
) -> None:
    server, port = web
    with web_server(Hello) as to:
        publish(machine, server, to, CLIENTS)
        shells = [
            machine.up(server.join, "--tcp", f"127.0.0.1:{target.port}")
            for _ in range(CLIENTS)
        ]
        ports = [
            int(one.out.wait("tcp ").split()[1].rpartition(":")[2]) for one in shells
        ]
        visitors = [visit(one) for one in ports]
        for visitor in visitors:
            visitor.sendall(b"before")
            assert visitor.recv(100) == b"before"
        first, second = workers_of(server)
        os.kill(second, signal.SIGKILL)
        server.program.err.wait("worker.lost")
        alive = [one for one in visitors if _echoes(one)]
        # Those of the first worker notice nothing; the others were reset at once.
        assert 0 < len(alive) < CLIENTS
        eventually(
            lambda: all(
                said(machine, port, f"n{number}.localhost") == "200"
                for number in range(CLIENTS)
            ),
            "the names of the lost worker are served again",
        )
        assert all(_echoes(one) for one in alive)
        again = workers_of(server)
        assert again[0] == first
        assert again[1] != second
        # Clients of the lost worker have the ports that they had.
        for number in ports:
            with visit(number) as visitor:
                visitor.sendall(b"again")
                assert visitor.recv(100) == b"again"
        for visitor in visitors:
            visitor.close()


def _echoes(visitor: socket.socket) -> bool:
    try:
        visitor.sendall(b"hello")
        return bool(visitor.recv(100))
    except OSError:
        return False


def test_commands_mean_all_workers(
    machine: Machine, web: tuple[Server, int], target: Target
) -> None:
    assert len(workers_of(web[0])) == 2
    state = ("--state", str(machine.home / "server"))

    def users(*words: str) -> list[str]:
        running = machine.tunnel("users", *words, *state)
        assert running.wait() == 0, running.errors()
        return running.out.all()

    invited = machine.tunnel("invite", "alice", *state)
    assert invited.wait() == 0, invited.errors()
    join = next(line for line in invited.out.all() if "tunnel://" in line)
    line = join[join.index("tunnel://") :].strip("' ")
    clients = [machine.up(line, "--tcp", f"127.0.0.1:{target.port}") for _ in range(4)]
    assert any("alice" in line and "4" in line for line in users("ls"))
    assert len(status_of(machine)["links"]) == 4
    users("revoke", "alice")
    for client in clients:
        assert client.wait(10) == 6
    eventually(lambda: not status_of(machine)["links"], "no link of alice is left")


def test_a_signal_ends_all_of_them(machine: Machine, web: tuple[Server, int]) -> None:
    server, _port = web
    pids = workers_of(server)
    assert server.program.stop() == 0
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")


def test_workers_do_not_outlive_a_killed_parent(
    machine: Machine, web: tuple[Server, int]
) -> None:
    server, _port = web
    pids = workers_of(server)
    os.kill(server.program.process.pid, signal.SIGKILL)
    eventually(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids),
        "the workers have ended",
    )


def test_what_a_worker_cannot_do_ends_the_start(machine: Machine) -> None:
    port = free_port()
    first = machine.serve("--http", f"127.0.0.1:{port}")
    assert first.port
    other = machine.tunnel(
        "serve", "--workers", "2", "--listen", f"127.0.0.1:{port}", "--state",
        str(machine.home / "other"),
    )  # fmt: skip
    assert other.wait() == 7
    assert other.errors().count("already in use") == 1


def test_a_change_of_users_is_known_to_all_workers_at_once(
    machine: Machine, web: tuple[Server, int], target: Target
) -> None:
    state = ("--state", str(machine.home / "server"))

    def users(*words: str) -> dict[str, Any]:
        running = machine.tunnel("users", *words, "--json", *state)
        assert running.wait() == 0, running.errors()
        found: dict[str, Any] = json.loads(running.out.all()[0])
        return found

    def comes(name: str, join: str) -> Program:
        return machine.tunnel(
            "up", "--tcp", f"{target.port}", to=join,
            env={"XDG_STATE_HOME": str(machine.home / name)},
        )  # fmt: skip

    server, _ = web
    for number in range(CLIENTS):
        name = f"user-{number}"
        invited = machine.tunnel("invite", name, *state)
        assert invited.wait() == 0
        first = comes(name, invited.out.all()[0])
        first.out.wait("tcp ")
        assert users("show", name)["links"] == 1
        renamed = users("rename", name, f"new-{number}")
        assert first.wait() == 6
        assert f"the user {name} is called new-{number} now" in first.errors()
        comes(f"new-{number}", renamed["join"]).out.wait("tcp ")
        assert users("show", f"new-{number}")["sessions"] == 1
    assert "user.unknown" not in server.program.errors()


def test_the_numbers_are_those_of_all_workers(machine: Machine, target: Target) -> None:
    metrics = free_port()
    server = machine.alone().serve(
        "--workers", "2", "--metrics", f"127.0.0.1:{metrics}",
        "--dashboard", f"127.0.0.1:{free_port()}",
    )  # fmt: skip
    clients = [
        machine.up(server.join, "--tcp", f"127.0.0.1:{target.port}")
        for _ in range(CLIENTS)
    ]
    for client in clients:
        with visit(port_of(client)) as visitor:
            visitor.sendall(b"hello")
            assert visitor.recv(5)

    def numbers() -> dict[str, float]:
        asked = machine.run(*curl(f"http://127.0.0.1:{metrics}/metrics"))
        lines = asked.stdout.decode().splitlines()
        split = (one.rpartition(" ") for one in lines if not one.startswith("#"))
        return {name: float(value) for name, _, value in split}

    assert numbers()['tunnel_links{state="linked"}'] == CLIENTS
    assert numbers()["tunnel_ready"] == 1
    # A Python that has loaded all of this has 30 MB, and there are three.
    assert numbers()["process_resident_memory_bytes"] > 75e6
    page = machine.tunnel("dashboard", "serve")
    assert page.wait() == 0, page.errors()
    assert "#token=" in page.out.all()[0]


def test_all_workers_open_the_log_anew_and_end_at_once(
    machine: Machine, target: Target
) -> None:
    log = machine.home / "log"
    server = machine.alone().serve("--workers", "2", "--log-file", str(log))
    log.rename(machine.home / "old")
    server.program.send(signal.SIGUSR1)
    eventually(log.exists, "a new file")
    clients = [
        machine.up(server.join, "--tcp", f"127.0.0.1:{target.port}")
        for _ in range(CLIENTS)
    ]
    eventually(
        lambda: log.read_text().count("event=mapping.open") == CLIENTS,
        "all write in the new file",
    )
    with visit(port_of(clients[0])) as visitor:
        visitor.sendall(b"hello")
        assert visitor.recv(5)
        began = time.monotonic()
        stopping = machine.tunnel("stop", "serve")
        assert stopping.wait() == 0
        assert server.program.wait() == 0
        assert time.monotonic() - began < DRAIN_S / 2
