"""A node that has died was dialled anew until the 3 s were over, for each of its names.

Its lease lasts up to 15 s. For so long a client that came to another node waited 3 s
for its link, and 2.5 s for each name that it had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tunnel.center.cluster.peers import AGAIN_S, Peers
from tunnel.center.cluster.secret import ClusterSecret
from tunnel.errors import Code, StreamError, TunnelError

if TYPE_CHECKING:
    import socket

    from trio.testing import MockClock


@pytest.mark.parametrize("silent", [False, True])
async def test_who_asks_a_dead_node_hears_so_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery, silent: bool
) -> None:
    dials = 0

    async def connect(_node: str) -> socket.socket | None:
        nonlocal dials
        dials += 1
        await trio.lowlevel.checkpoint()
        if silent:  # as a host that vanished without a packet
            await trio.sleep_forever()
        raise TunnelError(Code.LINK_LOST, "connection refused")

    secret = ClusterSecret(bytes(32))
    nodes = {"here": "", "dead": ""}
    peers = Peers("here", secret, None, lambda: nodes, connect)
    await nursery.start(peers.run)
    began = trio.current_time()
    for _ in range(100):
        with pytest.raises(StreamError):
            await peers.reached("dead", 2.5)
        assert await peers.ask("dead", {"ask": "answers"}, 2.5) is None
    took_s = trio.current_time() - began
    assert took_s < (2.6 if silent else 0.1)
    assert dials == 1
    await trio.sleep(AGAIN_S)
    with pytest.raises(StreamError):
        await peers.reached("dead", 0.1)
    assert dials == (1 if silent else 2)  # it may live again; a silent dial goes on
    nursery.cancel_scope.cancel()
