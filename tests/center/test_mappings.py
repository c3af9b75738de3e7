from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
import trio
from support.center import LOOPBACK, user

from tunnel.access.account import Account
from tunnel.access.join import make_token
from tunnel.addresses import Address
from tunnel.center import mappings as mappings_module
from tunnel.center.endpoints import (
    NOTHING,
    Endpoint,
    EndpointType,
    Had,
    HostNames,
    PublicName,
    TcpPorts,
)
from tunnel.center.mappings import MappingTable
from tunnel.center.sessions import NO_CLIENT_ID
from tunnel.center.who import Who
from tunnel.errors import Code, LocalStreamError
from tunnel.link.tally import Tallies
from tunnel.proto.frames import (
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
    NameTarget,
    ProtMapping,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Container, Iterator

    from tunnel.center.client_session import ClientSession
    from tunnel.link.virtual import VirtualStream


class Client:
    """A client that is connected; visitors who come to it are refused and noted."""

    def __init__(
        self, nursery: trio.Nursery, name: str = "default", *, owner: bool = True
    ) -> None:
        self.user = user(make_token(), name, owner=owner)
        self.user_name = name
        self.account = Account(name)
        self.nursery = nursery
        self.client_id = os.urandom(16)
        self.who = Who(user=name, client="0a0b0c0d")
        self.session = self
        self.tallies = Tallies(opened=True)
        self.gone = False
        self.waiting = False
        self.takes_udp = True
        self.alive = True
        self.visitors: list[tuple[Target, Address | None]] = []
        self.dismissed: list[Code] = []
        self.asked: list[float] = []
        self.visited = trio.Event()

    def open_now(self, target: Target, visitor: Address | None = None) -> VirtualStream:
        self.visitors.append((target, visitor))
        self.visited.set()
        raise LocalStreamError(Code.REFUSED, "nobody serves here")

    async def answers(self, timeout_s: float) -> bool:
        self.asked.append(timeout_s)
        await trio.lowlevel.checkpoint()
        return self.alive

    def lose_link(self, code: Code, reason: str) -> None:
        self.dismissed.append(code)
        self.waiting = True


def as_session(client: Client) -> ClientSession:
    """Show it to a table, which looks at no more of a session than it has."""
    return cast("ClientSession", client)


def entry(name: str = "web", port: int = 0, host: str = "") -> MappingEntry:
    return MappingEntry(MappingType.TCP, name, host, port)


def table_of(ports: range) -> MappingTable:
    return MappingTable({MappingType.TCP: TcpPorts(LOOPBACK, ports)})


async def add(
    table: MappingTable, client: Client, *entries: MappingEntry
) -> list[MappingAnswer]:
    wanted = ProtMapping(MappingOp.ADD, list(entries))
    return await table.apply(as_session(client), wanted)


@asynccontextmanager
async def clients() -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()


async def visit(address: Address) -> None:
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_mapping_opens_its_port_and_names_its_visitors(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        (answer,) = await add(table, client, entry(port=ports[1]))
        assert answer == MappingAnswer(Code.NORMAL, LOOPBACK, ports[1])
        await visit(Address(LOOPBACK, ports[1]))
        ((target, visitor),) = client.visitors
        assert target == NameTarget("web")
        assert visitor is not None
        assert visitor.host == LOOPBACK


async def test_port_0_takes_the_first_that_is_free(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        with socket.create_server((LOOPBACK, ports[0])):  # somebody else's
            answers = await add(table, client, *[entry(f"n{i}") for i in range(3)])
        assert [answer.port for answer in answers] == [ports[1], ports[2], 0]
        assert answers[2].code is Code.TAKEN
        assert answers[2].reason
        assert len(table) == 2


async def test_a_client_that_comes_again_gets_the_port_it_had(ports: range) -> None:
    async with clients() as nursery:
        first, other, table = Client(nursery), Client(nursery), table_of(ports)
        (before,) = await add(table, other, entry())
        (had,) = await add(table, first, entry())
        for client in (other, first):
            table.drop(as_session(client))
        again, newcomer = Client(nursery), Client(nursery)
        again.client_id = first.client_id
        (answer,) = await add(table, again, entry())
        assert (before.port, had.port, answer.port) == (ports[0], ports[1], ports[1])
        table.drop(as_session(again))
        # Who asked later for a port by its number, or found it free, keeps it.
        await add(table, newcomer, entry(port=ports[1]))
        (answer,) = await add(table, again, entry())
        assert answer.port == ports[0]


async def test_clients_without_an_id_have_no_port_kept(ports: range) -> None:
    async with clients() as nursery:
        table = table_of(ports)
        first, second = Client(nursery), Client(nursery)
        first.client_id = second.client_id = NO_CLIENT_ID
        await add(table, first, entry("a"), entry("b"))
        table.drop(as_session(first))
        (answer,) = await add(table, second, entry("b"))
        assert answer.port == ports[0]


async def test_each_entry_is_answered_for_itself(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        with socket.create_server((LOOPBACK, ports[0])):
            answers = await add(
                table,
                client,
                entry("taken", ports[0]),
                entry("elsewhere", 80, "192.0.2.1"),
                MappingEntry(MappingType.UDP, "other", "", ports[1]),
                entry("good", ports[2]),
            )
        assert [answer.code for answer in answers] == [
            Code.TAKEN,
            Code.TAKEN,
            Code.UNSUPPORTED,
            Code.NORMAL,
        ]
        assert str(ports[0]) in answers[0].reason


async def test_without_a_right_nothing_is_opened(ports: range) -> None:
    async with clients() as nursery:
        guest = Client(nursery, "guest", owner=False)
        table = table_of(ports)
        (answer,) = await add(table, guest, entry())
        assert answer.code is Code.NOT_ALLOWED
        assert len(table) == 0


async def test_a_removed_mapping_is_closed_and_its_port_free(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        await add(table, client, entry(port=ports[0]))
        remove = ProtMapping(MappingOp.REMOVE, [entry(), entry("unknown")])
        answers = await table.apply(as_session(client), remove)
        assert [answer.code for answer in answers] == [Code.NORMAL, Code.NO_MAPPING]
        socket.create_server((LOOPBACK, ports[0])).close()


async def test_nobody_removes_what_is_not_its_own(ports: range) -> None:
    async with clients() as nursery:
        owner, other = Client(nursery), Client(nursery)
        table = table_of(ports)
        await add(table, owner, entry(port=ports[0]))
        remove = ProtMapping(MappingOp.REMOVE, [entry()])
        (answer,) = await table.apply(as_session(other), remove)
        assert answer.code is Code.NO_MAPPING
        assert len(table) == 1


async def test_replace_closes_what_is_not_named_and_keeps_the_rest(
    ports: range,
) -> None:
    async with clients() as nursery:
        client, other = Client(nursery), Client(nursery)
        table = table_of(ports)
        await add(table, other, entry("theirs", ports[2]))
        await add(table, client, entry("a", ports[0]), entry("b", ports[1]))
        answers = await table.apply(
            as_session(client), ProtMapping(MappingOp.REPLACE, [entry("b", ports[1])])
        )
        assert answers == [MappingAnswer(Code.NORMAL, LOOPBACK, ports[1])]
        assert len(table) == 2
        await visit(Address(LOOPBACK, ports[1]))
        await visit(Address(LOOPBACK, ports[2]))


async def test_asking_again_for_ones_own_port_is_fine(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        for _ in range(3):
            (answer,) = await add(table, client, entry(port=ports[0]))
            assert answer.code is Code.NORMAL
        assert client.asked == []
        assert len(table) == 1


@pytest.mark.parametrize("has_id", [True, False])
async def test_who_has_all_ports_may_add_one_of_them_again(
    ports: range, has_id: bool
) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        client.client_id = os.urandom(16) if has_id else NO_CLIENT_ID
        wanted = [entry(f"e{port}") for port in ports]
        given = await add(table, client, *wanted)
        assert await add(table, client, *reversed(wanted)) == given[::-1]
        # Its own is free for it too where something else is asked for by its name.
        (other,) = await add(table, client, replace(wanted[1], host=LOOPBACK))
        assert other == given[1]
        (more,) = await add(table, client, entry("more"))
        assert more.code is Code.TAKEN
        await visit(Address(LOOPBACK, ports[1]))
        assert client.visitors[-1][0] == NameTarget(wanted[1].name)


async def test_what_is_added_again_stays_where_it_is(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        client.client_id = NO_CLIENT_ID
        await add(table, client, entry("first"))
        (given,) = await add(table, client, entry("second"))
        await table.apply(
            as_session(client), ProtMapping(MappingOp.REMOVE, [entry("first")])
        )
        assert await add(table, client, entry("second")) == [given]


async def test_an_owner_that_answers_keeps_its_port(ports: range) -> None:
    async with clients() as nursery:
        owner, other = Client(nursery), Client(nursery)
        table = table_of(ports)
        await add(table, owner, entry(port=ports[0]))
        (answer,) = await add(table, other, entry(port=ports[0]))
        assert answer.code is Code.TAKEN
        assert owner.asked == [mappings_module.SILENT_OWNER_S] == [2.0]
        assert owner.dismissed == []


async def test_a_silent_owner_loses_all_its_ports_to_one_question(ports: range) -> None:
    async with clients() as nursery:
        owner, other = Client(nursery), Client(nursery)
        table = table_of(ports)
        both = entry("a", ports[0]), entry("b", ports[1])
        await add(table, owner, *both)
        owner.alive = False
        answers = await add(table, other, *both)
        assert [answer.code for answer in answers] == [Code.NORMAL, Code.NORMAL]
        assert owner.dismissed == [Code.SILENT]
        assert len(owner.asked) == 1
        await visit(Address(LOOPBACK, ports[1]))
        assert len(other.visitors) == 1


@pytest.mark.parametrize("silent", [False, True])
async def test_who_lost_a_port_hears_taken_over_and_never_takes_it_back(
    silent: bool, ports: range
) -> None:
    async with clients() as nursery:
        loser, winner = Client(nursery), Client(nursery)
        table = table_of(ports)
        both = entry("a", ports[0]), entry("b", ports[1])
        await add(table, loser, *both)
        if silent:
            loser.alive = False
        else:
            loser.waiting = True
        await add(table, winner, *both)
        loser.alive, loser.waiting = True, False
        answers = await add(table, loser, *both)
        assert [answer.code for answer in answers] == [Code.TAKEN_OVER] * 2
        # Nor when the winner is away: they would go on like that for ever.
        winner.waiting = True
        (answer,) = await add(table, loser, both[1])
        assert answer.code is Code.TAKEN_OVER
        # A third may have it, as from anybody; and free it is everybody's.
        third = Client(nursery)
        (answer,) = await add(table, third, both[1])
        assert answer.code is Code.NORMAL
        table.drop(as_session(third))
        (answer,) = await add(table, loser, both[1])
        assert answer.code is Code.NORMAL
        (answer,) = await add(table, winner, both[1])
        assert answer.code is Code.TAKEN_OVER


async def test_another_users_port_is_not_even_asked_for(ports: range) -> None:
    async with clients() as nursery:
        owner, other = Client(nursery), Client(nursery, "other")
        owner.alive = False
        table = table_of(ports)
        await add(table, owner, entry(port=ports[0]))
        (answer,) = await add(table, other, entry(port=ports[0]))
        assert answer.code is Code.TAKEN
        assert owner.asked == owner.dismissed == []


async def test_a_client_that_left_while_it_waited_gets_no_port(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        client.gone = True
        (answer,) = await add(table, client, entry(port=ports[0]))
        assert answer.code is Code.NO_MAPPING
        assert len(table) == 0
        socket.create_server((LOOPBACK, ports[0])).close()


async def test_a_dropped_clients_ports_are_free_at_once(ports: range) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        await add(table, client, entry("a", ports[0]), entry("b", ports[1]))
        table.drop(as_session(client))
        assert len(table) == 0
        for port in ports[:2]:
            socket.create_server((LOOPBACK, port)).close()


async def test_a_host_that_cannot_be_had_is_tried_once_and_not_for_every_port(
    ports: range, tried: list[int]
) -> None:
    async with clients() as nursery:
        client, table = Client(nursery), table_of(ports)
        (answer,) = await add(table, client, entry(host="192.0.2.1"))
        assert answer.code is not Code.NORMAL
        assert "192.0.2.1" in answer.reason
        assert len(tried) == 1


class Names(EndpointType):
    """A kind that opens nothing: names, and so many of them as the entry counts."""

    max_count = 3
    none_left = "none"

    def __init__(self) -> None:
        super().__init__(MappingType.HTTP)
        self.open_now: set[PublicName] = set()

    def host(self, entry: MappingEntry) -> str:
        return f"{entry.host}.example"

    def candidates(
        self, entry: MappingEntry, taken: Container[PublicName]
    ) -> Iterator[tuple[PublicName, ...]]:
        first = entry.port
        yield tuple(
            PublicName(MappingType.HTTP, self.host(entry), first + place)
            for place in range(entry.count)
        )

    async def open(self, names: tuple[PublicName, ...], had: Had = NOTHING) -> Endpoint:
        await trio.lowlevel.checkpoint()
        assert self.open_now.isdisjoint(names)
        assert not had
        return OpenNames(self.open_now, names)


class OpenNames(Endpoint):
    def __init__(self, open_now: set[PublicName], keys: tuple[PublicName, ...]) -> None:
        super().__init__(Address(keys[0].host, 80))
        self._open_now, self._keys = open_now, keys
        open_now.update(keys)

    def close(self) -> None:
        self._open_now.difference_update(self._keys)
        super().close()


async def test_the_rules_are_the_same_for_names_and_for_many_keys_at_once() -> None:
    kind = Names()
    kinds: dict[int, EndpointType] = {MappingType.HTTP: kind}
    table = MappingTable(kinds)

    def shop(first: int, count: int, name: str = "shop") -> MappingEntry:
        return MappingEntry(MappingType.HTTP, name, "shop", first, count)

    async with clients() as nursery:
        owner, other = Client(nursery), Client(nursery)
        for _ in range(2):
            (answer,) = await add(table, owner, shop(1, 3))
            assert answer == MappingAnswer(Code.NORMAL, "shop.example", 80)
        assert len(table) == 1
        answers = await add(table, other, shop(3, 2), shop(4, 4), entry())
        assert [answer.code for answer in answers] == [
            Code.TAKEN,
            Code.UNSUPPORTED,
            Code.UNSUPPORTED,
        ]
        (answer,) = await add(table, owner, shop(3, 2, "other"))  # overlaps its own
        assert answer.code is Code.NORMAL
        assert {key.port for key in kind.open_now} == {3, 4}
        owner.waiting = True
        (answer,) = await add(table, other, shop(4, 1))
        assert answer.code is Code.NORMAL
        assert {key.port for key in kind.open_now} == {4}
        table.drop(as_session(other))
        assert not kind.open_now
        assert len(table) == 0


async def test_of_two_that_ask_for_a_name_at_the_same_moment_one_has_it() -> None:
    host = HostNames(MappingType.HTTP, 80, None)
    table = MappingTable({MappingType.HTTP: host})
    wanted = MappingEntry(MappingType.HTTP, "web", "a.test")
    answers: list[MappingAnswer] = []

    async def ask(client: Client) -> None:
        answers.extend(await add(table, client, wanted))

    async with clients() as nursery:
        both = Client(nursery), Client(nursery)
        async with trio.open_nursery() as asking:
            for client in both:
                asking.start_soon(ask, client)
        assert [answer.code for answer in answers] == [Code.NORMAL, Code.TAKEN]
        for client in both:
            table.drop(as_session(client))
        assert len(table) == 0
