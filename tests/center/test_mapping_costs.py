"""What a client asks of the table costs what it names, not what others have."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, cast

import pytest
import trio
from support.center import LOOPBACK, user

from tunnel.access.account import Account
from tunnel.access.join import make_token
from tunnel.access.limits import Limits
from tunnel.center import mappings
from tunnel.center.endpoints import EndpointType, PublicName, TcpPorts
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
    ProtMapping,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.addresses import Address
    from tunnel.center.client_session import ClientSession
    from tunnel.link.virtual import VirtualStream


class Client:
    """A client that is connected and refuses every visitor."""

    gone = waiting = away = False
    client_id = NO_CLIENT_ID

    def __init__(self, nursery: trio.Nursery, limits: Limits | None = None) -> None:
        self.session = self
        self.tallies = Tallies(opened=True)
        self.user = user(make_token())
        self.who = Who(user="default", client="0a0b0c0d")
        self.account = Account(self.user.name, limits)
        self.nursery = nursery

    def open_now(self, target: Target, visitor: Address | None = None) -> VirtualStream:
        raise LocalStreamError(Code.REFUSED, "nobody serves here")

    async def answers(self, timeout_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    def lose_link(self, code: Code, reason: str) -> None:
        raise AssertionError("it answers")


def as_session(client: Client) -> ClientSession:
    """Show it to a table, which looks at no more of a session than it has."""
    return cast("ClientSession", client)


class Counting(set[PublicName]):
    """Names that are taken, and how often somebody asked."""

    asked = 0

    def __contains__(self, key: object) -> bool:
        self.asked += 1
        return super().__contains__(key)


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as made:
        yield made
        made.cancel_scope.cancel()


async def ask(
    table: MappingTable, client: Client, op: MappingOp, *entries: MappingEntry
) -> list[MappingAnswer]:
    return await table.apply(as_session(client), ProtMapping(op, list(entries)))


def leave(name: str) -> MappingEntry:
    return MappingEntry(MappingType.EXIT, name, name)


@pytest.mark.parametrize("count", [1, 2, 500, 999])
def test_each_port_of_a_range_is_looked_at_once_for_a_row(count: int) -> None:
    ports = range(20_000, 21_000)
    taken = Counting(
        PublicName(MappingType.TCP, LOOPBACK, port) for port in ports[::count]
    )
    entry = MappingEntry(MappingType.TCP, "row", "", 0, count)
    assert not list(TcpPorts(LOOPBACK, ports).candidates(entry, taken))
    assert taken.asked <= 2 * len(ports)


async def test_a_row_is_not_tried_again_over_a_port_of_another_program(
    nursery: trio.Nursery, tried: list[int]
) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        middle: int = other.getsockname()[1]
        ports = range(middle - 40, middle + 41)
        table = MappingTable({MappingType.TCP: TcpPorts(LOOPBACK, ports)})
        row = MappingEntry(MappingType.TCP, "row", "", 0, 41)
        (answer,) = await ask(table, Client(nursery), MappingOp.ADD, row)
    assert answer.code is Code.TAKEN
    assert len(tried) <= len(ports)
    assert tried.count(middle) == 1


async def test_a_name_is_withdrawn_without_a_look_at_the_others(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = MappingTable({MappingType.EXIT: EndpointType(MappingType.EXIT)})
    client, crowd = Client(nursery), Client(nursery)
    for at in range(500):
        await ask(table, crowd, MappingOp.ADD, leave(f"x{at}"))
    await ask(table, client, MappingOp.ADD, leave("mine"))

    class Unwalked(dict[PublicName, object]):
        def values(self) -> None:  # type: ignore[override]
            raise AssertionError("walked")

        __iter__ = items = values  # type: ignore[assignment]

    names = table._open
    monkeypatch.setattr(names, "_sites", Unwalked(names._sites))
    answers = await ask(
        table, client, MappingOp.REMOVE, leave("mine"), leave("x1"), leave("mine")
    )
    assert [answer.code for answer in answers] == [
        Code.NORMAL,
        Code.NO_MAPPING,
        Code.NO_MAPPING,
    ]
    assert len(table) == 500
    await ask(table, client, MappingOp.ADD, leave("a"), leave("b"))
    await ask(table, client, MappingOp.REPLACE, leave("b"))
    assert len(table) == 501
    table.drop(as_session(crowd))
    assert len(table) == 1
    table.drop(as_session(client))
    assert not table._by_owner
    assert len(table) == 0


async def test_a_name_that_is_asked_for_elsewhere_leaves_where_it_was(
    nursery: trio.Nursery,
) -> None:
    table, client = (
        MappingTable({MappingType.EXIT: EndpointType(MappingType.EXIT)}),
        Client(nursery),
    )
    for host in ("here", "there"):
        entry = MappingEntry(MappingType.EXIT, "one", host)
        (answer,) = await ask(table, client, MappingOp.ADD, entry)
        assert answer.code is Code.NORMAL
    assert len(table) == 1
    assert table.owner(PublicName(MappingType.EXIT, "here")) is None
    assert table.owner(PublicName(MappingType.EXIT, "there")) is as_session(client)


async def test_neither_a_user_nor_all_of_them_have_names_without_end(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "MAX_NAMES", 5)
    table = MappingTable({MappingType.EXIT: EndpointType(MappingType.EXIT)})
    first, second = Client(nursery, Limits(names=3)), Client(nursery)
    names = [leave(str(at)) for at in range(4)]
    codes = [a.code for a in await ask(table, first, MappingOp.ADD, *names)]
    assert codes == [Code.NORMAL] * 3 + [Code.RESOURCE]
    others = [leave(f"o{at}") for at in range(3)]
    codes = [a.code for a in await ask(table, second, MappingOp.ADD, *others)]
    assert codes == [Code.NORMAL] * 2 + [Code.RESOURCE]
    (answer,) = await ask(table, first, MappingOp.ADD, names[0])  # it has that
    assert answer.code is Code.NORMAL


async def test_others_run_between_the_entries_of_one_question(
    nursery: trio.Nursery,
) -> None:
    table, client = MappingTable({}), Client(nursery)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(count)
    await ask(table, client, MappingOp.ADD, *(leave(str(at)) for at in range(100)))
    assert turns >= 99
