"""Whether a center-server is one of several, in all its rooms that have to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tunnel.center.book import tell_all
from tunnel.center.sessions import NO_CLIENT_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.center.admission import Admission
    from tunnel.center.client_session import ClientSession
    from tunnel.center.cluster.cluster import Cluster
    from tunnel.center.cluster.service import NodeService
    from tunnel.center.link_starts import LinkStarts
    from tunnel.center.mappings import MappingTable
    from tunnel.center.names import NamePorts


class Membership:
    """Has a server be one of several, from its start on or for a while.

    Args:
        starts: tells nodes from users, and passes links on.
        admission: ends a client's session at another node.
        mappings: has the names of all.
        names: serves visitors of all.
        service: serves the other nodes.
    """

    nursery: trio.Nursery
    """Of the server, while it runs."""

    def __init__(
        self,
        starts: LinkStarts,
        admission: Admission,
        mappings: MappingTable,
        names: NamePorts,
        service: NodeService,
    ) -> None:
        self.cluster: Cluster | None = None
        """What is known of the others; None: there are none."""
        self._starts = starts
        self._admission = admission
        self._mappings = mappings
        self._names = names
        self._service = service
        self._scope = trio.CancelScope()

    def begin(self, cluster: Cluster) -> None:
        """Be one of several; ``run`` follows."""
        self.cluster = self._starts.cluster = self._admission.cluster = cluster
        shared = cluster.share(self._mappings)
        self._names.share(shared.learn, cluster.hand_over(self._mappings))
        self._service.know(cluster.peers)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep up with the others, until it parts from them or is cancelled."""
        cluster = self.cluster
        if cluster is None:  # it has parted already
            task_status.started()
            return
        has_started = False
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(cluster.run)
                if self._service.telling is not None:
                    nursery.start_soon(self._service.telling.run)
                task_status.started()
                has_started = True
        if not has_started:
            task_status.started()

    async def join(self, cluster: Cluster, clients: Iterable[ClientSession]) -> None:
        """Be one of several while the server runs; return when they know what is here.

        Names and clients stay where they are, and limits are this server's own.

        Raises:
            DirectoryAwayError: nobody was told; it is alone again.
        """
        self.begin(cluster)
        await self.nursery.start(self.run)
        try:
            for client in clients:
                if client.client_id != NO_CLIENT_ID:
                    who = client.user_name, client.client_id, client.session_id
                    await cluster.succeeds(*who)
            await tell_all(self._mappings)
        except BaseException:
            self.part()
            raise

    def part(self) -> None:
        """Be alone again, after the others have gone; harmless where that is so."""
        if self.cluster is None:
            return
        self.cluster.forget_the_gone()
        self.cluster = self._starts.cluster = self._admission.cluster = None
        self._mappings.share(None)
        self._names.share(None, None)
        self._service.know(None)
        self._scope.cancel()
