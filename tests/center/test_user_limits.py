"""What a user is held to, over real sockets: rates, counts, months."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import center, port_of, running, target, user

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.addresses import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.center import Center

    from tunnel.access.users import User
    from tunnel.center.client import CenterClient

FREE = Address("", 0)
RATE = 5_000_000


class Person:
    """A user beside the owner, whose limits a test may change while it is there."""

    def __init__(self, *words: str) -> None:
        self.token = make_token()
        self.made: User = replace(user(self.token, "ann"), limits=parse_limits(words))

    def client(self, where: Center, client_id: bytes = b"a" * 16) -> CenterClient:
        return where.client(client_id, name="ann", token=self.token)[0]

    def limit(self, where: Center, *words: str) -> None:
        """Do as ``tunnel users limit`` does."""
        self.made = replace(self.made, limits=parse_limits(words))
        users = where.server._users
        where.server.user_changes.apply({**users, "ann": self.made})


async def flood(stream: trio.abc.HalfCloseableStream) -> None:
    """Send without end, until the other end has had enough."""
    chunk = bytes(65_536)
    try:
        while True:
            await stream.send_all(chunk)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def rates(
    streams: list[trio.abc.ReceiveStream], rest_s: float, seconds: float
) -> list[float]:
    """Read all of them; return the bytes per second of each, after a while."""
    got: Counter[int] = Counter()

    async def read(at: int) -> None:
        while data := await streams[at].receive_some(65_536):
            got[at] += len(data)

    async with trio.open_nursery() as nursery:
        for at in range(len(streams)):
            nursery.start_soon(read, at)
        await trio.sleep(rest_s)
        before, began = got.copy(), trio.current_time()
        await trio.sleep(seconds)
        took_s = trio.current_time() - began
        after = got.copy()
        nursery.cancel_scope.cancel()
    return [(after[at] - before[at]) / took_s for at in range(len(streams))]


@asynccontextmanager
async def eight(
    way: str, person: Person, ports: range
) -> AsyncIterator[tuple[Center, list[trio.abc.ReceiveStream]]]:
    """Open eight connections in two sessions of a user, through which much comes."""
    async with (
        center(ports=ports, others=(person.made,)) as where,
        target(flood) as service,
        trio.open_nursery() as nursery,
    ):
        first, second = person.client(where), person.client(where, b"b" * 16)
        streams: list[trio.abc.ReceiveStream] = []
        if way == "up":
            await first.publish_target(FREE, service)
        async with running(first), running(second):
            for at in range(8):
                if way == "up":
                    public = port_of(ports)
                    streams.append(await trio.open_tcp_stream(public.host, public.port))
                else:
                    client = first if at < 6 else second
                    streams.append(await client.open(str(service)))
            yield where, streams
            for stream in streams:
                await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_limit_acts_on_what_runs_is_kept_and_is_shared_fairly(
    way: str, free_ports: range
) -> None:
    person = Person()
    async with eight(way, person, free_ports) as (where, streams):
        free = sum(await rates(streams, 0.2, 0.5))
        assert free > 3 * RATE
        person.limit(where, "rate=5MB/s")
        held = await rates(streams, 1, 3)
        assert sum(held) == pytest.approx(RATE, rel=0.05)
        assert min(held) > 0.8 * max(held)
        person.limit(where, f"{way}=1MB/s")
        assert sum(await rates(streams, 1, 2)) == pytest.approx(1_000_000, rel=0.05)
        person.limit(where)
        assert sum(await rates(streams, 1, 0.5)) > 3 * RATE
