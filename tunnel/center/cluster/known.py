"""What other nodes have published, among what is open at this one.

Of a name that somebody asks for here, a visitor or a client, the directory is asked
once; from then on it says what changes. So a visitor costs no question in the steady
state.
"""

from __future__ import annotations

import json
import logging
import math
import time
from base64 import b64decode
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.below import below_key, is_wildcard, read_users
from tunnel.center.cluster.directory import NOBODY, DirectoryAwayError
from tunnel.center.cluster.later import is_left
from tunnel.center.cluster.remote import RemoteClient
from tunnel.center.endpoints import PublicName
from tunnel.center.sites import HOSTS, SiteMapping, domain_of, family
from tunnel.errors import RemoteSessionError
from tunnel.log import log_event
from tunnel.proto.payloads import decode_entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

    from tunnel.center.cluster.directory import Claim, Directory
    from tunnel.center.cluster.peers import Peers
    from tunnel.center.sites import AnyMapping, Sites

KNOWN_NAMES: Final = 65_536
"""Names of which a node remembers who has them, or that nobody does: 40 MB. Beyond, the
one that was not asked for longest is asked for again."""
LOOK_UPS: Final = 64
"""Names that are asked for at once: more are a stranger's, and wait."""

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


class KnownNames:
    """The names of other nodes that somebody has asked for here.

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
        self._evicted: dict[str, set[str]] = {}
        """Members that have to go when this node claims the key."""
        self._asked: list[_Asked] = []
        """Questions that are under way."""
        self._asking = trio.CapacityLimiter(LOOK_UPS)

    def learn(self, host: str) -> Awaitable[bool] | None:
        """Return what asks for a host name; None where all is known that there is.

        Awaited, it says whether the directory has answered.
        """
        names = [
            PublicName(of_type, name)
            for of_type in HOSTS
            for name in (host, f"*.{domain_of(host)}")
        ]
        if all(key_of(name) in self._known for name in names):
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
            keys |= {key_of(one): one for one in family(name)}
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

    def has_left(self, name: PublicName) -> bool:
        """Say whether a name had a client that has left, as far as is known here."""
        known = self._known.get(key_of(name))
        return known is not None and any(map(is_left, known.claim.members))

    def _is_of_another_node(self, member: str) -> bool:
        node = member.partition("/")[0]
        if is_left(member):
            return False
        return node != self._directory.name and node in self._directory.nodes

    def _read(self, key: str, member: str, value: bytes) -> RemoteMapping | None:
        """Open what a member says for the visitors of this node; None: it is none."""
        try:
            words = json.loads(value)
            entry = decode_entry(b64decode(words["entry"]))
            session_id = bytes.fromhex(words["session"])
            user, client = str(words["user"]), str(words["client"])
            left_s = float(words.get("until", math.inf)) - time.time()
        except (ValueError, KeyError, TypeError, RemoteSessionError) as error:
            log_event(logger, logging.WARNING, "claim.unreadable", key=key,
                member=member, reason=str(error))  # fmt: skip
            return None
        node = member.partition("/")[0]
        owner = RemoteClient(self._peers, node, session_id, user, client, value)
        until = trio.current_time() + left_s
        mapping = RemoteMapping(owner, entry, (self._names[key],), until)
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

    def evict(self, mapping: AnyMapping) -> None:
        """Have a mapping of another node go, once its name is claimed here."""
        key = key_of(mapping.names[0])
        known = self._known.get(key)
        for member, one in tuple(known.mappings.items()) if known else ():
            if known is not None and one is mapping:
                del known.mappings[member]
                self._evicted.setdefault(key, set()).add(member)
                self._drop(one)

    def nodes_changed(self) -> None:
        """Forget what nodes had that are gone."""
        for key, known in self._known.items():
            if any(
                mapping.owner.node not in self._directory.nodes
                for mapping in known.mappings.values()
            ) or len(known.mappings) < len(known.claim.members):
                self._take(key, known.claim)

    def _is_shared(self, name: PublicName) -> bool:
        return not name.port or self._ports


def key_of(name: PublicName) -> str:
    """Return the key of a public name in the directory."""
    return f"{name.type.value}:{name.host}" + (f":{name.port}" if name.port else "")


def _said(mapping: RemoteMapping) -> bytes:
    return mapping.owner.said
