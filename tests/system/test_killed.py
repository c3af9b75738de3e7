"""A process that is killed ends nothing cleanly: whoever was connected hears a RST."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from support.targets import RESET, drain, read_exactly, read_to_end

if TYPE_CHECKING:
    from support.world import MakeWorld


@pytest.mark.parametrize(
    ("who", "own", "far"), [("server", "A", "B"), ("client", "B", "A")]
)
def test_kill_9_is_a_reset_for_who_came_in_here_and_for_the_target_that_is_left_here(
    make_world: MakeWorld, who: str, own: str, far: str
) -> None:
    world = make_world()
    running = world.client if who == "client" else world.server.program
    with (
        world.visit(own, "flood") as busy,
        world.visit(own, "echo") as quiet,
        world.visit(far, "watched") as other,
    ):
        for conn in (quiet, other):
            conn.sendall(b"hello")
            read_exactly(conn, 5)
        read_exactly(busy, 1000)
        running.send(signal.SIGKILL)
        assert drain(busy)[1] == RESET
        assert read_to_end(quiet) == (b"", RESET)
        assert world.targets["watched"].next_seen() == RESET
