"""What a center-client asks for: every type of public name, in the same way."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import Notices, center

from tunnel.addresses import Address
from tunnel.center.backoff import MOST_S, WAITING_MOST_S
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.publisher import ASKED_AGAIN, Publisher
from tunnel.errors import Code, LocalSessionError
from tunnel.proto.frames import MappingAnswer, MappingEntry, MappingOp, MappingType

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream

Asked = tuple[MappingOp, list[MappingEntry]]

OFFERED = (MappingType.TCP, MappingType.UDP, MappingType.EXIT)


class ScriptedSession:
    """Gives every name a place."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    async def ask_mapping(
        self, op: MappingOp, entries: list[MappingEntry]
    ) -> list[MappingAnswer]:
        await trio.lowlevel.checkpoint()
        self.asked.append((op, entries))
        return [MappingAnswer(Code.NORMAL, "", 8080) for _ in entries]


async def nobody(stream: VirtualStream) -> None:
    raise AssertionError(stream)


async def test_a_port_that_was_given_is_asked_for_again_and_a_host_name_as_it_was() -> (
    None
):
    notices, session = Notices(), ScriptedSession()
    publisher = Publisher("server.example", notices)
    port = await publisher.publish(MappingEntry(MappingType.UDP, "", count=2), nobody)
    site = await publisher.publish(MappingEntry(MappingType.HTTP, "", "shop"), nobody)
    assert (port, site) == ("udp-1", "http-2")
    async with trio.open_nursery() as nursery:
        publisher.attach(session, nursery)  # type: ignore[arg-type]
        for resumed in (False, True):
            await publisher.register(resumed=resumed)
        where = Address("server.example", 8080)
        assert publisher.public(port) == publisher.public(site) == where
        assert len(notices.of(MappingReady)) == 2
        await publisher.withdraw(port)
        publisher.detach()
    assert publisher.public(site) is None
    shop = MappingEntry(MappingType.HTTP, site, "shop")
    given = MappingEntry(MappingType.UDP, port, "", 8080, 2)
    assert session.asked == [
        (MappingOp.REPLACE, [MappingEntry(MappingType.UDP, port, count=2), shop]),
        (MappingOp.ADD, [given, shop]),
        (MappingOp.REMOVE, [given]),
    ]


class TakenSession(ScriptedSession):
    """Gives nothing before the so-manieth time."""

    def __init__(self, code: Code, times: int) -> None:
        super().__init__()
        self.code = code
        self.times = times
        self.asked_at: list[float] = []

    async def ask_mapping(
        self, op: MappingOp, entries: list[MappingEntry]
    ) -> list[MappingAnswer]:
        self.asked_at.append(trio.current_time())
        answers = await super().ask_mapping(op, entries)
        if len(self.asked) > self.times:
            return answers
        return [MappingAnswer(self.code, reason="not now") for _ in entries]


@pytest.mark.parametrize("code", ASKED_AGAIN)
@pytest.mark.parametrize("had", [False, True])
async def test_what_somebody_else_has_is_asked_for_until_it_is_free(
    code: Code, had: bool, autojump_clock: object
) -> None:
    del autojump_clock
    notices = Notices()
    publisher = Publisher("server.example", notices)
    name = await publisher.publish(MappingEntry(MappingType.TCP, "", port=80), nobody)
    async with trio.open_nursery() as nursery:
        if had:
            publisher.attach(ScriptedSession(), nursery)  # type: ignore[arg-type]
            await publisher.register(resumed=False)
            publisher.detach()
        session = TakenSession(code, times=12)
        publisher.attach(session, nursery)  # type: ignore[arg-type]
        await publisher.register(resumed=False)
        assert publisher.public(name) is None
    assert publisher.public(name) == Address("server.example", 8080)
    assert len(session.asked) == 13
    assert len(notices.of(MappingRefused)) == 1, "that it goes on is no news"
    longest = max(b - a for a, b in itertools.pairwise(session.asked_at))
    assert longest <= (WAITING_MOST_S if had else MOST_S)
    assert longest >= WAITING_MOST_S / 3


async def test_what_is_forbidden_is_not_asked_for_again(autojump_clock: object) -> None:
    del autojump_clock
    publisher = Publisher("server.example", Notices())
    await publisher.publish(MappingEntry(MappingType.TCP, "", port=80), nobody)
    session = TakenSession(Code.NOT_ALLOWED, times=1)
    async with trio.open_nursery() as nursery:
        publisher.attach(session, nursery)  # type: ignore[arg-type]
        await publisher.register(resumed=False)
    assert len(session.asked) == 1


async def test_nothing_is_asked_for_again_when_the_session_is_over() -> None:
    publisher = Publisher("server.example", Notices())
    await publisher.publish(MappingEntry(MappingType.TCP, "", port=80), nobody)
    session = TakenSession(Code.TAKEN, times=100)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            publisher.attach(session, nursery)  # type: ignore[arg-type]
            await publisher.register(resumed=False)
            publisher.detach()
    assert len(session.asked) == 1


@pytest.mark.parametrize("kind", [k for k in MappingType if k not in OFFERED])
async def test_a_type_that_the_server_does_not_offer_is_refused_by_name(
    kind: MappingType,
) -> None:
    async with center() as where:
        client, notices = where.client()
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            name = await client.publish(MappingEntry(kind, "", "x.example"), nobody)
            (refused,) = notices.of(MappingRefused)
            assert (refused.name, refused.answer.code) == (name, Code.UNSUPPORTED)
            with pytest.raises(LocalSessionError) as raised:
                await client.publisher.listen(MappingEntry(kind, "", "x.example"))
            assert raised.value.code is Code.UNSUPPORTED
            client.stop()
