"""Ends of a session, or of a connection, that the reading of sockets did not bear."""

from __future__ import annotations

import random
import socket

import pytest
import trio
import trio.testing
from support.wires import (
    TARGET,
    Offers,
    open_one,
    raw_peer,
    session_pair,
    small_window,
)

from tunnel.errors import Code, LocalLinkError
from tunnel.link.session import Session
from tunnel.net.relay import RelayResult, relay
from tunnel.net.sockets import FastSocket
from tunnel.proto.frames import ProtAccept, ProtClose, ProtWindow, Terms
from tunnel.proto.payloads import encode


def pair() -> tuple[socket.socket, FastSocket]:
    program, near = socket.socketpair()
    return program, FastSocket(near)


@pytest.mark.parametrize("code", [Code.RESET, Code.NORMAL])
async def test_a_grant_and_a_close_in_one_read_meet_the_end_of_a_local_socket(
    code: Code,
) -> None:
    program, local = pair()
    results: list[RelayResult] = []
    async with raw_peer(terms=small_window(100)) as peer:
        stream = peer.session.open_now(TARGET)
        number = stream.conn.sock_map
        with program:
            program.sendall(bytes(100))
            program.shutdown(socket.SHUT_WR)

            async def go() -> None:
                results.append(await relay(local, stream))

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(go)
                    await trio.testing.wait_all_tasks_blocked()
                    await peer.wire.send_all(encode(ProtAccept(number, None)))
                    await peer.heard()
                    await peer.wire.send_all(
                        encode(ProtWindow(number, 150))
                        + encode(ProtClose(number, code, ""))
                    )
        assert results
        assert peer.session.ended is None


@pytest.mark.parametrize("_again", range(8))
async def test_a_session_that_ended_before_it_ran_ends_in_peace(_again: int) -> None:
    session = Session(client=True, ours=Terms(), theirs=Terms(), serve_offer=Offers())
    session.end(LocalLinkError(Code.LINK_LOST, "test"))
    with trio.fail_after(10):
        await session.run()


@pytest.mark.parametrize("_again", range(8))
async def test_a_session_ends_in_peace_while_it_reads_for_nobody(_again: int) -> None:
    offers = Offers()
    program, local = pair()
    local.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
    program.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
    program.setblocking(False)
    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        # The peer answers a lot, which the program does not read, and closes.
        await right.send_all(bytes(60_000))
        with program:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, local, left)
                await trio.testing.wait_all_tasks_blocked()
                await right.aclose()
                await trio.sleep(0.02)

                async def flood() -> None:
                    piece = bytes(65_536)
                    while True:
                        try:
                            while True:
                                program.send(piece)
                        except BlockingIOError:
                            await trio.lowlevel.checkpoint()
                        except OSError:
                            return

                nursery.start_soon(flood)
                await trio.sleep(0.05)
                sessions.client.end(LocalLinkError(Code.LINK_LOST, "test"))
                await trio.sleep(0.05)
                nursery.cancel_scope.cancel()


async def test_who_writes_all_before_it_reads_is_drained_after_the_session_too() -> (
    None
):
    """The answer is whole here, the peer has closed, and then the session ends."""
    offers = Offers()
    program, local = pair()
    local.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    answer = random.Random(5).randbytes(60_000)
    results: list[RelayResult] = []

    async def go() -> None:
        results.append(await relay(local, left))

    async with session_pair(serve_server=offers) as sessions:
        left, right = await open_one(sessions, offers)
        with program, trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                await right.send_all(answer)
                await right.aclose()
                await trio.sleep(0.2)  # the program does not read: it waits here
                sessions.client.end(LocalLinkError(Code.LINK_LOST, "test"))
                await trio.sleep(0.2)
                got = b""

                def upload() -> None:
                    nonlocal got
                    program.settimeout(3)
                    program.sendall(bytes(5_000_000))
                    program.shutdown(socket.SHUT_WR)
                    while piece := program.recv(65536):
                        got += piece

                await trio.to_thread.run_sync(upload)
                assert got == answer
    assert results == [RelayResult(0, 60_000, Code.NORMAL)]


async def test_nothing_is_counted_as_sent_to_a_peer_that_had_reset() -> None:
    offers = Offers()
    program, local = pair()
    async with session_pair(serve_server=offers) as sessions:
        left = await sessions.client.open(TARGET)
        right = await offers.taken.receive()
        right.reset(Code.RESET)
        await trio.testing.wait_all_tasks_blocked()
        with program, trio.fail_after(10):
            program.sendall(bytes(1000))
            result = await relay(local, left, early=b"early")
            assert result.code is Code.RESET
            assert result.sent_bytes == 0
