"""The life of a process, for whoever watches it: has it started, is it of use now?

One object knows it. ``serve`` and ``up`` tell it what happens; systemd, health checks
and the like are told of each change, or ask.
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_STARTING: Final = "it is starting"


class State(StrEnum):
    """Where a process is in its life."""

    STARTING = "starting"
    """It has not been ready yet, and nothing has failed."""
    READY = "ready"
    """It is of use: ``serve`` listens, ``up`` is linked."""
    NOT_READY = "not ready"
    """It is not, or no longer, and goes on trying."""
    RELOADING = "reloading"
    """It reads anew what it was told. It is of use meanwhile if it was before."""
    STOPPING = "stopping"
    """It drains or stops. There is no way back."""


class Life:
    """The life of one process. It begins ``STARTING``; nothing here waits."""

    def __init__(self) -> None:
        self._why = _STARTING
        self._text = _STARTING
        self._started = False
        self._reloads = 0
        self._stopping = False
        self.refused = ""
        """What was wrong at the last reload; empty when it was taken over."""
        self.ends_s = 0.0
        """How many seconds it may take to stop, from when that began."""
        self.watched_by = "", 0.0
        """Where systemd is told, if it is, and the seconds of its watchdog."""
        self.successor = 0
        """The process that has taken over: this one is not what is watched any more."""
        self._tell: list[Callable[[], None]] = []

    @property
    def state(self) -> State:
        """Where the process is."""
        if self._stopping:
            return State.STOPPING
        if self._reloads:
            return State.RELOADING
        if not self._started:
            return State.STARTING
        return State.NOT_READY if self._why else State.READY

    @property
    def why(self) -> str:
        """Why it is not ready; empty when it is."""
        return self._why

    @property
    def is_ready(self) -> bool:
        """Whether it is of use now; also while it reads its configuration anew."""
        return not self._why

    @property
    def text(self) -> str:
        """What it does now, in a few words for a person."""
        if self.state is State.RELOADING:
            return "reloading"
        refused = f" (not reloaded: {self.refused})" if self.refused else ""
        return self._text + refused

    def ready(self, text: str) -> None:
        """It is of use: ``text`` says how. It does not come back from stopping."""
        self._become("", text)

    def not_ready(self, why: str) -> None:
        """It is not of use, and goes on trying."""
        self._become(why, why)

    def stopping(self, why: str, within_s: float) -> None:
        """It takes nothing new any more, and will have ended ``within_s`` from now."""
        if not self._stopping:
            self._stopping = True
            self.ends_s = within_s
            self._why = self._text = why
            self._changed()

    def hand_over(self, to: int) -> None:
        """Another process is of use in its place from now on."""
        self.successor = to
        self._changed()

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """It reads its configuration anew, for as long as this is entered."""
        self._reloads += 1
        self._changed()
        try:
            yield
        finally:
            self._reloads -= 1
            self._changed()

    def when_changed(self, call: Callable[[], None]) -> None:
        """Have ``call`` called after each change; it must not wait, nor raise."""
        self._tell.append(call)

    def _become(self, why: str, text: str) -> None:
        now = True, why, text
        if not self._stopping and now != (self._started, self._why, self._text):
            self._started, self._why, self._text = now
            self._changed()

    def _changed(self) -> None:
        for call in self._tell:
            call()
