"""Clients that want the same port, or have the same client id."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio
from support import frames
from support.center import (
    LOOPBACK,
    ask,
    center,
    echo,
    failure_of,
    port_of,
    raw_login,
    running,
    target,
)
from support.logs import lines

from tunnel.access.limits import Limits
from tunnel.center import admission, mappings
from tunnel.center.client_session import ClientSession
from tunnel.center.events import (
    ClientIdChanged,
    LinkDown,
    LinkUp,
    MappingReady,
    MappingRefused,
    SessionLost,
)
from tunnel.center.mappings import SILENT_OWNER_S
from tunnel.errors import (
    Code,
)
from tunnel.link.transport import send
from tunnel.proto.frames import (
    MappingEntry,
    MappingType,
    TcpTarget,
)

if TYPE_CHECKING:
    from pathlib import Path


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
    assert SILENT_OWNER_S == 2
    monkeypatch.setattr(admission, "SILENT_OWNER_S", 0.2)
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
        where.server.accounts._defaults = Limits(sessions=65)
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
    assert "default has 65" in told
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


async def test_a_server_that_stops_is_no_loss_to_a_client_without_connections(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel.client")
    async with center() as where:
        client, notices = where.client()
        async with running(client):
            await where.server.stop()
            assert (await notices.next(SessionLost)).connections == 0
    said = [
        record.levelname
        for record, line in zip(caplog.records, lines(caplog), strict=True)
        if line.startswith("session.ended reason=") and "connections=0" in line
    ]
    assert said == ["INFO"]
    assert "session.lost" not in "".join(lines(caplog))
