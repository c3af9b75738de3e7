"""A server that broke a rule after each proof was run into five times a second."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import frames

from tunnel.access.join import JoinLine, make_token
from tunnel.center import whereabouts
from tunnel.center.client import CenterClient
from tunnel.center.events import LinkDown
from tunnel.errors import Code
from tunnel.proto.frames import Terms
from tunnel.proto.handshake import ServerHandshake
from tunnel.proto.proofs import PLAIN_BINDING, verifier_of

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tunnel.center.events import Notice

JOIN = JoinLine("ann", make_token(), "192.0.2.1", 1, None, plain=True)
A_WHILE_S = 60.0


class Trusted:
    """A server that proves itself and then says ``word``."""

    def __init__(self, word: bytes, nursery: trio.Nursery) -> None:
        self.links = 0
        self._word = word
        self._nursery = nursery

    async def dial(
        self, _host: str, _port: int, _mss: int | None = None
    ) -> trio.abc.HalfCloseableStream:
        self.links += 1
        near, far = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, far)
        return near

    async def _serve(self, wire: trio.abc.HalfCloseableStream) -> None:
        verifier = verifier_of(JOIN.name, JOIN.token.reveal())
        handshake = ServerHandshake(
            Terms(), bytes(32), PLAIN_BINDING, lambda _name: verifier, verifier
        )
        while handshake.claim is None:
            handshake.receive(bytes(await wire.receive_some()))
            await wire.send_all(handshake.data_to_send())
        handshake.accept(bytes(16), 0, resumed=False)
        await wire.send_all(handshake.data_to_send() + self._word)
        async for _ in wire:
            pass
        await wire.aclose()


async def links_in_a_while(word: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    notices: list[Notice] = []
    random.seed(A_WHILE_S)  # of the pauses: by chance all may be short
    client = CenterClient(JOIN, tell=notices.append)
    async with trio.open_nursery() as nursery:
        server = Trusted(word, nursery)
        monkeypatch.setattr(whereabouts, "dial", server.dial)
        with trio.move_on_after(A_WHILE_S):
            await client.run()
        nursery.cancel_scope.cancel()
    downs = [one for one in notices if isinstance(one, LinkDown)]
    assert downs
    assert all(one.was_up for one in downs), "each link start itself succeeds"
    return server.links


@pytest.mark.parametrize(
    "word",
    [
        frames.mapping_answers(frames.mapping_answer(0, "", 9)),
        frames.ping() * 2_000,
        frames.go_away(int(Code.INTERNAL)),
    ],
    ids=["answers nobody asked for", "a flood", "an end"],
)
async def test_sessions_that_fail_one_after_the_other_come_at_a_growing_distance(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, word: bytes
) -> None:
    assert await links_in_a_while(word, monkeypatch) < 12


async def test_a_server_that_stops_in_good_order_is_tried_again_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = frames.go_away(int(Code.NORMAL))
    assert await links_in_a_while(word, monkeypatch) > A_WHILE_S
