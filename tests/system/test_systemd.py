"""A server and a client that systemd has started, as far as they can tell."""

from __future__ import annotations

import signal
from contextlib import closing
from typing import TYPE_CHECKING

from support.processes import Machine
from support.supervisor import Supervisor
from support.targets import Target, echo

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Program

WATCHDOG = {"WATCHDOG_USEC": "600000"}
"""A sign of life each 0.2 s."""


def starts(heard: Supervisor, status: str) -> None:
    assert heard.hear() == ["STATUS=it is starting"]
    assert heard.hear_of("READY=1")[1].startswith(f"STATUS={status}")


def reloads(heard: Supervisor, program: Program) -> None:
    program.send(signal.SIGHUP)
    assert heard.hear_of("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
    heard.hear_of("READY=1")


def lives_while_its_loop_runs(
    heard: Supervisor, program: Program, clock: Supervisor
) -> None:
    heard.hear_of("WATCHDOG=1")
    program.send(signal.SIGSTOP)
    try:
        clock.all()
        clock.hear_of("WATCHDOG=1")
        heard.all()
        for _ in range(3):  # the time in which three would have come
            clock.hear_of("WATCHDOG=1")
        assert heard.all() == []
    finally:
        program.send(signal.SIGCONT)
    heard.hear_of("WATCHDOG=1")


def ends(heard: Supervisor, program: Program) -> None:
    program.send(signal.SIGTERM)
    assert heard.hear_of("STOPPING=1")[-1].startswith("STATUS=it stops")
    assert program.wait() == 0


def test_from_the_start_to_the_end(tmp_path: Path) -> None:
    with (
        closing(Machine(tmp_path)) as machine,
        Supervisor(tmp_path / "notify") as of_server,
        Supervisor(f"@{tmp_path}") as of_client,
        Target(echo) as target,
    ):
        machine.env |= of_server.env | WATCHDOG
        server = machine.serve()
        starts(of_server, "listening on 127.")
        machine.env |= of_client.env
        client = machine.up(server.join, "--tcp", f"0={target.port}")
        starts(of_client, "linked to 127.")
        reloads(of_server, server.program)
        reloads(of_client, client)
        lives_while_its_loop_runs(of_client, client, clock=of_server)
        ends(of_server, server.program)
        while not of_client.hear()[-1].startswith("STATUS=no link: "):
            pass
        ends(of_client, client)
