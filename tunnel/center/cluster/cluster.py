"""One node of several that act as one server: what the center-server asks of it.

The embedded default has none of this: a server that is alone has no ``Cluster``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.access.rules import NO_RIGHT
from tunnel.access.users import User
from tunnel.center.cluster.directory import (
    Change,
    ClaimedError,
    DirectoryAwayError,
)
from tunnel.center.cluster.handover import HandOver
from tunnel.center.cluster.names import SharedNames
from tunnel.center.cluster.peers import Peers
from tunnel.center.cluster.remote import YIELDS
from tunnel.center.nodes import AT
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from tunnel.center.cluster.directory import Directory
    from tunnel.center.cluster.handover import Give
    from tunnel.center.cluster.peers import Words
    from tunnel.center.cluster.secret import ClusterSecret
    from tunnel.center.mappings import MappingTable
    from tunnel.proto.proofs import Verifier

YIELD_S: Final = 3.0
"""How long another node may take to ask a client whether it is there, and to say so."""
AGAIN_S: Final = 1.0
"""Between two tries to look everything up again."""

logger = logging.getLogger("tunnel.cluster")


class Shared(Protocol):
    """Something that the nodes share besides names."""

    def heard(self, change: Change) -> None:
        """Take a change that the directory has told, whatever it is of."""
        ...

    def nodes_changed(self) -> None:
        """Take that nodes have come or gone."""
        ...

    async def look_again(self) -> None:
        """Take that changes may have been missed; must not wait for the directory."""
        ...

    async def run(self) -> None:
        """Share it until cancelled."""
        ...


class Cluster:
    """This node, and what it knows of the others.

    Args:
        directory: what the nodes share.
        secret: by which they know one another.
        pin: of the identity that all have; None where links are plain.
        ports: whether they are on one machine, and share its ports.
        give: hands a visitor's socket to another of this machine; None: it cannot.
        shares_limits: whether limits of users hold for all nodes together.
    """

    def __init__(
        self,
        directory: Directory,
        secret: ClusterSecret,
        pin: str | None,
        *,
        ports: bool = False,
        give: Give | None = None,
        shares_limits: bool = True,
    ) -> None:
        self.name = directory.name
        self.hint = secret.hint_of(directory.name)
        self.peers = Peers(
            self.name, secret, pin, lambda: directory.nodes, directory.connect
        )
        self._directory = directory
        self._secret = secret
        self._ports = ports
        self._give = give
        self.shares_limits = shares_limits
        self.leaves = False
        """This node is about to end, and the others of its machine are not."""
        self._names: SharedNames
        self._shared: list[Shared] = []

    @property
    def directory(self) -> Directory:
        """What the nodes share."""
        return self._directory

    def add(self, shared: Shared) -> None:
        """Share something besides names, before ``run``."""
        self._shared.append(shared)

    @property
    def has_others(self) -> bool:
        """Whether there are other nodes, which do not end when this machine's do."""
        return (self.leaves or not self._ports) and len(self._directory.nodes) > 1

    def share(self, table: MappingTable) -> SharedNames:
        """Have what other nodes publish stand in this table of mappings."""
        self._names = SharedNames(
            self._directory, self.peers, table.sites, ports=self._ports
        )
        table.share(self._names)
        return self._names

    def hand_over(self, table: MappingTable) -> HandOver | None:
        """Return what hands visitors to other nodes; None where it is not possible."""
        if self._give is None:
            return None
        return HandOver(table, self._names.learn, self._give)

    # Who is a node, and which ---------------------------------------------------------

    def leads_away(self, hint: bytes) -> bool:
        """Say whether a hint is that of another node that lives."""
        node = self._secret.node_of(hint)
        return node != self.name and node in self._directory.nodes

    def node_of(self, hint: bytes) -> str:
        """Return the node to which a hint leads; empty if it is not authentic."""
        return self._secret.node_of(hint)

    def user(self, name: str) -> User | None:
        """Return the user that a node is, on a link of its own; None if it is none."""
        node = name.removeprefix(AT)
        if not name.startswith(AT) or node not in self._directory.nodes:
            return None
        return User(name, self._verifier(name), rights=NO_RIGHT)

    def _verifier(self, name: str) -> Verifier:
        return verifier_of(name, self._secret.peer_token())

    # Clients --------------------------------------------------------------------------

    async def succeeds(self, user: str, client_id: bytes, session_id: bytes) -> bool:
        """Have a client here and nowhere else; False if it is at another node.

        Where its older session is there and does not answer, it is ended.

        Raises:
            DirectoryAwayError: nobody knows.
        """
        key = _client_key(user, client_id)
        member = f"{self.name}/{session_id.hex()}"
        while True:
            claim = (await self._directory.look_up([key]))[key]
            for older in claim.members:
                node, _, session = older.partition("/")
                if node in (self.name, "") or node not in self._directory.nodes:
                    continue
                words: Words = {"ask": YIELDS, "session": session}
                said = await self.peers.ask(node, words, YIELD_S)
                if said is not None and not said.get("yes"):
                    return False
            try:
                await self._directory.claim(
                    member, {key: b""}, {key: claim.fence}, claim.members
                )
            except ClaimedError:
                continue
            return True

    def client_left(self, user: str, client_id: bytes, session_id: bytes) -> None:
        """Tell the others, soon, that a client's session is over."""
        member = f"{self.name}/{session_id.hex()}"
        self._names.later.release(member, (_client_key(user, client_id),))

    # Its tasks ----------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep up with the others until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.peers.run)
            nursery.start_soon(self._names.later.run)
            nursery.start_soon(self._names.look_at_doubts)
            for shared in self._shared:
                nursery.start_soon(shared.run)
            async with self._directory.changes() as news:
                task_status.started()
                async for changes in news:
                    if not changes:
                        await self._look_again()
                    for change in changes:
                        self._take(change)

    def _take(self, change: Change) -> None:
        if change.key:
            self._names.heard(change)
            for shared in self._shared:
                shared.heard(change)
        else:
            self.forget_the_gone()

    def forget_the_gone(self) -> None:
        """Forget what nodes had that live no more, and the links to them."""
        self._names.nodes_changed()
        self.peers.forget_the_gone()
        for shared in self._shared:
            shared.nodes_changed()

    async def _look_again(self) -> None:
        self._take(Change(""))
        for shared in self._shared:
            await shared.look_again()
        while True:
            try:
                await self._names.look_again()
            except DirectoryAwayError:
                await trio.sleep(AGAIN_S)
            else:
                return


def _client_key(user: str, client_id: bytes) -> str:
    return f"client:{user}/{client_id.hex()}"
