"""The public names of all nodes: what others have stands among what is open here.

Of a name that somebody asks for here, a visitor or a client, the directory is asked
once; from then on it says what changes. So a visitor costs no question in the steady
state, and the table of mappings decides about the names of others as about its own.
"""

from __future__ import annotations

import json
import logging
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.below import Below, below_key, is_wildcard, read_users
from tunnel.center.cluster.directory import (
    NOBODY,
    Claim,
    ClaimedError,
    DirectoryAwayError,
)
from tunnel.center.cluster.remote import RemoteClient
from tunnel.center.endpoints import PublicName
from tunnel.center.sites import HOSTS, SiteMapping, domain_of, family
from tunnel.errors import RemoteSessionError
from tunnel.log import log_event
from tunnel.proto.payloads import decode_entry, encode_entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tunnel.center.cluster.directory import Change, Directory
    from tunnel.center.cluster.peers import Peers
    from tunnel.center.sites import AnyMapping, OpenMapping, Sites

KNOWN_NAMES: Final = 65_536
"""Names of which a node remembers who has them, or that nobody does: 40 MB. Beyond, the
one that was not asked for longest is asked for again."""
LOOK_UPS: Final = 64
"""Names that are asked for at once: more are a stranger's, and wait."""
RELEASE_PAUSE_S: Final = 1.0
"""After a directory that does not answer."""

logger = logging.getLogger("tunnel.cluster")

RemoteMapping = SiteMapping[RemoteClient]


class _Known:
    """What is known of a key, and what came of it."""

    __slots__ = ("claim", "mappings")

    def __init__(self) -> None:
        self.claim = NOBODY
        self.mappings: dict[str, RemoteMapping] = {}


class _Asked:
    """A question to the directory, and whether something in it has changed since."""

    __slots__ = ("changed", "keys")

    def __init__(self, keys: set[str]) -> None:
        self.keys = keys
        self.changed = False


class _Own:
    """A mapping of this node in the directory."""

    __slots__ = ("fence", "keys", "member")

    def __init__(self, member: str, keys: tuple[str, ...]) -> None:
        self.member = member
        self.keys = keys
        self.fence = 0


class SharedNames:
    """What the other nodes have published.

    Args:
        directory: knows who has what.
        peers: lead to the others.
        sites: where this node finds the names that are open.
        ports: whether ports are shared too: the nodes are on one machine.
    """

    def __init__(
        self, directory: Directory, peers: Peers, sites: Sites, *, ports: bool
    ) -> None:
        self._directory = directory
        self._peers = peers
        self._sites = sites
        self._ports = ports
        self._known: dict[str, _Known] = {}
        self._names: dict[str, PublicName] = {}
        self._own: dict[OpenMapping, _Own] = {}
        self._own_keys: dict[str, list[OpenMapping]] = {}
        self._below = Below(directory.name)
        self._evicted: dict[str, set[str]] = {}
        """Members that have to go when this node claims the key."""
        self._releases: dict[str, set[str]] = {}
        self._has_releases = trio.Event()
        self._asked: list[_Asked] = []
        """Questions that are under way."""
        self._asking = trio.CapacityLimiter(LOOK_UPS)
        self._serial = 0
        self.lose: Callable[[OpenMapping], None] = lambda _mapping: None
        """Called when another node has taken a mapping of this one over."""

    # What others have ----------------------------------------------------------------

    def learn(self, host: str) -> Awaitable[bool] | None:
        """Return what asks for a host name; None where all is known that there is.

        Awaited, it says whether the directory has answered.
        """
        names = [
            PublicName(of_type, name)
            for of_type in HOSTS
            for name in (host, f"*.{domain_of(host)}")
        ]
        if all(_key(name) in self._known for name in names):
            return None
        return self._learn(names)

    async def _learn(self, names: list[PublicName]) -> bool:
        try:
            await self.look_up(names)
        except DirectoryAwayError:
            return False
        return True

    async def look_up(self, names: Iterable[PublicName]) -> None:
        """Know who has these names now, and all that visitors of them may be led to.

        Raises:
            DirectoryAwayError: nobody knows.
        """
        keys: dict[str, PublicName | None] = {}
        for name in filter(self._is_shared, names):
            keys |= {_key(one): one for one in family(name)}
            if is_wildcard(name):
                keys[below_key(name.host)] = None
        if not keys:
            return
        async with self._asking:
            claims = await self._ask(keys)
        for key, one in keys.items():
            if one is not None:
                self._names[key] = one
            self._known.setdefault(key, _Known())  # from here on changes are heard
        self._take_all(claims)
        self._forget_the_oldest()

    async def _ask(self, keys: Iterable[str]) -> dict[str, Claim]:
        """Look keys up; again where one has changed before the answer was heard.

        The answer may be older than the change, and only the directory knows.
        """
        while True:
            asked = _Asked(set(keys))
            self._asked.append(asked)
            try:
                claims = await self._directory.look_up(asked.keys)
            finally:
                self._asked.remove(asked)
            if not asked.changed:
                return claims

    def _take_all(self, claims: Mapping[str, Claim]) -> None:
        for key, claim in claims.items():
            self._take(key, claim)

    def _take(self, key: str, claim: Claim) -> None:
        """Have what a claim says instead of what was known of its key."""
        known = self._known.get(key)
        if known is None or 0 < claim.fence < known.claim.fence:
            return
        known.claim = claim
        if key not in self._names:
            self._take_below(key, claim)
            return
        had, known.mappings = known.mappings, {}
        for member, value in claim.members.items():
            if not self._is_of_another_node(member):
                continue
            mapping = had.pop(member, None)
            if mapping is None or _said(mapping) != value:
                if mapping is not None:
                    self._drop(mapping)
                mapping = self._read(key, member, value)
            if mapping is not None:
                known.mappings[member] = mapping
        for mapping in had.values():
            self._drop(mapping)

    def _take_below(self, key: str, claim: Claim) -> None:
        users: set[str] = set()
        for member, value in claim.members.items():
            if self._is_of_another_node(member):
                users.update(read_users(value))
        self._sites.below_elsewhere[key.partition(":")[2]] = frozenset(users)

    def _is_of_another_node(self, member: str) -> bool:
        node = member.partition("/")[0]
        return node != self._directory.name and node in self._directory.nodes

    def _read(self, key: str, member: str, value: bytes) -> RemoteMapping | None:
        """Open what a member says for the visitors of this node; None: it is none."""
        try:
            words = json.loads(value)
            entry = decode_entry(b64decode(words["entry"]))
            session_id = bytes.fromhex(words["session"])
            user, client = str(words["user"]), str(words["client"])
        except (ValueError, KeyError, TypeError, RemoteSessionError) as error:
            log_event(logger, logging.WARNING, "claim.unreadable", key=key,
                member=member, reason=str(error))  # fmt: skip
            return None
        node = member.partition("/")[0]
        owner = RemoteClient(self._peers, node, session_id, user, client, value)
        mapping = RemoteMapping(owner, entry, (self._names[key],))
        self._sites.add(mapping)
        return mapping

    def _drop(self, mapping: RemoteMapping) -> None:
        self._sites.remove(mapping)
        mapping.owner.lost()

    def _forget_the_oldest(self) -> None:
        while len(self._known) > KNOWN_NAMES:
            key = next(iter(self._known))
            for mapping in self._known.pop(key).mappings.values():
                self._drop(mapping)
            if self._names.pop(key, None) is None:
                self._sites.below_elsewhere.pop(key.partition(":")[2], None)

    # What this node has -------------------------------------------------------------

    def evict(self, mapping: AnyMapping) -> None:
        """Have a mapping of another node go, once its name is claimed here."""
        key = _key(mapping.names[0])
        known = self._known[key]
        for member, one in tuple(known.mappings.items()):
            if one is mapping:
                del known.mappings[member]
                self._evicted.setdefault(key, set()).add(member)
                self._drop(one)

    async def claim(self, mapping: OpenMapping) -> bool:
        """Tell the others what is open here; again where it has other rules.

        False: another node was faster. What it has is known then.

        Raises:
            DirectoryAwayError: nobody was told.
        """
        names = [name for name in mapping.names if self._is_shared(name)]
        keys = tuple(map(_key, names))
        if not keys:
            return True
        own = self._own.get(mapping)
        is_new, seen = own is None, self._seen(names)  # as the caller has seen it
        if own is None:
            self._serial += 1
            own = _Own(f"{self._directory.name}/{self._serial}", keys)
        try:
            if is_new:
                await self._tell_below(names, mapping.owner.user_name)
            without = {one for key in keys for one in self._evicted.get(key, ())}
            says = dict.fromkeys(keys, _value(mapping))
            claims = await self._directory.claim(own.member, says, seen, without)
        except BaseException as error:
            if is_new:
                self._count_less(mapping)
            if not isinstance(error, ClaimedError):
                raise
            self._take_all(error.claims)
            return False
        if is_new:
            self._own[mapping] = own
            for key in keys:
                self._own_keys.setdefault(key, []).append(mapping)
        own.fence = max(claim.fence for claim in claims.values())
        for key in keys:
            self._evicted.pop(key, None)
        self._take_all(claims)
        return not self._is_lost(mapping, own)

    def _is_lost(self, mapping: OpenMapping, own: _Own) -> bool:
        """Say whether another has taken it over since, and if so release it."""
        known = [one for key in own.keys if (one := self._known.get(key))]
        lost = any(
            one.claim.fence > own.fence and own.member not in one.claim.members
            for one in known
        )
        if lost:
            self.release(mapping)
        return lost

    def release(self, mapping: OpenMapping) -> None:
        """Tell the others, soon, that a mapping is not open here any more."""
        own = self._own.pop(mapping, None)
        if own is None:
            return
        for key in own.keys:
            self._own_keys[key].remove(mapping)
            if not self._own_keys[key]:
                del self._own_keys[key]
        self._count_less(mapping)
        self.release_member(own.member, own.keys)

    def release_member(self, member: str, keys: Iterable[str]) -> None:
        """Take a member out of claims, soon."""
        self._releases.setdefault(member, set()).update(keys)
        self._has_releases.set()

    def _seen(self, names: Iterable[PublicName]) -> dict[str, int]:
        """Return the fences of all that was looked at to decide about these names."""
        keys = {_key(one) for name in names for one in family(name)}
        keys |= {below_key(name.host) for name in names if is_wildcard(name)}
        return {
            key: known.claim.fence for key in keys if (known := self._known.get(key))
        }

    async def _tell_below(self, names: Iterable[PublicName], user: str) -> None:
        """Tell whose names are below a domain, before they are claimed.

        So of a name and of all of its domain, claimed at once, one is refused.
        """
        says: dict[str, bytes] = {}
        for name in names:
            says |= self._below.add(name, user)
        if says:
            await self._directory.claim(self._below.member, says, {})
            self._below.told(says)

    def _count_less(self, mapping: OpenMapping) -> None:
        for name in filter(self._is_shared, mapping.names):
            if key := self._below.remove(name, mapping.owner.user_name):
                self.release_member(self._below.member, (key,))

    # Its tasks ----------------------------------------------------------------------

    async def run(self) -> None:
        """Tell the directory what is released, until cancelled."""
        while True:
            await self._has_releases.wait()
            self._has_releases = trio.Event()
            while self._releases:
                member = next(iter(self._releases))
                keys = self._releases.pop(member)
                if member == self._below.member:
                    keys = {key for key in keys if not self._below.is_told(key)}
                try:
                    await self._directory.release(member, keys)
                except DirectoryAwayError:
                    self._releases.setdefault(member, set()).update(keys)
                    await trio.sleep(RELEASE_PAUSE_S)

    def heard(self, change: Change) -> None:
        """Take a change that the directory has told."""
        for asked in self._asked:
            asked.changed |= change.key in asked.keys
        self._take(change.key, change.claim)
        for mapping in tuple(self._own_keys.get(change.key, ())):
            own = self._own[mapping]
            if own.member not in change.claim.members and (
                change.claim.fence > own.fence
            ):
                # The one with the lower fence has lost.
                self.release(mapping)
                self.lose(mapping)

    def nodes_changed(self) -> None:
        """Forget what nodes had that are gone."""
        for key, known in self._known.items():
            if any(
                mapping.owner.node not in self._directory.nodes
                for mapping in known.mappings.values()
            ) or len(known.mappings) < len(known.claim.members):
                self._take(key, known.claim)

    async def look_again(self) -> None:
        """Look up and claim anew all that is known: changes may have been missed.

        Raises:
            DirectoryAwayError: it does not answer again.
        """
        keys = list(self._known)
        for at in range(0, len(keys), LOOK_UPS):
            claims = await self._directory.look_up(keys[at : at + LOOK_UPS])
            for key, claim in claims.items():
                if (known := self._known.get(key)) is not None:
                    known.claim = NOBODY  # an empty directory counts from the start
                    self._take(key, claim)
        for mapping in tuple(self._own):
            if mapping in self._own:
                await self._claim_again(mapping)

    async def _claim_again(self, mapping: OpenMapping) -> None:
        own = self._own[mapping]
        claims = await self._directory.look_up(own.keys)
        newest = max(claim.fence for claim in claims.values())
        others = any(
            self._is_of_another_node(member)
            for claim in claims.values()
            for member in claim.members
        )
        is_there = all(own.member in claim.members for claim in claims.values())
        if is_there:
            return
        if others and newest > own.fence:
            self.release(mapping)
            self.lose(mapping)
            return
        seen = {key: claim.fence for key, claim in claims.items()}
        says = dict.fromkeys(own.keys, _value(mapping))
        try:
            claimed = await self._directory.claim(own.member, says, seen)
        except ClaimedError:
            await self._claim_again(mapping)
        else:
            own.fence = max(claim.fence for claim in claimed.values())

    def _is_shared(self, name: PublicName) -> bool:
        return not name.port or self._ports


def _key(name: PublicName) -> str:
    return f"{name.type.value}:{name.host}" + (f":{name.port}" if name.port else "")


def _value(mapping: OpenMapping) -> bytes:
    owner = mapping.owner
    words: Mapping[str, str] = {
        "user": owner.user_name,
        "session": owner.session_id.hex(),
        "client": owner.who["client"],
        "entry": b64encode(encode_entry(mapping.entry)).decode(),
    }
    return json.dumps(words).encode()


def _said(mapping: RemoteMapping) -> bytes:
    return mapping.owner.said
