"""What running commands share: the loop, the log, signals and the exit status."""

from __future__ import annotations

import gc
import logging
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.drain import GOODBYE_S
from tunnel.errors import Exit, TunnelError
from tunnel.front.http.limits import LIMITS
from tunnel.log import log_event
from tunnel.net.descriptors import raise_limit
from tunnel.net.timeouts import TIMEOUTS
from tunnel.ops.life import Life
from tunnel.ops.texts import connections
from tunnel.platform.process import HANGUP, REOPEN, bury_strangers, has_terminal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.front.http.limits import Limits
    from tunnel.net.timeouts import Timeouts
    from tunnel.ops.show import Show

    Command = Callable[[], Awaitable[int]]

logger = logging.getLogger("tunnel.client")

COLLECT_AFTER: Final = (1_000, 1, 4_000)
"""New objects before a collection of the young, and collections before one of the next
two generations. Python's own 700, 10, 10 walk over every live connection again and
again: with 4,000 of them that cost a third of the requests a second. A walk over 10,000
young objects is a pause of 20 to 50 ms, which one log-in in ten met; here it is over
3,000 at most. Hardly anything here is a cycle."""
END_S: Final = GOODBYE_S + 0.5
"""After a drain the process is gone within this."""
RECYCLED_BYTES: Final = 4_194_304
"""Memory that comes and goes with data that waits for a link or for a reader."""


def run(
    command: Command,
    show: Show,
    limits: tuple[Timeouts, Limits] | None,
    warn: Callable[[], None],
) -> int:
    """Run a command in trio and return its exit status; an error becomes text and one.

    Args:
        command: runs to its end, beside the log.
        show: writes for the user; closed at the end.
        limits: how long the command bears silence, and how much HTTP.
        warn: called once the log is there, to say what is wrong with the environment.
    """
    raise_limit()
    gc.collect()
    gc.freeze()  # what was loaded so far
    gc.set_threshold(*COLLECT_AFTER)
    # glibc keeps blocks as large as the largest that was ever freed, up to twice as
    # much in all, and returns larger ones to the kernel at once: without this, each
    # piece of a transfer began with page faults. Other allocators take no notice.
    bytes(RECYCLED_BYTES)

    async def with_log() -> int:
        if limits is not None:
            TIMEOUTS.set(limits[0])
            LIMITS.set(limits[1])
        warn()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show.keep_log)
            if limits is not None:  # it stays
                bury_strangers()
                await nursery.start(_reopen_at_signals, show)
            status = await command()
            nursery.cancel_scope.cancel()
        return status

    try:
        return trio.run(with_log)
    except BaseException as error:
        fault = first_fault(error)
        if isinstance(fault, TunnelError):
            show.error(fault)
            return fault.exit_status
        if isinstance(fault, KeyboardInterrupt):
            return Exit.INTERRUPTED
        raise
    finally:
        show.close()


def first_fault(error: BaseException) -> BaseException:
    """Return the first TunnelError of an exception group, or else its first error."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.split(TunnelError)[0]
        error = (ours or error).exceptions[0]
    return error


def hangup_reloads() -> bool:
    """Say whether SIGHUP means to read the configuration again.

    It does where no terminal is there to hang up, and where it was not ignored at the
    start, as under ``nohup``.
    """
    return _hears_hangup() and not has_terminal()


def ending_signals(*, reloads: bool = False) -> list[signal.Signals]:
    """Return Ctrl+C, SIGTERM, and SIGHUP if it ends a command that may ``reloads``."""
    ends = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and _hears_hangup() and not (reloads and hangup_reloads()):
        ends.append(HANGUP)
    return ends


async def _reopen_at_signals(
    show: Show, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Open the log anew at SIGUSR1, which would end the process; and at SIGHUP.

    A command that reloads at SIGHUP hears it instead, and does both.
    """
    numbers = [REOPEN] if REOPEN is not None else []
    if HANGUP is not None and show.files and hangup_reloads():
        numbers.append(HANGUP)
    if not numbers:
        task_status.started()
        return
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for _ in signals:
            show.reopen()


def _hears_hangup() -> bool:
    return HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN


@dataclass
class Ending:
    """How a command ends: drain on the first signal, stop at once on the second."""

    show: Show
    connections: Callable[[], int]
    """Returns how many connections are alive."""
    life: Life = field(default_factory=Life)
    """Is told that this process stops."""
    status: Exit = Exit.OK
    reloads: bool = False
    """SIGHUP may mean something else."""
    began: bool = False
    """It drains, or stops."""
    at_once: bool = False
    """Set with a SIGTERM to this process: it does not drain, or no longer."""

    async def watch(
        self,
        drain: Callable[[float], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        drain_s: Callable[[], float],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Wait for a signal, drain and stop; return when both are over.

        ``drain`` takes ``drain_s`` seconds at most. Another signal cuts it short.
        """
        with trio.open_signal_receiver(
            *ending_signals(reloads=self.reloads)
        ) as signals:
            task_status.started()
            number = await anext(signals)
            self.began = True
            if number == signal.SIGINT:
                self.status = Exit.INTERRUPTED
            live = self.connections()
            most_s = 0.0 if self.at_once else drain_s()
            self.life.stopping(
                f"it stops: {connections(live, 'live ')}", most_s + END_S
            )
            if live:
                log_event(logger, logging.INFO, "draining", connections=live)
                said = f"{connections(live, 'live ')} (Ctrl+C again: now)"
                self.show.talk("stopping", said)
            if self.at_once:
                return await stop()
            async with trio.open_nursery() as nursery:

                async def until_drained() -> None:
                    await drain(most_s)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_drained)
                # A closed window may send two: the kernel's and the shell's.
                while await anext(signals) == HANGUP:
                    pass
                nursery.cancel_scope.cancel()
            await stop()
