"""Mappings and connections of a client and a server that have met."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support import frames
from support.center import (
    ask,
    center,
    echo,
    failure_of,
    port_of,
    raw_login,
    running,
    target,
    user,
)
from support.logs import lines

import tunnel
from tunnel.access.join import make_token
from tunnel.addresses import Address
from tunnel.center import client as client_module
from tunnel.center.events import (
    LinkDown,
    LinkUp,
    MappingReady,
    MappingRefused,
    SessionLost,
)
from tunnel.errors import (
    Code,
    Exit,
    LinkError,
    LocalSessionError,
    SessionError,
    StreamError,
)
from tunnel.link.transport import send
from tunnel.proto.frames import MappingType, NameTarget, TcpTarget

if TYPE_CHECKING:
    from pathlib import Path


FREE = Address("", 0)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_a_published_service_and_a_reached_one_answer(
    tls: bool, tmp_path: Path, free_ports: range
) -> None:
    async with (
        center(tmp_path if tls else None, ports=free_ports) as where,
        target(echo) as service,
    ):
        client, notices = where.client()
        name = await client.publish_target(FREE, service)
        async with running(client):
            assert client.public(name) == port_of(free_ports)
            up = notices.of(LinkUp)[0]
            assert (up.encrypted, up.pinned) == (tls, tls)
            assert up.rtt_s < 5
            data = hashlib.shake_128(b"x").digest(1_000_000)
            assert await ask(port_of(free_ports), data) == data
            async with await client.open(str(service)) as stream:
                await stream.send_all(b"ping")
                await stream.send_eof()
                assert await stream.receive_some() == b"ping"
                assert await stream.receive_some() == b""
            await where.until(lambda: client.connections == 0)
            sent, received = client.traffic
            assert sent == received == 1_000_004


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_the_library_does_what_its_page_says(
    tls: bool, tmp_path: Path, free_ports: range
) -> None:
    async with (
        center(tmp_path if tls else None, ports=free_ports) as where,
        target(echo) as service,
        tunnel.connect(where.join.render()) as session,
    ):
        async with await session.open(f"{service.host}:{service.port}") as stream:
            await stream.send_all(b"ping")
            assert await stream.receive_some() == b"ping"
        listener = await session.listen()
        assert listener.public == port_of(free_ports)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            for size in (1, 100_000):
                assert await ask(listener.public, bytes(size)) == bytes(size)
            nursery.cancel_scope.cancel()


async def test_bytes_sent_just_before_the_program_ends_arrive() -> None:
    heard: list[bytes] = []

    async def keep(stream: trio.SocketStream) -> None:
        data = b""
        try:
            async for piece in stream:
                data += piece
        finally:
            heard.append(data)

    async with center() as where, target(keep) as service:
        async with tunnel.connect(where.join.render()) as session:
            stream = await session.open(str(service))
            await stream.send_all(bytes(100_000))
            await stream.aclose()
        await where.until(lambda: bool(heard))
    assert heard == [bytes(100_000)]


async def test_a_visitor_of_an_unreachable_target_gets_a_rst(
    free_ports: range,
) -> None:
    async with center(ports=free_ports) as where:
        client, _ = where.client()
        async with target(echo) as service:
            pass
        await client.publish_target(FREE, service)
        async with running(client):
            with pytest.raises(trio.BrokenResourceError):
                await ask(port_of(free_ports))
            with pytest.raises(StreamError) as raised:
                await client.open(TcpTarget(service))
            assert raised.value.code is Code.REFUSED


async def test_a_closed_listener_gives_its_port_back_and_refuses_who_waits(
    free_ports: range,
) -> None:
    async with (
        center(ports=free_ports) as where,
        tunnel.connect(where.join.render()) as session,
    ):
        listener = await session.listen("*:0")
        async with await trio.open_tcp_stream(*_pair(listener.public)) as visitor:
            await where.until(lambda: session.connections == 1)
            await listener.aclose()
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await visitor.receive_some()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*_pair(listener.public))
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        again = await session.listen()
        assert again.public == listener.public
        await again.aclose()


def _pair(address: Address) -> tuple[str, int]:
    return address.host, address.port


async def test_a_cancelled_close_gives_the_port_back_too(free_ports: range) -> None:
    async with (
        center(ports=free_ports) as where,
        tunnel.connect(where.join.render()) as session,
    ):
        listener = await session.listen()
        await trio.aclose_forcefully(listener)
        await where.until(lambda: len(where.server.mappings) == 0)
        async with await session.listen():
            pass


async def test_a_cancelled_listen_leaves_nothing_behind(free_ports: range) -> None:
    async with (
        center(ports=free_ports) as where,
        tunnel.connect(where.join.render()) as session,
    ):
        with trio.CancelScope() as scope:
            scope.cancel()
            await session.listen()
        assert len(session.publisher._mappings) == 0
        async with await session.listen():
            pass


async def test_a_refused_listen_says_why(free_ports: range) -> None:
    weak = make_token()
    guest = user(weak, "guest", owner=False)
    async with center(ports=free_ports, others=(guest,)) as where:
        join = replace(where.join, name="guest", token=weak).render()
        async with tunnel.connect(join) as session:
            with pytest.raises(LocalSessionError) as raised:
                await session.listen()
            assert raised.value.code is Code.NOT_ALLOWED
            with pytest.raises(StreamError) as reached:
                await session.open("127.0.0.1:80")
            assert reached.value.code is Code.NOT_ALLOWED


async def test_closing_a_listener_after_its_session_raises_nothing(
    free_ports: range,
) -> None:
    async with center(ports=free_ports) as where:
        async with tunnel.connect(where.join.render()) as session:
            listener = await session.listen()
        await listener.aclose()


async def test_a_refused_entry_does_not_disturb_the_others(free_ports: range) -> None:
    async with center(ports=free_ports) as where, target(echo) as service:
        client, notices = where.client()
        taken = await client.publish_target(service, service)
        elsewhere = await client.publish_target(Address("192.0.2.1", 1), service)
        good = await client.publish_target(FREE, service)
        async with running(client):
            assert client.public(taken) is None
            assert client.public(elsewhere) is None
            assert client.public(good) == port_of(free_ports)
            refused = notices.of(MappingRefused)
            assert [notice.name for notice in refused] == [taken, elsewhere]
            assert "in use" in refused[0].answer.reason
            assert await ask(port_of(free_ports)) == b"hello"


async def test_a_withdrawn_port_is_closed_and_visitors_inside_stay(
    free_ports: range,
) -> None:
    async with center() as where, target(echo) as service:
        client, _ = where.client()
        name = await client.publish_target(port_of(free_ports), service)
        async with (
            running(client),
            await trio.open_tcp_stream(*_pair(port_of(free_ports))) as visitor,
        ):
            await visitor.send_all(b"one")
            assert await visitor.receive_some() == b"one"
            await client.withdraw(name)
            assert client.public(name) is None
            with pytest.raises(OSError, match="all attempts to connect"):
                await ask(port_of(free_ports))
            await visitor.send_all(b"two")
            assert await visitor.receive_some() == b"two"


async def test_a_client_serves_only_names_that_it_registered() -> None:
    async with center() as where, target(echo) as service:
        client, _ = where.client()
        async with running(client):
            (member,) = where.server.clients
            for asked, code in (
                (NameTarget("tcp-1"), Code.NO_MAPPING),
                (TcpTarget(service), Code.NOT_ALLOWED),
            ):
                with pytest.raises(StreamError) as raised:
                    await member.session.open(asked)
                assert raised.value.code is code


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_the_client_is_back_on_the_same_port_after_a_new_server(
    tls: bool, tmp_path: Path, free_ports: range
) -> None:
    state = tmp_path if tls else None
    async with target(echo) as service, trio.open_nursery() as nursery:
        async with center(state, ports=free_ports) as where:
            client, notices = where.client()
            name = await client.publish_target(FREE, service)
            await nursery.start(client.run)
            token, port = where.join.token, where.address.port
        down = await notices.next(LinkDown)
        assert down.was_up
        async with center(state, port=port, token=token, ports=free_ports):
            await notices.next(LinkUp, 2)
            ready = await notices.next(MappingReady, 2)
            assert ready.public == client.public(name) == port_of(free_ports)
            assert await ask(port_of(free_ports)) == b"hello"
            client.stop()


async def test_a_lost_link_resets_what_runs_and_open_waits_for_the_next(
    free_ports: range, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(echo) as service, trio.open_nursery() as runner:
        async with center(resume_s=0) as where:
            client, notices = where.client()
            await runner.start(client.run)
            stream = await client.open(TcpTarget(service))
            token, port = where.join.token, where.address.port
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.receive_some()
        assert isinstance(raised.value.__cause__, StreamError)
        assert raised.value.__cause__.code is Code.LINK_LOST
        await stream.aclose()
        assert (await notices.next(SessionLost)).connections == 1
        (lost,) = [line for line in lines(caplog) if line.startswith("session.lost")]
        assert "connections=1" in lost
        with pytest.raises(StreamError) as refused:
            client.open_now(TcpTarget(service))
        assert refused.value.code is Code.LINK_LOST
        async with trio.open_nursery() as nursery:

            async def open_late() -> None:
                async with await client.open(TcpTarget(service)) as late:
                    await late.send_all(b"x")
                    assert await late.receive_some() == b"x"
                opened.set()

            opened = trio.Event()
            nursery.start_soon(open_late)
            async with center(port=port, token=token):
                await opened.wait()
                client.stop()


async def test_an_open_without_a_link_gives_up_in_time() -> None:
    async with center() as where:
        pass
    client, _ = where.client()
    with pytest.raises(StreamError) as raised:
        await client.open("127.0.0.1:80", deadline_s=0.1)
    assert raised.value.code is Code.LINK_LOST


async def test_a_client_that_gives_up_says_what_was_the_matter() -> None:
    async with center() as where:
        pass
    client = client_module.CenterClient(where.join, give_up_s=0.1)
    error = await failure_of(client)
    assert isinstance(error, LinkError)
    assert "connection refused" in error.what
    assert error.exit_status is Exit.NOT_REACHED


async def test_a_client_stopped_while_it_dials_ends() -> None:
    async with center() as where:
        pass
    client, notices = where.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await notices.next(LinkDown)
        client.stop()


async def test_a_mapping_with_an_impossible_host_costs_its_asker_only_that(
    free_ports: range, caplog: pytest.LogCaptureFixture
) -> None:
    async with center(ports=free_ports) as where:
        wire = await raw_login(where, b"s" * 16)
        entries = [
            frames.mapping_entry(MappingType.TCP, "a", host, free_ports[0])
            for host in ("no-such-name.invalid", "1.2.3.4.5", "300.1.1.1")
        ]
        await send(wire, [frames.mapping(1, *entries)])
        said = bytes(await wire.receive_some())
        assert said[3] == frames.MAPPING
        assert int.from_bytes(said[8:10], "big") == 3
        await wire.aclose()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_stopped_server_says_goodbye_and_frees_its_ports(
    free_ports: range,
) -> None:
    async with center(ports=free_ports) as where, target(echo) as service:
        client, notices = where.client()
        await client.publish_target(FREE, service)
        async with running(client):
            await where.server.stop()
            down = await notices.next(LinkDown)
            assert isinstance(down.reason, SessionError)
            assert down.reason.code is Code.NORMAL
            await where.until(lambda: len(where.server.mappings) == 0)


async def test_a_drained_server_lets_run_what_runs(free_ports: range) -> None:
    async with center(ports=free_ports) as where, target(echo) as service:
        client, notices = where.client()
        await client.publish_target(FREE, service)
        async with trio.open_nursery() as nursery, running(client):
            visitor = await trio.open_tcp_stream(*_pair(port_of(free_ports)))
            await visitor.send_all(b"one")
            assert await visitor.receive_some() == b"one"
            nursery.start_soon(partial(where.server.drain, 10))
            with pytest.raises(trio.BrokenResourceError):
                await ask(port_of(free_ports))
            await visitor.send_all(b"two")
            assert await visitor.receive_some() == b"two"
            assert notices.of(LinkDown) == []
            await visitor.aclose()
            await notices.next(LinkDown)


async def test_a_drained_client_lets_run_what_runs(free_ports: range) -> None:
    async with center(ports=free_ports) as where, target(echo) as service:
        client, _ = where.client()
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            stream = await client.open(TcpTarget(service))
            nursery.start_soon(partial(client.drain, 10))
            await stream.send_all(b"goes on")
            assert await stream.receive_some() == b"goes on"
            # The drain began in another task, before it answered.
            with pytest.raises(StreamError) as raised:
                client.open_now(TcpTarget(service))
            assert raised.value.code is Code.DRAINING
            await stream.aclose()
        assert client.connections == 0


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    async with center() as where:
        with pytest.raises(ZeroDivisionError):
            async with tunnel.connect(where.join.render()):
                raise ZeroDivisionError
        await where.until(lambda: not where.server.clients)


async def test_ten_at_once_from_one_client_and_nothing_left(free_ports: range) -> None:
    async with center(ports=free_ports) as where, target(echo) as service:
        client, _ = where.client()
        await client.publish_target(FREE, service)
        async with running(client):
            answers: list[bytes] = []

            async def one(number: int) -> None:
                question = bytes((number,)) * 50_000
                answers.append(await ask(port_of(free_ports), question))
                assert answers[-1] == question or question in answers

            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(one, number)
            assert len(set(answers)) == 50
            (member,) = where.server.clients
            await where.until(
                lambda: (
                    not (
                        client.connections
                        or member.session.core.conns
                        or member.session.core.offered
                    )
                )
            )
