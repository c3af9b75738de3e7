"""What a virtual TCP connection waits for is found at both ends, without its help."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import trio
import trio.testing
from support.wires import TARGET, Offers, open_one, raw_peer, session_pair

from tunnel.errors import Code, LocalLinkError
from tunnel.link import waits
from tunnel.link.looks import MINUTE, Looks, Wait
from tunnel.link.waits import Sampler, Sight, look_at, state_of, wait_of
from tunnel.net.relay import relay
from tunnel.net.sockets import FastSocket
from tunnel.proto.entry_pace import PacedSendWindow
from tunnel.proto.events import DataReceived
from tunnel.proto.pace import Inflow, Meter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest
    from support.wires import SessionPair

    from tunnel.link.session import Session
    from tunnel.link.virtual import VirtualStream


def now(session: Session, stream: VirtualStream) -> Wait:
    return wait_of(stream, Sight(session), stream.looks or Looks(0, 0))


class Joined(NamedTuple):
    """A program at the opener's end, a target at the exit's, and what is between."""

    sessions: SessionPair
    opener: VirtualStream
    exit: VirtualStream
    program: socket.socket
    target: socket.socket

    def look(self) -> tuple[Wait, Wait]:
        """Look at both ends; give what each was found to wait for."""
        for session, stream in (
            (self.sessions.client, self.opener),
            (self.sessions.server, self.exit),
        ):
            look_at(stream, Sight(session))
        ends = self.opener.looks, self.exit.looks
        first, second = (Wait(looks.found[-1]) for looks in ends if looks is not None)
        return first, second


@asynccontextmanager
async def joined() -> AsyncIterator[Joined]:
    offers = Offers()
    program, here = socket.socketpair()
    target, there = socket.socketpair()
    for sock in (program, target):
        sock.setblocking(False)
    with program, target:
        async with session_pair(serve_server=offers) as sessions:
            opener, exit_ = await open_one(sessions, offers)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, FastSocket(here), opener)
                nursery.start_soon(relay, FastSocket(there), exit_)
                await trio.testing.wait_all_tasks_blocked()
                yield Joined(sessions, opener, exit_, program, target)
                nursery.cancel_scope.cancel()


async def say(source: socket.socket, sink: socket.socket) -> None:
    """Have one end say something, and the other hear it."""
    source.send(b"word")
    await trio.lowlevel.wait_readable(sink)
    assert sink.recv(100) == b"word"


async def test_who_has_to_speak_is_known_however_often_both_did() -> None:
    with trio.fail_after(10):
        async with joined() as between:
            _, _, _, program, target = between
            assert between.look() == (Wait.PROGRAM, Wait.PROGRAM)
            for _ in range(3):
                await say(program, target)
                await say(target, program)
                assert between.look() == (Wait.PROGRAM, Wait.PROGRAM)
                assert between.look() == (Wait.PROGRAM, Wait.PROGRAM)
                await say(program, target)
                await say(target, program)
                await say(program, target)
                assert between.look() == (Wait.TARGET, Wait.TARGET)
                assert between.look() == (Wait.TARGET, Wait.TARGET)
                await say(target, program)


async def test_bytes_of_one_direction_are_a_transfer_until_they_end() -> None:
    with trio.fail_after(10):
        async with joined() as between:
            _, _, _, program, target = between
            await say(target, program)
            await say(program, target)
            between.look()
            for _ in range(3):
                await say(program, target)
                # The program sends no more; the exit takes all that it is sent.
                assert between.look() == (Wait.PROGRAM, Wait.NOTHING)
            assert between.look() == (Wait.TARGET, Wait.TARGET)
            for _ in range(3):
                await say(target, program)
                assert between.look() == (Wait.NOTHING, Wait.TARGET)
            assert between.look() == (Wait.PROGRAM, Wait.PROGRAM)


async def test_a_reader_that_is_slow_is_local_at_its_end_and_credit_at_the_other() -> (
    None
):
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        opener, exit_ = await open_one(sessions, offers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opener.send_all, bytes(1_000_000))
            await trio.testing.wait_all_tasks_blocked()
            assert now(sessions.client, opener) is Wait.CREDIT
            assert now(sessions.server, exit_) is Wait.LOCAL
            assert state_of(opener) == "credit"
            nursery.cancel_scope.cancel()


async def test_bytes_for_which_the_wire_has_no_room_wait_for_the_line_or_a_turn() -> (
    None
):
    async with raw_peer(lockstep=True) as peer:
        session = peer.session
        await trio.testing.wait_all_tasks_blocked()
        first = session.open_now(TARGET)
        first.answered = True
        await first.send_all(b"x" * 100_000)
        await trio.testing.wait_all_tasks_blocked()
        # The wire takes nothing that nobody reads.
        await first.send_all(b"x" * 100_000)
        assert now(session, first) is Wait.LINE
        second = session.open_now(TARGET)
        assert now(session, second) is Wait.TARGET
        second.answered = True
        await second.send_all(b"x")
        assert now(session, second) is Wait.TURN
        assert now(session, first) is Wait.TURN


async def test_a_connection_without_an_answer_waits_for_the_target() -> None:
    async with raw_peer() as peer:
        await trio.testing.wait_all_tasks_blocked()
        assert now(peer.session, peer.session.open_now(TARGET)) is Wait.TARGET


async def test_all_connections_wait_for_another_link_when_theirs_is_lost() -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        opener, _ = await open_one(sessions, offers)
        sessions.client.resume_s = 60
        sessions.client.link_lost(LocalLinkError(Code.LINK_LOST, "cut"))
        assert now(sessions.client, opener) is Wait.LINK


async def test_what_a_rate_holds_back_waits_for_the_rate() -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        _, exit_ = await open_one(sessions, offers)
        session, time = sessions.server, 0.0
        inflow = Inflow(Meter(1_000, lambda: time, lambda: None), session.dispatch)
        session.inflow = inflow
        size = 100_000
        inflow.admit([DataReceived(exit_.conn, [bytes(size)], size)])
        assert now(session, exit_) is Wait.RATE
        session.core.lanes.parked.append(exit_.conn.lane)
        session.inflow = None
        exit_.conn.lane.size = 1
        assert now(session, exit_) is Wait.RATE
        session.core.lanes.parked.clear()
        exit_.conn.lane.size = 0
        inflow.forget(exit_.conn)


async def test_what_the_rate_of_an_entry_holds_back_waits_for_it() -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as sessions:
        opener, _ = await open_one(sessions, offers)
        window = opener.conn.send
        opener.conn.send = PacedSendWindow(window.limit, window.taken, window.taken)
        assert now(sessions.client, opener) is Wait.RATE
        opener.conn.send.limit = opener.conn.send.taken
        assert now(sessions.client, opener) is Wait.CREDIT


async def test_of_many_connections_each_has_its_turn_to_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most_at_once = 200
    monkeypatch.setattr(waits, "MOST", most_at_once)
    count = 2 * most_at_once + 10
    async with raw_peer() as peer:
        streams = [peer.session.open_now(TARGET) for _ in range(count)]
        sampler = Sampler(lambda: [peer.session])
        await sampler.look()
        assert sum(stream.looks is not None for stream in streams) == most_at_once
        await sampler.look()
        await sampler.look()
        assert all(stream.looks is not None for stream in streams)
        for _ in range(3 * MINUTE):
            await sampler.look()
        # Those of a minute, as every third look is at one of them.
        most = MINUTE * most_at_once // count
        kept = {len(stream.looks.found) for stream in streams if stream.looks}
        assert kept == {most}
        for stream in streams:
            stream.reset(Code.RESET)
        await sampler.look()


async def test_looks_are_about_a_second_apart_and_not_in_step(
    autojump_clock: trio.testing.MockClock,
) -> None:
    times: list[float] = []

    def sessions() -> list[Session]:
        times.append(trio.current_time())
        return []

    sampler = Sampler(sessions)
    with trio.move_on_after(60.5):
        await sampler.run()
    assert 58 <= len(times) <= 62
    places = sorted(at % 0.5 for at in times)
    gaps = [later - earlier for earlier, later in pairwise(places)]
    assert max(gaps) < 0.1


def test_the_shares_of_a_minute_are_those_of_its_looks() -> None:
    looks = Looks(0, 0)
    assert looks.shares() == {}
    for _ in range(MINUTE):
        looks.add(Wait.LINE, MINUTE)
    for _ in range(MINUTE // 4):
        looks.add(Wait.CREDIT, MINUTE)
    assert looks.shares() == {Wait.LINE: 0.75, Wait.CREDIT: 0.25}
    looks.add(Wait.CREDIT, 4)
    assert looks.shares() == {Wait.CREDIT: 1.0}


def test_connections_that_rest_share_what_is_kept_of_them() -> None:
    both = Looks(0, 0), Looks(0, 0)
    for looks in both:
        for _ in range(2 * MINUTE):
            looks.add(Wait.PROGRAM, MINUTE)
    assert both[0].found is both[1].found
