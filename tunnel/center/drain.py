"""How both roles leave, once they were asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.link.session import Session

DRAIN_S: Final = 8.0
"""How long running connections may go on. With the goodbye and the end of the process
it is 9.5 s: `docker stop` kills after 10, systemd is often told to."""
GOODBYE_S: Final = 1.0
"""How long after a drain the last bytes and the goodbye may take, for all links."""


async def drain(sessions: Iterable[Session], until: float) -> None:
    """Have sessions take nothing new; return when all are idle, or at ``until``."""
    sessions = tuple(sessions)
    for session in sessions:
        session.core.drain()
        session.output.wake()
    with trio.move_on_at(until):
        for session in sessions:
            await session.wait_idle()
