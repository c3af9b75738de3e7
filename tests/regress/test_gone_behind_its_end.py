"""A visitor that ended its direction, and vanished before its target said anything.

Nothing reads such a socket any more. The kernel found the end of it, the look at all
connections found that, and whoever waited for the target went on waiting for ever.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio
import trio.testing
import trustme
from support.far import Far

from tunnel.addresses import Address
from tunnel.errors import Code
from tunnel.front.http.server import Visit
from tunnel.front.http.service import handle_service
from tunnel.front.http.service_rules import ServiceRules
from tunnel.net.dead_peers import _break
from tunnel.net.descriptors import Arrivals
from tunnel.net.listen import open_listener
from tunnel.net.relay import relay
from tunnel.net.tls_stream import TlsStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.net.sockets import FastSocket

PEER = Address("127.0.0.1", 1)


async def connected() -> tuple[trio.SocketStream, FastSocket]:
    (listener,) = await open_listener("127.0.0.1", 0)
    async with listener:
        there = await trio.open_tcp_stream(*listener.socket.getsockname())
        return there, await listener.accept()


async def ends_when_broken(
    here: FastSocket, serve: Callable[[], Awaitable[object]], far: Far
) -> None:
    """Break a socket as the look at all does, once nothing happens any more."""
    arrivals = Arrivals()
    arrivals.add(here)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not far.resets
            _break(here)
    arrivals.left(here)
    assert far.resets == [Code.RESET]


async def test_a_request_ends_whose_visitor_is_gone() -> None:
    there, here = await connected()
    far = Far()

    async def open_one(_visitor: Address) -> Far:
        await trio.lowlevel.checkpoint()
        return far

    visit = Visit(here, PEER)
    async with there:
        await there.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await there.send_eof()
        await ends_when_broken(
            here,
            lambda: handle_service(
                visit, ServiceRules(), open_one, believe_headers=False
            ),
            far,
        )


async def test_a_relay_inside_tls_ends_whose_visitor_is_gone() -> None:
    there, here = await connected()
    far, authority = Far(), trustme.CA()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("a.test").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)
    inner, outer = (
        TlsStream(here, ours),
        trio.SSLStream(there, theirs, server_hostname="a.test", https_compatible=True),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outer.do_handshake)
        await inner.handshake()
    await outer.send_all(b"hello")
    await there.send_eof()
    await ends_when_broken(here, lambda: relay(inner, far), far)
    await trio.aclose_forcefully(there)
