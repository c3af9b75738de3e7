from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support import frames
from support.wires import TARGET, raw_peer

from tunnel.addresses import Address
from tunnel.errors import LinkError, RemoteSessionError
from tunnel.link.datagrams import DatagramStream
from tunnel.proto.frames import CAN_MAP, CAN_UDP, Terms, UdpTarget

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream

SOCK_MAPS = st.sampled_from([0, 1, 2, 3, 4, 5, 0xFFFFFF])
ADDRESS = frames.ipv4(127, 0, 0, 1, 80)
HERE = Address("127.0.0.1", 80)
WELL_FORMED = st.one_of(
    st.builds(frames.data, SOCK_MAPS, st.binary(max_size=40), fin=st.booleans()),
    st.builds(frames.create_tcp, SOCK_MAPS, st.just(ADDRESS)),
    st.builds(frames.create_udp, SOCK_MAPS),
    st.builds(frames.create_bind, SOCK_MAPS, st.just(ADDRESS)),
    st.builds(frames.datagram, SOCK_MAPS, st.just(ADDRESS), st.binary(max_size=40)),
    st.builds(frames.accept, SOCK_MAPS),
    st.builds(frames.close, SOCK_MAPS, st.sampled_from([None, 0, 0x14, 0x1C, 0xFFF])),
    st.builds(frames.window, SOCK_MAPS, st.integers(0, 1 << 63)),
    st.builds(frames.ping, ack=st.booleans()),
    st.builds(frames.go_away, st.integers(0, 0x20)),
    st.builds(frames.mapping, st.integers(0, 4)),
    st.builds(frames.received, st.integers(0, 1 << 40)),
)
PIECES = st.lists(st.one_of(WELL_FORMED, st.binary(max_size=30)), max_size=25)


async def hostile(pieces: list[bytes], split: int, *, client: bool) -> None:
    """Whatever comes, one family of errors is all that it can raise."""

    async def serve(stream: VirtualStream) -> None:
        if stream.conn.datagrams is not None:
            return await serve_udp(DatagramStream(stream))
        stream.accept()
        try:
            async for piece in stream:
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            pass
        await stream.aclose()

    async def serve_udp(datagrams: DatagramStream) -> None:
        datagrams.stream.accept()
        with suppress(trio.BrokenResourceError):
            while True:
                datagrams.send(*await datagrams.receive())
        await datagrams.aclose()

    terms = Terms(capabilities=CAN_MAP | CAN_UDP)
    async with raw_peer(client=client, serve=serve, terms=terms) as peer:
        for _ in range(2):
            peer.session.open_now(TARGET)
        DatagramStream(peer.session.open_now(UdpTarget())).send(HERE, b"early")
        data = b"".join(pieces)
        try:
            for at in range(0, len(data), split):
                await peer.wire.send_all(data[at : at + split])
        except trio.BrokenResourceError:
            pass
        await peer.wire.send_eof()
        await trio.sleep(10)
        assert isinstance(peer.reason, RemoteSessionError | LinkError)
        with trio.fail_after(10):
            await peer.session.wait_gone()
        core = peer.session.core
        assert peer.session.streams == core.conns == 0
        assert core.pools.held.held_bytes == 0
        assert not peer.session._deliveries


def run_hostile(pieces: list[bytes], split: int, client: bool) -> None:
    async def main() -> None:
        await hostile(pieces, split, client=client)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@given(PIECES, st.integers(1, 200), st.booleans())
def test_hostile_bytes_end_a_link_and_nothing_else(
    pieces: list[bytes], split: int, client: bool
) -> None:
    run_hostile(pieces, split, client)


@pytest.mark.deep
@given(
    st.lists(st.one_of(WELL_FORMED, st.binary(max_size=300)), max_size=200),
    st.integers(1, 2_000),
    st.booleans(),
)
def test_long_hostile_conversations_end_a_link_and_nothing_else(
    pieces: list[bytes], split: int, client: bool
) -> None:
    run_hostile(pieces, split, client)
