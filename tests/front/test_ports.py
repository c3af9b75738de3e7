from __future__ import annotations

import errno
import logging
import socket
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.far import Far
from support.logs import text
from support.names import resolve_to

from tunnel.addresses import Address
from tunnel.errors import AddressError, Code, Exit, LocalStreamError
from tunnel.front.ports import serve_port
from tunnel.net import listen
from tunnel.net.bind import address_error
from tunnel.net.carry import carry
from tunnel.net.descriptors import Told
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tunnel.net.relay import ResettableStream


@asynccontextmanager
async def port(
    open_now: Callable[[Address], ResettableStream], max_visitors: int = 10
) -> AsyncIterator[tuple[str, int]]:
    listeners = await listen.open_listener("127.0.0.1", 0)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def go() -> None:
                await serve_port(listeners, open_now, max_visitors=max_visitors)

            nursery.start_soon(go)
            yield listeners[0].socket.getsockname()
            nursery.cancel_scope.cancel()
    assert listeners[0].socket.fileno() == -1


def visit(where: tuple[str, int]) -> FastSocket:
    """Connect in the kernel alone: whoever is refused at once has come in before."""
    return FastSocket(socket.create_connection(where))


async def test_a_visitor_is_carried_both_ways_and_named() -> None:
    far = Far()
    visitors: list[Address] = []

    def open_now(visitor: Address) -> Far:
        visitors.append(visitor)
        return far

    async with port(open_now) as where, await trio.open_tcp_stream(*where) as visitor:
        await visitor.send_all(b"hello")
        assert await far.far.receive_some() == b"hello"
        await far.far.send_all(b"welcome")
        assert await visitor.receive_some() == b"welcome"
        assert visitors == [Address(*visitor.socket.getsockname())]


async def test_a_refused_visitor_gets_a_rst(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunnel.front")

    def open_now(visitor: Address) -> Far:
        raise LocalStreamError(Code.RESOURCE, "full")

    async with port(open_now) as where, visit(where) as visitor:
        with pytest.raises(trio.BrokenResourceError):
            await visitor.receive_some()
    assert "reason=RESOURCE" in text(caplog)


async def test_a_fault_ends_one_visitor_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    far = Far()
    calls: list[Address] = []

    def open_now(visitor: Address) -> Far:
        calls.append(visitor)
        if len(calls) == 1:
            raise ZeroDivisionError
        return far

    async with port(open_now) as where:
        async with visit(where) as first:
            with pytest.raises(trio.BrokenResourceError):
                await first.receive_some()
        async with await trio.open_tcp_stream(*where) as second:
            await second.send_all(b"x")
            assert await far.far.receive_some() == b"x"
    assert "visitor.failed" in text(caplog)
    assert "ZeroDivisionError" in text(caplog)


async def test_above_the_limit_a_visitor_waits_until_one_has_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "_WAITS", Told("visitor.waits"))
    fars: list[Far] = []
    opened = trio.Semaphore(0)

    def open_now(visitor: Address) -> Far:
        fars.append(Far())
        opened.release()
        return fars[-1]

    async with port(open_now, max_visitors=1) as where:
        first = visit(where)
        await first.send_all(b"a")
        await opened.acquire()
        assert await fars[0].far.receive_some() == b"a"
        async with await trio.open_tcp_stream(*where) as second:
            await second.send_all(b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert len(fars) == 1
            first.reset()
            await opened.acquire()
            assert await fars[1].far.receive_some() == b"x"
    assert fars[0].resets == [Code.RESET]
    assert text(caplog).count("visitor.waits") == 1


async def test_above_the_limit_a_silent_visitor_is_reset_for_a_newcomer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "_FULL", Told("silent.reset"))
    fars: list[Far] = []

    def open_now(visitor: Address) -> Far:
        fars.append(Far())
        return fars[-1]

    async with port(open_now, max_visitors=2) as where:
        speaker = visit(where)
        await speaker.send_all(b"a")
        await trio.testing.wait_all_tasks_blocked()
        silent = visit(where)
        await trio.testing.wait_all_tasks_blocked()
        async with visit(where) as newcomer:
            await newcomer.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError):
                await silent.receive_some()
            await trio.testing.wait_all_tasks_blocked()
            assert await fars[2].far.receive_some() == b"x"
            assert [far.resets for far in fars] == [[], [Code.RESET], []]
        speaker.reset()
        silent.close()
    assert text(caplog).count("silent.reset") == 1


async def test_the_end_of_a_visitor_is_logged_with_its_bytes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel.access")
    near, far = trio.testing.memory_stream_pair()
    virtual = Far()
    await near.send_all(b"abc")
    await near.send_eof()
    await virtual.far.send_eof()
    await carry(far, virtual, Address("192.0.2.1", 5))
    assert "visitor.served peer=192.0.2.1:5 up_bytes=3 down_bytes=0" in text(caplog)
    assert "code=NORMAL" in text(caplog)


async def test_a_visitor_that_is_cut_is_a_line_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel.access")
    _near, far = trio.testing.memory_stream_pair()
    with trio.move_on_after(0):
        await carry(far, Far(), Address("192.0.2.1", 5))
    assert "visitor.served peer=192.0.2.1:5" in text(caplog)
    assert "code=RESET" in text(caplog)


async def test_without_an_access_log_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "tunnel")
    near, far = trio.testing.memory_stream_pair()
    virtual = Far()
    await near.send_eof()
    await virtual.far.send_eof()
    await carry(far, virtual, Address("192.0.2.1", 5))
    assert "visitor.served" not in text(caplog)


async def test_a_taken_port_is_said_with_its_number_and_a_way_out() -> None:
    (holder,) = await listen.open_listener("127.0.0.1", 0)
    async with holder:
        taken = holder.socket.getsockname()[1]
        with pytest.raises(AddressError) as caught:
            await listen.open_listener("127.0.0.1", taken)
    assert caught.value.what == f"port {taken} is already in use on 127.0.0.1"
    assert caught.value.exit_status is Exit.ADDRESS_TAKEN
    assert str(taken) in caught.value.fix


@pytest.mark.parametrize("host", ["192.0.2.1", "no such name"])
async def test_an_address_of_elsewhere_is_said_to_be_that(host: str) -> None:
    with pytest.raises(AddressError, match=host) as caught:
        await listen.open_listener(host, 0)
    assert caught.value.exit_status is Exit.CONFIGURATION


def test_a_port_that_needs_a_right_is_told_from_one_that_is_taken() -> None:
    error = address_error("127.0.0.1", 80, PermissionError(errno.EACCES, "denied"))
    assert error.code is Code.NOT_ALLOWED
    assert error.exit_status is Exit.AUTH


async def test_a_resolver_that_fails_is_not_a_name_of_elsewhere() -> None:
    resolve_to(error=socket.gaierror(socket.EAI_AGAIN, "Temporary failure"))
    with pytest.raises(AddressError, match="the resolver failed"):
        await listen.open_listener("nas.lan", 0)


class Failing:
    """The socket of a listener that meets these errors, and is closed then."""

    def __init__(self, errors: list[int]) -> None:
        self._errors = errors

    def fileno(self) -> int:
        return 0 if self._errors else -1

    def accept(self) -> tuple[socket.socket, object]:
        raise OSError(self._errors.pop(0), "scripted")


async def test_accepting_outlives_every_error_and_says_a_bad_time_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> None:
        raise AssertionError

    (listener,) = await listen.open_listener("127.0.0.1", 0)
    failing = Failing([errno.EMFILE, errno.ECONNABORTED, errno.EMFILE])
    listener._plain = failing  # type: ignore[assignment]
    start = trio.current_time()
    await listen.serve([listener], handle, max_visitors=1)
    assert trio.current_time() - start == pytest.approx(2 * listen.ACCEPT_PAUSE_S)
    assert text(caplog).count("accept.failed") == 1


async def test_a_visitor_is_named_until_its_socket_is_closed() -> None:
    (listener,) = await listen.open_listener("127.0.0.1", 0)
    async with listener:
        one = await trio.open_tcp_stream(*listener.socket.getsockname())
        other = await listener.accept()
    assert listen.peer_of(other) == Address(*one.socket.getsockname())
    await one.aclose()
    await other.aclose()
    assert listen.peer_of(other) is None


async def test_who_waits_is_let_in_at_once_but_not_without_end() -> None:
    (listener,) = await listen.open_listener("127.0.0.1", 0)
    with ExitStack() as stack:
        for _ in range(listen.ACCEPTS_A_TURN + 1):
            visitor = socket.create_connection(listener.socket.getsockname())
            stack.enter_context(visitor)
        async with listener:
            for _ in range(listen.ACCEPTS_A_TURN):
                with trio.testing.assert_no_checkpoints():
                    stream = await listener.accept()
                await trio.aclose_forcefully(stream)
            with trio.testing.assert_checkpoints():
                stream = await listener.accept()
            await trio.aclose_forcefully(stream)


async def test_a_port_that_is_closed_ends_its_wait() -> None:
    (listener,) = await listen.open_listener("127.0.0.1", 0)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        listener.socket.close()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
