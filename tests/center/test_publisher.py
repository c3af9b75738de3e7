"""What a center-client asks for: every type of public name, in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.center import Notices, center

from tunnel.center.notices import MappingReady, MappingRefused
from tunnel.center.publisher import Publisher
from tunnel.errors import Code, LocalSessionError
from tunnel.proto.frames import (
    Address,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
)

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
