"""What a client would be answered if it asked for names (protocol.md#try).

The decisions are those of the table, taken over what would be open: nothing is opened,
nobody is asked whether it is there, and no name changes hands.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import trio

from tunnel.access.identity import short_id
from tunnel.center.cluster.remote import RemoteClient
from tunnel.center.mappings import MappingTable
from tunnel.center.sessions import NO_CLIENT_ID
from tunnel.center.sites import SitesWithout
from tunnel.proto.frames import MappingOp

if TYPE_CHECKING:
    from tunnel.center.client_session import ClientSession
    from tunnel.center.endpoints import Endpoint, EndpointType, PublicName
    from tunnel.center.sites import AnyMapping, OpenMapping
    from tunnel.proto.frames import MappingAnswer, MappingEntry, ProtMapping


async def answer_mapping(
    table: MappingTable, client: ClientSession, mapping: ProtMapping
) -> list[MappingAnswer]:
    """Do what a MAPPING asks for, or say what would be done; see ``apply``."""
    if mapping.op is not MappingOp.TRY:
        return await table.apply(client, mapping)
    return await Trial(table, client, mapping.client_id).apply(client, mapping)


class Trial(MappingTable):
    """The table as it would be without what one client has; for one question.

    Args:
        table: what is open; it is not changed.
        asker: the client that asks.
        client_id: of the client of the same user in whose place it asks; zeros, or one
            that has nothing open, for the asker itself.
    """

    _tries = True

    def __init__(
        self, table: MappingTable, asker: ClientSession, client_id: bytes
    ) -> None:
        vars(self).update(vars(table))
        self._place = asker
        self._elsewhere = short_id(client_id)
        """The client in whose place it asks, where another node has it."""
        user = asker.user.name
        if client_id != NO_CLIENT_ID:
            for owner in self._by_owner:
                if owner.client_id == client_id and owner.user.name == user:
                    self._place = owner
                    break
        self._mapped = self._open
        self._by_owner = dict(self._by_owner)
        had = self._by_owner.pop(self._place, {})
        self._open = SitesWithout(self._mapped, self._place)
        # Those of other users count for nothing here.
        self._counted = Counter({user: self._counted[user]})
        self._ports = Counter({user: self._ports[user]})
        self._names = Counter({user: self._names[user]})
        for mapping in had.values():
            counts, count = self._count_of(mapping.entry)
            counts[user] -= count
            self._counted[user] -= mapping.counted
            self._count -= 1

    async def _add(self, client: ClientSession, entry: MappingEntry) -> MappingAnswer:
        del client  # its user, and so its rights, are those of its place
        return await super()._add(self._place, entry)

    async def _open_endpoint(
        self, of_type: EndpointType, names: tuple[PublicName, ...]
    ) -> Endpoint:
        return await of_type.probe(names, self._mapped)

    async def _claim(self, mapping: OpenMapping) -> bool:
        """Tell nobody."""
        del mapping
        await trio.lowlevel.checkpoint()
        return True

    def _publish(self, mapping: OpenMapping) -> None:
        """Let nobody in."""

    def _ends_at(
        self, client: ClientSession, name: PublicName, entry: MappingEntry
    ) -> float:
        del client, name, entry
        return math.inf  # no life begins by a question

    async def _yields_elsewhere(
        self, mapping: AnyMapping, client: ClientSession
    ) -> bool:
        """Leave with the other nodes what they have, but for the place's own."""
        await trio.lowlevel.checkpoint()
        owner = mapping.owner
        if owner.user_name != client.user.name or (
            not isinstance(owner, RemoteClient) or owner.client != self._elsewhere
        ):
            return False
        self._open.remove(mapping)
        return True

    async def _yields(
        self, mapping: OpenMapping, client: ClientSession, entry: MappingEntry
    ) -> bool:
        """Say whether a mapping in the way has to go; ask nobody."""
        if mapping.owner is not client and not mapping.owner.waiting:
            return False
        return await super()._yields(mapping, client, entry)

    def _lose(self, mapping: OpenMapping) -> None:
        self._close(mapping)  # here alone: its owner has not lost it

    def _close(self, mapping: OpenMapping) -> None:
        # The mappings of an owner are the table's own, and so is an endpoint.
        self._by_owner[mapping.owner] = dict(self._by_owner[mapping.owner])
        self._take_out(mapping)
