"""Killed programs come back to the same ports, and the other side finds them again."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import free_port
from support.targets import Target, read_exactly, visit
from support.world import MODES

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Machine

BACK_S: Final = 2.0
"""What a person who restarted something is ready to wait."""
UNTRIED_S: Final = 6.0
"""The same where a back-off that grew meanwhile counts in."""


def answers(port: int) -> bool:
    with visit(port) as conn:
        conn.sendall(b"hello")
        return read_exactly(conn, 5) == b"hello"


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_client_has_its_ports_back_when_it_is_started_again(
    machine: Machine, target: Target, mode: str, figures: Callable[[str], None]
) -> None:
    server = machine.serve(*MODES[mode])
    entry = f"{free_port()}=127.0.0.1:{target.port}"
    first = machine.up(server.join, "--tcp", entry)
    port = int(entry.partition("=")[0])
    assert answers(port)
    first.send(signal.SIGKILL)
    began = time.monotonic()
    machine.up(server.join, "--tcp", entry)
    assert answers(port)
    took_s = time.monotonic() - began
    figures(f"killed client, {mode}: ports back after {took_s:.2f} s")
    assert took_s < BACK_S


def test_a_killed_client_gets_the_same_port_again_although_it_named_none(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    entry = ("--tcp", f"0=127.0.0.1:{target.port}")
    first = machine.up(server.join, *entry)
    first.stop(signal.SIGKILL)
    second = machine.up(server.join, *entry)
    assert second.out.all() == first.out.all()


def test_a_client_that_hangs_loses_its_port_to_a_new_one(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    port = free_port()
    entry = ("--tcp", f"{port}=127.0.0.1:{target.port}")
    first = machine.up(server.join, *entry)
    first.send(signal.SIGSTOP)
    machine.up(server.join, *entry)
    assert answers(port)


def test_a_client_that_is_alive_keeps_its_port(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    port = free_port()
    entry = ("--tcp", f"{port}=127.0.0.1:{target.port}")
    machine.up(server.join, *entry)
    second = machine.up(server.join, *entry, ready=0)
    assert second.wait() == 7
    assert str(port) in second.errors()
    assert answers(port)


@pytest.mark.parametrize("mode", MODES)
def test_a_client_is_back_by_itself_after_its_server_was_killed(
    machine: Machine, target: Target, mode: str, figures: Callable[[str], None]
) -> None:
    link_port = free_port()
    listen = f"127.0.0.1:{link_port}"
    first = machine.serve(*MODES[mode], listen=listen)
    port = free_port()
    client = machine.up(
        first.join,
        "--tcp", f"{port}=127.0.0.1:{target.port}",
        "--reach", f"127.0.0.1:0=127.0.0.1:{target.port}",
    )  # fmt: skip
    reached = int(client.out.wait("reach").split()[1].rpartition(":")[2])
    assert answers(port)
    first.program.stop(signal.SIGKILL)
    began = time.monotonic()
    second = machine.serve(*MODES[mode], listen=listen)
    assert second.join == first.join
    client.err.wait("mapping.ready", 2)
    assert answers(port)
    assert answers(reached)
    took_s = time.monotonic() - began
    figures(f"killed server, {mode}: client back after {took_s:.2f} s")
    assert took_s < UNTRIED_S


def test_a_client_waits_for_a_server_that_is_not_there_and_says_so_once_an_outage(
    machine: Machine, target: Target
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    server = machine.serve(listen=listen)
    server.program.stop(signal.SIGKILL)
    entry = ("--tcp", f"0=127.0.0.1:{target.port}")
    client = machine.up(server.join, *entry, "--drain", "0s", ready=0)
    for outage in (1, 2):
        said = client.err.wait(f"cannot reach {listen}: connection refused; ", outage)
        assert re.search(r"[;,] trying again in \d\.\d s$", said)
        client.err.wait("link.not_made", client.err.count("link.not_made") + 2)
        assert len(client.out.all()) == outage - 1
        server = machine.serve(listen=listen)
        client.err.wait("mapping.ready", outage)
        port = int(client.out.wait("tcp").split()[1].rpartition(":")[2])
        assert answers(port)
        assert client.err.count(" trying again in ") == outage
        server.program.stop(signal.SIGKILL)
    assert client.stop() == 0
    assert "error:" not in client.errors()
    assert "Traceback" not in client.errors()


def test_a_lost_link_is_said_and_a_new_server_with_another_key_is_not_the_end(
    machine: Machine, target: Target
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    first = machine.serve(listen=listen)
    client = machine.up(first.join, "--tcp", f"0=127.0.0.1:{target.port}")
    first.program.stop(signal.SIGKILL)
    client.err.wait("link.lost")
    state = str(machine.home / "another")
    other = machine.tunnel("serve", "--listen", listen, "--state", state)
    other.out.wait("tunnel://")
    client.err.wait("pinned")
    assert other.stop() == 0
    machine.serve(listen=listen)
    client.err.wait("mapping.ready", 2)
    assert "Traceback" not in client.errors()
