"""What the page is told each second: everything once, then what has changed.

One look at the process a second serves all pages that are open, and none is taken while
none is. What passes through the tunnel pays nothing.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import TunnelError
from tunnel.net.notify import Notify
from tunnel.ops.control.status import PAUSED

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from tunnel.ops.control import Answer, Handlers
    from tunnel.ops.control.status import Status
    from tunnel.ops.metrics.facts import UserFacts

LOOK_S: Final = 1.0
"""Rates are measured over as long."""
HISTORY: Final = 600
"""Looks that a page gets when it opens: ten minutes, 60 kB."""
USERS_LOOKS: Final = 5
"""Looks between two at the users: their file is read for it."""
_LISTS: Final = ("links", "entries", "certificates", "faults")

Row = dict[str, object]
Rows = dict[str, Row]


@dataclass(frozen=True, slots=True)
class Look:
    """A process at one moment."""

    process: Row
    rows: Mapping[str, Rows]
    """What there are many of, by the name of the list and a key of its own."""
    whole: Mapping[str, list[Row]] = field(default_factory=dict)
    """Short lists, which are told as one."""


class Live:
    """Looks at a process, for the pages that are open.

    Args:
        status: what is so now.
        handlers: those of the control socket; the users are asked there.
        use: what has passed for each user; None where that is not known.
    """

    def __init__(
        self,
        status: Callable[[], Awaitable[Status]],
        handlers: Handlers,
        *,
        use: Callable[[], Awaitable[Iterable[UserFacts]]] | None = None,
    ) -> None:
        self._status = status
        self._handlers = handlers
        self._use = use
        self._history: deque[tuple[float, float, float, int]] = deque(maxlen=HISTORY)
        self._look: Look | None = None
        self._users: Rows = {}
        self._pages = 0
        self._news = Notify()

    async def run(self) -> None:
        """Look until cancelled."""
        count = 0
        while True:
            await trio.sleep(LOOK_S)
            count += 1
            await self.look(users=count % USERS_LOOKS == 0)

    async def look(self, *, users: bool) -> None:
        """Look now; with ``users`` at the users too."""
        status = await self._status()
        passed = status.passed
        self._history.append(
            (
                round(time.time(), 3),
                passed.sent_per_s,
                passed.received_per_s,
                status.connections,
            )
        )
        if not self._pages:
            self._look = None
            return
        if users or self._look is None:
            self._users = await self._look_at_users()
        self._look = self._taken(status)
        self._news.ring()

    async def told(self, first: Answer) -> AsyncGenerator[Answer, None]:
        """Yield a line of the stream each second, to one page; ``first`` is added to
        the first."""
        self._pages += 1
        try:
            if self._look is None:
                await self.look(users=True)
            look = self._look
            assert look is not None  # noqa: S101 - a page is open
            history = [list(one) for one in self._history]
            yield {**first, "history": history, **_differs(look, None)}
            while True:
                await self._news.wait()
                before, look = look, self._look or look
                yield _differs(look, before)
        finally:
            self._pages -= 1

    def _taken(self, status: Status) -> Look:
        links = {f"{one.id}-{one.began_at}": asdict(one) for one in status.links}
        entries: Rows = {}
        for one in status.entries:
            key = f"{one.client}/{one.name}" if one.client else one.name
            entries[key] = {**asdict(one), "key": key, "paused": one.state == PAUSED}
        process = {
            name: getattr(status, name)
            for name in status.__slots__
            if name not in (*_LISTS, "passed")
        }
        process["passed"] = asdict(status.passed)
        return Look(
            process,
            {"links": links, "entries": entries, "users": self._users},
            {
                "certificates": [asdict(one) for one in status.certificates],
                "faults": [asdict(one) for one in status.faults],
            },
        )

    async def _look_at_users(self) -> Rows:
        """Return the users of a server, with what they use; none at a client."""
        ask = self._handlers.get("users.ls")
        if ask is None or self._use is None:
            return {}
        try:
            listed = (await ask({}, "the page")).get("users")
        except TunnelError:  # the file is wrong, which the log says
            return self._users
        known: Rows = {}
        for one in listed if isinstance(listed, list) else ():
            known[str(one["user"])] = dict(one)
        for use in await self._use():
            row = known.setdefault(use.name, {"user": use.name})
            row |= {name: getattr(use, name) for name in use.__slots__}
        return {
            name: {"name": name, **{k: v for k, v in row.items() if k != "user"}}
            for name, row in known.items()
        }


def _differs(look: Look, before: Look | None) -> Answer:
    """Return what is not as it was; everything, where it was not."""
    line: Answer = {"at": round(time.time(), 3), "process": look.process}
    for name, rows in look.rows.items():
        had = {} if before is None else before.rows[name]
        new = [row for key, row in rows.items() if had.get(key) != row]
        gone = [key for key in had if key not in rows]
        if new or before is None:
            line[name] = new
        if gone:
            line[f"{name}_gone"] = gone
    for name, listed in look.whole.items():
        if before is None or before.whole[name] != listed:
            line[name] = listed
    return line
