"""How both roles leave, once they were asked to."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tunnel.center.client_session import ClientSession
    from tunnel.link.session import Session

DRAIN_S: Final = 8.0
"""How long running connections may go on. With the goodbye and the end of the process
it is 9.5 s: `docker stop` kills after 10, systemd is often told to."""
GOODBYE_S: Final = 1.0
"""How long after a drain the last bytes and the goodbye may take, for all links."""

MOVES_A_SECOND: Final = 200
"""Clients that are sent away: each is a link start at another server, 1 to 3 ms of it.
Where there are so many that it would last longer, half of the drain."""
MOVE_S: Final = 5.0
"""How long a client may take to be elsewhere; one that is older than this never is."""
MAX_RETRY_S: Final = 65_535
"""The longest that GO_AWAY can say."""


async def drain(sessions: Iterable[Session], until: float) -> None:
    """Have sessions take nothing new; return when all are idle, or at ``until``.

    A client is told not to look for another before ``until``: there is none.
    """
    sessions = tuple(sessions)
    left_s = max(ceil(until - trio.current_time()), 0)
    for session in sessions:
        session.core.drain(min(left_s, MAX_RETRY_S))
        session.output.wake()
    with trio.move_on_at(until):
        for session in sessions:
            await session.wait_idle()


async def send_away(
    clients: Iterable[ClientSession],
    until: float,
    moved: Callable[[ClientSession], Awaitable[None]],
    end: Callable[[ClientSession], None],
) -> None:
    """Have clients go to another server, and ``end`` each when it has nothing left.

    Visitors are opened at a client until what it has published is open there, for which
    ``moved`` waits. Returns when all have ended, or at ``until``.
    """
    clients = tuple(clients)
    half_s = (until - trio.current_time()) / 2
    pause_s = min(1 / MOVES_A_SECOND, half_s / max(len(clients), 1))

    async def one(client: ClientSession) -> None:
        with trio.move_on_after(MOVE_S):
            await client.departed.wait()
            await moved(client)
        await client.session.wait_idle()
        end(client)

    with trio.move_on_at(until):
        async with trio.open_nursery() as nursery:
            for client in clients:
                client.session.core.drain(still_opens=True)
                client.session.output.wake()
                nursery.start_soon(one, client)
                await trio.sleep(pause_s)
