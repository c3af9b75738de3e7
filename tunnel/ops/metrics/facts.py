"""The numbers of a process at one moment, as ``families`` writes them.

They are read when somebody asks: what counts, counts anyway, and bytes on their way
cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunnel.link.live import open_streams
from tunnel.link.looks import Wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tunnel.access.account import Account
    from tunnel.center.client import CenterClient
    from tunnel.center.server import CenterServer
    from tunnel.center.why import Known
    from tunnel.ops.control.handlers import CommonHandlers
    from tunnel.ops.control.status import Status
    from tunnel.ops.life import Life
    from tunnel.proto.pools import Pools


@dataclass(frozen=True, slots=True)
class UserFacts:
    """What has passed for one user, all sessions together, and is there now."""

    name: str
    connections: int
    opened: int
    sent_bytes: int
    received_bytes: int
    month_bytes: int = 0
    """Of this month, at a server."""
    month_limit: int | None = None
    links: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """All numbers of a moment."""

    status: Status
    ready: bool
    users: tuple[UserFacts, ...] = ()
    waits: Mapping[str, int] = field(default_factory=dict)
    """How many connections were found to wait for each thing, by its word."""
    pools: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes that are held, and how many may be, by the names of the pools."""
    events: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How often each event was logged, by its name and its level."""


def facts_of(
    common: CommonHandlers,
    life: Life,
    users: tuple[UserFacts, ...],
    sessions: Sequence[Known],
    pools: Pools,
) -> Facts:
    """Return the numbers of this moment."""
    return Facts(
        common.status(),
        life.is_ready,
        users,
        waits_of(sessions),
        pools_of(pools),
        dict(common.recent.counts),
    )


def users_of_server(server: CenterServer) -> tuple[UserFacts, ...]:
    """Return what has passed for each user that has been here."""
    return tuple(map(_user, server.accounts))


def user_of_client(client: CenterClient, name: str) -> tuple[UserFacts, ...]:
    """Return what has passed for the one user that a client is."""
    sent, received = client.traffic
    opened = client.publisher.begun
    return (UserFacts(name, client.connections, opened, sent, received),)


def _user(account: Account) -> UserFacts:
    return UserFacts(
        account.name,
        account.connections,
        account.opened,
        account.sent_bytes,
        account.received_bytes,
        account.month_bytes,
        account.limits.month,
        account.links,
    )


def waits_of(sessions: Iterable[Known]) -> dict[str, int]:
    """Return how many connections wait for what, as the last look has found it."""
    found = dict.fromkeys((wait.word for wait in Wait), 0)
    for known in sessions:
        for stream in open_streams(known.session):
            looks = stream.looks
            if looks is not None and looks.found:
                found[Wait(looks.found[-1]).word] += 1
    return found


def pools_of(pools: Pools) -> dict[str, tuple[int, int]]:
    """Return what the sessions of a process hold, and may hold, together."""
    rooms = {
        "unsent": pools.unsent,
        "kept": pools.kept,
        "control": pools.control,
        "datagrams_out": pools.datagrams_out,
        "datagrams_in": pools.datagrams_in,
    }
    held = {name: (one.taken_bytes, one.limit_bytes) for name, one in rooms.items()}
    return {"unread": (pools.held.held_bytes, pools.held.limit_bytes), **held}
