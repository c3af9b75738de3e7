"""Many clients of one server, copies of a client, and two servers of one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest
from support import fleet, lossy
from support.processes import PACKAGE, WAIT_S, Machine, eventually, program
from support.targets import Target, echo, read_exactly, visit

from tunnel.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.processes import Program, Server

BACK_S: Final = 5.0
"""Within this after the line is back, every client is."""


def tell(running: Program, line: str) -> None:
    assert running.process.stdin is not None
    running.process.stdin.write(f"{line}\n".encode())
    running.process.stdin.flush()


def start_relay(machine: Machine, server: Server) -> tuple[Program, str]:
    """Start a bad network in front of the server; give it and the join line there."""
    relay = machine.start(
        sys.executable, str(lossy.__file__), str(server.port), stdin=subprocess.PIPE
    )
    port = relay.out.wait("listening").split()[1]
    return relay, server.join.replace(f":{server.port}", f":{port}")


def survive_an_outage(
    machine: Machine,
    programs: int,
    clients: int,
    away_s: float,
    figures: Callable[[str], None],
) -> None:
    """Take the network away from a fleet; no connection may be lost."""
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    server = machine.serve()
    relay, join = start_relay(machine, server)
    fleets = [
        machine.start(
            sys.executable, str(fleet.__file__), join, str(clients),
            stdin=subprocess.PIPE,
        )
        for _ in range(programs)
    ]  # fmt: skip
    for one in fleets:
        one.out.wait(f"up {clients}", timeout_s=6 * WAIT_S)
    before = server.program.rss_bytes()
    tell(relay, "refuse")
    tell(relay, "rst")
    for one in fleets:
        one.out.wait(f"down {clients}")
    threading.Event().wait(away_s)
    tell(relay, "accept")
    relay.out.wait("done accept")
    began = time.monotonic()
    for one in fleets:
        one.out.wait(f"back {clients}", timeout_s=60)
    took_s = time.monotonic() - began
    for one in fleets:
        tell(one, "check")
    for one in fleets:
        one.out.wait(f"alive {clients}", timeout_s=60)
        assert one.out.count("lost") == 0
    assert server.program.err.count("session.lost") == 0
    assert server.program.err.count("session.refused") == 0
    figures(
        f"{programs * clients} clients back {took_s:.1f} s after {away_s:.0f} s away, "
        f"the server holds {before / 1e6:.0f} MB for them"
    )
    # 5 ms of processor each: what others leave of it is not for us to judge.
    assert took_s < BACK_S or busy


def test_no_client_of_a_fleet_loses_its_connection_in_an_outage(
    machine: Machine, figures: Callable[[str], None]
) -> None:
    survive_an_outage(machine, 2, 35, 1.5, figures)


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("programs", "clients"), [(1, 12), (4, 125)])
def test_no_client_loses_its_connection_in_20_s_without_network(
    machine: Machine,
    figures: Callable[[str], None],
    programs: int,
    clients: int,
) -> None:
    survive_an_outage(machine, programs, clients, 20, figures)


# Copies -----------------------------------------------------------------------------


@contextlib.contextmanager
def another(home: Path, first: Machine) -> Iterator[Machine]:
    """Give a machine to which the state of the first was copied."""
    # Sockets are not copied: they belong to the processes that listen.
    sockets = shutil.ignore_patterns("run")
    shutil.copytree(first.home / "state", home / "state", ignore=sockets)
    machine = Machine(home)
    try:
        yield machine
    finally:
        machine.close()


def test_of_two_machines_with_one_state_folder_the_second_takes_an_id_of_its_own(
    machine: Machine, tmp_path: Path
) -> None:
    with Target(echo) as target:
        server = machine.serve()
        where = f"0=127.0.0.1:{target.port}"
        first = machine.up(server.join, "--tcp", where)
        public = int(first.out.all()[0].split()[1].rpartition(":")[2])
        with another(tmp_path / "copy", machine) as copy, visit(public) as conn:
            conn.sendall(b"hello")
            assert read_exactly(conn, 5) == b"hello"
            for times in (1, 2):  # the second start has an id of its own already
                second = copy.up(server.join, "--tcp", where)
                assert second.err.count("client.id_taken") == (times == 1)
                assert server.program.err.count("code=DUPLICATE") == 1
                assert second.stop(signal.SIGINT) == Exit.INTERRUPTED
                assert second.errors().count("session.lost") == 0
            conn.sendall(b"still")
            assert read_exactly(conn, 5) == b"still"
        assert first.err.count("link.lost") == 0
        assert server.program.err.count("TAKEN_OVER") == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_clients_that_ended_and_came_again_keep_their_ids_and_ports(
    machine: Machine, tmp_path: Path, how: signal.Signals
) -> None:
    with Target(echo) as target, contextlib.closing(Machine(tmp_path / "b")) as other:
        server = machine.serve()
        where = f"0=127.0.0.1:{target.port}"
        places = machine, other
        running = [place.up(server.join, "--tcp", where) for place in places]
        had = [one.out.all()[0].split()[1] for one in running]
        for one in running:
            one.stop(how)
        for place, public in reversed(tuple(zip(places, had, strict=True))):
            again = place.up(server.join, "--tcp", where)
            assert again.out.all()[0].split()[1] == public
            assert again.err.count("client.id_taken") == 0


def test_a_client_that_is_stopped_makes_way_for_its_successor(
    machine: Machine, tmp_path: Path
) -> None:
    with Target(echo) as target:
        server = machine.serve()
        where = f"0=127.0.0.1:{target.port}"
        first = machine.up(server.join, "--tcp", where)
        with another(tmp_path / "copy", machine) as copy:
            first.send(signal.SIGSTOP)
            second = copy.up(server.join, "--tcp", where)
            assert second.err.count("client.id_taken") == 0
        eventually(
            lambda: server.program.err.count("code=TAKEN_OVER") == 1, "it was told of"
        )


# Two servers ------------------------------------------------------------------------


def test_a_second_server_on_a_state_folder_stops_and_says_who_has_it(
    machine: Machine,
) -> None:
    first = machine.serve()
    state = str(machine.home / "server")
    second = machine.tunnel("serve", "--listen", "127.0.0.1:0", "--state", state)
    assert second.wait() == Exit.CONFIGURATION
    said = second.errors()
    assert f"another server uses {state}" in said
    assert f"process {first.program.pid} has its lock" in said
    assert "--state" in said
    first.program.stop(signal.SIGKILL)
    machine.serve()


def test_a_server_starts_from_a_read_only_folder_and_keeps_others_off_it(
    machine: Machine,
) -> None:
    first = machine.serve()
    first.program.stop()
    state = str(machine.home / "server")
    serve = (
        sys.executable, "-m", "tunnel", "serve", "--state", state,
        "--listen", f"127.0.0.1:{first.port}",
    )  # fmt: skip
    only_read = 'mount --bind -o ro "$0" "$0" 2>/dev/null || exit 77; exec "$@"'
    inside = (program("unshare"), "--mount", "sh", "-c", only_read, state, *serve)
    running = machine.start(*inside, env={"PYTHONPATH": str(PACKAGE)})
    eventually(
        lambda: running.out.count("tunnel") > 0 or running.process.poll() is not None,
        "it listens",
    )
    if running.process.poll() == 77 or "unshare:" in running.errors():
        pytest.skip("NOT TESTED: no mounts of our own on this machine")
    assert running.out.all() == [first.join]
    second = machine.tunnel("serve", "--listen", "127.0.0.1:0", "--state", state)
    assert second.wait() == Exit.CONFIGURATION
