"""What running commands share: the loop, the log, signals and the exit status."""

from __future__ import annotations

import gc
import logging
import signal
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import Exit, TunnelError
from tunnel.log import log_event
from tunnel.net.descriptors import raise_limit
from tunnel.ops.show import Show, connections
from tunnel.ops.signals import ending_signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Command = Callable[[Show], Awaitable[int]]

logger = logging.getLogger("tunnel.client")

COLLECT_AFTER: Final = (20_000, 20, 50)
"""New objects before a young collection, and of those before the next two. Python's own
700, 10, 10 walk over every live connection again and again: with 4,000 of them that
took a third of the requests a second. Hardly anything here is a cycle."""
RECYCLED_BYTES: Final = 4_194_304
"""Memory that comes and goes with what waits for another link, or for a reader."""


def run(command: Command, show: Show, warn: Callable[[], None]) -> int:
    """Run a command in trio and return its exit status.

    What it raises becomes text and a status. ``warn`` logs, before the command begins,
    what is wrong with the environment.
    """
    raise_limit()
    _calm_collector()
    _calm_allocator()
    try:
        return trio.run(_with_log, command, show, warn)
    except BaseException as error:
        fault = _first_fault(error)
        if isinstance(fault, TunnelError):
            show.error(fault)
            return fault.exit_status
        if isinstance(fault, KeyboardInterrupt):
            return Exit.INTERRUPTED
        raise
    finally:
        show.close()


async def _with_log(command: Command, show: Show, warn: Callable[[], None]) -> int:
    """Run a command beside the log, which has counts to write in quiet times too."""
    warn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show.keep_log)
        status = await command(show)
        nursery.cancel_scope.cancel()
    return status


def _calm_collector() -> None:
    """Have the collector look less often, and never at what stays to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _calm_allocator() -> None:
    """Have memory that was freed kept for the next piece, up to twice as much.

    glibc does so for blocks as large as the largest that was freed once, and gives the
    rest back to the kernel at once: each piece of a transfer began with page faults.
    Other allocators take no notice.
    """
    bytes(RECYCLED_BYTES)


def _first_fault(error: BaseException) -> BaseException:
    """Look into exception groups: the first of ours, else the first at all."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.split(TunnelError)[0]
        error = (ours or error).exceptions[0]
    return error


class Ending:
    """How a command ends: drain on the first signal, at once on the second Ctrl+C."""

    def __init__(self, show: Show, connections: Callable[[], int]) -> None:
        self.status = Exit.OK
        self._show = show
        self._connections = connections

    async def watch(
        self,
        drain: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Wait for signals; returns when the drain is over or was cut short."""
        with trio.open_signal_receiver(*ending_signals()) as signals:
            task_status.started()
            number = await anext(signals)
            if number == signal.SIGINT:
                self.status = Exit.INTERRUPTED
            if live := self._connections():
                log_event(logger, logging.INFO, "draining", connections=live)
                self._show.talk(
                    "stopping", f"{connections(live, 'live ')} (Ctrl+C again: now)"
                )
            async with trio.open_nursery() as nursery:

                async def until_drained() -> None:
                    await drain()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_drained)
                # Of a closed window two may come: the kernel's and the shell's.
                while await anext(signals) == signal.SIGHUP:
                    pass
                nursery.cancel_scope.cancel()
            await stop()
