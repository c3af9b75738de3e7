"""Sessions outlive their links: what breaks, who may come back, what is bounded.

A center-server and its clients in one run, over loopback sockets; between them a relay
that loses what it is told to. Where only time matters there is a wire of memory.
"""

from __future__ import annotations

import random
import re
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.center import WAIT_S, Center, Notices, center, echo, target, user
from support.logs import text
from support.lossy import Lossy
from support.processes import free_port
from support.traffic import Traffic

from tunnel.access.join import make_token
from tunnel.access.limits import Limits
from tunnel.addresses import Address
from tunnel.center import backoff
from tunnel.center import sessions as sessions_module
from tunnel.center.events import (
    LinkDown,
    LinkResumed,
    LinkUp,
    MappingReady,
    MappingRefused,
    SessionLost,
)
from tunnel.errors import Code, RemoteLinkError
from tunnel.link.link import Link
from tunnel.link.session import Session
from tunnel.link.transport import PlainTransport, dial, prove, send
from tunnel.proto import limits
from tunnel.proto.claims import ResumeState
from tunnel.proto.frames import NameTarget, Terms
from tunnel.proto.handshake import ClientHandshake
from tunnel.proto.limits import MAX_UNANSWERED_OF_ONE, OPEN_DEADLINE_S
from tunnel.proto.proofs import PLAIN_BINDING
from tunnel.proto.terms import DEFAULT_REPLAY_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.access.join import Secret
    from tunnel.access.users import User
    from tunnel.center.client import CenterClient
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.claims import HandshakeResult

RESET = "reset"
END = "end"

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that dials again after 20 ms: many cuts in little time."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.02)
    monkeypatch.setattr(backoff, "MOST_S", 0.2)


@dataclass
class Net:
    """A center-server, the relay in front of it, and clients that go through it."""

    center: Center
    relay: Lossy
    nursery: trio.Nursery

    async def client(
        self, client_id: bytes | None = None, *, direct: bool = False
    ) -> tuple[CenterClient, Notices]:
        """Start a client; its link is up."""
        port = self.center.address.port if direct else self.relay.port
        client, notices = self.center.client(client_id, port=port)
        await self.nursery.start(client.run)
        return client, notices

    async def lose_link(self, notices: Notices) -> None:
        """Break the link and let no other be made; both ends have noticed."""
        before = len(notices.of(LinkDown))
        self.relay.accepts = False
        self.relay.cut("rst")
        await notices.next(LinkDown, before + 1)
        await self.all_wait()

    async def all_wait(self) -> None:
        """Wait until no session has a link, as the server sees it."""
        members = self.center.server._sessions
        await self.center.until(lambda: all(m.waiting for m in members))


@asynccontextmanager
async def network(
    *,
    resume_s: int = 120,
    idle_ping_s: int = 10,
    others: tuple[User, ...] = (),
) -> AsyncIterator[Net]:
    port = free_port()
    async with (
        center(ports=range(port, port + 1), others=others) as made,
        trio.open_nursery() as nursery,
    ):
        server = made.server
        server.options = replace(server.options, resume_s=resume_s)
        server.terms = replace(server.terms, idle_ping_s=idle_ping_s)
        relay = Lossy(made.address.host, made.address.port)
        await nursery.start(relay.run)
        yield Net(made, relay, nursery)
        nursery.cancel_scope.cancel()


@dataclass
class Watched:
    """An echo service that remembers how its connections ended."""

    ends: list[str] = field(default_factory=list)

    async def __call__(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    await stream.send_all(data)
                self.ends.append(END)
            except trio.BrokenResourceError:
                self.ends.append(RESET)


async def flood(stream: trio.SocketStream) -> None:
    """Send for ever; a reset is its only end."""
    with suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(bytes(65_536))
    await stream.aclose()


async def is_alive(stream: trio.abc.Stream, text: bytes = b"hello") -> bool:
    """Send something to an echo and read it back."""
    with trio.fail_after(WAIT_S):
        await stream.send_all(text)
        got = b""
        while len(got) < len(text):
            data = await stream.receive_some(len(text) - len(got))
            assert data
            got += bytes(data)
    return got == text


async def end_of(stream: trio.abc.Stream) -> str:
    """Read to the end and say which it was."""
    with trio.fail_after(WAIT_S):
        try:
            async for _ in stream:
                pass
        except trio.BrokenResourceError:
            return RESET
        return END


# Cuts -------------------------------------------------------------------------------


async def cut_often(
    net: Net, rng: random.Random, hows: list[str], *, most_bytes: int
) -> None:
    """Cut after random amounts of bytes, inside of link starts too."""
    for how in hows:
        await net.relay.passed(rng.randrange(1, most_bytes))
        net.relay.piece_bytes = rng.choice((0, 0, 1_000))
        net.relay.cut(how)  # type: ignore[arg-type]


async def run_traffic(connections: int, hows: list[str], seed: int) -> None:
    rng = random.Random(seed)
    traffic = Traffic(seed)
    async with (
        network(idle_ping_s=1) as net,
        target(traffic.serve) as where,
        trio.open_nursery() as visitors,
    ):
        client, notices = await net.client()
        await client.publish_target(Address("", 0), where)
        public = (await notices.next(MappingReady)).public
        for index in range(0, connections, 2):
            stream = await trio.open_tcp_stream(public.host, public.port)
            visitors.start_soon(traffic.visit, index, stream)
            virtual = await client.open(str(where))
            visitors.start_soon(traffic.visit, index + 1, virtual)
        with trio.fail_after(5 + len(hows) * 3.5):
            await cut_often(net, rng, hows, most_bytes=400_000)
            await net.relay.passed(200_000)
        traffic.over.set()
        with trio.fail_after(WAIT_S):
            await net.center.until(lambda: client.connections == 0)
            await traffic.settled()  # targets may still read what their kernel has
        assert not notices.of(SessionLost)
        assert notices.of(LinkResumed)
    assert traffic.check(connections) > 0


async def test_connections_survive_many_cuts_at_random_moments() -> None:
    rng = random.Random(11)
    hows = [rng.choice(("rst", "fin", "change")) for _ in range(40)]
    await run_traffic(20, hows, seed=1)


async def test_connections_survive_links_that_die_silently() -> None:
    await run_traffic(6, ["hole"], seed=2)


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3, 7))
async def test_connections_survive_all_kinds_of_cuts(seed: int) -> None:
    rng = random.Random(seed)
    hows = [rng.choice(("rst", "fin", "change")) for _ in range(60)] + ["hole"] * 3
    rng.shuffle(hows)
    await run_traffic(30, hows, seed)


async def test_a_stalled_link_is_not_lost_and_nothing_is_sent_again() -> None:
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        net.relay.stall()
        await stream.send_all(b"held")
        net.relay.go_on()
        assert await stream.receive_some(4) == b"held"
        assert not notices.of(LinkDown)


async def test_a_client_with_another_address_need_not_wait_for_the_old_link() -> None:
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        assert await is_alive(stream)
        net.relay.source = "127.0.0.2"
        net.relay.cut("change")
        await stream.send_all(b"said without a link")
        await notices.next(LinkResumed)
        with trio.fail_after(2):
            assert await stream.receive_some(100) == b"said without a link"
        (member,) = net.center.server._sessions
        assert member.link is not None
        assert member.link.transport.peer.startswith("127.0.0.2:")


async def test_resumption_switched_off_resets_with_the_link() -> None:
    watched = Watched()
    async with network(resume_s=0) as net, target(watched) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        assert await is_alive(stream)
        net.relay.cut("rst")
        assert await end_of(stream) == RESET
        await notices.next(SessionLost)
        await net.center.until(lambda: watched.ends == [RESET])
        await notices.next(LinkUp, 2)
        assert await is_alive(await client.open(str(where)))


# Sessions that cannot go on ---------------------------------------------------------


async def test_after_resume_s_every_connection_ends_with_a_reset() -> None:
    watched = Watched()
    async with network(resume_s=1) as net, target(watched) as where:
        client, notices = await net.client()
        await client.publish_target(Address("", 0), where)
        public = (await notices.next(MappingReady)).public
        streams: list[trio.abc.Stream] = []
        for _ in range(4):
            streams.append(await trio.open_tcp_stream(public.host, public.port))
            streams.append(await client.open(str(where)))
        for stream in streams:
            assert await is_alive(stream)
        await net.lose_link(notices)
        assert [await end_of(stream) for stream in streams] == [RESET] * 8
        await net.center.until(lambda: len(watched.ends) == 8)
        assert watched.ends == [RESET] * 8
        net.relay.accepts = True
        assert await is_alive(await client.open(str(where)))
        assert len(notices.of(SessionLost)) == 1
        for stream in streams:
            await stream.aclose()


async def test_a_restarted_server_begins_anew_and_every_connection_is_reset() -> None:
    watched = Watched()
    token = make_token()
    async with trio.open_nursery() as nursery, target(watched) as where:
        async with center(token=token) as first:
            client, notices = first.client()
            await nursery.start(client.run)
            streams = [await client.open(str(where)) for _ in range(4)]
            for stream in streams:
                assert await is_alive(stream)
        async with center(port=first.address.port, token=token):
            assert [await end_of(stream) for stream in streams] == [RESET] * 4
            assert (await notices.next(SessionLost)).connections == 4
            assert await is_alive(await client.open(str(where)))
            nursery.cancel_scope.cancel()


async def test_a_count_that_cannot_be_ends_the_session_with_resets() -> None:
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        assert await is_alive(stream)
        resume = stolen_state(client)
        liar, result = await log_in(
            net.center, resume=replace(resume, count=1 << 40), link_no=1_000
        )
        assert not result.resumed
        assert await end_of(stream) == RESET
        await notices.next(SessionLost)
        await liar.aclose()


# Who may come back ------------------------------------------------------------------


async def log_in(
    where: Center,
    *,
    token: Secret | None = None,
    name: str = "default",
    client_id: bytes = bytes(16),
    link_no: int = 1,
    resume: ResumeState | None = None,
) -> tuple[PlainTransport, HandshakeResult]:
    """Log in by hand; the wire is the test's from then on."""
    stream = await dial(where.address.host, where.address.port)
    transport = PlainTransport(stream)
    handshake = ClientHandshake(
        name,
        (token or where.join.token).reveal(),
        replace(Terms(), client_id=client_id),
        random.randbytes(32),
        PLAIN_BINDING,
        link_no=link_no,
        resume=resume,
    )
    try:
        return transport, await prove(transport, handshake)
    except BaseException:
        await transport.aclose()
        raise


def stolen_state(client: CenterClient) -> ResumeState:
    held = client._held
    assert held is not None
    received = held.session.core.received
    return ResumeState(held.session_id, received, held.secret)


async def undisturbed(
    net: Net, notices: Notices, stream: trio.abc.Stream, links: int = 1
) -> None:
    assert await is_alive(stream, b"still here")
    assert not notices.of(LinkDown)
    assert net.relay.accepted == links


async def test_another_user_cannot_go_on_with_a_foreign_session() -> None:
    token = make_token()
    other = user(token, "mallory", owner=False)
    async with network(others=(other,)) as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        assert await is_alive(stream)
        # Even with everything that the client knows of its session.
        thief, result = await log_in(
            net.center,
            token=token,
            name="mallory",
            link_no=1_000,
            resume=stolen_state(client),
        )
        assert not result.resumed
        assert result.session_id != stolen_state(client).session_id
        await undisturbed(net, notices, stream)
        await thief.aclose()


async def test_the_same_user_without_the_sessions_secret_cannot_go_on_with_it() -> None:
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        assert await is_alive(stream)
        resume = replace(stolen_state(client), secret=bytes(32))
        thief, result = await log_in(net.center, link_no=1_000, resume=resume)
        assert not result.resumed
        await undisturbed(net, notices, stream)
        await thief.aclose()


async def test_a_replayed_link_start_is_refused() -> None:
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        assert await is_alive(stream)
        transport, result = await log_in(net.center, client_id=b"1" * 16)
        state = ResumeState(result.session_id, 0, result.resume_secret)
        handshake = ClientHandshake(
            "default",
            net.center.join.token.reveal(),
            replace(Terms(), client_id=b"1" * 16),
            bytes(32),
            PLAIN_BINDING,
            link_no=2,
            resume=state,
        )
        wire = PlainTransport(
            await dial(net.center.address.host, net.center.address.port)
        )
        hello = handshake.data_to_send()
        await send(wire, [hello])
        handshake.receive(bytes(await wire.receive_some()))
        auth = handshake.data_to_send()
        await send(wire, [auth])
        handshake.receive(bytes(await wire.receive_some()))
        assert handshake.result is not None
        assert handshake.result.resumed
        replayed = PlainTransport(
            await dial(net.center.address.host, net.center.address.port)
        )
        await send(replayed, [hello, auth])
        said = b""
        while data := await replayed.receive_some():
            said += bytes(data)
        # Its HELLO and a GO_AWAY; no AUTH.
        assert said[-2:] != b""
        assert b"unknown name or wrong proof" in said
        members = {m.session_id: m for m in net.center.server._sessions}
        assert members[result.session_id].link is not None
        await undisturbed(net, notices, stream)
        for each in (transport, wire, replayed):
            await each.aclose()


async def test_a_delayed_older_link_disturbs_nothing() -> None:
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        net.relay.cut("rst")
        await notices.next(LinkResumed)
        downs = len(notices.of(LinkDown))
        assert await is_alive(stream)
        for link_no in (1, client._maker._link_no):
            with pytest.raises(RemoteLinkError) as caught:
                await log_in(net.center, link_no=link_no, resume=stolen_state(client))
            assert caught.value.code is Code.STALE
        assert await is_alive(stream)
        assert len(notices.of(LinkDown)) == downs


# While there is no link -------------------------------------------------------------


async def test_only_so_many_visitors_wait_for_a_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_UNANSWERED_OF_ONE", 20)
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        await client.publish_target(Address("", 0), where)
        public = (await notices.next(MappingReady)).public
        await net.lose_link(notices)
        (member,) = net.center.server._sessions
        waiting = [
            await trio.open_tcp_stream(public.host, public.port) for _ in range(20)
        ]
        await net.center.until(lambda: member.session.streams == 20)
        for stream in waiting:
            await stream.send_all(b"patient")
        refused = await trio.open_tcp_stream(public.host, public.port)
        assert await end_of(refused) == RESET
        await refused.aclose()
        net.relay.accepts = True
        for stream in waiting:
            with trio.fail_after(WAIT_S):
                assert await stream.receive_some(7) == b"patient"
            await stream.aclose()


async def test_what_is_kept_for_another_link_is_bounded() -> None:
    gone = trio.Event()

    async def flood_later(stream: trio.SocketStream) -> None:
        await gone.wait()
        await flood(stream)

    async with network() as net, target(flood_later) as where:
        client, notices = await net.client()
        # Together they may send more than is kept.
        streams = [await client.open(str(where)) for _ in range(80)]
        (member,) = net.center.server._sessions
        net.relay.cut("hole")
        gone.set()
        full = DEFAULT_REPLAY_LIMIT
        await net.center.until(lambda: member.session.kept_bytes >= full)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert member.session.kept_bytes < full + 1_048_576
        assert not notices.of(SessionLost)
        for stream in streams:
            stream.reset(Code.RESET)


async def test_so_many_sessions_of_a_user_wait_and_the_longest_waiting_goes_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with network() as net:
        net.center.server.accounts._defaults = Limits(waiting=8)
        results = []
        for number in range(1, 10):
            own = bytes([number]) * 16
            wire, result = await log_in(net.center, client_id=own)
            results.append((own, result))
            await wire.aclose()
            await net.all_wait()
        resumed, wires = [], []
        for own, result in results:
            state = ResumeState(result.session_id, 0, result.resume_secret)
            wire, again = await log_in(
                net.center, client_id=own, link_no=2, resume=state
            )
            resumed.append(again.resumed)
            wires.append(wire)  # back among those who wait, it would drive out another
        assert text(caplog).count("session.lost") == 1
        lost = r"session\.lost peer=\S+ user=default client=01010101 "
        assert re.search(lost, text(caplog))
        for wire in wires:
            await wire.aclose()
        assert resumed == [False] + [True] * 8


async def test_much_kept_for_waiting_sessions_ends_the_longest_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with network() as net, target(flood) as where:
        first, first_notices = await net.client(b"1" * 16)
        second, second_notices = await net.client(b"2" * 16)
        streams = [await client.open(str(where)) for client in (first, second)]
        members = list(net.center.server._sessions)
        net.relay.accepts = False
        net.relay.cut("hole")
        kept = 200_000
        await net.center.until(
            lambda: all(member.session.kept_bytes > kept for member in members)
        )
        monkeypatch.setattr(sessions_module, "MAX_KEPT_BYTES", 300_000)
        for member in members:
            member.lose_link(Code.LINK_LOST, "for the test")
            await net.center.until(lambda: member.waiting)  # noqa: B023 - waited for here
        assert [member.gone for member in members] == [True, False]
        del first_notices, second_notices
        for stream in streams:
            await stream.aclose()


async def test_the_port_of_a_waiting_session_goes_to_a_living_client_at_once() -> None:
    port = free_port()
    async with network() as net, target(echo) as where:
        away, notices = await net.client(b"1" * 16)
        await away.publish_target(Address("", port), where)
        public = (await notices.next(MappingReady)).public
        inside = await trio.open_tcp_stream(public.host, public.port)
        assert await is_alive(inside)
        await net.lose_link(notices)
        living, others = await net.client(b"2" * 16, direct=True)
        with trio.fail_after(1):
            await living.publish_target(Address("", port), where)
        assert (await others.next(MappingReady)).public == public
        net.relay.accepts = True
        await notices.next(LinkResumed)
        refused = await notices.next(MappingRefused)
        assert refused.answer.code is Code.TAKEN_OVER
        # What ran over the session is its own as before.
        assert await is_alive(inside)
        await inside.aclose()


async def test_a_client_without_a_link_stops_at_once() -> None:
    async with network() as net, target(echo) as where:
        client, notices = await net.client()
        stream = await client.open(str(where))
        await net.lose_link(notices)
        with trio.fail_after(1):
            client.stop()
            assert await end_of(stream) == RESET


# Time, over a wire of memory --------------------------------------------------------


@dataclass
class Pair:
    """Two sessions and the links between them."""

    client: Session
    server: Session
    nursery: trio.Nursery
    ends: deque[trio.testing.MemorySendStream] = field(default_factory=deque)
    links: int = 0

    async def connect(self) -> None:
        """Join the sessions by a link; from the second on they resume."""
        left, right = trio.testing.memory_stream_pair()
        if self.links:
            count = self.client.core.received
            self.client.resume(self.server.core.received)
            self.server.resume(count)
        self.links += 1
        for session, wire in ((self.client, left), (self.server, right)):
            assert isinstance(wire.send_stream, trio.testing.MemorySendStream)
            self.ends.append(wire.send_stream)
            self.nursery.start_soon(self._carry, session, wire)

    async def _carry(self, session: Session, wire: trio.StapledStream) -> None:  # type: ignore[type-arg]
        session.link_lost(await Link(session, PlainTransport(wire)).run())

    async def cut(self) -> None:
        while self.ends:
            self.ends.pop().close()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def sessions(resume_s: float = 120) -> AsyncIterator[Pair]:
    async def serve(stream: VirtualStream) -> None:
        stream.accept()
        await echo(stream)

    async with trio.open_nursery() as nursery:
        make = partial(
            Session,
            ours=Terms(),
            theirs=Terms(),
            serve_offer=serve,
            resume_s=resume_s,
            replay_limit=DEFAULT_REPLAY_LIMIT,
        )
        pair = Pair(make(client=True), make(client=False), nursery)
        await nursery.start(pair.client.run)
        await nursery.start(pair.server.run)
        await pair.connect()
        yield pair
        nursery.cancel_scope.cancel()


async def test_a_visitor_waits_no_longer_for_a_link_than_its_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with sessions() as pair:
        await pair.cut()
        stream = pair.server.open_now(NameTarget("web"))
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert trio.current_time() - began == pytest.approx(OPEN_DEADLINE_S)
        assert pair.server.ended is None


async def test_a_session_waits_exactly_resume_s_and_then_resets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with sessions() as pair:
        stream = await pair.client.open(NameTarget("web"))
        await pair.cut()
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert trio.current_time() - began == pytest.approx(120)
        await pair.server.wait_ended()


async def test_a_session_that_found_a_link_just_in_time_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with sessions() as pair:
        stream = await pair.client.open(NameTarget("web"))
        for _ in range(3):
            await pair.cut()
            await trio.sleep(119)
            await stream.send_all(b"late")
            await pair.connect()
            assert await stream.receive_some() == b"late"
        await stream.aclose()


async def test_visitors_in_vain_do_not_take_the_places_of_later_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with sessions() as pair:
        await pair.cut()
        for _ in range(3):
            for _ in range(MAX_UNANSWERED_OF_ONE):
                pair.server.open_now(NameTarget("web"))
            await trio.sleep(OPEN_DEADLINE_S + 1)
            assert pair.server.streams == 0
        await pair.connect()
        stream = await pair.server.open(NameTarget("web"))
        await stream.aclose()
