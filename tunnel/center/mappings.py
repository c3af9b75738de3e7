"""Which client has which public name (protocol.md#whose-port).

Decides what happens when two clients want the same name. How a mapping is opened and
served is the business of its ``EndpointType``. Carries no byte.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.book import Book
from tunnel.center.denials import NO_RIGHT, denied
from tunnel.center.endpoints import NameInUse, PublicName
from tunnel.center.sites import (
    MAX_SITE_ENTRIES,
    OpenMapping,
    TakenNames,
    is_same_but_for_state,
    unruly,
)
from tunnel.errors import Code, TunnelError
from tunnel.log import log_event
from tunnel.net.access_log import ENTRY
from tunnel.proto.frames import MappingAnswer, MappingOp, MappingType

if TYPE_CHECKING:
    from collections.abc import (
        Iterator,
        Mapping,
    )

    from tunnel.center.client_session import ClientSession
    from tunnel.center.endpoints import Endpoint, EndpointType
    from tunnel.center.sites import AnyMapping
    from tunnel.proto.frames import MappingEntry, ProtMapping

CLAIM_TRIES: Final = 5
"""How often a name is looked at and claimed while other nodes do the same."""
MAX_NAMES: Final = 16_384
"""Entries of all clients: each is a task and 5 KB, and most are descriptors besides."""
SILENT_OWNER_S: Final = 2.0
"""How long the owner of a wanted port may take to prove that it is there."""

logger = logging.getLogger("tunnel.mappings")


class MappingTable(Book):
    """Decides about the mappings of a center-server, and writes the book of them."""

    # What clients ask for ------------------------------------------------------------

    async def apply(
        self, client: ClientSession, mapping: ProtMapping
    ) -> list[MappingAnswer]:
        """Do what a MAPPING asks for; return an answer for each entry, in order."""
        if mapping.op is MappingOp.REPLACE:
            self.drop(client)
        answers = []
        for entry in mapping.entries:
            # A refusal may have looked at a thousand ports without a wait.
            await trio.lowlevel.checkpoint()
            if mapping.op is MappingOp.REMOVE:
                answers.append(self._remove(client, entry))
            else:
                answers.append(await self._add(client, entry))
        most = f"more than {len(answers)} names in one MAPPING"
        for _ in range(mapping.too_many):
            answers.append(MappingAnswer(Code.RESOURCE, reason=most))
            most = ""  # with words, so many would not fit one frame
        return answers

    def drop(self, client: ClientSession) -> None:
        """Close all mappings of a client; visitors that are in stay."""
        for mapping in tuple(self._by_owner.get(client, {}).values()):
            self._close(mapping)
            self._remember(mapping)

    def review(self, client: ClientSession) -> None:
        """Close what a client's user may not have any more: its rights have changed."""
        for mapping in tuple(self._by_owner.get(client, {}).values()):
            if self._missing(client, mapping.entry):
                self._close(mapping)

    def offer(self, types: Mapping[int, EndpointType | None]) -> set[ClientSession]:
        """Open entries of these types so from now on; None: no more.

        What is open stays where it can. Returns the clients that have an entry which is
        somewhere else now, or nowhere: they hear of it when they ask again.
        """
        for number, now in types.items():
            if now is None:
                self.types.pop(number, None)
            else:
                self.types[number] = now
        moved = set()
        for client, mappings in tuple(self._by_owner.items()):
            for mapping in tuple(mappings.values()):
                entry = mapping.entry
                if entry.type in types and self._moves(mapping, types[entry.type]):
                    moved.add(client)
        return moved

    def _moves(self, mapping: OpenMapping, now: EndpointType | None) -> bool:
        """Say whether a mapping is not where it was; it is closed if it cannot stay."""
        host = mapping.names[0].host
        if now is None:
            self._close(mapping)
            self._remember(mapping)
            return True
        if now.host(mapping.entry) != host:
            # A name stays until its client takes the new one; of two addresses with
            # one port the old may be a part of the new.
            if mapping.names[0].port:
                self._close(mapping)
            return True
        return now.refresh(mapping.endpoint)

    def _missing(self, client: ClientSession, entry: MappingEntry) -> str:
        """Return the right that the client lacks for an entry, and log it; or ""."""
        of_type = self.types[entry.type]
        missing = of_type.missing(client.user.rights, entry, self._users)
        if missing:
            where = Address(entry.host, entry.port) if entry.port else entry.host
            what = f"{MappingType(entry.type).name.lower()} {where}".rstrip()
            return denied(client, what, missing)
        return ""

    def _remove(self, client: ClientSession, entry: MappingEntry) -> MappingAnswer:
        mapping = self._by_owner.get(client, {}).get(entry.name)
        if mapping is None:
            why = f"{entry.name} is not registered"
            return MappingAnswer(Code.NO_MAPPING, reason=why)
        self._close(mapping)
        return MappingAnswer(Code.NORMAL)

    async def _add(self, client: ClientSession, entry: MappingEntry) -> MappingAnswer:
        try:
            of_type = self.types.get(entry.type)
            if of_type is None:
                raise TunnelError(Code.UNSUPPORTED, _not_offered(entry.type))
            self._check(client, entry, of_type)
            answer = MappingAnswer(Code.TAKEN, reason=of_type.none_left)
            had = self._by_owner.get(client, {}).get(entry.name)
            taken = TakenNames(self._open, had.names if had else ())
            await self._chosen.learn(client, entry)
            for names in self._candidates(client, entry, of_type, taken):
                answer = await self._open_one(client, entry, of_type, names, taken)
                if answer.code is not Code.TAKEN:
                    break
        except TunnelError as error:
            answer = MappingAnswer(error.code, reason=error.what)
        # What a right is missing for is logged where it is looked for.
        if answer.code is not Code.NORMAL and NO_RIGHT not in answer.reason:
            event = "mapping.would_refuse" if self._tries else "mapping.refused"
            log_event(logger, logging.INFO, event, **client.who,
                type=_kind(entry.type), host=entry.host or None,
                port=entry.port or None, code=answer.code.name,
                reason=answer.reason)  # fmt: skip
        return answer

    def _candidates(
        self,
        client: ClientSession,
        entry: MappingEntry,
        of_type: EndpointType,
        taken: TakenNames,
    ) -> Iterator[tuple[PublicName, ...]]:
        """Yield the names that would do, first those that the entry has, or had."""
        had = self._by_owner.get(client, {}).get(entry.name)
        port = self._chosen.before(client, entry)
        if had is not None and had.entry == entry and not entry.port:
            port = had.names[0].port
        if port:
            for names in of_type.candidates(replace(entry, port=port), taken):
                if not any(name in taken for name in names):
                    yield names
        yield from of_type.candidates(entry, taken)

    def _check(
        self, client: ClientSession, entry: MappingEntry, of_type: EndpointType
    ) -> None:
        """Refuse what the client cannot have, whatever others have."""
        if not entry.name:
            # CREATE could not say it: empty is what a UDP association to anywhere says.
            raise TunnelError(Code.UNSUPPORTED, "an entry without a name")
        if entry.type == MappingType.UDP and not client.takes_udp:
            raise TunnelError(Code.UNSUPPORTED, "this client offers no UDP")
        last_port = entry.port + entry.count - 1
        if not (1 <= entry.count <= of_type.max_count and last_port <= 65_535):
            why = f"{entry.count} ports from {entry.port}"
            raise TunnelError(Code.UNSUPPORTED, why)
        if entry.rules is not None and (why := unruly(entry)):
            raise TunnelError(Code.UNSUPPORTED, why)
        if why := self._missing(client, entry):
            raise TunnelError(Code.NOT_ALLOWED, why)
        had = self._by_owner.get(client, {})
        if entry.name not in had and self._count >= MAX_NAMES:
            raise TunnelError(Code.RESOURCE, "too many names")
        self._check_limit(client, entry)

    async def _open_one(
        self,
        client: ClientSession,
        entry: MappingEntry,
        of_type: EndpointType,
        names: tuple[PublicName, ...],
        taken: TakenNames,
    ) -> MappingAnswer:
        """Open the entry at these names, if the client can have them all."""
        answer = None
        for _ in range(CLAIM_TRIES):
            if self._shared is not None:
                await self._shared.look_up(names)
                await self._lives.learn(client.user.name, names[0], entry.rules)
            answer = await self._try_one(client, entry, of_type, names, taken)
            if answer is not None:
                return answer
        why = "others claim the same at the same time"
        return MappingAnswer(Code.RESOURCE, reason=why)

    async def _try_one(
        self,
        client: ClientSession,
        entry: MappingEntry,
        of_type: EndpointType,
        names: tuple[PublicName, ...],
        taken: TakenNames,
    ) -> MappingAnswer | None:
        """Open the entry; None: another node was faster, and more is known by now."""
        had = self._by_owner.get(client, {}).get(entry.name)
        if had and had.names == names and self._may_stay(had, entry):
            return await self._replace(had, entry)
        yielded: list[AnyMapping] = []
        for name in names:
            if not await self._is_free(name, client, entry, yielded):
                return self._refusal(name, client, entry)
        try:
            endpoint = await self._open_endpoint(of_type, names)
        except NameInUse as error:
            taken.by_others.add(error.name)
            return MappingAnswer(Code.TAKEN, reason=error.what)
        for one in yielded:  # not before: until now it has served visitors
            if self._shared is not None:  # else the others have gone meanwhile
                self._shared.evict(one)
        count = of_type.counted(client.user.rights, entry)
        if (late := self._too_late(client, entry, names, count)) is not None:
            endpoint.close()
            return late
        if (older := self._by_owner.get(client, {}).get(entry.name)) is not None:
            self._close(older)  # by that name the client has something else now
        mapping = OpenMapping(client, entry, names, endpoint=endpoint, counted=count)
        self._counted[client.user.name] += count
        self._open.add(mapping)
        self._by_owner.setdefault(client, {})[entry.name] = mapping
        self._count += 1
        counts, count = self._count_of(entry)
        counts[client.user.name] += count
        return await self._share(mapping)

    async def _replace(
        self, had: OpenMapping, entry: MappingEntry
    ) -> MappingAnswer | None:
        """Give an entry other rules; None as for ``_try_one``."""
        before, until = had.entry, had.expires_at
        if before == entry:
            return had.answer
        if not is_same_but_for_state(before, entry):
            had.expires_at = self._ends_at(had.owner, had.names[0], entry)
        self._open.replace(had, entry)
        is_told = False
        try:
            is_told = await self._claim(had)
        finally:
            if not is_told:
                had.expires_at = until
                self._open.replace(had, before)
        return had.answer if is_told else None

    async def _share(self, mapping: OpenMapping) -> MappingAnswer | None:
        """Let visitors in, once the other nodes know; None as for ``_try_one``."""
        client, name = mapping.owner, mapping.names[0]
        mapping.expires_at = self._ends_at(client, name, mapping.entry)
        try:
            is_ours = await self._claim(mapping)
        except BaseException:
            self._discard(mapping)
            raise
        if not is_ours:
            self._discard(mapping)
            return None
        owned = self._by_owner.get(mapping.owner, {})
        if owned.get(mapping.entry.name) is mapping:
            self._publish(mapping)
        return mapping.answer

    async def _claim(self, mapping: OpenMapping) -> bool:
        """Tell the other nodes, if there are any; False: one of them was faster."""
        return self._shared is None or await self._shared.claim(mapping)

    def _discard(self, mapping: OpenMapping) -> None:
        """Close what was not published, unless it has been closed meanwhile."""
        owned = self._by_owner.get(mapping.owner, {})
        if owned.get(mapping.entry.name) is mapping:
            self._take_out(mapping)
        mapping.endpoint.close()

    async def _open_endpoint(
        self, of_type: EndpointType, names: tuple[PublicName, ...]
    ) -> Endpoint:
        had = {}
        if self.inherit is not None:
            had = {name: await self.inherit(name) for name in names if name.port}
        return await of_type.open(names, had)

    def _publish(self, mapping: OpenMapping) -> None:
        """Let visitors in, and note whose the names are now."""
        client, names = mapping.owner, mapping.names
        self._chosen.note(mapping)
        self._lost.get(client, set()).difference_update(names)
        for name in names:
            self._left.pop(name, None)
        is_exit = mapping.entry.type == MappingType.EXIT
        client.session.tallies.begin(mapping.entry.name, mapping.tally, is_exit=is_exit)
        client.nursery.start_soon(_serve, mapping)

    def _may_stay(self, had: OpenMapping, entry: MappingEntry) -> bool:
        """Say whether an entry can have other rules without being closed for it."""
        if is_same_but_for_state(had.entry, entry):
            return True
        rivals = {one for name in had.names for one in self._open.rivals(name, entry)}
        return had.entry.type == entry.type and rivals <= {had}

    def _ends_at(
        self, client: ClientSession, name: PublicName, entry: MappingEntry
    ) -> float:
        if entry.rules is None:
            return math.inf
        return self._lives.expires_at(client.user.name, name, entry.rules)

    def _too_late(
        self,
        client: ClientSession,
        entry: MappingEntry,
        names: tuple[PublicName, ...],
        count: int,
    ) -> MappingAnswer | None:
        """Say what has come between while the entry's endpoint was opened."""
        if client.gone and not self._tries:  # nobody would give the name back
            return MappingAnswer(Code.NO_MAPPING, reason="the client has left")
        for name in names:
            if not self._open.has_room(name, entry, client.user.name):
                return self._refusal(name, client, entry)
        try:
            self._check_limit(client, entry)
        except TunnelError as error:
            return MappingAnswer(error.code, reason=error.what)
        return self._too_many(client, entry, count)

    def _refusal(
        self, name: PublicName, client: ClientSession, entry: MappingEntry
    ) -> MappingAnswer:
        """Say why the client cannot have a name that is not free."""
        if name in self._lost.get(client, ()):
            why = f"another client took {name} over"
            return MappingAnswer(Code.TAKEN_OVER, reason=why)
        why = f"{name} belongs to another client"
        if self._open.is_of_another(name, client.user.name):
            why = f"{name} belongs to another user"
        elif self._open.is_full(name):
            why = f"{name} has {MAX_SITE_ENTRIES} entries"
            return MappingAnswer(Code.RESOURCE, reason=why)
        elif self._open.has_group(name, entry):
            why = f"the group {entry.rules and entry.rules.group} has other rules"
        return MappingAnswer(Code.TAKEN, reason=why)

    async def _is_free(
        self,
        name: PublicName,
        client: ClientSession,
        entry: MappingEntry,
        yielded: list[AnyMapping],
    ) -> bool:
        """Say whether the client may have the name now; take it if its owners yield.

        What other nodes yield stands in ``yielded`` then.
        """
        if self._open.is_of_another(name, client.user.name):
            return False
        for rival in self._open.rivals(name, entry):
            if not isinstance(rival, OpenMapping):
                if not await self._yields_elsewhere(rival, client):
                    return False
                yielded.append(rival)
                continue
            is_open = self._by_owner.get(rival.owner, {}).get(rival.entry.name) is rival
            if is_open and not await self._yields(rival, client, entry):
                return False
        return not self._open.is_full(name) or bool(yielded)

    async def _yields(
        self, mapping: OpenMapping, client: ClientSession, entry: MappingEntry
    ) -> bool:
        """Close a mapping that is in an entry's way, if its owner has to yield."""
        owner = mapping.owner
        if owner is client:
            is_other = mapping.entry.name != entry.name
            if is_other and entry.rules and entry.rules.group:
                return False  # two of a group whose rules are not the same
            self._close(mapping)
            return True
        # Of two that had lost it to one another each would take it back for ever.
        lost_before = not self._lost.get(client, set()).isdisjoint(mapping.names)
        if lost_before:
            return False
        if owner.waiting:
            # The port follows the living; what runs over that session may go on.
            self._lose(mapping)
            return True
        if await owner.answers(SILENT_OWNER_S):
            return False
        owner.lose_link(Code.SILENT, "no answer while another client wants its port")
        for one in tuple(self._by_owner.get(owner, {}).values()):
            self._lose(one)
            self._remember(one)
        return True

    async def _yields_elsewhere(
        self, mapping: AnyMapping, client: ClientSession
    ) -> bool:
        """Say whether the owner of a mapping of another node has to yield."""
        if self._shared is None or mapping.names[0] in self._lost.get(client, ()):
            return False
        return not await mapping.owner.answers(SILENT_OWNER_S)


def mappings_of(table: MappingTable, client: ClientSession) -> tuple[OpenMapping, ...]:
    """Return what a client has open, to look at."""
    return tuple(table._by_owner.get(client, {}).values())


async def _serve(mapping: OpenMapping) -> None:
    public, name = str(mapping.endpoint.public), mapping.names[0]
    who, kind = mapping.owner.who, name.type.name
    log_event(logger, logging.INFO, "mapping.open", **who, type=kind, public=public)
    ENTRY.set(f"{kind.lower()} {name.port or name.host}")
    # The session itself, which lives as long as its client: a call less for a visitor.
    await mapping.endpoint.serve(mapping.entry.name, mapping.owner.session.open_now)
    log_event(logger, logging.INFO, "mapping.closed", **who, type=kind, public=public)


def _kind(type: int) -> str:  # noqa: A002 - as in an entry
    return MappingType(type).name if type in set(MappingType) else str(type)


def _not_offered(type: int) -> str:  # noqa: A002 - as in an entry
    if type in (MappingType.HTTP, MappingType.HTTPS):
        return f"this server has no public {MappingType(type).name} port"
    return f"this server offers no type {type}"
