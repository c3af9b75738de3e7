"""A client whose session another node has, as the owner of what it publishes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.peers import REACHED_S
from tunnel.center.owner import VISITOR_WAITS_S
from tunnel.errors import Code, LocalStreamError
from tunnel.proto.frames import NameTarget, SessionTarget, TcpTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.addresses import Address
    from tunnel.center.cluster.peers import Peers
    from tunnel.center.who import Who
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Target

ANSWERS: Final = "answers"
"""The question whether a client is there."""
YIELDS: Final = "yields"
"""The question whether a client that was restarted may have what it had."""


class RemoteClient:
    """A client at another node: what a mapping asks of its owner.

    Args:
        peers: the links to the nodes.
        node: the one that has the session.
        session_id: 16 bytes.
        user_name: of its user.
        client: its id, as ``short_id`` writes it.
        said: what its node said of it.
    """

    def __init__(
        self,
        peers: Peers,
        node: str,
        session_id: bytes,
        user_name: str,
        client: str,
        said: bytes,
    ) -> None:
        self.said = said
        self.user_name = user_name
        self.node = node
        self.session_id = session_id
        self.client = client
        self.gone = False
        """Whether its node, or what it published, is no more."""
        self.when_lost: set[Callable[[], None]] = set()
        """Called when the node is gone; who adds removes."""
        self._peers = peers
        self._waits_since = math.inf
        peers.waiting.watch(session_id, self._link_lost)

    @property
    def session(self) -> RemoteClient:
        """Where a visitor is opened: at the node."""
        return self

    @property
    def waiting(self) -> bool:
        """Whether it has no link, or its node none; that is made then."""
        if self.gone or self._peers.waiting.lost_at(self.session_id) is not None:
            return True
        waits = self._peers.session(self.node) is None
        if not waits:
            self._waits_since = math.inf
        elif self._waits_since == math.inf:
            self._waits_since = trio.current_time()
        return waits

    @property
    def away(self) -> bool:
        """Whether that is so for longer than a visitor should wait."""
        lost_at, now = self._peers.waiting.lost_at(self.session_id), trio.current_time()
        if lost_at is not None and now - lost_at > VISITOR_WAITS_S:
            return True
        waited_s = now - self._waits_since
        return self.gone or (waited_s > REACHED_S and self.waiting)

    @property
    def who(self) -> Who:
        """Who it is, as each line of the log about it says."""
        return {"peer": self.node, "user": self.user_name, "client": self.client}

    def open_now(self, target: Target, visitor: Address | None = None) -> VirtualStream:
        """Open at the client, without a wait; raises as ``Session.open_now``."""
        session = self._peers.session(self.node)
        if session is None or not isinstance(target, NameTarget | TcpTarget):
            raise LocalStreamError(Code.LINK_LOST, f"{self.node} is not reached")
        stream = session.open_now(SessionTarget(self.session_id, target), visitor)
        stream.whose = {"user": self.user_name, "client": self.client}
        return stream

    async def answers(self, timeout_s: float) -> bool:
        """Say whether the client is there; its node is asked."""
        if self.gone:
            return False
        words: dict[str, object] = {"ask": ANSWERS, "session": self.session_id.hex()}
        # The node asks the client for as long, and its answer has a way to go.
        said = await self._peers.ask(self.node, words, timeout_s + timeout_s / 4)
        return bool(said and said.get("yes"))

    def lose_link(self, code: Code, reason: str) -> None:
        """Do nothing: the node loses what is claimed by another, and hears of that."""

    def lost(self) -> None:
        """Note that nothing leads there any more."""
        self.gone = True
        self._peers.waiting.forget(self.session_id, self._link_lost)
        self._link_lost()

    def _link_lost(self) -> None:
        for call in tuple(self.when_lost):
            call()
