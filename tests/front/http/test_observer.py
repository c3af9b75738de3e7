"""What an observer sees of requests, whoever answers; and that it can do no harm."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from support.far import Far, read, read_head, read_to_end
from support.watching import VISITOR, Seen, Watching

from tunnel.errors import Code, RemoteStreamError
from tunnel.front.http.bodies import BodyReader
from tunnel.front.http.files import Folder
from tunnel.front.http.files import handle_visitor as handle_folder
from tunnel.front.http.guard import Guard
from tunnel.front.http.heads import Body
from tunnel.front.http.server import Visit
from tunnel.front.http.service import handle_service
from tunnel.front.http.service_rules import ServiceRules
from tunnel.front.http.upstream import sink_of
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tunnel.addresses import Address


GET: Final = b"GET /a?b=c HTTP/1.1\r\nHost: shop\r\n\r\n"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Talk:
    """A visitor, and the targets that are opened for it, one after the other."""

    def __init__(self, visitor: trio.abc.HalfCloseableStream) -> None:
        self.visitor = visitor
        self.watch = Watching()
        self.far = Far()
        self.ended = trio.Event()
        self.refusal: Code | None = None

    async def open_one(self, _visitor: Address) -> Far:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise RemoteStreamError(self.refusal, "scripted")
        self.far = Far()
        return self.far

    async def say(self, data: bytes) -> None:
        await self.visitor.send_all(data)
        await trio.testing.wait_all_tasks_blocked()

    async def answer(self, data: bytes) -> None:
        await self.far.far.send_all(data)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def talk(
    rules: ServiceRules | None = None, folder: Folder | None = None
) -> AsyncIterator[Talk]:
    visitor, ours = trio.testing.memory_stream_pair()
    it = Talk(visitor)
    visit = Visit(ours, VISITOR, watch=it.watch)
    serve: Callable[[], Awaitable[None]] = partial(
        handle_service, visit, rules or ServiceRules(), it.open_one,
        believe_headers=True,
    )  # fmt: skip
    if folder is not None:
        guard = rules.guard if rules is not None else None
        serve = partial(handle_folder, visit, folder, guard)

    async def run() -> None:
        await serve()
        it.ended.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield it
            nursery.cancel_scope.cancel()


async def test_requests_of_one_connection_are_seen_one_by_one() -> None:
    async with talk() as it:
        await it.say(GET)
        await it.answer(OK)
        await it.say(GET)
        await it.answer(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
        first, second = it.watch.all
        for one in (first, second):
            assert (one.raw, one.status, one.answer) == (GET, 200, b"ok")
            assert (one.ends, one.failures) == ([True], [])
        assert (first.connects, second.connects) == (1, 0)


async def test_a_body_is_seen_without_what_frames_it() -> None:
    async with talk() as it:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        await it.say(head + b"3\r\nhel\r\n")
        await it.say(b"2;x=y\r\nlo\r\n0\r\nX-T: 1\r\n\r\n")
        await it.answer(b"HTTP/1.1 201 C\r\nTransfer-Encoding: chunked\r\n\r\n")
        await it.answer(b"1\r\na\r\n1\r\nb\r\n0\r\ngrpc-status: 7\r\n\r\n")
        assert it.watch.one.behind == [b"grpc-status: 7"]
        one = it.watch.one
        assert (one.raw, one.body, one.answer) == (head, b"hello", b"ab")
        assert (one.status, one.ends) == (201, [True])


async def test_a_request_that_is_repeated_on_a_new_connection_is_one() -> None:
    async with talk() as it:
        await it.say(GET)
        await it.answer(OK)
        old = it.far
        await it.say(GET)
        await old.break_with(Code.RESET)
        await trio.testing.wait_all_tasks_blocked()
        await it.answer(OK)
        _, second = it.watch.all
        assert (second.connects, second.answer, second.ends) == (1, b"ok", [True])
        # What failed, failed before the connection that did not.
        assert second.failures


@pytest.mark.parametrize(
    ("said", "status", "whole", "fails"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 401, True, False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", 401, False, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, False, False),
        (b"\x16\x03\x01 hello", 400, False, False),
    ],
)
async def test_pages_of_our_own_are_seen(
    said: bytes, status: int, whole: bool, fails: bool
) -> None:
    async with talk(ServiceRules(Guard("me", "right"))) as it:
        await it.say(said)
        one = it.watch.one
        assert (one.raw, one.status) == (said, status)
        assert str(status).encode() in one.answer
        assert one.answer.endswith(b"\n")
        assert (one.ends, bool(one.failures)) == ([whole], fails)
        heard = await read_head(it.visitor)
        assert await read(it.visitor, int(heard.all("content-length")[0])) == one.answer


async def test_a_target_that_is_not_there_is_a_failure() -> None:
    async with talk() as it:
        it.refusal = Code.REFUSED
        await it.say(GET)
        one = it.watch.one
        assert (one.status, one.ends, one.connects) == (502, [True], 0)
        assert one.failures
        assert one.failures[-1].encode() in one.answer


async def test_an_answer_that_breaks_off_is_a_failure() -> None:
    async with talk() as it:
        await it.say(GET)
        await it.answer(OK[:-1])
        await it.far.far.send_eof()
        await it.ended.wait()
        one = it.watch.one
        assert (one.answer, one.ends) == (b"o", [True])
        assert "broke off" in one.failures[-1]


async def test_a_visitor_that_leaves_is_a_failure_and_its_request_not_whole() -> None:
    async with talk() as it:
        await it.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhel")
        await trio.aclose_forcefully(it.visitor)
        await it.ended.wait()
        one = it.watch.one
        assert (one.body, one.ends) == (b"hel", [False])
        assert one.failures


async def test_both_ways_behind_101_are_seen_and_then_the_end() -> None:
    async with talk() as it:
        await it.say(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
        )
        await it.answer(
            b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nearly"
        )
        one = it.watch.one
        assert (one.status, one.ends) == (101, [])
        await it.say(b"up")
        await it.answer(b"down")
        await it.far.far.send_eof()
        await it.visitor.send_eof()
        await it.ended.wait()
        assert (one.up, one.down, one.ends) == (b"up", b"earlydown", [True])
        assert (await read_to_end(it.visitor)).endswith(b"\r\n\r\nearlydown")


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_folder_is_seen_too(tmp_path: Path, guarded: bool) -> None:
    content = bytes(range(256)) * 3_000  # more than one read
    (tmp_path / "a.bin").write_bytes(content)
    rules = ServiceRules(Guard("me", "right")) if guarded else None
    async with talk(rules, Folder(tmp_path)) as it:
        await it.visitor.send_all(b"GET /a.bin HTTP/1.0\r\nHost: a\r\n\r\n")
        heard = await read_to_end(it.visitor)
        await it.ended.wait()
        one = it.watch.one
        assert one.status == (401 if guarded else 200)
        assert one.heads[0][1] + one.answer == heard
        assert guarded or one.answer == content


class Broken(Seen):
    """Fails at one call, and at each one behind it."""

    def __init__(self, raw: bytes, at: int) -> None:
        super().__init__(raw)
        self.left = at

    def __getattribute__(self, name: str) -> object:
        if name in ("connected", "asked", "answers", "answered", "failed", "over"):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("at", range(-1, 6))
async def test_an_observer_that_fails_harms_nobody(
    at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def begin(_visitor: Address, raw: bytes) -> Seen:
        if at < 0:
            raise RuntimeError("begin")
        return Broken(raw, at)

    async with talk() as it:
        monkeypatch.setattr(it.watch, "begin", begin)
        for _ in range(2):
            await it.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
            assert (await read_to(it.far.far, b"hi")).endswith(b"\r\n\r\nhi")
            await it.answer(OK)
            assert (await read_to(it.visitor, b"ok")).endswith(b"\r\n\r\nok")
    failed = [one for one in caplog.records if "observer.failed" in one.getMessage()]
    # Once for each request; the second one's target is connected already.
    assert len(failed) == {4: 1, 5: 0}.get(at, 2)


async def read_to(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n" + end):
        data += await read(stream, 1)
    return data


async def test_the_middle_of_a_large_body_that_bypasses_the_reader_is_seen() -> None:
    """What ``sink_of`` hands to a socket: only what the socket took."""
    near, far = trio.socket.socketpair()
    near.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 4_096)
    stream = FastSocket.of(near)
    visit = Visit(stream, VISITOR, watch=(watch := Watching()))
    visit.waiting += GET
    visit.take_request(len(GET))
    size = 4_000_000
    take = sink_of(visit, BodyReader(Body(size)))
    pieces: list[bytes | memoryview] = [b"a" * 10, memoryview(b"b" * 2_000_000)]
    taken = take(pieces, 2_000_010)
    assert 10 < taken < 2_000_010
    assert watch.one.answer == (b"a" * 10 + b"b" * taken)[:taken]
    stream.close()
    far.close()
