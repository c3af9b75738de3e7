"""Tells other nodes which clients of this one have no link at the moment.

Those hear it that have opened at one of them, until they have answered. So they ask
other members of a group, and let go what is in flight, as this node does itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.waiting import FOUND, WAITS

if TYPE_CHECKING:
    from tunnel.center.client_session import ClientSession
    from tunnel.center.cluster.peers import Peers

TOLD_S: Final = 2.0
"""How long a node may take to hear it."""
AGAIN_S: Final = 0.2
"""Before one that did not is told again."""


class Telling:
    """Tells other nodes of the clients of this one."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._told: dict[ClientSession, dict[str, bool]] = {}
        """What each node knows: whether the client waits."""
        self._telling: set[tuple[ClientSession, str]] = set()
        """What is being told."""
        self._news = trio.Event()

    def opened_by(self, node: str, client: ClientSession) -> None:
        """Have a node hear of a client from now on: it has a visitor there."""
        nodes = self._told.get(client)
        if nodes is None:
            nodes = self._told[client] = {}
            client.when_lost.add(self._ring)
            client.when_found.add(self._ring)
        if nodes.setdefault(node, False) != client.waiting:
            self._ring()

    def _ring(self) -> None:
        self._news.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                for client, nodes in tuple(self._told.items()):
                    if client.gone:
                        del self._told[client]  # its names are closed everywhere
                        continue
                    for node, told in nodes.items():
                        pair = client, node
                        if told != client.waiting and pair not in self._telling:
                            self._telling.add(pair)
                            nursery.start_soon(self._tell, client, node, nodes)

    async def _tell(
        self, client: ClientSession, node: str, nodes: dict[str, bool]
    ) -> None:
        waits = client.waiting
        word = WAITS if waits else FOUND
        about: dict[str, object] = {"ask": word, "session": client.session_id.hex()}
        try:
            if await self._peers.ask(node, about, TOLD_S) is not None:
                nodes[node] = waits
            elif not self._peers.lives(node):
                del nodes[node]
            else:
                await trio.sleep(AGAIN_S)
        finally:
            self._telling.discard((client, node))
        if nodes.get(node, client.waiting) != client.waiting:
            self._ring()
