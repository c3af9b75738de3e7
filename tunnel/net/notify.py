"""Notify: where tasks wait until somebody rings.

It does less than ``trio.lowlevel.ParkingLot``: mostly nobody waits when it is rung,
which costs four calls there, and the ordered dictionary of a parking lot is memory of
each idle connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio.lowlevel import Abort, RaiseCancelT, Task


class Notify:
    """Any number of tasks wait; a ring wakes those that wait now, and no later one."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[Task] = []
        """The tasks that wait; for others to look at only."""

    async def wait(self) -> None:
        """Wait for the next ring. A checkpoint."""
        task = trio.lowlevel.current_task()
        self.waiting.append(task)

        def abort(_raise_cancel: RaiseCancelT) -> Abort:
            self.waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def ring(self) -> None:
        """Wake the tasks that wait; costs next to nothing when none does."""
        if self.waiting:
            tasks, self.waiting = self.waiting, []
            for task in tasks:
                trio.lowlevel.reschedule(task)
