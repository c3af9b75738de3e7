"""What a client would be answered if it asked for names (protocol.md#try).

The decisions are those of the table, taken over what would be open: nothing is opened,
nobody is asked whether it is there, and no name changes hands.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tunnel.center.endpoints import NameInUse
from tunnel.center.mappings import MappingTable
from tunnel.center.sessions import NO_CLIENT_ID
from tunnel.center.sites import SitesWithout
from tunnel.errors import Code
from tunnel.proto.frames import MappingAnswer, MappingOp

if TYPE_CHECKING:
    from tunnel.center.client_session import ClientSession
    from tunnel.center.endpoints import EndpointType, PublicName
    from tunnel.center.mappings import TakenNames
    from tunnel.center.sites import OpenMapping
    from tunnel.proto.frames import MappingEntry, ProtMapping


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
        user = asker.user.name
        if client_id != NO_CLIENT_ID:
            for owner in self._by_owner:
                if owner.client_id == client_id and owner.user.name == user:
                    self._place = owner
                    break
        self._mapped = self._open
        self._by_owner = dict(self._by_owner)
        had = self._by_owner.pop(self._place, {})
        self._open = self._others = SitesWithout(self._mapped, self._place)
        # Those of other users count for nothing here.
        self._counted = Counter({user: self._counted[user]})
        self._ports = Counter({user: self._ports[user]})
        self._names = Counter({user: self._names[user]})
        for mapping in had.values():
            self._count_in(mapping.entry, mapping.counted, -1)

    def _count_in(self, entry: MappingEntry, counted: int, sign: int) -> None:
        user = self._place.user.name
        counts, count = self._count_of(entry)
        counts[user] += sign * count
        self._counted[user] += sign * counted
        self._count += sign

    async def _add(self, client: ClientSession, entry: MappingEntry) -> MappingAnswer:
        del client  # its user, and so its rights, are those of its place
        return await super()._add(self._place, entry)

    async def _open_one(
        self,
        client: ClientSession,
        entry: MappingEntry,
        of_type: EndpointType,
        names: tuple[PublicName, ...],
        taken: TakenNames,
    ) -> MappingAnswer:
        for name in names:
            if not await self._is_free(name, client, entry):
                return self._refusal(name, client, entry)
        try:
            endpoint = await of_type.probe(names, self._mapped)
        except NameInUse as error:
            taken.by_others.add(error.name)
            return MappingAnswer(Code.TAKEN, reason=error.what)
        counted = of_type.counted(client.user.rights, entry)
        if (late := self._too_many(client, entry, counted)) is not None:
            return late
        self._count_in(entry, counted, 1)
        self._others.given.update(names)
        public = endpoint.public
        return MappingAnswer(Code.NORMAL, public.host, public.port, endpoint.note)

    async def _yields(
        self, mapping: OpenMapping, client: ClientSession, entry: MappingEntry
    ) -> bool:
        """Say whether the owner of a mapping in the way is away; ask nobody."""
        del entry
        lost_before = self._lost.get(client, set())
        return mapping.owner.waiting and lost_before.isdisjoint(mapping.names)
