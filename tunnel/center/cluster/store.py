"""The claims of one machine, in memory: what its workers share. No IO.

A node that has gone takes its members along, so nothing here outlives who said it, but
for what was to be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from tunnel.center.cluster.directory import NOBODY, Change, Claim, ClaimedError

MAX_REMEMBERED: Final = 16_384
"""Values that are remembered: those that were not asked for longest go first."""

Tell = Callable[[list[Change]], None]


class Store:
    """Claims, nodes, and who wants to hear of their changes."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        """The nodes that live: name and address."""
        self._claims: dict[str, Claim] = {}
        self._keys_of: dict[str, set[str]] = {}
        """The keys of each member."""
        self._remembered: dict[str, bytes] = {}
        self._fence = 0
        self._listeners: dict[str, Tell] = {}

    def enter(self, node: str, address: str, tell: Tell) -> None:
        """Have one more node, which hears of every change from now on."""
        self.nodes[node] = address
        self._listeners[node] = tell
        self._tell([Change("")])

    def leave(self, node: str) -> None:
        """Have a node no more, nor what it had; harmless when it has left."""
        if self.nodes.pop(node, None) is None:
            return
        del self._listeners[node]
        for member in [one for one in self._keys_of if one.startswith(f"{node}/")]:
            self.release(member, tuple(self._keys_of[member]))
        self._tell([Change("")])

    def look_up(self, keys: Iterable[str]) -> dict[str, Claim]:
        """Return the claims on these keys."""
        return {key: self._claims.get(key, NOBODY) for key in keys}

    def claim(
        self,
        member: str,
        says: Mapping[str, bytes],
        seen: Mapping[str, int],
        without: Iterable[str] = (),
    ) -> dict[str, Claim]:
        """Do as ``Directory.claim`` does."""
        now = self.look_up(seen)
        if any(now[key].fence != fence for key, fence in seen.items()):
            raise ClaimedError(now)
        claims: dict[str, Claim] = {}
        gone = set(without)
        for key, value in says.items():
            had = self._claims.get(key, NOBODY).members
            members = {who: had[who] for who in had if who not in gone}
            members[member] = value
            claims[key] = self._set(key, members)
            for who in gone & had.keys():
                self._forget(who, key)
            self._keys_of.setdefault(member, set()).add(key)
        self._tell([Change(key, claim) for key, claim in claims.items()])
        return claims

    def release(self, member: str, keys: Iterable[str]) -> None:
        """Do as ``Directory.release`` does."""
        changes = []
        for key in keys:
            had = self._claims.get(key, NOBODY).members
            if member in had:
                left = {who: had[who] for who in had if who != member}
                self._forget(member, key)
                changes.append(Change(key, self._set(key, left)))
        if changes:
            self._tell(changes)

    def tell(self, node: str, key: str, value: bytes) -> None:
        """Do as ``Directory.tell`` does."""
        self._fence += 1
        self._tell([Change(key, Claim(self._fence, {f"{node}/": value}))])

    def remember(self, key: str, value: bytes) -> None:
        """Do as ``Directory.remember`` does."""
        self._remembered.pop(key, None)
        self._remembered[key] = value
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def recall(self, key: str) -> bytes:
        """Do as ``Directory.recall`` does."""
        value = self._remembered.pop(key, b"")
        if value:
            self._remembered[key] = value
        return value

    def _set(self, key: str, members: Mapping[str, bytes]) -> Claim:
        """Have these members; what nobody has any more costs nothing."""
        self._fence += 1
        claim = Claim(self._fence, members)
        if members:
            self._claims[key] = claim
        else:
            self._claims.pop(key, None)
            claim = NOBODY
        return claim

    def _forget(self, member: str, key: str) -> None:
        keys = self._keys_of[member]
        keys.discard(key)
        if not keys:
            del self._keys_of[member]

    def _tell(self, changes: list[Change]) -> None:
        for tell in tuple(self._listeners.values()):
            tell(changes)
