"""When a process takes over what its file says now: at a signal, a command, a save.

Two steps: read and plan, then apply. A fault changes nothing, stands in the log, and
stays to be asked for until a reload succeeds.
"""

from __future__ import annotations

import logging
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from tunnel.errors import ConfigError, TunnelError
from tunnel.log import log_event
from tunnel.ops.life import Life
from tunnel.ops.runtime import hangup_reloads
from tunnel.platform.process import HANGUP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.reload.plan import Change
    from tunnel.ops.show import Show

    Apply = Callable[[bool], Awaitable[Sequence[Change]]]

LOOK_S: Final = 1.0
"""How often the file's time and size are looked at. What changed is read at the next
look that finds it unchanged: an editor that is still writing is not disturbed, and the
new file that it moves into the place of the old one counts once."""

logger = logging.getLogger("tunnel.config")

_Stamp = tuple[int, int, int] | None


class Reloader:
    """The reloads of one process, one after another.

    Args:
        apply: reads all anew, applies what differs, and returns it; told whether the
            connections of what was changed are to be cut. Raises TunnelError with
            nothing changed.
        show: tells the person at the terminal.
        path: the file that is watched; None: there is none.
        life: is told of each reload.
    """

    def __init__(
        self, apply: Apply, show: Show, path: Path | None, life: Life | None = None
    ) -> None:
        self._apply = apply
        self._show = show
        self._path = path
        self._life = life or Life()
        self._stamp = _stamp_of(path)
        self._one_by_one = trio.Lock()
        self.faults: list[str] = []
        """What was wrong at the last reload, one fault a line."""

    async def start(self, nursery: trio.Nursery) -> None:
        """Reload in this nursery when a signal or a save asks for it."""
        if hangup_reloads():
            await nursery.start(self._watch_signal)
        if self._path is not None:
            nursery.start_soon(self._watch_file)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket answers."""
        return {"reload": self._asked}

    async def reload(self, by: str, *, now: bool = False) -> Sequence[Change]:
        """Take over what has changed; return that.

        Args:
            by: who or what wants it, for the log.
            now: cut the connections of entries that were changed or removed.

        Raises:
            TunnelError: nothing has changed; the fault was logged.
        """
        async with self._one_by_one:
            self._stamp = _stamp_of(self._path)
            with self._life.reloading():
                changes = await self._apply_or_say(now, by)
            for change in changes:
                log_event(logger, logging.INFO, "config.change", change=str(change))
                self._show.talk("reloaded", str(change))
            log_event(logger, logging.INFO, "config.reloaded", by=by,
                changes=len(changes))  # fmt: skip
            return changes

    async def _apply_or_say(self, now: bool, by: str) -> Sequence[Change]:
        try:
            changes = await self._apply(now)
        except TunnelError as error:
            self.faults = faults_of(error)
            self._life.refused = self.faults[0]
            for fault in self.faults:
                log_event(logger, logging.ERROR, "config.refused", by=by,
                    reason=fault)  # fmt: skip
            self._show.talk("not reloaded", self.faults[0])
            # A thread's frames have its error in their variables: a cycle of 60 kB.
            raise error.with_traceback(None) from None
        self.faults, self._life.refused = [], ""
        return changes

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold reloads off; who writes the file meanwhile has applied what it says.

        It is read again all the same if somebody else had saved it before.
        """
        async with self._one_by_one:
            is_known = _stamp_of(self._path) == self._stamp
            yield
            if is_known:
                self._stamp = _stamp_of(self._path)

    async def _watch_signal(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reload, and open the log anew, at each SIGHUP, until cancelled."""
        assert HANGUP is not None  # noqa: S101 - it is heard
        with trio.open_signal_receiver(HANGUP) as signals:
            task_status.started()
            async for _ in signals:
                self._show.reopen()
                await self._try("SIGHUP")

    async def _watch_file(self) -> NoReturn:
        """Reload when the file was saved; a file that is away is waited for."""
        before = self._stamp
        while True:
            await trio.sleep(LOOK_S)
            stamp = _stamp_of(self._path)
            if stamp is not None and stamp == before and stamp != self._stamp:
                await self._try("the file was saved")
            before = stamp

    async def _try(self, by: str) -> None:
        with suppress(TunnelError):  # it was logged, and what ran goes on
            await self.reload(by)

    async def _asked(self, args: Args, by: str) -> Answer:
        try:
            changes = await self.reload(by, now=args.get("now") is True)
        except ConfigError as error:
            return {"changes": [], "faults": error.faults}
        return {"changes": [str(change) for change in changes], "faults": []}


def faults_of(error: TunnelError) -> list[str]:
    """Return what an error says is wrong, a fault a line."""
    if isinstance(error, ConfigError):
        return list(error.faults)
    return [f"{error.what}: {error.cause}" if error.cause else error.what]


def _stamp_of(path: Path | None) -> _Stamp:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
