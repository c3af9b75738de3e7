"""After SIGTERM a process goes on for what runs, and is gone before it is killed."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.cutting import Relay
from support.processes import eventually, program
from support.targets import (
    END,
    RESET,
    Target,
    drain,
    echo,
    flood,
    is_alive,
    read_exactly,
    visit,
)

if TYPE_CHECKING:
    from support.processes import Machine, Program

DOCKER_STOP_S: Final = 10.0
LEAVES_WITHIN_S: Final = 5.0
"""After a drain of 1 s: less than a link's own 7 s for its last words."""
BEGINNING: Final = """
import time
from tunnel import __main__ as main
main.hide_secrets = lambda: print("here", flush=True) or time.sleep(60)
main.main()
"""


def public_port(client: Program) -> int:
    return int(client.out.wait("tcp ").split()[1].rpartition(":")[2])


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_link_that_is_lost_during_the_drain_is_had_again(
    machine: Machine, who: str
) -> None:
    with Target(echo) as target:
        server = machine.serve()
        line = Relay(machine, server)
        client = machine.up(line.join, "--tcp", f"0=127.0.0.1:{target.port}")
        running = server.program if who == "server" else client
        with visit(public_port(client)) as conn:
            assert is_alive(conn)
            running.send(signal.SIGTERM)
            (server.program if who == "client" else client).err.wait("draining")
            line.cut("rst")
            client.err.wait("link.resumed")
            assert is_alive(conn)
            conn.shutdown(socket.SHUT_WR)
            assert drain(conn) == (0, END)
        assert running.wait() == 0
    assert "Traceback" not in running.errors()


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_peer_that_hears_nothing_does_not_hold_up_the_end(
    machine: Machine, who: str
) -> None:
    with Target(flood) as target:
        # Its last word may find no room at who does not read: then it is a lost link.
        server = machine.serve("--drain", "1s", "--resume", "5s")
        entry = "--tcp", f"0=127.0.0.1:{target.port}"
        client = machine.up(server.join, *entry, "--drain", "1s", ready=1)
        mute, running = client, server.program
        if who == "client":
            mute, running = running, mute
        with visit(public_port(client)) as conn:
            read_exactly(conn, 1000)
            mute.send(signal.SIGSTOP)
            running.send(signal.SIGTERM)
            try:
                assert running.wait(LEAVES_WITHIN_S) == 0
            finally:
                mute.send(signal.SIGCONT)
            assert drain(conn)[1] == RESET
    assert "Traceback" not in running.errors()


@pytest.mark.deep
@pytest.mark.parametrize("who", ["server", "client"])
def test_what_never_ends_is_reset_before_docker_kills(
    machine: Machine, who: str
) -> None:
    with Target(flood) as target:
        server = machine.serve()
        client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
        running = server.program if who == "server" else client
        with visit(public_port(client)) as conn:
            read_exactly(conn, 1000)
            reading = threading.Thread(target=drain, args=(conn,))
            reading.start()
            running.send(signal.SIGTERM)
            assert running.wait(DOCKER_STOP_S) == 0
            reading.join()


def test_the_first_process_of_a_container_ends_by_sigterm_from_its_beginning(
    machine: Machine,
) -> None:
    inside = (program("unshare"), "--pid", "--fork", "--kill-child")
    running = machine.start(*inside, sys.executable, "-c", BEGINNING)
    eventually(
        lambda: running.out.count("here") > 0 or running.process.poll() is not None,
        "it begins",
    )
    if running.process.poll() is not None and "unshare:" in running.errors():
        pytest.skip("NOT TESTED: this user may not make namespaces")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
    machine.run("kill", "-TERM", *children.split())
    assert running.wait() == 128 + signal.SIGTERM


def test_ctrl_c_at_the_beginning_is_an_end_without_a_traceback(
    machine: Machine,
) -> None:
    running = machine.start(sys.executable, "-c", BEGINNING)
    running.out.wait("here")
    assert running.stop(signal.SIGINT) == 130
    assert running.errors() == ""


@pytest.mark.deep
@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("command", ["serve", "up"])
def test_sigterm_at_any_moment_of_the_start_is_an_end(
    machine: Machine, command: str, after_s: float
) -> None:
    if command == "serve":
        running = machine.tunnel("serve", "--listen", "127.0.0.1:0")
    else:
        running = machine.tunnel("up", "--tcp", "8000", "--to", machine.serve().join)
    time.sleep(after_s)  # no event: the moment is what is tried
    assert running.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in running.errors()
