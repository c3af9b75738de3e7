"""What was wrong in wmproxy, the program whose frame this protocol keeps."""

from __future__ import annotations

import base64
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import frames
from support.center import LOOPBACK, ask, center, echo, raw_login, target
from support.ports import OF_SERVERS
from support.wires import TARGET, Offers, raw_peer, session_pair

from tunnel.addresses import Address
from tunnel.errors import Code, StreamError
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import serve_proxy
from tunnel.link.transport import PlainTransport, send
from tunnel.net.listen import open_listener
from tunnel.proto.frames import MAX_SOCK_MAP, NameTarget, TcpTarget
from tunnel.proto.output import STREAM_QUEUE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.wires import SessionPair

    from tunnel.center.client import CenterClient
    from tunnel.link.virtual import VirtualStream


async def open_one(
    pair: SessionPair, offers: Offers
) -> tuple[VirtualStream, VirtualStream]:
    return await pair.client.open(TARGET), await offers.taken.receive()


async def echo_virtual(stream: VirtualStream) -> None:
    stream.accept()
    await echo(stream)


@asynccontextmanager
async def running(client: CenterClient) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield
        client.stop()


# 1
async def test_no_byte_is_dropped_when_a_stream_has_more_than_its_queue_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    data = bytes(range(256)) * 8_000
    async with session_pair(serve_server=offers) as pair:
        left, right = await open_one(pair, offers)

        async def send() -> None:
            await left.send_all(data)
            await left.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            heard = b""
            while piece := await right.receive_some(10_000):
                heard += piece
                await trio.sleep(1)  # of pretended time: far behind the sender
        assert heard == data


# 2
async def test_a_stalled_stream_stops_neither_the_link_nor_its_neighbours(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with (
        session_pair(serve_server=offers) as pair,
        trio.open_nursery() as nursery,
    ):
        for _ in range(20):
            stalled, _far = await open_one(pair, offers)
            nursery.start_soon(stalled.send_all, bytes(1_000_000))
        await trio.testing.wait_all_tasks_blocked()
        left, right = await open_one(pair, offers)
        for stream, other in ((left, right), (right, left)):
            await stream.send_all(b"through")
            assert await other.receive_some() == b"through"
        assert await pair.client.ping(1) is not None
        nursery.cancel_scope.cancel()


# 3
async def test_what_waits_for_a_slow_link_is_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer(lockstep=True) as peer, trio.open_nursery() as nursery:
        streams = [peer.session.open_now(TARGET) for _ in range(4)]
        for stream in streams:
            nursery.start_soon(stream.send_all, bytes(10_000_000))
        await trio.sleep(5)
        for _ in range(500):
            with trio.move_on_after(0.001):
                await peer.wire.send_all(frames.ping())
            if peer.session.ended:
                break
        # A turn is on its way; each stream holds two chunks and not a byte more.
        unsent = sum(stream.conn.lane.size for stream in streams)
        assert unsent <= 4 * STREAM_QUEUE_BYTES
        nursery.cancel_scope.cancel()


# 4
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_the_tail_arrives_when_the_sender_closes_at_once(
    tls: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = 1_500_000

    async def blurt(stream: trio.SocketStream) -> None:
        await stream.send_all(bytes(size))
        await stream.send_eof()
        async for _ in stream:
            pass

    state = tmp_path_factory.mktemp("state") if tls else None
    async with center(state) as where, target(blurt) as service:
        client, _ = where.client()
        async with running(client):
            (member,) = where.server.clients
            stream = await client.open(TcpTarget(service))
            got = 0
            async for piece in stream:
                got += len(piece)
            await stream.aclose()
            assert got == size
            await where.until(lambda: member.session.core.conns == 0)


# 4
async def test_the_end_of_one_direction_does_not_end_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        left, right = await open_one(pair, offers)
        await left.send_eof()
        assert await right.receive_some() == b""
        for _ in range(3):
            await right.send_all(b"still talking")
            assert await left.receive_some() == b"still talking"


# 5
async def test_a_lost_link_is_a_rst_for_the_visitor_and_never_a_fin() -> None:
    async def half(stream: trio.SocketStream) -> None:
        await stream.send_all(b"half of the ans")
        await trio.sleep_forever()

    async with (
        center(ports=OF_SERVERS, resume_s=0) as where,
        target(half) as service,
        trio.open_nursery() as nursery,
    ):
        client, _ = where.client()
        name = await client.publish_target(Address("", 0), service)
        lost = trio.CancelScope()

        async def run(
            task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            with lost:
                await client.run(task_status=task_status)

        await nursery.start(run)
        public = client.public(name)
        assert public is not None
        async with await trio.open_tcp_stream(public.host, public.port) as visitor:
            assert await visitor.receive_some() == b"half of the ans"
            lost.cancel()  # no goodbye
            with pytest.raises(trio.BrokenResourceError):
                await visitor.receive_some()


# 6
@pytest.mark.parametrize(
    "hostile",
    [
        frames.frame(5, b"x"),
        frames.frame(0x7F, b"x"),
        frames.frame(frames.TOKEN, b"\4root\6secret"),
        frames.frame(frames.CREATE, b"", 0, 1),
        frames.frame(frames.CREATE, b"\0\3\xff", 0, 1),
        frames.frame(frames.MAPPING, b"\1"),
        frames.frame(frames.CLOSE, b"\0", 0, 1),
    ],
    ids=["HELLO", "unknown", "TOKEN", "empty", "short", "MAPPING", "CLOSE"],
)
async def test_no_frame_makes_the_server_fall(
    hostile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with center() as where, target(echo) as service:
        good, _ = where.client()
        async with running(good):
            bad = await raw_login(where, b"b" * 16)
            await send(bad, [hostile])
            said = b""
            while piece := await bad.receive_some():
                said += piece
            await bad.aclose()
            assert said[3] == frames.GO_AWAY
            async with await good.open(TcpTarget(service)) as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "secret" not in caplog.text


# 7
async def test_a_thousand_connections_leave_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_pair(serve_server=echo_virtual) as pair:
        for _ in range(1_000):
            async with await pair.client.open(TARGET) as stream:
                await stream.send_eof()
                assert await stream.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        for session in (pair.client, pair.server):
            core = session.core
            assert session.streams == core.conns == core.offered == 0
            assert len(core._own_opens.unanswered) == core._own_opens.open == 0
            assert not core.pools.held.held_bytes
            assert not core.pools.held._holders


# 7
async def test_an_open_that_nobody_serves_is_answered() -> None:
    async with center() as where:
        client, _ = where.client()
        async with running(client):
            (member,) = where.server.clients
            with pytest.raises(StreamError) as raised:
                await member.session.open(NameTarget("nobody"), deadline_s=5)
            assert raised.value.code is Code.NO_MAPPING
            with pytest.raises(StreamError) as named:
                await client.open(NameTarget("nobody"), deadline_s=5)
            assert named.value.code is Code.UNSUPPORTED


# 7
async def test_numbers_wrap_after_2_to_the_23_and_skip_what_is_in_use(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offers = Offers()
    offers.hold.set()

    async def serve(stream: VirtualStream) -> None:
        stream.accept()
        async for piece in stream:
            await stream.send_all(piece)
        await stream.aclose()

    async with session_pair(serve_server=serve) as pair:
        old = await pair.client.open(TARGET)
        assert old.conn.sock_map == 1
        pair.client.core._own_opens._cursor = MAX_SOCK_MAP - 4 | 1
        numbers: list[int] = []
        for size in range(1, 8):
            async with await pair.client.open(TARGET) as stream:
                numbers.append(stream.conn.sock_map)
                await stream.send_all(bytes(size))
                await stream.send_eof()
                assert await stream.receive_some() == bytes(size)
                assert await stream.receive_some() == b""
            await trio.testing.wait_all_tasks_blocked()
        wrapped = numbers.index(3)
        assert numbers[wrapped - 1] == MAX_SOCK_MAP
        assert 1 not in numbers
        assert all(number % 2 for number in numbers)
        await old.send_all(b"still its own")
        assert await old.receive_some() == b"still its own"


# 8
async def test_a_plain_link_never_shows_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = bytearray()
    real = PlainTransport.write

    def spy(self: PlainTransport, pieces: list[bytes]) -> None:
        shown.extend(b"".join(pieces))
        real(self, pieces)

    monkeypatch.setattr(PlainTransport, "write", spy)
    async with center() as where, target(echo) as service:
        client, _ = where.client()
        await client.publish_target(Address("", 0), service)
        async with running(client):
            await (await client.open(TcpTarget(service))).aclose()
        token = where.join.token.reveal()
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert b"default" in shown
    for form in (
        token.encode(),
        raw,
        raw.hex().encode(),
        base64.b64encode(raw).rstrip(b"="),
    ):
        assert form not in shown


# No heartbeat
async def test_a_peer_that_vanished_is_noticed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with raw_peer() as peer:
        stream = peer.session.open_now(TARGET)
        with trio.fail_after(31), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


# 9
async def socks(client: CenterClient, nursery: trio.Nursery) -> Address:
    listeners = await open_listener(LOOPBACK, 0)
    nursery.start_soon(serve_proxy, listeners, Dialer(client.open))
    return Address(*listeners[0].socket.getsockname())


async def talk(where: Address, *said: bytes) -> bytes:
    """Say each piece when something came for the one before; give the last answer."""
    heard = b""
    async with await trio.open_tcp_stream(where.host, where.port) as app:
        for piece in said:
            await app.send_all(piece)
            heard = bytes(await app.receive_some())
    return heard


def connect_request(to: Address) -> bytes:
    return b"\5\1\0\3\x09127.0.0.1" + to.port.to_bytes(2, "big")


async def test_socks_says_why_a_target_cannot_be_had() -> None:
    async with center() as where:
        async with target(echo) as service:
            pass  # closed again
        client, _ = where.client()
        async with running(client), trio.open_nursery() as nursery:
            proxy = await socks(client, nursery)
            heard = await talk(proxy, b"\5\1\0", connect_request(service))
            assert heard[1] == 5, "connection refused, not a general failure"
            nursery.cancel_scope.cancel()


async def test_socks_lets_in_an_app_that_insists_on_a_password() -> None:
    async with center() as where:
        client, _ = where.client()
        async with running(client), trio.open_nursery() as nursery:
            proxy = await socks(client, nursery)
            login = b"\1\2me\3any"
            heard = await talk(proxy, b"\5\1\2", login)
            assert heard == b"\1\0", "the password is taken"
            nursery.cancel_scope.cancel()


async def test_socks_answers_bind_instead_of_keeping_silent() -> None:
    async with center() as where:
        client, _ = where.client()
        async with running(client), trio.open_nursery() as nursery:
            proxy = await socks(client, nursery)
            bind = b"\5\2\0\1" + bytes(6)
            with trio.fail_after(5):
                heard = await talk(proxy, b"\5\1\0", bind)
            assert heard[1] == 7, "command not supported"
            nursery.cancel_scope.cancel()


async def test_the_socks_dialogue_costs_the_link_no_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with center() as where, target(echo) as service:
        client, _ = where.client()
        async with running(client), trio.open_nursery() as nursery:
            proxy = await socks(client, nursery)
            sent: list[bytes] = []
            real = PlainTransport.write

            def spy(self: PlainTransport, pieces: list[bytes]) -> None:
                sent.extend(filter(None, [b"".join(pieces)]))
                real(self, pieces)

            monkeypatch.setattr(PlainTransport, "write", spy)
            async with await trio.open_tcp_stream(proxy.host, proxy.port) as app:
                await app.send_all(b"\5\1\0")
                assert await app.receive_some() == b"\5\0"
                assert sent == [], "the greeting stays on this machine"
                await app.send_all(connect_request(service))
                assert (await app.receive_some())[1] == 0
                kinds = [message[3] for message in sent]
                assert kinds == [frames.CREATE, frames.CREATE], "one each way"
            nursery.cancel_scope.cancel()


async def test_a_visitor_meets_the_whole_answer_after_a_reset_neighbour() -> None:
    async with center(ports=OF_SERVERS) as where, target(echo) as service:
        client, _ = where.client()
        name = await client.publish_target(Address("", 0), service)
        async with running(client):
            public = client.public(name)
            assert public is not None
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    neighbour = await trio.open_tcp_stream(public.host, public.port)
                    await neighbour.send_all(bytes(10))
                    nursery.start_soon(trio.aclose_forcefully, neighbour)
                assert await ask(public, bytes(200_000)) == bytes(200_000)
