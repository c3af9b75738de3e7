"""Claims in a Redis that is trusted with keeping them, and with nothing else.

A claim is one string, sealed by the node that changed it: its fence and its members, so
nobody else can take a member out, put one in, or mix two claims. Its seal is its
version for Redis, which sets a claim only if the seal there is the one that was seen.
Its fence is its version for the nodes: one below a fence that was seen before the
question was put back by somebody, and counts as nothing.

The node that changes a claim chooses the fence, above all that it has seen, and never
below the time of day in milliseconds. So fences grow on if Redis has lost its memory,
and nearly always if all nodes have too; nothing else depends on what clocks say.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from tunnel.center.cluster.directory import NOBODY, Change, Claim, ClaimedError
from tunnel.center.cluster.redis_link import Script
from tunnel.center.cluster.seals import (
    SEAL_BYTES,
    Purpose,
    Seals,
    decoded,
    encoded,
    join_words,
    pack_claim,
    pack_fence,
    read_claim,
    read_fence,
    split_words,
)
from tunnel.log import log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tunnel.center.cluster.redis_link import Wire

LOG: Final = logging.getLogger(__name__)

MAX_KNOWN: Final = 200_000
"""Keys whose fences are known, to see what was put back: at most 30 MB."""
MAX_SAID: Final = 1_000
"""Keys that the log has called refused, each once."""

Raw = bytes | None
"""What a key of Redis holds, if it is a string."""

if TYPE_CHECKING:
    Edit = Callable[[str, Raw, Claim], Mapping[str, bytes] | None]
    """Of a key, its value and its claim: the members that there shall be, or None."""

_CHANGE: Final = Script(f"""
local count, sets = #KEYS - 1, tonumber(ARGV[4])
for i = 1, count do
  local is = redis.call('MGET', KEYS[i])[1] or ''
  if string.sub(is, 1, {SEAL_BYTES}) ~= ARGV[4 + i] then
    local now = {{}}
    for j = 1, count do now[j] = redis.call('MGET', KEYS[j])[1] end
    return now
  end
end
for i = 1, sets do
  local value = ARGV[4 + count + i]
  if value == '' then
    redis.call('DEL', KEYS[i])
  else
    redis.call('SET', KEYS[i], value)
  end
end
redis.call('SET', KEYS[count + 1], ARGV[2])
redis.call('PUBLISH', ARGV[1], ARGV[3])
return 1
""")
"""Change claims if all still are as they were seen; else return all as they are.

KEYS: the claims to be set, others to be compared, the fence. ARGV: channel, sealed
fence, message, how many are to be set, the seals seen, the new values."""


class RedisClaims:
    """What one node knows of the claims, and how it changes them.

    Args:
        secret: the cluster's.
        prefix: of all keys.
    """

    def __init__(self, secret: bytes, prefix: str) -> None:
        self.channel = f"{prefix}changes"
        self._seals = Seals(secret)
        self._prefix = prefix
        self._fence = 0
        """The highest that was seen."""
        self._known: dict[str, int] = {}
        """The fences of keys that were asked for; the last asked for stand last."""
        self._said: dict[tuple[str, str], None] = {}

    async def look_up(self, wire: Wire, keys: Sequence[str]) -> dict[str, Claim]:
        """Return the claims on these keys."""
        lowest = self._lowest(keys)
        raws = await self._get(wire, keys)
        claims = {key: self._opened(key, raws[key], lowest) for key in keys}
        self._know(claims)
        return claims

    async def edit(
        self,
        wire: Wire,
        keys: Sequence[str],
        edit: Edit,
        seen: Mapping[str, int] = {},
        *,
        guess_new: bool = False,
    ) -> dict[str, Claim]:
        """Change claims in one step, again while others are faster; return them.

        Args:
            keys: of all that are looked at.
            edit: gives the members that there shall be; None: stays as it is.
            seen: as of ``Directory.claim``.
            guess_new: try first as if nobody had them.

        Raises:
            ClaimedError: one has another fence than in ``seen``.
        """
        lowest = self._lowest(keys)
        raws: dict[str, Raw] = dict.fromkeys(keys)
        if not guess_new:
            raws = await self._get(wire, keys)
        while True:
            now = {key: self._opened(key, raws[key], lowest) for key in keys}
            if any(now[key].fence != fence for key, fence in seen.items()):
                self._know(now)
                raise ClaimedError({key: now[key] for key in seen})
            fence = self._next_fence(now)
            changed = {}
            for key in keys:
                members = edit(key, raws[key], now[key])
                if members is not None:
                    changed[key] = Claim(fence, members)
            if not changed:
                return {}
            lowest = self._lowest(keys)
            answer = await self._change(wire, raws, changed)
            if answer is None:
                self._know(changed)
                return changed
            raws = answer

    async def _change(
        self, wire: Wire, raws: Mapping[str, Raw], claims: Mapping[str, Claim]
    ) -> dict[str, Raw] | None:
        """Write claims if all are as in ``raws``; else return how all are."""
        order = [*claims, *(key for key in raws if key not in claims)]
        sealed = {
            key: self.seal(Purpose.CLAIM, key, pack_claim(*claim))
            for key, claim in claims.items()
        }
        words: list[bytes | str | int] = [
            self.channel,
            self.sealed_fence(),
            join_words(
                *(part for key in claims for part in (encoded(key), sealed[key]))
            ),
            len(claims),
            *((raws[key] or b"")[:SEAL_BYTES] for key in order),
            *(sealed[key] if claims[key].members else b"" for key in claims),
        ]
        names = [
            *(self.key("c", key) for key in order),
            encoded(f"{self._prefix}fence"),
        ]
        answer = await wire.run(_CHANGE, names, words)
        if not isinstance(answer, list):
            return None
        return dict(zip(order, map(as_bytes, answer), strict=True))

    async def _get(self, wire: Wire, keys: Sequence[str]) -> dict[str, Raw]:
        if not keys:
            return {}
        answer = await wire.ask(b"MGET", *(self.key("c", key) for key in keys))
        return dict(zip(keys, map(as_bytes, as_list(answer)), strict=True))

    def _opened(self, key: str, raw: Raw, lowest: Mapping[str, int]) -> Claim:
        """Return the claim of a value; that of nobody if it is not to be believed."""
        if raw is None or (content := self.open(Purpose.CLAIM, key, raw)) is None:
            return NOBODY
        claim = read_claim(content)
        if claim.fence < lowest.get(key, 0):
            self.refuse(key, "replayed")
            return NOBODY
        return claim if claim.members else NOBODY

    def _lowest(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the fences below which an answer to what is asked now is a replay.

        Not what is known when it comes: by then the answers of later questions may have
        been looked at.
        """
        return {key: self._known[key] for key in keys if key in self._known}

    def _know(self, claims: Mapping[str, Claim]) -> None:
        """Keep the fences of what was asked for."""
        for key, claim in claims.items():
            if claim.members or key in self._known:
                self._known[key] = max(claim.fence, self._known.pop(key, 0))
                self._fence = max(self._fence, claim.fence)
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _next_fence(self, now: Mapping[str, Claim]) -> int:
        seen = max((claim.fence for claim in now.values()), default=0)
        self._fence = max(self._fence + 1, seen + 1, time.time_ns() // 1_000_000)
        return self._fence

    def heard(self, message: bytes) -> list[Change]:
        """Return what a message of the channel says; nothing that is not sealed.

        Nor what is older than what is known: a call has returned that before.
        """
        try:
            words = list(split_words(message))
            pairs = list(zip(words[::2], words[1::2], strict=True))
        except ValueError:
            self.refuse("changes", "forged")
            return []
        changes = []
        for name, raw in pairs:
            key = decoded(name)
            content = self.open(Purpose.CLAIM, key, raw)
            if content is None:
                continue
            claim = read_claim(content)
            self._fence = max(self._fence, claim.fence)
            if claim.fence >= self._known.get(key, 0):
                if key in self._known:
                    self._known[key] = claim.fence
                changes.append(Change(key, claim if claim.members else NOBODY))
        return changes

    def message(self, key: str, members: Mapping[str, bytes]) -> bytes:
        """Return what tells of a claim that is not kept; its fence is a new one."""
        claim = pack_claim(self._next_fence({}), members)
        return join_words(encoded(key), self.seal(Purpose.CLAIM, key, claim))

    def sealed_fence(self) -> bytes:
        """Return the highest fence that this node has seen, sealed."""
        return self.seal(Purpose.FENCE, "", pack_fence(self._fence))

    def learn_fence(self, raw: Raw) -> None:
        """Be no lower than the others: what ``sealed_fence`` made for one of them."""
        content = None if raw is None else self.open(Purpose.FENCE, "", raw)
        if content is not None:
            self._fence = max(self._fence, read_fence(content))

    def key(self, kind: str, key: str) -> bytes:
        """Return the name in Redis: ``c`` for claims, ``r`` for what is remembered."""
        return encoded(f"{self._prefix}{kind}:{key}")

    def seal(self, purpose: Purpose, key: str, content: bytes) -> bytes:
        """Return the content, sealed."""
        return self._seals.seal(purpose, key, content)

    def open(self, purpose: Purpose, key: str, sealed: bytes) -> bytes | None:
        """Return what is sealed; say so once if it is not by a node of this cluster."""
        content = self._seals.open(purpose, key, sealed)
        if content is None:
            self.refuse(key or purpose.name.lower(), "forged")
        return content

    def refuse(self, key: str, reason: str) -> None:
        """Say once that a value is not to be believed."""
        if (key, reason) in self._said:
            return
        self._said[key, reason] = None
        if len(self._said) > MAX_SAID:
            del self._said[next(iter(self._said))]
        log_event(LOG, logging.WARNING, "directory.refused", key=key, reason=reason)


def as_bytes(answer: object) -> Raw:
    """Return an answer that is a string; None for any other."""
    return answer if isinstance(answer, bytes) else None


def as_list(answer: object) -> list[object]:
    """Return an answer that is a list; an empty one for any other."""
    return answer if isinstance(answer, list) else []
