"""The numbers of a process at one moment, as ``families`` writes them.

They are read when somebody asks: what counts, counts anyway, and bytes on their way
cost nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from tunnel.link.live import open_streams
from tunnel.link.looks import Wait
from tunnel.ops.control.status import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tunnel.access.account import Account
    from tunnel.center.client import CenterClient
    from tunnel.center.server import CenterServer
    from tunnel.center.why import Known
    from tunnel.ops.control.handlers import CommonHandlers
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

    def and_of(self, other: UserFacts) -> UserFacts:
        """Return it together with what the user has in another process."""
        return UserFacts(
            self.name,
            self.connections + other.connections,
            self.opened + other.opened,
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
            self.month_bytes + other.month_bytes,
            self.month_limit,
            self.links + other.links,
        )


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
    pids: tuple[int, ...] = ()
    """The processes that are one server; empty: this one."""

    def to_words(self) -> dict[str, object]:
        """Return it as JSON can hold it, for another process of this server."""
        return {
            "status": self.status.as_answer(),
            "ready": self.ready,
            "users": [asdict(one) for one in self.users],
            "waits": dict(self.waits),
            "pools": dict(self.pools),
            "events": [[*key, count] for key, count in self.events.items()],
        }

    @classmethod
    def of_words(cls, said: Mapping[str, object]) -> Facts:
        """Read what ``to_words`` has made."""
        status, users, waits = said["status"], said["users"], said["waits"]
        pools, events = said["pools"], said["events"]

        assert isinstance(status, dict)  # noqa: S101
        assert isinstance(users, list)  # noqa: S101
        assert isinstance(waits, dict)  # noqa: S101
        assert isinstance(pools, dict)  # noqa: S101
        assert isinstance(events, list)  # noqa: S101
        return cls(
            Status.of_answer(status),
            bool(said["ready"]),
            tuple(UserFacts(**one) for one in users),
            waits,
            {name: (held, most) for name, (held, most) in pools.items()},
            {(event, level): count for event, level, count in events},
        )


def facts_together(status: Status, each: Sequence[Facts]) -> Facts:
    """Return the numbers of processes that are one server.

    Args:
        status: of all of them.
        each: their own numbers.
    """
    users: dict[str, UserFacts] = {}
    for one in (one for facts in each for one in facts.users):
        had = users.get(one.name)
        users[one.name] = one if had is None else had.and_of(one)
    waits, events = Counter[str](), Counter[tuple[str, str]]()
    pools: dict[str, tuple[int, int]] = {}
    for facts in each:
        waits.update(facts.waits)
        events.update(facts.events)
        for name, (held, most) in facts.pools.items():
            had_bytes, had_most = pools.get(name, (0, 0))
            pools[name] = had_bytes + held, had_most + most
    ready = any(facts.ready for facts in each)
    return Facts(status, ready, tuple(users.values()), waits, pools, events)


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
