"""Who gets in at a center-server, and what happens to everybody else."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support import frames
from support.center import (
    Center,
    Notices,
    center,
    failure_of,
    raw_login,
    running,
)

import tunnel
from tunnel.access import gate
from tunnel.access.join import make_token
from tunnel.center import link_starts, wire
from tunnel.center.events import (
    LinkDown,
    LinkUp,
)
from tunnel.errors import (
    Code,
    Exit,
    LinkError,
    TlsError,
    TunnelError,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_a_wrong_token_and_an_unknown_name_are_final_and_look_the_same(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_starts, "FAILURE_DELAY_S", 0.05)
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
        await where.until(lambda: len(where.server._starts.gate.places) == 0)
    # The server has met the end of a link of which it has not seen a frame.
    (refused,) = [r for r in caplog.records if r.getMessage() == "link.refused"]
    assert "ended the link start" in str(vars(refused))


async def test_a_wrong_token_is_shown_and_retried_once_it_has_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_starts, "FAILURE_DELAY_S", 0.05)
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
        stream = await _stranger(where)
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


async def _stranger(where: Center) -> trio.SocketStream:
    return await trio.open_tcp_stream(where.address.host, where.address.port)


async def _drain(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


async def test_who_says_nothing_is_sent_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert wire.FIRST_BYTE_S == 5
    assert link_starts.HANDSHAKE_S == 10
    monkeypatch.setattr(wire, "FIRST_BYTE_S", 0.05)
    monkeypatch.setattr(link_starts, "HANDSHAKE_S", 0.3)
    async with center() as where:
        async with await trio.open_tcp_stream(
            where.address.host, where.address.port
        ) as silent:
            with trio.fail_after(5):
                await _drain(silent)
        async with await trio.open_tcp_stream(
            where.address.host, where.address.port
        ) as slow:
            await slow.send_all(frames.hello()[:5])
            with trio.fail_after(5):
                await _drain(slow)
        await where.until(lambda: len(where.server._starts.gate.places) == 0)


async def test_a_flood_of_strangers_is_bounded_and_a_client_gets_in_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_starts, "MAX_UNPROVEN", 30)
    async with center() as where, trio.open_nursery() as nursery:
        ended: list[int] = []

        async def stranger(number: int) -> None:
            stream = await _stranger(where)
            async with stream:
                await _drain(stream)
            ended.append(number)

        for number in range(80):
            nursery.start_soon(stranger, number)
        await where.until(lambda: len(ended) >= 50)
        assert len(where.server._starts.gate.places) == 30
        client, _ = where.client()
        with trio.fail_after(2):
            async with running(client):
                assert len(ended) == 51
        nursery.cancel_scope.cancel()


async def test_wrong_proofs_that_wait_hold_no_place_that_others_need(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(link_starts, "FAILURE_DELAY_S", 60)
    monkeypatch.setattr(link_starts, "MAX_UNPROVEN", 2)
    async with center() as where, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(_fail_to_log_in, where)
            await where.until(partial(_refused_more_than, caplog, number))
            assert len(where.server._starts.gate.places) <= 2
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
    monkeypatch.setattr(link_starts, "FAILURE_DELAY_S", 0.05)
    async with center() as where:
        for number in range(gate.FAILURE_BURST + 2):
            with pytest.raises(LinkError) as wrong:
                await raw_login(where, b"x" * 16, make_token())
            few = number < gate.FAILURE_BURST
            assert wrong.value.code is (Code.AUTH if few else Code.CALM)
        # From the same address, with the same name.
        await (await raw_login(where, b"x" * 16)).aclose()


def test_a_tls_server_needs_an_identity() -> None:
    with pytest.raises(TunnelError, match="identity"):
        tunnel.CenterServer({}, None)
