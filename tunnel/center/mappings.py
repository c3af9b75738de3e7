"""Whose public port or name is whose (protocol.md#whose-port).

A mapping belongs to an owner: a user's client. Decides what happens when two want the
same; how it is opened and served is its kind's business. Carries no byte.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakKeyDictionary

import trio

from tunnel.center.endpoints import Key, KeyInUse
from tunnel.errors import Code, TunnelError
from tunnel.log import log_event
from tunnel.proto.frames import MappingAnswer, MappingOp, MappingType

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from tunnel.access.users import User
    from tunnel.center.endpoints import Endpoint, EndpointType
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Address, MappingEntry, ProtMapping, Target

KNOWN_NAMES: Final = 10_000
"""Host names whose clients have left that a server remembers, to say so."""
MAX_NAMES: Final = 16_384
"""Entries of all clients: each is a task and 5 KB, and most are descriptors besides."""
MAX_CLIENT_NAMES: Final = 4_096
"""Entries of one client."""
SILENT_OWNER_S: Final = 2.0
"""How long the owner of a wanted port may take to prove that it is there."""

logger = logging.getLogger("tunnel.mappings")


class Member(Protocol):
    """A client that is connected: who owns mappings and serves their visitors."""

    user: User
    nursery: trio.Nursery

    @property
    def takes_udp(self) -> bool:
        """Whether it serves UDP associations."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether its link is lost and its session waits for another."""
        ...

    @property
    def away(self) -> bool:
        """Whether it waits for a link for longer than a visitor should."""
        ...

    @property
    def gone(self) -> bool:
        """Whether its session is over."""
        ...

    def open_now(self, target: Target, visitor: Address | None = None) -> VirtualStream:
        """Begin to open a virtual TCP connection to the client."""
        ...

    async def answers(self, timeout_s: float) -> bool:
        """Say whether the client is there."""
        ...

    def lose_link(self, code: Code, reason: str) -> None:
        """Give its link up; its session may go on over another."""
        ...


@dataclass(slots=True, eq=False)
class _Claim:
    """A public name in use: its owner, its keys, and what is open."""

    owner: Member
    entry: MappingEntry
    keys: tuple[Key, ...]
    opening: Endpoint

    def is_same(
        self, member: Member, entry: MappingEntry, keys: tuple[Key, ...]
    ) -> bool:
        ours = self.entry.type, self.entry.name, self.keys
        return self.owner is member and ours == (entry.type, entry.name, keys)

    @property
    def answer(self) -> MappingAnswer:
        public, note = self.opening.public, self.opening.note
        return MappingAnswer(Code.NORMAL, public.host, public.port, note)


class MappingTable:
    """All public names of a center-server.

    Args:
        kinds: what is offered: how entries of a type are opened.
    """

    def __init__(self, kinds: Mapping[int, EndpointType]) -> None:
        self._kinds = dict(kinds)
        self._claims: dict[Key, _Claim] = {}
        self._named: dict[Member, dict[str, _Claim]] = {}
        """The same, by owner and name."""
        self._count = 0
        self._left: dict[Key, None] = {}
        self._lost: WeakKeyDictionary[Member, set[Key]] = WeakKeyDictionary()
        """What another client took from one that lives on: nobody takes it back."""

    def __len__(self) -> int:
        return self._count

    def offer(self, kinds: Mapping[int, EndpointType]) -> None:
        """Offer more kinds from now on."""
        self._kinds.update(kinds)

    async def apply(self, member: Member, mapping: ProtMapping) -> list[MappingAnswer]:
        """Do what a MAPPING asks for; an answer for each entry, in order."""
        if mapping.op is MappingOp.REPLACE:
            self.drop(member)
        answers = []
        for entry in mapping.entries:
            # A refusal may have looked at a thousand ports without a wait.
            await trio.lowlevel.checkpoint()
            if mapping.op is MappingOp.REMOVE:
                answers.append(self._remove(member, entry))
            else:
                answers.append(await self._add(member, entry))
        most = f"more than {len(answers)} names in one MAPPING"
        for _ in range(mapping.too_many):
            # With words, so many would not fit one frame.
            answers.append(MappingAnswer(Code.RESOURCE, reason=most))
            most = ""
        return answers

    def drop(self, member: Member) -> None:
        """Close all names of a client. Visitors who are in are not touched."""
        for claim in tuple(self._named.get(member, {}).values()):
            self._close(claim)
            self._remember(claim)

    def find(self, kind: MappingType, host: str) -> tuple[Member, str] | None:
        """Give who has a host name, or ``*.`` for its first label, and the mapping."""
        for key in _keys_of(kind, host):
            claim = self._claims.get(key)
            if claim is not None:
                return claim.owner, claim.entry.name
        return None

    def is_known(self, kind: MappingType, host: str) -> bool:
        """Say whether there was such a host name; its client has left."""
        return any(key in self._left for key in _keys_of(kind, host))

    def _remember(self, claim: _Claim) -> None:
        if not claim.keys[0].port:
            self._left.update(dict.fromkeys(claim.keys))
            while len(self._left) > KNOWN_NAMES:
                del self._left[next(iter(self._left))]

    def owner(self, key: Key) -> Member | None:
        """Give the client that has this key."""
        claim = self._claims.get(key)
        return claim.owner if claim else None

    def _remove(self, member: Member, entry: MappingEntry) -> MappingAnswer:
        claim = self._claim_named(member, entry.name)
        if claim is None:
            why = f"{entry.name} is not registered"
            return MappingAnswer(Code.NO_MAPPING, reason=why)
        self._close(claim)
        return MappingAnswer(Code.NORMAL)

    def _claim_named(self, member: Member, name: str) -> _Claim | None:
        return self._named.get(member, {}).get(name)

    def _open(self, claim: _Claim) -> None:
        if (lost := self._lost.get(claim.owner)) is not None:
            lost.difference_update(claim.keys)
        self._claims.update(dict.fromkeys(claim.keys, claim))
        self._named.setdefault(claim.owner, {})[claim.entry.name] = claim
        self._count += 1
        for key in claim.keys:
            self._left.pop(key, None)

    def _close(self, claim: _Claim) -> None:
        for key in claim.keys:
            del self._claims[key]
        names = self._named[claim.owner]
        del names[claim.entry.name]
        if not names:
            del self._named[claim.owner]
        self._count -= 1
        claim.opening.close()

    async def _add(self, member: Member, entry: MappingEntry) -> MappingAnswer:
        kind = self._kinds.get(entry.type)
        if kind is None:
            return MappingAnswer(Code.UNSUPPORTED, reason=_not_offered(entry.type))
        if not entry.name:
            # CREATE could not say it: empty is what a UDP association to anywhere says.
            return MappingAnswer(Code.UNSUPPORTED, reason="an entry without a name")
        if entry.type == MappingType.UDP and not member.takes_udp:
            why = "this client offers no UDP"
            return MappingAnswer(Code.UNSUPPORTED, reason=why)
        if not (1 <= entry.count <= kind.max_count and _has_ports(entry)):
            return MappingAnswer(
                Code.UNSUPPORTED, reason=f"{entry.count} ports from {entry.port}"
            )
        if not _may(member.user, entry, kind.host(entry)):
            what = entry.host if entry.type == MappingType.EXIT else str(entry.port)
            return MappingAnswer(
                Code.NOT_ALLOWED, reason=f"{member.user.name} may not publish {what}"
            )
        if self._is_full(member, entry):
            return MappingAnswer(Code.RESOURCE, reason="too many names")
        answer = MappingAnswer(Code.TAKEN, reason=kind.none_left)
        taken = _Taken(self._claims)
        try:
            for keys in kind.candidates(entry, taken):
                answer = await self._claim(member, entry, kind, keys, taken)
                if answer.code is not Code.TAKEN:
                    break
        except TunnelError as error:
            answer = MappingAnswer(error.code, reason=error.what)
        return answer

    def _is_full(self, member: Member, entry: MappingEntry) -> bool:
        names = self._named.get(member, {})
        return entry.name not in names and (
            len(names) >= MAX_CLIENT_NAMES or self._count >= MAX_NAMES
        )

    async def _claim(
        self,
        member: Member,
        entry: MappingEntry,
        kind: EndpointType,
        keys: tuple[Key, ...],
        taken: _Taken,
    ) -> MappingAnswer:
        had = self._claims.get(keys[0])
        if had and had.is_same(member, entry, keys):
            return had.answer
        for key in keys:
            if not await self._is_free(key, member):
                if key in self._lost.get(member, ()):
                    why = f"another client took {key} over"
                    return MappingAnswer(Code.TAKEN_OVER, reason=why)
                return MappingAnswer(
                    Code.TAKEN, reason=f"{key} belongs to another client"
                )
        try:
            opening = await kind.open(keys)
        except KeyInUse as error:
            taken.by_others.add(error.key)
            return MappingAnswer(Code.TAKEN, reason=error.what)
        if member.gone:  # it left while we waited: nobody would give the name back
            opening.close()
            return MappingAnswer(Code.NO_MAPPING, reason="the client has left")
        if (older := self._claim_named(member, entry.name)) is not None:
            self._close(older)  # by that name the client has something else now
        claim = _Claim(member, entry, keys, opening)
        self._open(claim)
        member.nursery.start_soon(self._serve, claim)
        return claim.answer

    async def _is_free(self, key: Key, member: Member) -> bool:
        """Say whether ``member`` may have the key now; takes it from who must yield."""
        claim = self._claims.get(key)
        if claim is None:
            return True
        if claim.owner is member:
            self._close(claim)
            return True
        return await self._yields(claim, member)

    async def _yields(self, claim: _Claim, member: Member) -> bool:
        """Say whether the owner has lost it to ``member``."""
        owner = claim.owner
        if owner.user.name != member.user.name:
            return False
        if not self._lost.get(member, set()).isdisjoint(claim.keys):
            return False  # both would take it from one another for ever
        if owner.waiting:
            # The port follows the living; what runs over that session may go on.
            self._lose(claim)
            return True
        if await owner.answers(SILENT_OWNER_S):
            return False
        owner.lose_link(Code.SILENT, "no answer while another client wants its port")
        for one in tuple(self._named.get(owner, {}).values()):
            self._lose(one)
            self._remember(one)
        return True

    def _lose(self, claim: _Claim) -> None:
        """Take a name from an owner that may come back: it shall hear TAKEN_OVER."""
        self._close(claim)
        self._lost.setdefault(claim.owner, set()).update(claim.keys)

    async def _serve(self, claim: _Claim) -> None:
        public = str(claim.opening.public)
        log_event(logger, logging.INFO, "mapping.open", public=public,
            user=claim.owner.user.name)  # fmt: skip
        await claim.opening.serve(claim.entry.name, claim.owner.open_now)
        log_event(logger, logging.INFO, "mapping.closed", public=public)


class _Taken:
    """Keys that are no choice: claimed, or found to be another program's."""

    def __init__(self, claims: Container[Key]) -> None:
        self._claims = claims
        self.by_others: set[Key] = set()

    def __contains__(self, key: object) -> bool:
        return key in self._claims or key in self.by_others


def _keys_of(kind: MappingType, host: str) -> tuple[Key, Key]:
    return Key(kind, host), Key(kind, f"*.{host.partition('.')[2]}")


def _not_offered(type: int) -> str:  # noqa: A002 - as in an entry
    if type in (MappingType.HTTP, MappingType.HTTPS):
        return f"this server has no public {MappingType(type).name} port"
    return f"this server offers no type {type}"


def _has_ports(entry: MappingEntry) -> bool:
    return entry.port + entry.count <= 65_536


def _may(user: User, entry: MappingEntry, host: str) -> bool:
    """Say whether the user may have all that the entry asks for."""
    if entry.type == MappingType.EXIT:
        return user.may_be_exit(host)
    ports = range(entry.port, entry.port + (entry.count if entry.port else 1))
    return all(user.may_publish(host, port) for port in ports)
