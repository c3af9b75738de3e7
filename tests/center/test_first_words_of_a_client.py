"""What a center-client says first on a link: to a server that is written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import frames
from support.center import LOOPBACK, WAIT_S

from tunnel.access.join import JoinLine, make_token
from tunnel.addresses import Address
from tunnel.center.client import CenterClient
from tunnel.link.transport import PlainTransport, answer, hear, send
from tunnel.net.sockets import FastSocket
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.frames import CAN_MAP, ProtMapping, ProtPing, Terms
from tunnel.proto.handshake import ServerHandshake
from tunnel.proto.proofs import PLAIN_BINDING, verifier_of

if TYPE_CHECKING:
    from tunnel.proto.frames import ProtFrame

NAME = "default"
LINKS = 2
"""A session that is lost with its link begins with a PING again."""


class ByHand:
    """A server's end of one link, behind its link start."""

    def __init__(self, transport: PlainTransport) -> None:
        self.transport = transport
        self.decoder = FrameDecoder()
        self.heard: list[ProtFrame] = []
        """All that has come."""

    async def say(self, data: bytes) -> None:
        await send(self.transport, [data])

    async def until(self, *last: ProtFrame | type[ProtFrame]) -> ProtFrame:
        """Hear until a frame comes that is one of these, or of such a kind."""
        while True:
            data = bytes(await self.transport.receive_some())
            assert data, "the client ended the link"
            came = list(self.decoder.feed(data))
            self.heard += came
            for frame in came:
                if frame in last or type(frame) in last:
                    return frame

    def mappings(self) -> list[ProtFrame]:
        return [frame for frame in self.heard if isinstance(frame, ProtMapping)]


async def server_of(join: JoinLine, listener: trio.SocketListener) -> ByHand:
    stream = await listener.accept()
    transport = PlainTransport(FastSocket.of(stream.socket))
    verifier = verifier_of(NAME, join.token.reveal())
    shake = ServerHandshake(
        Terms(capabilities=CAN_MAP), bytes(32), PLAIN_BINDING, lambda _: verifier,
        verifier,
    )  # fmt: skip
    await hear(transport, shake)
    shake.accept(bytes(16), 0, resumed=False)
    await answer(transport, shake)
    return ByHand(transport)


@pytest.mark.parametrize("early", [True, False], ids=["asked before", "asked between"])
async def test_nothing_is_published_until_the_first_ping_came_back(
    early: bool,
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = listener.socket.getsockname()[1]
    join = JoinLine(NAME, make_token(), LOOPBACK, port, None, plain=True)
    client = CenterClient(join, resume_s=0)
    target = Address(LOOPBACK, 9)
    async with listener, trio.open_nursery() as nursery:

        async def publish() -> None:
            await client.publish_target(Address("", 0), target)

        if early:
            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(client.run)
        with trio.fail_after(WAIT_S):
            for number in range(LINKS):
                peer = await server_of(join, listener)
                first = await peer.until(ProtPing)
                assert isinstance(first, ProtPing)
                if not early and not number:
                    nursery.start_soon(publish)
                # Whatever it wanted to say besides has come by the time of these.
                for turn in range(5):
                    opaque = bytes((turn + 1,)) * 8
                    await peer.say(frames.ping(opaque))
                    await peer.until(ProtPing(opaque, ack=True))
                assert not peer.mappings()
                await peer.say(frames.ping(first.opaque, ack=True))
                asked = await peer.until(ProtMapping)
                assert isinstance(asked, ProtMapping)
                given = frames.mapping_answer(0, LOOPBACK, 9)
                await peer.say(frames.mapping_answers(given))
                await peer.transport.aclose()
        nursery.cancel_scope.cancel()
