"""What this node has published, among what others have: the others are told.

The table of mappings decides about the names of others as about its own (``known``).
"""

from __future__ import annotations

import json
import math
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.below import Below, below_key, is_wildcard
from tunnel.center.cluster.directory import NOBODY, ClaimedError, DirectoryAwayError
from tunnel.center.cluster.known import LOOK_UPS, KnownNames, key_of
from tunnel.center.cluster.later import Later, is_left
from tunnel.center.sites import family
from tunnel.proto.payloads import encode_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.center.cluster.directory import Change, Directory
    from tunnel.center.cluster.peers import Peers
    from tunnel.center.endpoints import PublicName
    from tunnel.center.sites import Memory, OpenMapping, Sites

DOUBT_S: Final = 12.0
"""In twice the time between two renewals every node has heard that Redis is back, and
has claimed again."""


class _Own:
    """A mapping of this node in the directory."""

    __slots__ = ("fence", "keys", "member")

    def __init__(self, member: str, keys: tuple[str, ...]) -> None:
        self.member = member
        self.keys = keys
        self.fence = 0


class SharedNames(KnownNames):
    """The names of all nodes; arguments as for ``KnownNames``."""

    def __init__(
        self, directory: Directory, peers: Peers, sites: Sites, *, ports: bool
    ) -> None:
        super().__init__(directory, peers, sites, ports=ports)
        self._own: dict[OpenMapping, _Own] = {}
        self._own_keys: dict[str, list[OpenMapping]] = {}
        self._below = Below(directory.name)
        self.later = Later(directory, self._below.is_told)
        """What the directory is told soon."""
        self.memory: Memory = self.later
        self._doubts: set[str] = set()
        """Keys that an empty directory did not know."""
        self._has_doubts = trio.Event()
        self._serial = 0
        self.lose: Callable[[OpenMapping], None] = lambda _mapping: None
        """Called when another node has taken a mapping of this one over."""

    async def claim(self, mapping: OpenMapping) -> bool:
        """Tell the others what is open here; again where it has other rules.

        False: another node was faster. What it has is known then.

        Raises:
            DirectoryAwayError: nobody was told.
        """
        names = [name for name in mapping.names if self._is_shared(name)]
        keys = tuple(map(key_of, names))
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
            says = dict.fromkeys(keys, _value(mapping))
            claims = await self._directory.claim(
                own.member, says, seen, self._outlived(keys)
            )
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

    def _outlived(self, keys: Iterable[str]) -> set[str]:
        """Return the members that have to go when this node claims these keys."""
        without = {one for key in keys for one in self._evicted.get(key, ())}
        for known in filter(None, map(self._known.get, keys)):
            without.update(filter(is_left, known.claim.members))
        return without

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
        self.later.release(own.member, own.keys)

    def left(self, names: Iterable[PublicName]) -> None:
        """Tell the others, soon, that these names have no client here any more."""
        self.later.leave(map(key_of, names))

    def _seen(self, names: Iterable[PublicName]) -> dict[str, int]:
        """Return the fences of all that was looked at to decide about these names."""
        keys = {key_of(one) for name in names for one in family(name)}
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
                self.later.release(self._below.member, (key,))

    # Its tasks ----------------------------------------------------------------------

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

    async def look_again(self) -> None:
        """Claim and look up anew all that is known: changes may have been missed.

        What an empty directory does not know stays for ``DOUBT_S``: those who have it
        claim it again. Raises DirectoryAwayError: it does not answer again.
        """
        for mapping in tuple(self._own):
            if mapping in self._own:
                await self._claim_again(mapping)
        await self._look_at(list(self._known), doubts=True)

    async def look_at_doubts(self) -> None:
        """Look up what an empty directory did not know, until cancelled."""
        while True:
            await self._has_doubts.wait()
            await trio.sleep(DOUBT_S)
            self._has_doubts = trio.Event()
            keys, self._doubts = list(self._doubts), set()
            try:
                await self._look_at(keys, doubts=False)
            except DirectoryAwayError:
                self._doubt(keys)

    def _doubt(self, keys: Iterable[str]) -> None:
        self._doubts.update(keys)
        if self._doubts:
            self._has_doubts.set()

    async def _look_at(self, keys: list[str], *, doubts: bool) -> None:
        for at in range(0, len(keys), LOOK_UPS):
            claims = await self._ask(keys[at : at + LOOK_UPS])
            for key, claim in claims.items():
                known = self._known.get(key)
                if known is not None and doubts and not claim.fence and known.mappings:
                    self._doubt([key])
                elif known is not None:
                    known.claim = NOBODY  # an empty directory counts from the start
                    self._take(key, claim)

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


def _value(mapping: OpenMapping) -> bytes:
    owner = mapping.owner
    words: dict[str, str | float] = {
        "user": owner.user_name,
        "session": owner.session_id.hex(),
        "client": owner.who["client"],
        "entry": b64encode(encode_entry(mapping.entry)).decode(),
    }
    if mapping.expires_at < math.inf:
        # Nodes share no other clock; and what lives for hours may end a second off.
        left_s = mapping.expires_at - trio.current_time()
        words["until"] = round(time.time() + left_s, 3)
    return json.dumps(words).encode()
