"""Two sessions joined by a wire of memory, and wires that misbehave."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio
import trio.testing

from tunnel.addresses import Address
from tunnel.errors import Code, TunnelError
from tunnel.link.link import Link
from tunnel.link.session import Session
from tunnel.link.transport import PlainTransport, TlsTransport
from tunnel.proto.frames import MappingAnswer, ProtMapping, TcpTarget, Terms

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tunnel.link.transport import Transport
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.pools import Pools

    MemoryStapled = trio.StapledStream[
        trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream
    ]
    ServeOffer = Callable[[VirtualStream], Awaitable[None]]

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


def resumable_session() -> Session:
    """Make a session that waits a minute for another link."""
    return Session(
        client=True,
        ours=Terms(),
        theirs=Terms(),
        serve_offer=Offers(),
        resume_s=60,
        replay_limit=1 << 20,
    )


async def no_names(mapping: ProtMapping) -> list[MappingAnswer]:
    return [MappingAnswer(Code.NO_MAPPING) for _ in mapping.entries]


class Fuse:
    """Cuts a wire, both ways, once ``left`` bytes have passed over it one way."""

    def __init__(self, left: float) -> None:
        self.left = left
        self.passed = 0
        self._streams: list[trio.testing.MemorySendStream] = []

    def guard(self, *streams: MemoryStapled) -> None:
        for stream in streams:
            self._streams.append(stream.send_stream)

    def blow(self) -> None:
        for stream in self._streams:
            stream.close()


class FusedStream(trio.abc.HalfCloseableStream):
    """One end of a wire; what it sends passes a fuse, in pieces of ``split`` bytes."""

    def __init__(self, stream: MemoryStapled, fuse: Fuse, split: int = 1 << 30) -> None:
        self._stream = stream
        self._fuse = fuse
        self._split = split

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)[: max(0, int(min(self._fuse.left, len(data))))]
        self._fuse.left -= len(data)
        self._fuse.passed += len(view)
        try:
            for at in range(0, len(view), self._split):
                await self._stream.send_all(view[at : at + self._split])
        except trio.ClosedResourceError:  # blown from the other end
            raise trio.BrokenResourceError from None
        finally:
            if self._fuse.left <= 0:
                self._fuse.blow()
        if self._fuse.left < 0:
            raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        # As small as the split: a memory stream joins what has come.
        most = self._split if max_bytes is None else min(max_bytes, self._split)
        return bytes(await self._stream.receive_some(most))

    async def aclose(self) -> None:
        await self._stream.aclose()


def fused_wires(
    to_server: float = float("inf"),
    to_client: float = float("inf"),
    split: int = 1 << 30,
) -> tuple[FusedStream, FusedStream, Fuse, Fuse]:
    """A memory wire whose directions break after so many bytes."""
    left, right = trio.testing.memory_stream_pair()
    up, down = Fuse(to_server), Fuse(to_client)
    up.guard(left, right)
    down.guard(left, right)
    return FusedStream(left, up, split), FusedStream(right, down, split), up, down


async def tls_pair(
    client: trio.abc.Stream,
    server: trio.abc.Stream,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> tuple[TlsTransport, TlsTransport]:
    """Shake hands over two ends of a wire."""
    client_tls = TlsTransport(
        client, contexts[0], server_side=False, host_name="tunnel.test"
    )
    server_tls = TlsTransport(server, contexts[1], server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client_tls.handshake)
        nursery.start_soon(server_tls.handshake)
    return client_tls, server_tls


class RawPeer:
    """A session and its link on one end of a wire; on the other end is the test.

    Args:
        client: which role the session plays.
        lockstep: the session's writes wait until the test has read them.
    """

    def __init__(
        self,
        *,
        client: bool = True,
        serve: ServeOffer | None = None,
        early: bytes = b"",
        terms: Terms | None = None,
        lockstep: bool = False,
        pools: Pools | None = None,
    ) -> None:
        terms = terms or Terms()
        self.session = Session(
            client=client,
            ours=terms,
            theirs=terms,
            serve_offer=serve or Offers(),
            serve_mapping=None if client else no_names,
            pools=pools,
        )
        self.wire: trio.abc.HalfCloseableStream
        self.stream: trio.abc.HalfCloseableStream
        if lockstep:
            self.wire, self.stream = trio.testing.lockstep_stream_pair()
        else:
            self.wire, self.stream = trio.testing.memory_stream_pair()
        self.link = Link(self.session, PlainTransport(self.stream), early)
        self.reason: TunnelError | None = None
        self.ended_at = 0.0
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            self.reason = await self.link.run()
            self.ended_at = trio.current_time()
            self.session.end(self.reason)

    async def read(self) -> bytes:
        """Read to the end of what the link says."""
        data = b""
        while piece := await self.wire.receive_some():
            data += piece
        return data

    async def heard(self) -> bytes:
        """Give what the link has said until it rests."""
        await trio.testing.wait_all_tasks_blocked()
        said = b""
        with trio.move_on_after(0.001):
            while piece := await self.wire.receive_some():
                said += piece
        return said


@asynccontextmanager
async def raw_peer(
    *,
    client: bool = True,
    serve: ServeOffer | None = None,
    early: bytes = b"",
    terms: Terms | None = None,
    lockstep: bool = False,
    pools: Pools | None = None,
) -> AsyncIterator[RawPeer]:
    peer = RawPeer(
        client=client,
        serve=serve,
        early=early,
        terms=terms,
        lockstep=lockstep,
        pools=pools,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.session.run)
        nursery.start_soon(peer.run)
        yield peer
        nursery.cancel_scope.cancel()


class SessionPair:
    """A center-client's and a center-server's session over one link."""

    def __init__(
        self,
        terms: Terms,
        serve_client: ServeOffer,
        serve_server: ServeOffer,
        transports: tuple[Transport, Transport] | None = None,
        *,
        resume_s: float = 0,
        pools: Pools | None = None,
    ) -> None:
        self.client = Session(
            client=True,
            ours=terms,
            theirs=terms,
            serve_offer=serve_client,
            resume_s=resume_s,
            replay_limit=1 << 20,
        )
        self.server = Session(
            client=False,
            ours=terms,
            theirs=terms,
            serve_offer=serve_server,
            serve_mapping=no_names,
            resume_s=resume_s,
            replay_limit=1 << 20,
            pools=pools,
        )
        self._wire(transports)
        self.reasons: dict[str, TunnelError] = {}

    def _wire(self, transports: tuple[Transport, Transport] | None = None) -> None:
        self.client_stream, self.server_stream = trio.testing.memory_stream_pair()
        if transports is None:
            transports = (
                PlainTransport(self.client_stream),
                PlainTransport(self.server_stream),
            )
        self.client_link = Link(self.client, transports[0])
        self.server_link = Link(self.server, transports[1])

    async def carry(self, name: str, link: Link) -> None:
        reason = await link.run()
        self.reasons[name] = reason
        link.session.end(reason)

    async def run_links(self) -> None:
        """Carry the sessions, which survive it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.client_link.run)
            nursery.start_soon(self.server_link.run)

    def resume(self) -> None:
        """Give both another link."""
        received = [session.core.received for session in (self.client, self.server)]
        self.client.resume(received[1])
        self.server.resume(received[0])
        self._wire()

    def cut(self) -> None:
        """Break the wire both ways without a word."""
        for stream in (self.client_stream, self.server_stream):
            stream.send_stream.close()


@asynccontextmanager
async def session_pair(
    *,
    terms: Terms | None = None,
    serve_client: ServeOffer | None = None,
    serve_server: ServeOffer | None = None,
    transports: tuple[Transport, Transport] | None = None,
    pools: Pools | None = None,
) -> AsyncIterator[SessionPair]:
    pair = SessionPair(
        terms or Terms(),
        serve_client or Offers(),
        serve_server or Offers(),
        transports,
        pools=pools,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(pair.client.run)
        await nursery.start(pair.server.run)
        nursery.start_soon(pair.carry, "client", pair.client_link)
        nursery.start_soon(pair.carry, "server", pair.server_link)
        yield pair
        nursery.cancel_scope.cancel()


async def open_one(
    sessions: SessionPair, offers: Offers
) -> tuple[VirtualStream, VirtualStream]:
    """Open a stream that the server's ``offers`` accepts; give both ends."""
    left = await sessions.client.open(TARGET)
    return left, await offers.taken.receive()


def small_window(size: int) -> Terms:
    return replace(Terms(), initial_window=size)
