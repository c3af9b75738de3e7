"""systemd is told how a process is: sd_notify(3), a few lines of text in a datagram.

Whatever started this process and speaks that protocol is told, systemd or not.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from tunnel.log import log_event
from tunnel.net.notify import Notify
from tunnel.ops.life import State
from tunnel.platform.sockets import open_unix_socket

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from tunnel.ops.life import Life

BEATS: Final = 3
"""Signs of life in the time after which systemd gives a process up: one may be late."""
RETRY_S: Final = 0.25
"""After so long a message is sent again that found systemd's queue full."""
MOST_WAITING: Final = 64
"""Messages that wait for that, each of some 300 bytes; the oldest are given up."""
STATUS_CHARACTERS: Final = 200
"""`systemctl status` shows it in a line."""

_WORDS: Final = {
    State.STARTING: "",
    State.READY: "READY=1",
    # It has started, and its status says what it waits for. Were it not told, systemd
    # would end it after a while, and start it again, for as long as a server is away.
    State.NOT_READY: "READY=1",
    State.RELOADING: "RELOADING=1",
    State.STOPPING: "STOPPING=1",
}

logger = logging.getLogger("tunnel.client")


async def tell_systemd(
    life: Life,
    inherited: tuple[str, float] = ("", 0.0),
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tell systemd of this life until cancelled; return where nobody wants to know.

    The variables that say so are taken out of the environment: children are not meant.
    What cannot be sent is logged once, and stops nothing. ``inherited`` is what the
    process that was taken over had found there.
    """
    where, watchdog_s = _taken(os.environ)
    if not where:
        where, watchdog_s = inherited[0], inherited[1] or math.inf
    if not where:
        task_status.started()
        return
    life.watched_by = where, watchdog_s
    told = _Told(life, where, watchdog_s / BEATS)
    life.when_changed(told.changed)
    told.changed()
    task_status.started()
    await told.run()


def _taken(environ: MutableMapping[str, str]) -> tuple[str, float]:
    """Take out where to tell, empty for nowhere, and the seconds of the watchdog."""
    where = environ.pop("NOTIFY_SOCKET", "")
    usec = environ.pop("WATCHDOG_USEC", "")
    pid = environ.pop("WATCHDOG_PID", "") or str(os.getpid())
    if not where.startswith(("/", "@")):  # vsock is for virtual machines
        where = ""
    is_ours = usec.isdecimal() and int(usec) > 0 and pid == str(os.getpid())
    watchdog_s = int(usec) / 1_000_000 if is_ours else math.inf
    return where.replace("@", "\0", 1) if where[:1] == "@" else where, watchdog_s


class _Told:
    """What is told of one life, in order."""

    def __init__(self, life: Life, where: str, beat_s: float) -> None:
        self._life = life
        self._where = where
        self._beat_s = beat_s
        self._word = ""
        self._status = ""
        self._waiting: deque[str] = deque(maxlen=MOST_WAITING)
        self._full = Notify()
        self._has_failed = False
        self._has_left = False
        """Another process tells from now on."""

    def changed(self) -> None:
        """Tell what is new, without a checkpoint."""
        if self._has_left:
            return
        if self._life.successor:
            self._say(f"MAINPID={self._life.successor}")
            self._has_left = True
            return
        lines = []
        word, status = _WORDS[self._life.state], _line(self._life.text)
        # A reload is news only of what has started.
        if word and word != self._word and (self._word or word != "RELOADING=1"):
            self._word = word
            lines.append(word)
            if word == "RELOADING=1":
                lines.append(f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            elif word == "STOPPING=1":  # a drain may be longer than the unit allows
                lines.append(f"EXTEND_TIMEOUT_USEC={self._life.ends_s * 1e6:.0f}")
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        if lines:
            self._say(*lines)

    async def run(self) -> NoReturn:
        """Give signs of life, and send what waits; until cancelled.

        This runs in the loop that does all the work: no sign comes if that is stuck.
        """
        beat_at = trio.current_time() + self._beat_s
        while True:
            retry_at = trio.current_time() + RETRY_S if self._waiting else math.inf
            with trio.move_on_at(min(beat_at, retry_at)):
                await self._full.wait()
                continue
            if (now := trio.current_time()) >= beat_at:
                beat_at = now + self._beat_s
                if not self._has_left:
                    self._say("WATCHDOG=1")
            self._send()

    def _say(self, *lines: str) -> None:
        self._waiting.append("\n".join(lines))
        self._send()

    def _send(self) -> None:
        """Send what waits, as far as it is taken at once."""
        while self._waiting:
            try:
                with open_unix_socket(socket.SOCK_DGRAM) as sock:
                    sock.connect(self._where)
                    sock.send(self._waiting[0].encode())
            except BlockingIOError:
                self._full.ring()
                return
            except (OSError, ValueError) as error:
                if not self._has_failed:
                    self._has_failed = True
                    log_event(logger, logging.WARNING, "systemd.not_told",
                        reason=str(error))  # fmt: skip
            self._waiting.popleft()


def _line(text: str) -> str:
    """Return a text as one line: in it is what others said, and each line is a word."""
    shown = "".join(one if one.isprintable() else " " for one in text)
    return shown[:STATUS_CHARACTERS]
