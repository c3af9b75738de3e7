"""Bell: where tasks wait until somebody rings.

``trio.lowlevel.ParkingLot`` with less: most bells of a connection are rung with nobody
there, which costs four calls in a lot, and its ordered dictionary is memory of an idle
connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio.lowlevel import Abort, RaiseCancelT, Task


class Notify:
    """Any number of tasks wait; one ring wakes all that are there, and nobody later."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[Task] = []
        """Who waits; to be looked at only."""

    async def wait(self) -> None:
        """Wait for the next ring; a checkpoint."""
        task = trio.lowlevel.current_task()
        self.waiting.append(task)

        def abort(_raise_cancel: RaiseCancelT) -> Abort:
            self.waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def ring(self) -> None:
        """Wake who waits; costs next to nothing when nobody does."""
        if self.waiting:
            tasks, self.waiting = self.waiting, []
            for task in tasks:
                trio.lowlevel.reschedule(task)
