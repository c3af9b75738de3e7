from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import frames
from support.wires import (
    TARGET,
    Offers,
    open_one,
    raw_peer,
    resumable_session,
    session_pair,
)

from tunnel.addresses import Address
from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalSessionError,
    LocalStreamError,
    RemoteSessionError,
    StreamError,
)
from tunnel.proto.frames import (
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
    ProtMapping,
    Terms,
)
from tunnel.proto.pools import HeldPool, Pools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.link.virtual import VirtualStream

ENTRY = MappingEntry(MappingType.TCP, "web", "", 8080)
ANSWERED = frames.mapping_answers(frames.mapping_answer(0, "0.0.0.0", 8080))
REFUSED = frames.mapping_answers(frames.mapping_answer(0x1B, "", 0, "taken"))


def code_of(error: BaseException) -> Code:
    assert isinstance(error.__cause__, StreamError)
    return error.__cause__.code


# MAPPING -----------------------------------------------------------------------------


async def test_each_entry_gets_its_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[ProtMapping] = []

    async def serve(mapping: ProtMapping) -> list[MappingAnswer]:
        asked.append(mapping)
        return [
            MappingAnswer(Code.NORMAL, "0.0.0.0", 8080),
            MappingAnswer(Code.TAKEN, reason="by another"),
        ]

    async with session_pair() as pair:
        pair.server._serve_mapping = serve
        # The pair's own server has begun with another answerer: ask a new one.
        assert pair.server._nursery is not None
        pair.server._nursery.start_soon(pair.server._mappings.serve, serve)
        first = await pair.client.ask_mapping(MappingOp.ADD, [ENTRY])
        assert first[0].code is Code.NO_MAPPING
        answers = await pair.client.ask_mapping(MappingOp.REPLACE, [ENTRY, ENTRY])
    assert asked == [ProtMapping(MappingOp.REPLACE, [ENTRY, ENTRY])]
    assert [answer.code for answer in answers] == [Code.NORMAL, Code.TAKEN]
    assert answers[1].reason == "by another"


async def test_an_answer_that_was_given_up_is_not_taken_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        with trio.move_on_after(1) as scope:
            await peer.session.ask_mapping(MappingOp.ADD, [ENTRY])
        assert scope.cancelled_caught
        answers: list[MappingAnswer] = []

        async def ask() -> None:
            answers.extend(await peer.session.ask_mapping(MappingOp.ADD, [ENTRY]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await peer.wire.send_all(REFUSED)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            await peer.wire.send_all(ANSWERED)
        assert answers[0].code is Code.NORMAL


async def test_a_mapping_without_an_answer_ends_in_10_s_and_its_answer_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        with pytest.raises(LocalLinkError) as raised:
            await peer.session.ask_mapping(MappingOp.ADD, [ENTRY])
        assert raised.value.code is Code.SILENT
        assert trio.current_time() == 10
        await peer.wire.send_all(REFUSED + ANSWERED[:4])
        await trio.testing.wait_all_tasks_blocked()
        assert peer.reason is None


async def test_questions_are_put_one_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(peer.session.ask_mapping, MappingOp.ADD, [ENTRY])
        for _ in range(20):
            said = await peer.heard()
            assert said[3] == frames.MAPPING
            assert len(said) == 8 + int.from_bytes(said[:3], "big")
            await peer.wire.send_all(ANSWERED)


async def test_the_end_of_the_session_is_the_answer_to_every_question(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        errors: list[Exception] = []

        async def ask() -> None:
            try:
                await peer.session.ask_mapping(MappingOp.ADD, [ENTRY])
            except RemoteSessionError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await peer.wire.send_all(frames.go_away(Code.NORMAL))
        assert len(errors) == 2
        with pytest.raises(RemoteSessionError):
            await peer.session.ask_mapping(MappingOp.ADD, [ENTRY])


async def test_mappings_are_answered_one_at_a_time_and_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(client=False) as peer:
        entries = [
            frames.mapping(
                MappingOp.ADD,
                *[frames.mapping_entry(MappingType.TCP, f"n{i}") for i in range(size)],
            )
            for size in (1, 2, 3)
        ]
        await peer.wire.send_all(b"".join(entries))
        said = await peer.heard()
        counts = []
        while said:
            assert said[3] == frames.MAPPING
            counts.append(int.from_bytes(said[8:10], "big"))
            said = said[8 + int.from_bytes(said[:3], "big") :]
        assert counts == [1, 2, 3]


# What the peer opens -----------------------------------------------------------------


@pytest.mark.parametrize("fault", [ZeroDivisionError, MemoryError, RecursionError])
async def test_a_fault_in_one_service_is_logged_and_ends_that_one_only(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    fault: type[Exception],
) -> None:
    async def serve(stream: VirtualStream) -> None:
        stream.accept()
        if await stream.receive_some() == b"boom":
            raise fault
        await stream.send_all(b"fine")

    async with session_pair(serve_server=serve) as pair:
        bad = await pair.client.open(TARGET)
        good = await pair.client.open(TARGET)
        await bad.send_all(b"boom")
        with pytest.raises(trio.BrokenResourceError) as raised:
            await bad.receive_some()
        assert code_of(raised.value) is Code.INTERNAL
        await good.send_all(b"x")
        assert await good.receive_some() == b"fine"
        assert pair.reasons == {}
    assert fault.__name__ in caplog.text


async def test_a_service_that_returns_without_closing_is_a_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def forget(stream: VirtualStream) -> None:
        stream.accept()
        await stream.send_all(b"half an ans")

    async with session_pair(serve_server=forget) as pair:
        stream = await pair.client.open(TARGET)
        assert await stream.receive_some() == b"half an ans"
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.receive_some()
        assert code_of(raised.value) is Code.RESET


async def test_a_service_may_refuse_with_a_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def refuse(stream: VirtualStream) -> None:
        stream.reset(Code.REFUSED, "nobody\nhome")

    async with session_pair(serve_server=refuse) as pair:
        with pytest.raises(StreamError, match=r"nobody.home") as raised:
            await pair.client.open(TARGET)
        assert raised.value.code is Code.REFUSED
        await trio.testing.wait_all_tasks_blocked()
        assert pair.client.core.conns == pair.server.core.conns == 0
        assert pair.client.streams == 0


async def test_the_client_can_be_opened_from_the_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    visitor = Address("192.0.2.7", 50_000)
    async with session_pair(serve_client=offers) as pair:
        stream = await pair.server.open(TARGET, visitor)
        far = await offers.taken.receive()
        assert far.create is not None
        assert far.create.visitor == visitor
        assert stream.bound is None


async def test_a_close_that_comes_with_its_create_cancels_the_service(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heard: list[Code] = []

    async def serve(stream: VirtualStream) -> None:
        stream.on_closed(heard.append)
        stream.accept()
        await stream.aclose()

    async with raw_peer(serve=serve) as peer:
        create = frames.create_tcp(2, frames.ipv4(1, 2, 3, 4, 5))
        await peer.wire.send_all(create + frames.close(2, Code.RESET))
        assert await peer.heard() == frames.close(2)
        assert heard == [Code.RESET]
        assert peer.session.core.offered == 0


# Opening -----------------------------------------------------------------------------


async def test_an_open_without_an_answer_ends_in_10_s_and_frees_its_number(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        with pytest.raises(LocalStreamError, match="no answer within 10 s") as raised:
            await peer.session.open(TARGET)
        assert raised.value.code is Code.TIMEOUT
        assert trio.current_time() == 10
        assert peer.session.streams == 0
        # Nobody answered the CLOSE either: the number waits for that.
        assert peer.session.core.conns == 1
        await peer.wire.send_all(frames.close(1))
        await trio.testing.wait_all_tasks_blocked()
        assert peer.session.core.conns == 0


async def test_a_cancelled_open_tells_the_peer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        with trio.move_on_after(1):
            await peer.session.open(TARGET)
        said = await peer.heard()
        assert said[3] == frames.CREATE
        assert said.endswith(frames.close(1, Code.RESET))
        assert peer.session.streams == 0


async def test_more_than_max_streams_are_refused_here(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    terms = replace(Terms(), max_streams=3)
    async with session_pair(terms=terms, serve_server=offers) as pair:
        streams = [await pair.client.open(TARGET) for _ in range(3)]
        with pytest.raises(LocalStreamError) as raised:
            await pair.client.open(TARGET)
        assert raised.value.code is Code.RESOURCE
        await streams[0].aclose()
        await (await offers.taken.receive()).aclose()
        await trio.testing.wait_all_tasks_blocked()
        await pair.client.open(TARGET)


async def test_a_stream_may_be_used_before_it_is_open_and_breaks_if_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(b"early")
        await peer.wire.send_all(frames.close(1, Code.NOT_ALLOWED))
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.receive_some()
        assert code_of(raised.value) is Code.NOT_ALLOWED
        with pytest.raises(trio.BrokenResourceError) as again:
            await stream.send_all(b"more")
        assert code_of(again.value) is Code.NOT_ALLOWED


# Memory ------------------------------------------------------------------------------


async def test_when_memory_is_short_the_longest_stalled_reader_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        pair.server.core.pools.held.limit_bytes = 500_000
        senders = [await pair.client.open(TARGET) for _ in range(3)]
        readers = [await offers.taken.receive() for _ in range(3)]
        for sender in senders:  # 3 x 200,000: one too many
            await sender.send_all(bytes(131_072))
            await trio.testing.wait_all_tasks_blocked()
            await sender.send_all(bytes(68_928))
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError) as raised:
            await readers[0].receive_some()
        assert code_of(raised.value) is Code.RESOURCE
        with pytest.raises(trio.BrokenResourceError) as far:
            await senders[0].receive_some()
        assert code_of(far.value) is Code.RESOURCE
        for reader in readers[1:]:
            got = 0
            while got < 200_000:
                got += len(await reader.receive_some())
        assert pair.server.core.pools.held.held_bytes == 0
        assert pair.reasons == {}


async def test_one_sessions_bytes_may_cost_another_sessions_stalled_reader(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pools = Pools(HeldPool(150_000))
    stalled, busy = Offers(), Offers()
    async with (
        session_pair(serve_server=stalled, pools=pools) as one,
        session_pair(serve_server=busy, pools=pools) as two,
    ):
        sender = await one.client.open(TARGET)
        await sender.send_all(bytes(100_000))
        await trio.testing.wait_all_tasks_blocked()
        other = await two.client.open(TARGET)
        await other.send_all(bytes(100_000))
        with pytest.raises(trio.BrokenResourceError) as raised:
            await sender.receive_some()
        assert code_of(raised.value) is Code.RESOURCE
        reader = await busy.taken.receive()
        assert len(await reader.receive_some()) > 0


async def test_a_reader_that_is_given_up_before_its_service_began_is_not_served(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[VirtualStream] = []

    async def serve(stream: VirtualStream) -> None:
        served.append(stream)
        stream.accept()

    async with raw_peer(serve=serve) as peer:
        peer.session.core.pools.held.limit_bytes = 100
        create = frames.create_tcp(2, frames.ipv4(1, 2, 3, 4, 5))
        await peer.wire.send_all(create + frames.data(2, bytes(200)))
        said = await peer.heard()
        assert said[3] == frames.CLOSE
        assert int.from_bytes(said[8:10], "big") == Code.RESOURCE
        await peer.wire.send_all(frames.close(2))
        await trio.testing.wait_all_tasks_blocked()
        assert peer.session.core.conns == peer.session.core.offered == 0
        assert peer.session.streams == 0
    assert served == []
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


# The end -----------------------------------------------------------------------------


async def test_the_first_end_counts_and_what_arrived_stays_to_be_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        await peer.wire.send_all(frames.accept(1) + frames.data(1, b"arrived"))
        await trio.testing.wait_all_tasks_blocked()
        first = LocalSessionError(Code.REVOKED, "first")
        peer.session.end(first)
        peer.session.end(LocalSessionError(Code.CALM, "second"))
        assert peer.session.ended is first
        assert await stream.receive_some() == b"arrived"
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.receive_some()
        # REVOKED is no word for a stream: what it meets is a lost link.
        assert code_of(raised.value) is Code.LINK_LOST
        assert peer.session.streams == peer.session.core.conns == 0
        peer.scope.cancel()


async def test_an_ended_session_opens_and_pings_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        peer.link.close(Code.NORMAL)
        with pytest.raises(LocalStreamError) as raised:
            peer.session.open_now(TARGET)
        assert raised.value.code is Code.LINK_LOST
        assert await peer.session.ping(10) is None
        assert trio.current_time() == 0


async def test_services_have_3_s_to_end_after_the_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended_at: list[float] = []

    async def stubborn(stream: VirtualStream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended_at.append(trio.current_time())

    async with raw_peer(serve=stubborn) as peer:
        await peer.wire.send_all(frames.create_tcp(2, frames.ipv4(1, 2, 3, 4, 5)))
        await trio.testing.wait_all_tasks_blocked()
        await peer.wire.send_all(frames.go_away(Code.NORMAL))
        await peer.session.wait_gone()
    assert ended_at == [3]


async def test_ping_measures_the_round_trip_and_knows_silence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        rtts: list[float | None] = []

        async def ask() -> None:
            rtts.append(await peer.session.ping(5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.25)
            await peer.wire.send_all(frames.ping(ack=True))
        assert rtts == [0.25]
        assert await peer.session.ping(2) is None
        assert trio.current_time() == 2.25


@pytest.mark.parametrize("how", ["the wire", "the session"])
async def test_whoever_waits_hears_of_the_end_at_once(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    heard: list[str] = []

    async with raw_peer() as peer:
        session = peer.session
        session.open_now(TARGET)

        async def wait(what: str, wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            heard.append(what)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "ping", partial(session.ping, 1_000))
            nursery.start_soon(wait, "idle", session.wait_idle)
            nursery.start_soon(wait, "ended", session.wait_ended)
            nursery.start_soon(wait, "gone", session.wait_gone)
            await trio.testing.wait_all_tasks_blocked()
            assert not heard
            if how == "the wire":
                await peer.wire.aclose()
            else:
                session.end(LocalSessionError(Code.GENERAL, "over"))
        assert sorted(heard) == ["ended", "gone", "idle", "ping"]
        assert trio.current_time() == 0


async def test_a_ping_of_a_link_that_is_lost_does_not_wait_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    session = resumable_session()
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)

        async def ask() -> None:
            assert await session.ping(1_000) is None

        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            session.link_lost(LocalLinkError(Code.SILENT, "nobody there"))
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


class Mark:
    """Something to be held by who is watched for being freed."""

    def __call__(self, code: Code) -> None:
        pass


@pytest.mark.parametrize("how", ["closed", "reset", "closed by the peer", "ended"])
async def test_a_session_keeps_nothing_of_a_stream_that_is_over(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        left, right = await open_one(pair, offers)
        mark = Mark()
        kept = weakref.ref(mark)  # a stream has none, but it holds this
        left.on_closed(mark)
        await right.send_all(b"unread")
        await trio.testing.wait_all_tasks_blocked()
        match how:
            case "closed":
                left.close()
            case "reset":
                left.reset(Code.GENERAL)
            case "closed by the peer":
                right.close()
                await trio.testing.wait_all_tasks_blocked()
                assert await left.receive_some() == b"unread"
                left.close()
            case _:
                pair.client.end(LocalSessionError(Code.GENERAL, "over"))
                left.close()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.client.streams == 0
        gc.disable()
        try:
            del left, mark
            assert kept() is None
        finally:
            gc.enable()


async def test_a_normal_end_sends_first_what_closed_streams_have_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(b"all of it")
        await stream.aclose()
        peer.link.close(Code.NORMAL)
        said = await peer.read()
        sent = frames.data(1, b"all of it") + frames.close(1)
        assert said.endswith(sent + frames.go_away(0))


@pytest.mark.parametrize("client", [True, False])
async def test_mappings_and_answers_that_meet_the_end_are_ignored(
    client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_peer(client=client, lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(b"keeps the writer busy")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        if client:
            peer.session.core.ask_mapping(MappingOp.ADD, [ENTRY])
        peer.link.close(Code.NORMAL)
        entry = frames.mapping_entry(MappingType.TCP, "late")
        late = ANSWERED if client else frames.mapping(MappingOp.ADD, entry)
        await peer.wire.send_all(late)
        said = await peer.read()
        assert said.endswith(frames.go_away(0))


async def test_garbage_that_meets_the_end_only_ends_it_sooner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer:
        stream = peer.session.open_now(TARGET)
        await stream.send_all(bytes(100_000))
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        peer.link.close(Code.NORMAL)
        await peer.wire.send_all(frames.frame(0x42))
        await peer.read()
        await trio.sleep(10)
        assert peer.reason is not None
        assert peer.ended_at <= 7


async def test_a_session_that_waits_for_no_other_link_keeps_nothing() -> None:
    async with session_pair() as pair:
        assert pair.client.kept_bytes == pair.server.kept_bytes == 0
