"""Clocks that jump, and machines that slept: links are judged by neither wall clock."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import pytest
from support import clocks
from support.cutting import Relay
from support.processes import eventually
from support.targets import Target, echo, is_alive, visit

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Machine

HOUR_S: Final = 3_600
YEARS_S: Final = 10 * 365 * 86_400


class Clocks:
    """What all ``tunnel`` commands of a machine take for the time."""

    def __init__(self, machine: Machine) -> None:
        self._path: Path = machine.home / "clocks"
        machine.env["CLOCKS"] = str(self._path)
        machine.command = clocks.COMMAND
        self.set(0, 0)

    def set(self, wall_s: float, slept_s: float) -> None:
        """Set them, at once for everybody."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{wall_s} {slept_s}")
        os.replace(new, self._path)


@pytest.mark.parametrize("mode", [(), ("--plain",)], ids=["tls", "plain"])
def test_a_wall_clock_that_jumps_costs_no_link_and_keeps_nobody_out(
    machine: Machine, mode: tuple[str, ...]
) -> None:
    machine_clocks = Clocks(machine)
    with Target(echo) as target:
        server = machine.serve(*mode)
        relay = Relay(machine, server)
        client = machine.up(relay.join, "--tcp", f"0=127.0.0.1:{target.port}")
        port = int(client.out.all()[0].split()[1].rpartition(":")[2])
        with visit(port) as conn:
            for number, wall_s in enumerate((HOUR_S, -HOUR_S, YEARS_S, -YEARS_S), 1):
                machine_clocks.set(wall_s, 0)
                assert is_alive(conn)
                assert client.err.count("link.lost") == number - 1
                relay.cut("rst")  # the handshake is what looks at certificates
                client.err.wait("link.resumed", number)
                assert is_alive(conn)
        assert server.program.err.count("link.up") == 1
    assert "Traceback" not in server.program.errors() + client.errors()


@pytest.mark.deep
def test_after_a_long_sleep_a_dead_link_is_found_at_once_and_a_living_one_stays(
    machine: Machine,
) -> None:
    """A link that was idle is given up 5 s after the wake, not after its own time."""
    machine_clocks = Clocks(machine)
    with Target(echo) as target:
        relay = Relay(machine, machine.serve())
        client = machine.up(relay.join, "--tcp", f"0=127.0.0.1:{target.port}")
        port = int(client.out.all()[0].split()[1].rpartition(":")[2])
        with visit(port) as conn:
            assert is_alive(conn)
            machine_clocks.set(0, HOUR_S)
            time.sleep(2.5)  # both have looked, and asked
            assert is_alive(conn)
            assert client.err.count("link.lost") == 0
            relay.cut("hole")
            machine_clocks.set(HOUR_S, 2 * HOUR_S)
            began = time.monotonic()
            client.err.wait("link.resumed")
            assert time.monotonic() - began < 6
            assert is_alive(conn)
            eventually(lambda: relay.do("count") == 1, "one link")
