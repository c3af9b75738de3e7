"""The proxy took any ``HTTP/n.n`` for HTTP/1.1, and carried the request out."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from support.far import open_nothing

from tunnel.front.dialer import Dialer
from tunnel.front.proxy import handle_app


@pytest.mark.parametrize("line", [b"GET http://a.test/", b"CONNECT a.test:443"])
@pytest.mark.parametrize("version", [b"9.9", b"2.0", b"0.9"])
async def test_another_version_of_http_is_refused(line: bytes, version: bytes) -> None:
    app, ours = trio.testing.memory_stream_pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle_app, ours, Dialer(open_nothing))
            await app.send_all(line + b" HTTP/" + version + b"\r\nHost: a.test\r\n\r\n")
            heard = b"".join([piece async for piece in app])
            await app.aclose()
    assert heard.startswith(b"HTTP/1.1 505 ")
    assert b"\r\nConnection: close\r\n" in heard
