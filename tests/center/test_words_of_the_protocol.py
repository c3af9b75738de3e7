"""What a center-server and a center-client answer to a peer that is another program.

The peer is written by hand: what ``tunnel`` itself never sends is said here.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from support import frames
from support.center import LOOPBACK, Center, center, echo, target
from support.processes import free_port

from tunnel.addresses import Address, UnixPath
from tunnel.center.events import LinkDown
from tunnel.errors import Code, StreamError
from tunnel.link.transport import PlainTransport, dial, prove, send
from tunnel.proto.claims import HandshakeResult, ResumeState
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.frames import (
    CAN_MAP,
    AskTarget,
    BindTarget,
    LinkTarget,
    NameTarget,
    OtherTarget,
    ProtAccept,
    ProtClose,
    ProtFrame,
    ProtGoAway,
    ProtMappingAnswer,
    ProtPing,
    SessionTarget,
    TcpTarget,
    Terms,
    UdpTarget,
)
from tunnel.proto.handshake import ClientHandshake
from tunnel.proto.proofs import PLAIN_BINDING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.proto.frames import Target

ID = b"i" * 16


class ByHand:
    """A client of the test's own, behind its link start."""

    def __init__(self, transport: PlainTransport, result: HandshakeResult) -> None:
        self.transport = transport
        self.result = result
        self.decoder = FrameDecoder()
        self.came: list[ProtFrame] = list(self._take(result.leftover))

    def _take(self, data: bytes) -> list[ProtFrame]:
        return list(self.decoder.feed(data))

    async def say(self, data: bytes) -> None:
        await send(self.transport, [data])

    async def hear(self, kind: type[ProtFrame]) -> ProtFrame:
        """Give the next frame of a kind; the others are dropped."""
        with trio.fail_after(20):
            while True:
                while self.came:
                    frame = self.came.pop(0)
                    if isinstance(frame, kind):
                        return frame
                data = bytes(await self.transport.receive_some())
                assert data, "the link ended"
                self.came += self._take(data)


async def log_in(
    where: Center,
    *,
    behind: bytes = b"",
    terms: Terms | None = None,
    link_no: int = 1,
    resume: ResumeState | None = None,
    resume_s: int = 120,
) -> ByHand:
    transport = PlainTransport(await dial(where.address.host, where.address.port))
    handshake = ClientHandshake(
        "default",
        where.join.token.reveal(),
        terms or Terms(client_id=ID),
        b"n" * 31 + bytes((link_no,)),
        PLAIN_BINDING,
        link_no,
        resume,
        resume_s,
    )
    await send(transport, [handshake.data_to_send()])
    handshake.receive(bytes(await transport.receive_some()))
    await send(transport, [handshake.data_to_send() + behind])
    return ByHand(transport, await prove(transport, handshake))


@asynccontextmanager
async def server(port: int = 0) -> AsyncIterator[Center]:
    port = port or free_port()
    async with center(ports=range(port, port + 1)) as made:
        yield made


async def test_a_ping_right_behind_auth_is_answered_behind_the_answer() -> None:
    async with server() as made:
        peer = await log_in(made, behind=frames.ping(b"too soon"))
        answer = await peer.hear(ProtPing)
        assert answer == ProtPing(b"too soon", ack=True)
        await peer.transport.aclose()


async def test_a_mapping_needs_no_ping_before_it() -> None:
    async with server() as made:
        ask = frames.mapping(1, frames.mapping_entry(1, "web"))
        peer = await log_in(made, behind=ask)
        frame = await peer.hear(ProtMappingAnswer)
        assert isinstance(frame, ProtMappingAnswer)
        assert [one.code for one in frame.answers] == [Code.NORMAL]
        await peer.transport.aclose()


async def test_more_than_a_hundred_entries_are_answered_one_by_one() -> None:
    async with server() as made:
        peer = await log_in(made)
        asked = [frames.mapping_entry(9, str(at)) for at in range(103)]
        await peer.say(frames.mapping(1, *asked))
        frame = await peer.hear(ProtMappingAnswer)
        assert isinstance(frame, ProtMappingAnswer)
        codes = [one.code for one in frame.answers]
        assert codes == [Code.UNSUPPORTED] * 100 + [Code.RESOURCE] * 3
        # The session goes on.
        await peer.say(frames.mapping(1, frames.mapping_entry(9, "x")))
        await peer.hear(ProtMappingAnswer)
        await peer.transport.aclose()


async def test_names_that_are_empty_or_doubled_have_an_answer_each() -> None:
    async with server() as made:
        peer = await log_in(made)
        port = free_port()
        entry = frames.mapping_entry
        await peer.say(
            frames.mapping(
                1,
                entry(1, "", LOOPBACK, port),
                entry(1, "twice", LOOPBACK, port),
                entry(1, "twice", LOOPBACK, free_port()),
            )
        )
        frame = await peer.hear(ProtMappingAnswer)
        assert isinstance(frame, ProtMappingAnswer)
        codes = [one.code for one in frame.answers]
        assert codes == [Code.UNSUPPORTED, Code.NORMAL, Code.NORMAL]
        assert len(made.server.mappings) == 1
        # What came first by that name is free again.
        await peer.say(frames.mapping(1, entry(1, "other", LOOPBACK, port)))
        frame = await peer.hear(ProtMappingAnswer)
        assert isinstance(frame, ProtMappingAnswer)
        assert frame.answers[0].code is Code.NORMAL
        await peer.transport.aclose()


async def test_a_udp_entry_of_who_offers_no_udp_is_unsupported() -> None:
    async with server() as made:
        peer = await log_in(made, terms=Terms(client_id=ID, capabilities=CAN_MAP))
        await peer.say(frames.mapping(1, frames.mapping_entry(4, "dns")))
        frame = await peer.hear(ProtMappingAnswer)
        assert isinstance(frame, ProtMappingAnswer)
        assert frame.answers[0].code is Code.UNSUPPORTED
        await peer.transport.aclose()


async def test_what_a_server_does_not_serve_is_refused_with_the_code_of_the_text() -> (
    None
):
    async with server() as made:
        peer = await log_in(made, terms=made.server.terms)
        create, text = frames.CREATE, frames.text
        asked = {
            1: (frames.create_name(1, "web"), Code.UNSUPPORTED),
            3: (frames.create_udp(3, "web"), Code.UNSUPPORTED),
            5: (frames.frame(create, b"\xc8...", 0, 5), Code.UNSUPPORTED),
            7: (
                frames.frame(create, b"\3" + text("run/app.sock"), 0, 7),
                Code.ADDRESS_UNSUPPORTED,
            ),
            9: (
                frames.frame(create, b"\3" + text("/" + "x" * 107), 0, 9),
                Code.ADDRESS_UNSUPPORTED,
            ),
        }
        for number, (data, code) in asked.items():
            await peer.say(data)
            frame = await peer.hear(ProtClose)
            assert isinstance(frame, ProtClose)
            assert (frame.sock_map, frame.code) == (number, code)
        await peer.transport.aclose()


async def test_a_deadline_of_0_is_none() -> None:
    async with server() as made, target(echo) as where:
        peer = await log_in(made)
        address = frames.ipv4(127, 0, 0, 1, where.port)
        deadline = frames.tlv(2, bytes(4))
        await peer.say(frames.create_tcp(1, address, deadline))
        assert isinstance(await peer.hear(ProtAccept), ProtAccept)
        await peer.transport.aclose()


async def test_a_client_tells_a_type_that_it_never_serves_from_one_it_may_not() -> None:
    async with server() as made, trio.open_nursery() as nursery:
        client, _notices = made.client(ID)
        await nursery.start(client.run)
        here = Address(LOOPBACK, 1)
        asked: dict[Target, Code] = {
            TcpTarget(here): Code.NOT_ALLOWED,
            UnixPath("/run/app.sock"): Code.UNSUPPORTED,
            BindTarget(here): Code.UNSUPPORTED,
            OtherTarget(200, b"what"): Code.UNSUPPORTED,
            SessionTarget(bytes(16), NameTarget("none")): Code.UNSUPPORTED,
            LinkTarget(True): Code.UNSUPPORTED,
            AskTarget(): Code.UNSUPPORTED,
            NameTarget("none", 0): Code.NO_MAPPING,
            UdpTarget("none", 0): Code.NO_MAPPING,
            UdpTarget(): Code.NO_MAPPING,
        }
        (member,) = made.server.clients
        for one, code in asked.items():
            with pytest.raises(StreamError) as caught:
                await member.session.open(one)
            assert caught.value.code is code
        client.stop()


async def test_a_wrong_count_ends_the_old_link_and_begins_a_session_on_the_new() -> (
    None
):
    async with server() as made:
        first = await log_in(made)
        known = first.result
        wrong = ResumeState(known.session_id, 1 << 40, known.resume_secret)
        second = await log_in(made, link_no=2, resume=wrong)
        assert not second.result.resumed
        assert second.result.session_id != known.session_id
        away = await first.hear(ProtGoAway)
        assert isinstance(away, ProtGoAway)
        assert away.code is Code.PROTOCOL
        for peer in (first, second):
            await peer.transport.aclose()


async def test_an_old_link_hears_that_a_newer_one_goes_on() -> None:
    async with server() as made:
        first = await log_in(made)
        known = first.result
        state = ResumeState(known.session_id, 0, known.resume_secret)
        second = await log_in(made, link_no=2, resume=state)
        assert second.result.resumed
        away = await first.hear(ProtGoAway)
        assert isinstance(away, ProtGoAway)
        assert away.code is Code.SUPERSEDED
        assert not await first.transport.receive_some()
        for peer in (first, second):
            await peer.transport.aclose()


async def test_a_later_link_renews_nothing_that_was_said_on_the_first() -> None:
    async with server() as made:
        first = await log_in(made, terms=Terms(client_id=ID, idle_ping_s=9))
        (member,) = made.server.clients
        known = first.result
        state = ResumeState(known.session_id, 0, known.resume_secret)
        later = Terms(
            client_id=b"j" * 16, idle_ping_s=1, max_streams=1, max_frame=20_000
        )
        second = await log_in(made, link_no=2, resume=state, terms=later, resume_s=3)
        assert second.result.resumed
        assert made.server.clients == (member,)
        assert member.client_id == ID
        assert member.session.core.theirs == replace(Terms(client_id=ID), idle_ping_s=9)
        assert member.session.resume_s == 120
        for peer in (first, second):
            await peer.transport.aclose()


async def test_a_client_stays_away_for_as_long_as_a_running_link_said() -> None:
    async with server() as made, trio.open_nursery() as nursery:
        client, notices = made.client(ID)
        await nursery.start(client.run)
        (member,) = made.server.clients
        member.session.core.go_away(Code.INTERNAL, "back in a while", 3)
        member.session.output.wake()
        down = await notices.next(LinkDown)
        assert down.reason.retry_after_s == 3
        assert 3 <= down.retry_s < 5
        client.stop()
