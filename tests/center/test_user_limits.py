"""What a user is held to, over real sockets: rates, counts, months."""

from __future__ import annotations

import gc
import socket
import weakref
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import (
    ask,
    center,
    echo,
    port_of,
    raw_login,
    running,
    target,
    user,
)
from support.logs import lines, text

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.access.months import Months
from tunnel.addresses import Address
from tunnel.center import admission
from tunnel.center.accounts import Accounts
from tunnel.center.events import LinkDown, LinkUp, MappingRefused
from tunnel.center.names import NameOptions
from tunnel.errors import Code, StreamError
from tunnel.ops.entries import Published, Service
from tunnel.proto.frames import MappingEntry, MappingType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.center import Center

    from tunnel.access.users import User
    from tunnel.center.client import CenterClient

FREE = Address("", 0)
RATE = 2_000_000


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


def web(name: str, at: Address) -> Published:
    wanted = MappingEntry(MappingType.HTTP, "", name)
    return Published("http", wanted, Service(at), scheme="http")


async def drain(stream: trio.abc.ReceiveStream) -> None:
    while True:
        assert await stream.receive_some()


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


async def test_a_limit_acts_on_what_runs_is_kept_and_is_shared_fairly(
    free_ports: range,
) -> None:
    async with trio.open_nursery() as nursery:  # at once: they wait most of the time
        for way in ("up", "down"):
            nursery.start_soon(held_to_what_it_is_told, way, free_ports)


async def held_to_what_it_is_told(way: str, free_ports: range) -> None:
    person = Person()
    async with eight(way, person, free_ports) as (where, streams):
        free = sum(await rates(streams, 0.2, 0.5))
        assert free > 2 * RATE
        person.limit(where, "rate=2MB/s")
        held = await rates(streams, 1, 2)
        assert sum(held) == pytest.approx(RATE, rel=0.05)
        assert min(held) > 0.8 * max(held)
        person.limit(where, f"{way}=500KB/s")
        assert sum(await rates(streams, 1, 2)) == pytest.approx(500_000, rel=0.05)
        person.limit(where)
        assert sum(await rates(streams, 1, 0.5)) > 2 * RATE


# Counts ------------------------------------------------------------------------------


async def refusal(client: CenterClient, service: Address) -> Code:
    with pytest.raises(StreamError) as caught:
        await client.open(str(service))
    assert "limit of user ann" in str(caught.value)
    return caught.value.code


async def test_connections_at_once_are_those_of_all_sessions_until_they_have_ended(
    free_ports: range,
) -> None:
    person = Person("connections=3")
    async with (
        center(ports=free_ports, others=(person.made,)) as where,
        target(echo) as service,
    ):
        first, second = person.client(where), person.client(where, b"b" * 16)
        await first.publish_target(FREE, service)
        async with running(first), running(second):
            one = await first.open(str(service))
            two = await second.open(str(service))
            assert await ask(port_of(free_ports), b"third") == b"third"
            account = where.server.accounts.of(person.made)
            await where.until(lambda: account.connections == 2)
            visitor = await trio.open_tcp_stream("127.0.0.1", free_ports[0])
            await visitor.send_all(b"x")
            assert await visitor.receive_some() == b"x"
            assert await refusal(second, service) is Code.RESOURCE
            with pytest.raises(trio.BrokenResourceError):
                await ask(port_of(free_ports))
            await visitor.aclose()
            await where.until(lambda: account.connections == 2)
            three = await second.open(str(service))
            for stream in (one, two, three):
                await stream.aclose()
            await where.until(lambda: account.connections == 0)


async def test_what_ends_with_its_session_is_counted_no_more(free_ports: range) -> None:
    person = Person("connections=100")
    async with (
        center(ports=free_ports, others=(person.made,)) as where,
        target(echo) as service,
    ):
        account = where.server.accounts.of(person.made)
        client = person.client(where)
        await client.publish_target(FREE, service)
        async with running(client):
            for _ in range(5):
                await client.open(str(service))
            visitors = [
                await trio.open_tcp_stream("127.0.0.1", free_ports[0]) for _ in range(5)
            ]
            await where.until(lambda: account.connections == 10)
            assert account.links == 1
        await where.until(lambda: account.connections == 0)
        await where.until(lambda: account.links == 0)
        for visitor in visitors:
            await visitor.aclose()


async def test_opens_per_second_are_refused_at_both_sides() -> None:
    person = Person("opens=5/s")
    async with center(others=(person.made,)) as where, target(echo) as service:
        client = person.client(where)
        async with running(client):
            codes = Counter[str]()
            for _ in range(12):
                try:
                    (await client.open(str(service))).reset(Code.RESET)
                    codes["open"] += 1
                except StreamError as error:
                    codes[error.code.name] += 1
    assert 5 <= codes["open"] <= 8
    assert codes["open"] + codes["RESOURCE"] == 12


async def test_ports_and_names_are_those_of_all_clients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    person = Person("ports=1", "names=1")
    names = NameOptions(http=Address("127.0.0.1", 0), domain="t.test")
    async with (
        center(others=(person.made,), names=names) as where,
        target(echo) as service,
    ):
        first, heard = where.client(b"a" * 16, name="ann", token=person.token)
        second, also_heard = where.client(b"b" * 16, name="ann", token=person.token)
        await first.publish_target(FREE, service)
        await web("one", service).start(first)
        await second.publish_target(FREE, service)
        await web("two", service).start(second)
        async with running(first):
            assert not heard.of(MappingRefused)
            async with running(second):
                refused = also_heard.of(MappingRefused)
    assert [one.answer.code for one in refused] == [Code.RESOURCE] * 2
    assert [one.answer.reason for one in refused] == [
        "limit of user ann: 1 public ports",
        "limit of user ann: 1 names",
    ]
    assert "limit.reached" in str(lines(caplog))


async def test_one_link_too_many_gets_calm_and_a_resume_does_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "RETRY_AFTER_S", 1)
    person = Person("links=1")
    async with center(others=(person.made,)) as where:
        wire = await raw_login(where, b"a" * 16, person.token, "ann")
        other, heard = where.client(b"b" * 16, name="ann", token=person.token)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.run)
            down = await heard.next(LinkDown)
            assert down.reason.code is Code.CALM
            await wire.aclose()
            await heard.next(LinkUp)
            # Another link of the same session ends the older one: no limit is for it.
            account = where.server.accounts.of(person.made)
            account.links += 1
            (member,) = where.server.clients
            member.lose_link(Code.SILENT, "a test")
            await where.until(lambda: member.link_no == 2 and not member.waiting)
            assert where.server.clients == (member,)
            account.links -= 1
            other.stop()
    assert "too many links of one user: limit of user ann: 1 links at once" in text(
        caplog
    )


async def test_a_page_says_that_it_is_the_limit_of_the_service() -> None:
    person = Person("connections=1")
    names = NameOptions(http=Address("127.0.0.1", 0), domain="t.test")
    async with (
        center(others=(person.made,), names=names) as where,
        target(echo) as service,
    ):
        client = person.client(where)
        await web("shop", service).start(client)
        async with running(client):
            http = where.server.names.http
            assert http is not None
            await client.open(str(service))
            answer = await ask(http, b"GET / HTTP/1.1\r\nHost: shop.t.test\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in answer
    assert b"a limit that its server has set for it, not for you" in answer
    assert b"ann" not in answer


# Datagrams and months ----------------------------------------------------------------


async def test_a_used_up_month_ends_what_runs_refuses_what_is_new_and_is_kept(
    tmp_path: Path,
) -> None:
    person = Person("month=1MB")
    async with (
        center(others=(person.made,), months=Months(tmp_path)) as where,
        target(flood) as service,
    ):
        client = person.client(where)
        async with running(client):
            stream = await client.open(str(service))
            with pytest.raises(trio.BrokenResourceError) as caught:
                await drain(stream)
            cause = caught.value.__cause__
            assert isinstance(cause, StreamError)
            assert cause.code is Code.RESOURCE
            assert await refusal(client, service) is Code.RESOURCE
    async with (
        center(others=(person.made,), months=Months(tmp_path)) as where,
        target(echo) as service,
    ):
        client = person.client(where)
        async with running(client):
            assert await refusal(client, service) is Code.RESOURCE
            person.limit(where)
            account = where.server.accounts.of(person.made)
            assert account.month_bytes > 1_000_000
            (await client.open(str(service))).reset(Code.RESET)


async def test_what_passed_in_a_short_session_is_of_its_month(tmp_path: Path) -> None:
    person = Person()
    months = Months(tmp_path)
    async with (
        center(others=(person.made,), months=months) as where,
        target(echo) as service,
    ):
        client = person.client(where)
        async with running(client), await client.open(str(service)) as stream:
            await stream.send_all(b"x" * 1_000)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        await where.until(lambda: months.bytes_of("ann") == 2_000)
    assert Months(tmp_path).bytes_of("ann") == 2_000


async def test_a_month_goes_on_under_another_name(tmp_path: Path) -> None:
    """Also what passes until the sessions of the name before have ended."""
    person = Person("month=1GB")
    months = Months(tmp_path)
    months.note("anna", 7)  # of one who was revoked
    async with (
        center(others=(person.made,), months=months) as where,
        target(echo) as service,
    ):
        client, accounts = person.client(where), where.server.accounts
        async with running(client), await client.open(str(service)) as stream:
            await stream.send_all(b"x" * 1_000)
            assert await stream.receive_some()
            accounts.rename("ann", "anna")
            await stream.send_all(b"x" * 1_000)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        await where.until(lambda: months.bytes_of("anna") == 4_000)
        assert months.bytes_of("ann") == 0
        later = accounts.of(replace(person.made, name="anna"))
        assert later.month_bytes == 4_000
    kept = Months(tmp_path)
    assert (kept.bytes_of("ann"), kept.bytes_of("anna")) == (0, 4_000)


async def test_datagrams_above_the_rate_are_dropped_and_the_others_pass() -> None:
    person = Person("datagrams=20/s")
    async with center(others=(person.made,)) as where:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as service:
            await service.bind(("127.0.0.1", 0))
            client = person.client(where)
            async with running(client):
                udp = await client.associate()
                for _ in range(100):
                    udp.send(Address(*service.getsockname()), b"x" * 100)
                got = 0
                with trio.move_on_after(0.5):
                    while True:
                        await service.recv(200)
                        got += 1
                udp.close()
    assert 15 <= got <= 35


async def test_a_session_with_a_rate_leaves_no_cycle_behind() -> None:
    person = Person("rate=100KB/s")
    async with center(others=(person.made,)) as where, target(flood) as service:
        client = person.client(where)
        gc.collect()
        gc.disable()
        try:
            async with running(client):
                stream = await client.open(str(service))
                assert await stream.receive_some()
                (member,) = where.server.clients
                session = weakref.ref(member.session)
                del member
                stream.reset(Code.RESET)
            await where.until(lambda: not where.server.clients)
            await where.until(lambda: session() is None)
        finally:
            gc.enable()


async def test_who_is_no_user_any_more_has_no_account() -> None:
    person = Person("connections=1")
    async with center(others=(person.made,)) as where:
        accounts = where.server.accounts
        async with running(person.client(where)):
            assert "ann" in accounts._accounts
        users = where.server._users
        await where.until(lambda: not accounts._sessions)
        users.replace({name: users[name] for name in users if name != "ann"})
        accounts.of(where.server._users["default"])
        await where.until(lambda: "ann" not in accounts._accounts)
        assert accounts.named("ann").links == 0


async def test_the_servers_default_holds_for_who_has_no_such_limit() -> None:
    person = Person("connections=7")
    accounts = Accounts({}, parse_limits(["connections=3", "visitors=2"]))
    assert accounts.of(person.made).limits.words == ("connections=7", "visitors=2")
    free = replace(person.made, limits=parse_limits([]))
    assert accounts.of(free).limits.words == ("connections=3", "visitors=2")
