"""What a request used is free when it is over, without the collector."""

from __future__ import annotations

import gc
import types
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.far import Far
from support.town import OK, VISITOR, get

from tunnel.front.http.names import Absent, Destination, handle_visitor
from tunnel.front.http.server import Visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.addresses import Address

REQUESTS = 1_000
"""Of the good ones in all, and as many of those that break."""

POST = get("a.test", "Transfer-Encoding: chunked", method="POST")
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nraw"
FINE = {
    "a GET": (get("a.test"), OK, b"ok"),
    "a POST": (POST + b"2\r\nhi\r\n0\r\n\r\n", CHUNKS, b"\r\n0\r\n\r\n"),
    "a page": (get("b.test"), b"", b"no such name"),
}
BROKEN = {
    "no answer": (get("a.test"), b"", b"HTTP/1.1 502"),
    "no HTTP": (get("a.test"), b"SSH-2.0", b"HTTP/1.1 502"),
    "a cut answer": (get("a.test"), OK[:-1], b"\r\n\r\no"),
    "a bad chunk": (POST + b"no chunk\r\n", b"", b"HTTP/1.1 400"),
    "a bad head": (b"GET / HTTP/1.1\r\n\r\n", b"", b"HTTP/1.1 400"),
    "a visitor that breaks": (get("a.test"), OK[:-2], b"\r\n\r\n"),
    "a visitor that leaves": (get("a.test"), OK[:-2], b"\r\n\r\n"),
    "a visitor that leaves at once": (get("a.test"), b"HTTP/1.1 103 E\r\n\r\n", b"103"),
    "a switch": (get("a.test", "Connection: Upgrade", "Upgrade: x"), SWITCH, b"raw"),
}


class _Target(Far):
    """Gives one answer to whatever comes, and ends when that is not whole."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if bytes(data).endswith((b"\r\n\r\n", b"0\r\n\r\n")):
            await self.far.send_all(self._answer)
        if self._answer in (b"", OK[:-1], b"SSH-2.0"):
            await self.far.send_eof()

    def finish(self) -> None:
        self.far.send_stream.close()


async def serve(
    said: bytes, answer: bytes, end: bytes, times: int, *, breaks: bool = False
) -> None:
    """Serve a visitor that asks the same so often, and then leaves."""
    visitor, ours = trio.testing.memory_stream_pair()

    async def open_one(_visitor: Address) -> Far:
        await trio.lowlevel.checkpoint()
        return _Target(answer)

    def route(host: str) -> Destination | Absent:
        return Destination(None, open_one) if host == "a.test" else Absent.UNKNOWN

    async def broken() -> None:
        raise trio.BrokenResourceError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_visitor, Visit(ours, VISITOR), route)
        for _ in range(times):
            await visitor.send_all(said)
            heard = b""
            while end not in heard:
                piece = await visitor.receive_some()
                assert piece, heard
                heard += piece
        if breaks:
            ours.receive_stream.receive_some_hook = broken
            await visitor.send_all(b"x")
        await trio.aclose_forcefully(visitor)
        nursery.cancel_scope.deadline = trio.current_time() + 5


def kept() -> Counter[str]:
    """Count what is ours, and what holds it; memory streams are cycles themselves."""
    return Counter(
        kind.__name__
        for kind in map(type, gc.get_objects())
        if str(kind.__module__).startswith("tunnel.front") or kind in _HOLDERS
    )


_HOLDERS = (types.FrameType, types.TracebackType, types.CoroutineType)


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("name", FINE)
async def test_requests_of_one_visitor_leave_nothing(name: str) -> None:
    said, answer, end = FINE[name]
    end = b"published under this name\n" if name == "a page" else end
    await serve(said, answer, end, 100)
    before = kept()
    await serve(said, answer, end, REQUESTS // len(FINE))
    assert kept() - before == Counter()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("name", BROKEN)
async def test_what_breaks_leaves_nothing(name: str) -> None:
    breaks = "breaks" in name
    for _ in range(20):
        await serve(*BROKEN[name], 1, breaks=breaks)
    before = kept()
    for _ in range(REQUESTS // len(BROKEN)):
        await serve(*BROKEN[name], 1, breaks=breaks)
    assert kept() - before == Counter()
