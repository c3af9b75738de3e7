"""QuickSocket: a trio stream, with a way in and out beside its tasks."""

from __future__ import annotations

import gc
import socket
import weakref

import pytest
import trio
import trio.testing

from tunnel.net.listen import open_listener
from tunnel.net.sockets import UNSENT_BYTES, FastSocket, tune_local

TCP = socket.IPPROTO_TCP
SMALL_BYTES = 4096


def pair() -> tuple[FastSocket, FastSocket]:
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
    return FastSocket(one), FastSocket(other)


async def make() -> tuple[FastSocket, FastSocket]:
    await trio.lowlevel.checkpoint()
    return pair()


async def make_clogged() -> tuple[FastSocket, FastSocket]:
    one, other = await make()
    for stream in (one, other):
        while stream.write_now(bytes(SMALL_BYTES)):
            pass
    return one, other


async def test_it_is_a_stream_as_trio_wants_it() -> None:
    await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_who_is_accepted_has_the_options_of_who_was_dialled() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    async with listener:
        sock = socket.create_connection(listener.socket.getsockname())
        tune_local(sock)
        async with FastSocket(sock) as dialled, await listener.accept() as it:
            for stream in (dialled, it):
                assert stream.socket.getsockopt(TCP, socket.TCP_NODELAY)
                assert (
                    stream.socket.getsockopt(TCP, socket.TCP_NOTSENT_LOWAT)
                    == UNSENT_BYTES
                )
                assert not stream.socket.getblocking()


async def test_a_socket_of_trios_is_taken_over_with_its_family() -> None:
    (listener,) = await open_listener("::1", 0)
    async with listener:
        theirs = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        async with FastSocket.of(theirs.socket) as ours:
            assert theirs.socket.fileno() == -1
            assert ours.socket.family == socket.AF_INET6
            assert ours.socket.getpeername()[:2] == listener.socket.getsockname()[:2]


async def test_a_close_wakes_who_waits() -> None:
    one, other = pair()
    async with other, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await one.receive_some()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        one.close()
        assert await other.receive_some() == b""


async def test_nothing_goes_to_a_descriptor_that_another_has_by_now() -> None:
    one, other = pair()
    number = one.number()
    one.close()
    new, far = pair()
    assert number in (new.number(), far.number())
    async with other, new, far:
        assert one.write_now(b"x") == 0
        for forbidden in (one.number, lambda: one.read_now(1), one.finish):
            with pytest.raises(trio.ClosedResourceError):
                forbidden()
        one.close()
        one.reset()


async def tcp_pair() -> tuple[FastSocket, FastSocket]:
    """Give who came in, and who was dialled."""
    (listener,) = await open_listener("127.0.0.1", 0)
    async with listener:
        sock = socket.create_connection(listener.socket.getsockname())
        tune_local(sock)
        return await listener.accept(), FastSocket(sock)


@pytest.mark.parametrize("who", [0, 1])
async def test_what_the_kernel_closes_for_us_is_a_reset(who: int) -> None:
    pair = await tcp_pair()
    socket.close(pair[who].socket.detach())  # as it does for a killed process
    async with pair[1 - who] as other:
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()


@pytest.mark.parametrize("who", [0, 1])
async def test_what_is_unsent_at_a_clean_end_arrives_whole(who: int) -> None:
    pair = await tcp_pair()
    ours, theirs = pair[who], pair[1 - who]
    ours.socket.setsockopt(TCP, socket.TCP_NOTSENT_LOWAT, 1 << 30)
    sent = 0
    while taken := ours.write_now(bytes(1 << 20)):
        sent += taken
    assert sent > 8 * SMALL_BYTES  # more than is on its way
    ours.close()
    with trio.fail_after(20):
        async with theirs:
            while data := await theirs.receive_some():
                sent -= len(data)
    assert sent == 0


async def test_who_was_given_up_is_reset_by_a_close() -> None:
    ours, theirs = await tcp_pair()
    ours.give_up()
    ours.close()
    async with theirs:
        with pytest.raises(trio.BrokenResourceError):
            await theirs.receive_some()


async def test_a_reset_is_heard_as_one() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    async with listener:
        with socket.create_connection(listener.socket.getsockname()) as program:
            (await listener.accept()).reset()
            with pytest.raises(ConnectionResetError):
                program.recv(1)


async def test_what_was_sent_is_not_kept() -> None:
    class Kept(bytearray):
        pass

    one, other = pair()
    async with one, other:
        data = Kept(b"x" * 100)
        gone = weakref.ref(data)
        await one.put(data)
        del data
        gc.collect()
        assert gone() is None


async def test_two_who_send_do_not_mix_or_lose() -> None:
    one, other = pair()
    got = b""
    async with other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, b"a" * 100_000)
            await trio.testing.wait_all_tasks_blocked()
            got += other.read_now(1 << 20) or b""  # room, before the first has woken
            with pytest.raises(trio.BusyResourceError):
                await one.put(b"b")
            while len(got) < 100_000:
                got += await other.receive_some()
        one.close()
        assert await other.receive_some() == b""
    assert got == b"a" * 100_000


async def test_a_cancelled_put_says_what_is_left() -> None:
    one, other = pair()
    data = bytes(range(256)) * 4096
    came = b""
    async with one, other:
        with trio.move_on_after(0.05):
            await one.put(data)
        rest = bytes(one.unsent)
        while len(came) < len(data) - len(rest):
            came += await other.receive_some()
    assert came + rest == data


async def test_a_close_wakes_who_waits_to_fill_a_buffer() -> None:
    one, other = pair()
    async with other:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await one.receive_into(memoryview(bytearray(10)))

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                one.close()
