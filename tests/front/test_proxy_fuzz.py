"""Whatever an app and an origin say, the proxy ends without a fault of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.far import Far, read_to_end

from tunnel.errors import Code, RemoteStreamError
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import handle_app

if TYPE_CHECKING:
    from tunnel.proto.frames import Target

WORDS = [
    b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n",
    b"HEAD http://a.test/ HTTP/1.1\r\nHost: a.test\r\n",
    b"POST http://b.test:81/x HTTP/1.1\r\nHost: b\r\n",
    b"GET http://a.test/ HTTP/1.0\r\n",
    b"CONNECT a.test:443 HTTP/1.1\r\nHost: a\r\n",
    b"OPTIONS http://a.test HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 204 No\r\n",
    b"HTTP/1.1 304 No\r\n",
    b"HTTP/1.1 100 Go\r\n\r\n",
    b"HTTP/1.1 101 Switch\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"\5\1\0",
    b"\5\1\0\1\x7f\0\0\1\0\x50",
    b"\5\2\0\3\1a\0\x50",
    b"\4\1\0\x50\0\0\0\1u\0a\0",
]
speech = st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=20)), max_size=9)


async def converse(said: list[bytes], answer: list[bytes], code: Code | None) -> None:
    app, ours = trio.testing.memory_stream_pair()
    fars = 0

    async def open_target(target: Target) -> Far:
        nonlocal fars
        await trio.lowlevel.checkpoint()
        fars += 1
        if code is not None and fars > 1:
            raise RemoteStreamError(code, "scripted")
        far = Far()
        nursery.start_soon(speak, far)
        return far

    async def speak(far: Far) -> None:
        for piece in answer:
            await far.far.send_all(piece)
            await trio.lowlevel.checkpoint()
        if code is None:
            await far.far.send_eof()
        else:
            await far.break_with(code)

    async def proxy() -> None:
        await handle_app(ours, Dialer(open_target))
        await read_to_end(app)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy)
        for piece in said:
            try:
                await app.send_all(piece)
            except trio.BrokenResourceError:
                break
            await trio.testing.wait_all_tasks_blocked()
        await app.send_eof()


@settings(deadline=None, max_examples=300)
@given(
    speech,
    speech,
    st.one_of(st.none(), st.sampled_from([Code.RESET, Code.NORMAL, Code.REFUSED])),
)
def test_no_words_of_an_app_or_an_origin_are_a_fault_of_the_proxy(
    said: list[bytes], answer: list[bytes], code: Code | None
) -> None:
    """Rows A5, A10."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(converse, said, answer, code, clock=clock)
