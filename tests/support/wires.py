"""Two sessions joined by a wire of memory, and wires that misbehave."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio
import trio.testing

from tunnel.errors import Code, TunnelError
from tunnel.link.link import Link
from tunnel.link.session import Session
from tunnel.link.transport import PlainTransport
from tunnel.proto.frames import Address, MappingAnswer, ProtMapping, TcpTarget, Terms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tunnel.link.virtual import VirtualStream

TARGET = TcpTarget(Address("127.0.0.1", 80))


class Offers:
    """Accepts every offered stream, hands it to a test, and waits until it is over."""

    def __init__(self) -> None:
        self._put, self.taken = trio.open_memory_channel["VirtualStream"](100)
        self.hold = trio.Event()

    async def __call__(self, stream: VirtualStream) -> None:
        stream.accept()
        self._put.send_nowait(stream)
        await self.hold.wait()


async def no_names(mapping: ProtMapping) -> list[MappingAnswer]:
    return [MappingAnswer(Code.NO_MAPPING) for _ in mapping.entries]


class SessionPair:
    """A center-client's and a center-server's session over one link."""

    def __init__(
        self,
        terms: Terms,
        serve_client: Callable[[VirtualStream], Awaitable[None]],
        serve_server: Callable[[VirtualStream], Awaitable[None]],
    ) -> None:
        self.client = Session(
            client=True, ours=terms, theirs=terms, serve_offer=serve_client
        )
        self.server = Session(
            client=False,
            ours=terms,
            theirs=terms,
            serve_offer=serve_server,
            serve_mapping=no_names,
        )
        self.client_stream, self.server_stream = trio.testing.memory_stream_pair()
        self.client_link = Link(self.client, PlainTransport(self.client_stream))
        self.server_link = Link(self.server, PlainTransport(self.server_stream))
        self.reasons: dict[str, TunnelError] = {}

    async def carry(self, name: str, link: Link) -> None:
        reason = await link.run()
        self.reasons[name] = reason
        link.session.end(reason)

    def cut(self) -> None:
        """Break the wire both ways without a word."""
        for stream in (self.client_stream, self.server_stream):
            stream.send_stream.close()


@asynccontextmanager
async def session_pair(
    *,
    terms: Terms | None = None,
    serve_client: Callable[[VirtualStream], Awaitable[None]] | None = None,
    serve_server: Callable[[VirtualStream], Awaitable[None]] | None = None,
) -> AsyncIterator[SessionPair]:
    pair = SessionPair(
        terms or Terms(), serve_client or Offers(), serve_server or Offers()
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(pair.client.run)
        await nursery.start(pair.server.run)
        nursery.start_soon(pair.carry, "client", pair.client_link)
        nursery.start_soon(pair.carry, "server", pair.server_link)
        yield pair
        nursery.cancel_scope.cancel()


def small_window(size: int) -> Terms:
    return replace(Terms(), initial_window=size)
