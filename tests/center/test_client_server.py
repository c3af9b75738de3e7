from __future__ import annotations

import hashlib
import logging
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support import frames
from support.center import (
    LOOPBACK,
    Center,
    Notices,
    ask,
    center,
    echo,
    raw_login,
    target,
    user,
)
from support.logs import lines

import tunnel
from tunnel.access import gate
from tunnel.access.security import make_token
from tunnel.center import client as client_module
from tunnel.center import mappings
from tunnel.center import server as server_module
from tunnel.center.client_session import ClientSession
from tunnel.center.events import (
    ClientIdChanged,
    LinkDown,
    LinkUp,
    MappingReady,
    MappingRefused,
    SessionLost,
)
from tunnel.center.sessions import Sessions
from tunnel.errors import (
    Code,
    Exit,
    LinkError,
    LocalSessionError,
    SessionError,
    StreamError,
    TlsError,
    TunnelError,
)
from tunnel.link.transport import send
from tunnel.proto.frames import (
    Address,
    MappingEntry,
    MappingType,
    NameTarget,
    TcpTarget,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tunnel.center.client import CenterClient

FREE = Address("", 0)


@asynccontextmanager
async def running(client: CenterClient) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield
        client.stop()


@pytest.fixture
def free_ports() -> range:
    """Ports that were free a moment ago."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        port = one.getsockname()[1]
    return range(port, port + 1)


def port_of(ports: range) -> Address:
    return Address(LOOPBACK, ports[0])


async def failure_of(client: CenterClient) -> TunnelError:
    """Run a client that ends with an error."""
    with trio.fail_after(20):
        try:
            await client.run()
        except TunnelError as error:
            return error
    raise AssertionError("it ended in peace")


# It works ----------------------------------------------------------------------------


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


# Listening ---------------------------------------------------------------------------


async def test_a_closed_listener_gives_its_port_back_and_refuses_who_waits(
    free_ports: range,
) -> None:
    async with (
        center(ports=free_ports) as where,
        tunnel.connect(where.join.render()) as session,
    ):
        listener = await session.listen()
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
        assert len(session.publisher) == 0
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


# Whose port --------------------------------------------------------------------------


async def test_two_clients_that_want_one_port_are_told_apart(
    free_ports: range,
) -> None:
    async with center() as where, target(echo) as service:
        first, _ = where.client()
        second, notices = where.client()
        await first.publish_target(port_of(free_ports), service)
        await second.publish_target(port_of(free_ports), service)
        async with running(first), running(second):
            refused = notices.of(MappingRefused)[0]
            assert refused.answer.code is Code.TAKEN
            assert "another client" in refused.answer.reason
            assert await ask(port_of(free_ports)) == b"hello"


async def test_a_silent_owner_loses_its_port_after_2_s(
    free_ports: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mappings.SILENT_OWNER_S == 2
    monkeypatch.setattr(mappings, "SILENT_OWNER_S", 0.2)
    async with center() as where, target(echo) as service:
        silent = await raw_login(where, b"s" * 16)
        entry = frames.mapping_entry(MappingType.TCP, "mine", LOOPBACK, free_ports[0])
        await send(silent, [frames.mapping(1, entry)])
        assert bytes(await silent.receive_some())[3] == frames.MAPPING
        client, notices = where.client()
        await client.publish_target(port_of(free_ports), service)
        async with running(client):
            assert notices.of(MappingReady)[0].public == port_of(free_ports)
            assert await ask(port_of(free_ports)) == b"hello"
            while await silent.receive_some():
                pass  # to the end: it has lost its link, not its session
        await silent.aclose()


async def test_a_wanting_client_that_leaves_meanwhile_keeps_no_port(
    free_ports: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "SILENT_OWNER_S", 0.3)
    async with center(resume_s=0) as where:
        entry = frames.mapping_entry(MappingType.TCP, "mine", LOOPBACK, free_ports[0])
        silent = await raw_login(where, b"s" * 16)
        await send(silent, [frames.mapping(1, entry)])
        await silent.receive_some()
        wanting = await raw_login(where, b"w" * 16)
        await send(wanting, [frames.mapping(1, entry)])
        # The owner is asked now.
        assert bytes(await silent.receive_some()) == frames.ping()
        await wanting.aclose()
        await where.until(lambda: not where.server.clients)
        await where.until(lambda: len(where.server.mappings) == 0)
        client, notices = where.client()
        wanted = MappingEntry(MappingType.TCP, "", "", port_of(free_ports).port)
        await client.publish(wanted, echo)
        async with running(client):
            assert notices.of(MappingReady)
        await silent.aclose()


async def test_a_killed_client_has_its_ports_again_at_once(free_ports: range) -> None:
    async with center() as where, target(echo) as service:
        old, _ = where.client(client_id=b"c" * 16)
        new, notices = where.client(client_id=b"c" * 16)
        await old.publish_target(port_of(free_ports), service)
        await new.publish_target(port_of(free_ports), service)
        async with trio.open_nursery() as nursery:
            await nursery.start(old.run)
            nursery.cancel_scope.cancel()  # it goes without a word
        began = trio.current_time()
        async with running(new):
            assert trio.current_time() - began < mappings.SILENT_OWNER_S
            assert notices.of(MappingReady)[0].public == port_of(free_ports)
            assert await ask(port_of(free_ports)) == b"hello"
            assert notices.of(ClientIdChanged) == []


async def test_a_copy_of_a_client_that_answers_takes_an_id_of_its_own(
    free_ports: range, caplog: pytest.LogCaptureFixture
) -> None:
    async with center() as where, target(echo) as service:
        first, notices = where.client(client_id=b"c" * 16)
        copy, others = where.client(client_id=b"c" * 16)
        await first.publish_target(port_of(free_ports), service)
        async with running(first):
            async with await first.open(str(service)) as stream, running(copy):
                (changed,) = others.of(ClientIdChanged)
                assert changed.client_id == copy.client_id != first.client_id
                assert len(where.server.clients) == 2
                async with await copy.open(str(service)) as another:
                    for one in (stream, another):
                        await one.send_all(b"both live")
                        assert await one.receive_some() == b"both live"
            assert notices.of(LinkDown) == []
            assert await ask(port_of(free_ports)) == b"hello"
    said = lines(caplog)
    (refused,) = [line for line in said if line.startswith("session.refused")]
    assert "user=default client=63636363 code=DUPLICATE" in refused
    (taken,) = [line for line in said if line.startswith("client.id_taken")]
    assert taken.startswith("client.id_taken client=63636363 now=")


async def test_a_client_that_answers_no_more_is_succeeded_after_2_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert server_module.SILENT_OWNER_S == 2
    monkeypatch.setattr(server_module, "SILENT_OWNER_S", 0.2)
    async with center() as where:
        silent = await raw_login(where, b"s" * 16)
        # Two come at once: one succeeds the silent one, the other is a copy of that.
        clients = [where.client(client_id=b"s" * 16) for _ in range(2)]
        async with running(clients[0][0]), running(clients[1][0]):
            pass
        changes = [len(notices.of(ClientIdChanged)) for _, notices in clients]
        assert sorted(changes) == [0, 1]
        await silent.aclose()


async def test_clients_without_an_id_are_not_taken_for_one_another() -> None:
    async with center() as where:
        wires = [await raw_login(where, bytes(16)) for _ in range(3)]
        assert len(where.server.clients) == 3
        for wire in wires:
            await wire.aclose()


async def test_the_65th_client_gets_in_and_one_too_many_is_told_of_at_both_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with center() as where:
        where.server.options = replace(where.server.options, max_sessions=65)
        where.server._sessions = Sessions(65)
        wires = [
            await raw_login(where, number.to_bytes(16, "big"))
            for number in range(1, 66)
        ]
        client, notices = where.client(client_id=b"x" * 16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            down = await notices.next(LinkDown)
            assert down.reason.code is Code.CALM
            assert 5 <= down.retry_s < 6
            await wires.pop().aclose()
            client.stop()
        for wire in wires:
            await wire.aclose()
    said = lines(caplog)
    assert [r.levelname for r in caplog.records if "refused" in r.message] == [
        "WARNING"
    ]
    (refused,) = [line for line in said if line.startswith("session.refused")]
    assert "user=default client=78787878 code=CALM" in refused
    (told,) = [line for line in said if line.startswith("link.not_made")]
    assert "default has 65 sessions" in told
    assert "client=78787878" in told


async def test_who_ends_by_its_own_wish_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with center() as where, target(echo) as service:
        client, notices = where.client()
        async with running(client):
            stream = await client.open(str(service))
            assert client.connections == 1
        await where.until(lambda: not where.server.clients)
        await stream.aclose()
    assert notices.of(SessionLost) == []
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_a_client_that_is_taken_over_amid_a_bulk_hears_of_it(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would come back, and the two would fight for ever."""

    async def too_late(_session: ClientSession, _timeout_s: float) -> bool:
        return False

    async def swallow(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass

    async with center(tmp_path if tls else None) as where, target(swallow) as service:
        old, notices = where.client(client_id=b"c" * 16)
        new, _ = where.client(client_id=b"c" * 16)
        monkeypatch.setattr(ClientSession, "answers", too_late)

        async def flood() -> None:
            stream = await old.open(TcpTarget(service))
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(bytes(500_000_000))
            await stream.aclose()

        async with trio.open_nursery() as nursery:

            async def run_old() -> None:
                error = await failure_of(old)
                assert error.code is Code.TAKEN_OVER

            nursery.start_soon(run_old)
            await notices.next(LinkUp)
            nursery.start_soon(flood)
            await where.until(lambda: old.traffic[0] > 3_000_000)
            async with running(new):
                pass


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


# Coming back -------------------------------------------------------------------------


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
    free_ports: range,
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


# Who may come in ---------------------------------------------------------------------


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_a_wrong_token_and_an_unknown_name_are_final_and_look_the_same(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "FAILURE_DELAY_S", 0.05)
    async with center(tmp_path if tls else None) as where:
        errors = []
        for change in ({"token": make_token()}, {"name": "nobody"}):
            client, notices = where.client(**change)
            errors.append(await failure_of(client))
            assert notices.all == []
        assert [error.code for error in errors] == [Code.AUTH, Code.AUTH]
        assert all(error.exit_status is Exit.AUTH for error in errors)
        words = [error.what.replace("nobody", "default") for error in errors]
        assert words[0] == words[1]
        good, _ = where.client()
        async with running(good):
            pass


async def test_a_wrong_pin_is_final_and_nothing_was_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with center(tmp_path) as where:
        client, notices = where.client(pin="A" * 43)
        error = await failure_of(client)
        assert isinstance(error, TlsError)
        assert error.exit_status is Exit.TLS
        assert "nothing was sent" in error.what
        assert notices.all == []
        await where.until(lambda: where.server._gate.unproven == 0)
    # The server has met the end of a link of which it has not seen a frame.
    (refused,) = [r for r in caplog.records if r.getMessage() == "link.refused"]
    assert "ended the link start" in str(vars(refused))


async def test_a_wrong_token_is_shown_and_retried_once_it_has_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "FAILURE_DELAY_S", 0.05)
    async with trio.open_nursery() as nursery:
        async with center() as where:
            client, notices = where.client()
            await nursery.start(client.run)
            token, port = where.join.token, where.address.port
        async with center(port=port):  # with another token
            while (await _last(notices)).reason.code is not Code.AUTH:
                await notices.next(LinkDown, len(notices.of(LinkDown)) + 1)
        async with center(port=port, token=token):
            await notices.next(LinkUp, 2)
            client.stop()


async def _last(notices: Notices) -> LinkDown:
    await notices.next(LinkDown)
    return notices.of(LinkDown)[-1]


@pytest.mark.parametrize("tls_server", [True, False])
async def test_plain_and_tls_do_not_meet_and_disturb_nobody(
    tls_server: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with center(tmp_path if tls_server else None) as where:
        wrong, notices = where.client(
            plain=tls_server, pin=None if tls_server else "A" * 43
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wrong.run)
            down = await notices.next(LinkDown)
            assert not down.was_up
            wrong.stop()
        good, _ = where.client()
        async with running(good):
            pass
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), frames.frame(frames.TOKEN, b"x")]
)
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_garbage_on_the_links_port_is_one_line_in_the_log(
    first: bytes, tls: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with center(tmp_path if tls else None) as where:
        stream = await trio.open_tcp_stream(*_pair(where.address))
        async with stream:
            await stream.send_all(first)
            with trio.fail_after(5):
                await _drain(stream)
        await where.until(lambda: "link.refused" in caplog.text)
        good, _ = where.client()
        async with running(good):
            pass
    refused = [r for r in caplog.records if r.getMessage() == "link.refused"]
    assert len(refused) == 1
    assert all(r.levelno < logging.ERROR and not r.exc_info for r in caplog.records)


async def _drain(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


async def test_who_says_nothing_is_sent_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert server_module.FIRST_BYTE_S == 5
    assert server_module.HANDSHAKE_S == 10
    monkeypatch.setattr(server_module, "FIRST_BYTE_S", 0.05)
    monkeypatch.setattr(server_module, "HANDSHAKE_S", 0.3)
    async with center() as where:
        async with await trio.open_tcp_stream(*_pair(where.address)) as silent:
            with trio.fail_after(5):
                await _drain(silent)
        async with await trio.open_tcp_stream(*_pair(where.address)) as slow:
            await slow.send_all(frames.hello()[:5])
            with trio.fail_after(5):
                await _drain(slow)
        await where.until(lambda: where.server._gate.unproven == 0)


async def test_a_flood_of_strangers_is_bounded_and_a_client_gets_in_meanwhile() -> None:
    async with center() as where, trio.open_nursery() as nursery:
        ended: list[int] = []
        count = gate.MAX_UNPROVEN + 50

        async def stranger(number: int) -> None:
            stream = await trio.open_tcp_stream(*_pair(where.address))
            async with stream:
                await _drain(stream)
            ended.append(number)

        for number in range(count):
            nursery.start_soon(stranger, number)
        await where.until(lambda: len(ended) >= 50)
        assert where.server._gate.unproven == gate.MAX_UNPROVEN
        client, _ = where.client()
        with trio.fail_after(2):
            async with running(client):
                assert len(ended) == 51
        nursery.cancel_scope.cancel()


async def test_wrong_proofs_that_wait_hold_no_place_that_others_need(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(server_module, "FAILURE_DELAY_S", 60)
    monkeypatch.setattr(server_module, "MAX_UNPROVEN", 2)
    async with center() as where, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(_fail_to_log_in, where)
            await where.until(partial(_refused_more_than, caplog, number))
            assert where.server._gate.unproven <= 2
        client, _ = where.client()
        async with running(client):
            pass
        nursery.cancel_scope.cancel()


def _refused_more_than(caplog: pytest.LogCaptureFixture, number: int) -> bool:
    return caplog.messages.count("link.refused") > number


async def _fail_to_log_in(where: Center) -> None:
    with suppress(LinkError):
        await raw_login(where, b"x" * 16, make_token())


async def test_who_guesses_too_often_is_told_to_wait_and_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "FAILURE_DELAY_S", 0.05)
    async with center() as where:
        for number in range(gate.FAILURE_BURST + 2):
            with pytest.raises(LinkError) as wrong:
                await raw_login(where, b"x" * 16, make_token())
            few = number < gate.FAILURE_BURST
            assert wrong.value.code is (Code.AUTH if few else Code.CALM)
        # From the same address, with the same name.
        await (await raw_login(where, b"x" * 16)).aclose()


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


# The end -----------------------------------------------------------------------------


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


def test_a_tls_server_needs_an_identity() -> None:
    with pytest.raises(TunnelError, match="identity"):
        tunnel.CenterServer({}, None)
