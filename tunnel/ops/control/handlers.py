"""What every process answers: who it is, what its log said, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Final

import trio

from tunnel import __version__
from tunnel.errors import UsageError
from tunnel.ops.control.status import Passed, Status, faults_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.control.service import OwnSocket
    from tunnel.ops.recent import Recent
    from tunnel.ops.runtime import Ending

RATE_S: Final = 1.0
"""The seconds over which a rate is measured."""
MAX_LINES: Final = 500
"""Lines of the log in one answer."""


class Meters:
    """How fast bytes pass, measured once a second for each key.

    A look costs what there are links, not what there are connections.
    """

    def __init__(self, totals: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        self._totals = totals
        self._last: Mapping[str, tuple[int, int]] = {}
        self._rates: dict[str, tuple[float, float]] = {}

    async def run(self) -> None:
        """Measure until cancelled."""
        then = trio.current_time()
        while True:
            await trio.sleep(RATE_S)
            now, totals = trio.current_time(), self._totals()
            took_s, then = max(now - then, 0.001), now
            self._rates = {}
            for key, (sent, received) in totals.items():
                before = self._last.get(key, (0, 0))
                # A session that began anew counts from 0.
                passed = max(sent - before[0], 0), max(received - before[1], 0)
                self._rates[key] = passed[0] / took_s, passed[1] / took_s
            self._last = totals

    def passed(self, key: str, sent: int, received: int) -> Passed:
        """Return what has passed, with the rates of the last second."""
        out, back = self._rates.get(key, (0.0, 0.0))
        return Passed(sent, received, round(out), round(back))


class CommonHandlers:
    """What both roles answer; ``status`` fills in what only one of them knows.

    Args:
        role: ``serve`` or ``up``.
        own: the socket, for the name of this process.
        recent: the last lines of the log.
        ending: how this process ends.
        status: returns what is so now.
    """

    def __init__(
        self,
        role: str,
        own: OwnSocket,
        recent: Recent,
        ending: Ending,
        status: Callable[[Status], None],
    ) -> None:
        self._role = role
        self._own = own
        self.recent = recent
        self._ending = ending
        self._fill = status
        self._began_at = time.time()

    @property
    def handlers(self) -> dict[str, Handler]:
        """What the control socket answers."""
        return {
            "ps": self._greet,
            "status": self._status,
            "drain": self._drain,
            "stop": self._stop,
            "logs": self._logs,
        }

    def status(self) -> Status:
        """Return what is so now."""
        status = Status(
            name=self._own.name,
            role=self._role,
            pid=os.getpid(),
            version=__version__,
            began_at=round(self._began_at, 3),
            state="",
            address="",
            connections=0,
            waiting=0,
            kept_bytes=0,
            passed=Passed(),
            faults=faults_of(self.recent.faults),
        )
        self._fill(status)
        if self._ending.began:
            status.state = "draining"
        return status

    async def status_now(self) -> Status:
        """Return ``status``, as those ask who ask several processes elsewhere."""
        await trio.lowlevel.checkpoint()
        return self.status()

    async def _greet(self, _args: Args, _by: str) -> Answer:
        status = self.status()
        names = "name", "role", "pid", "version", "began_at", "state", "address"
        answer: Answer = {name: getattr(status, name) for name in names}
        counts = len(status.links), len(status.entries), status.connections
        answer["links"], answer["entries"], answer["connections"] = counts
        return answer

    async def _status(self, _args: Args, _by: str) -> Answer:
        return self.status().as_answer()

    async def _drain(self, _args: Args, _by: str) -> Answer:
        if not self._ending.began:  # a second signal would end it at once
            os.kill(os.getpid(), signal.SIGTERM)
        return {"name": self._own.name}

    async def _stop(self, _args: Args, _by: str) -> Answer:
        self._ending.at_once = True
        os.kill(os.getpid(), signal.SIGTERM)
        return {"name": self._own.name}

    async def _logs(self, args: Args, _by: str) -> Answer:
        after = args.get("after", 0)
        if not isinstance(after, int):
            raise UsageError("after is the number of a line")
        kept = list(self.recent.after(after))
        lines = kept[:MAX_LINES] if after else kept[-MAX_LINES:]
        return {
            "lines": [{"number": one.number, "at": one.at, "text": one.text,
                       "level": logging.getLevelName(one.level).lower()}
                      for one in lines],
        }  # fmt: skip
