"""The directory that the nodes of several machines share: Redis or Valkey, 7 and later.

Keys, all with one hash tag, so that one shard of a Redis Cluster would hold them:

    {P}:c:KEY     a claim, see ``redis_claims``
    {P}:nodes     a sorted set: the sealed records of nodes, by when their lease ends
    {P}:r:KEY     what was to be remembered, for 30 days
    {P}:fence     about the highest fence, for a node that comes new
    {P}:cluster   tells a node with another secret that it is wrong here
    {P}:changes   a channel: each change of claims; an empty message is about nodes

A lease belongs to a node, not to a claim. A node that lives costs one question every
5 s, however many names it has, and the members of one that does not count as gone.

All that a user of Redis must be allowed, and its default user may be switched off:

    ACL SETUSER tunnel on >PASSWORD ~{tunnel}:* &{tunnel}:* +hello +subscribe +publish
    +eval +evalsha +time +get +set +mget +del +scan +zadd +zrem +zrange
    +zremrangebyscore

Importing this imports coredis.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.directory import Change, Claim
from tunnel.center.cluster.feed import Feed
from tunnel.center.cluster.redis_claims import Raw, RedisClaims, as_bytes, as_list
from tunnel.center.cluster.redis_link import RedisLink, Script, Times, read_redis_url
from tunnel.center.cluster.seals import (
    Purpose,
    decoded,
    encoded,
    join_words,
    split_words,
)
from tunnel.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
    from pathlib import Path

    from tunnel.center.cluster.redis_link import Wire

_PREFIX: Final = re.compile(r"[\w-]+", re.ASCII)
REMEMBERED_S: Final = 30 * 86_400
_BATCH: Final = 500
"""Keys of one question, so that others are answered in between."""
_BREATH_S: Final = 0.02
"""Between two batches of a sweep."""

_LEASE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local till = string.format('%.0f', now + tonumber(ARGV[2]))
local new = redis.call('ZADD', KEYS[1], till, ARGV[1])
if gone + new > 0 then redis.call('PUBLISH', ARGV[3], '') end
"""
_RENEW: Final = Script(f"{_LEASE} return new")
"""Renew the lease of a node, and end those that have run out; return 1 if it had none.

KEYS: the nodes. ARGV: the node's record, milliseconds, channel."""
_BEGIN: Final = Script(f"""
local mark = redis.call('SET', KEYS[2], ARGV[4], 'NX', 'GET')
if mark and mark ~= ARGV[4] and ARGV[6] == '' then return 0 end
local fence = redis.call('SET', KEYS[3], ARGV[5], 'NX', 'GET')
{_LEASE}
return {{fence, redis.call('ZRANGE', KEYS[1], 0, -1)}}
""")
"""Renew, unless the mark is of another secret; return the fence and all nodes.

KEYS: the nodes, the mark, the fence. ARGV: as of ``_RENEW``; the mark, this node's
fence, and anything to go on whatever the mark is."""


class RedisDirectory:
    """A ``Directory`` on Redis.

    A call takes 3 s at most. One that raises ``DirectoryAwayError`` or is cancelled may
    have been done all the same. Calls wait while a connection is being made, and fail
    at once while none can be had.

    Args:
        url: ``redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DB]``; ``redis://`` on this
            machine only.
        name: this node's, another after each start, without a slash.
        address: where its peers reach it.
        secret: the cluster's.
        ca: what signs the certificate of Redis, PEM; None for the system's authorities.
        prefix: of all keys, for clusters that share a database: letters, digits, -.
        times: other than the usual ones.

    Raises:
        UsageError: the URL is none, or would send a password in the clear; or there is
            no certificate in ``ca``.
    """

    def __init__(
        self,
        url: str,
        name: str,
        address: str,
        secret: bytes,
        *,
        ca: Path | None = None,
        prefix: str = "tunnel",
        times: Times | None = None,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"{prefix} is no prefix", fix="letters, digits and -")
        self.name = name
        self._address = address
        self._times = times or Times()
        self._link = RedisLink(read_redis_url(url), ca, self._times)
        self._prefix = f"{{{prefix}}}:"
        self._claims = RedisClaims(secret, self._prefix)
        self.channel = self._claims.channel
        words = join_words(encoded(name), encoded(address))
        self._record = self._claims.seal(Purpose.NODE, "", words)
        self._nodes = {name: address}
        self._feed = Feed()
        self._begun = False
        self._nodes_changed = trio.Event()
        self._sweep_due = trio.Event()

    @property
    def nodes(self) -> Mapping[str, str]:
        """The nodes that live, this one among them: name and address.

        While Redis is away: those that lived then.
        """
        return self._nodes

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be a node until cancelled; started when Redis was reached or is away.

        Cancelled, it takes its record away, within 1 s: from then on its members count
        as gone.

        Raises:
            UsageError: at the start only: Redis does not let us in, is too old, has
                the names of another secret, or shows a certificate that is not trusted.
        """
        await self._link.run(self, task_status=task_status)

    # What a node asks -----------------------------------------------------------------

    async def look_up(self, keys: Iterable[str]) -> dict[str, Claim]:
        """Return the claims on these keys, as they are now."""
        claims: dict[str, Claim] = {}
        with self._link.limited():
            for some in _batches(keys):
                claims |= await self._claims.look_up(await self._link.wire(), some)
        return claims

    async def claim(
        self,
        member: str,
        says: Mapping[str, bytes],
        seen: Mapping[str, int],
        without: Iterable[str] = (),
    ) -> dict[str, Claim]:
        """Do as ``Directory.claim`` says."""
        gone = set(without)

        def edit(key: str, _raw: Raw, now: Claim) -> Mapping[str, bytes] | None:
            if key not in says:
                return None
            members = {who: now.members[who] for who in now.members if who not in gone}
            return members | {member: says[key]}

        keys = [*says, *(key for key in seen if key not in says)]
        new = bool(says) and all(seen.get(key) == 0 for key in keys)
        with self._link.limited():
            wire = await self._link.wire()
            return await self._claims.edit(wire, keys, edit, seen, guess_new=new)

    async def release(self, member: str, keys: Iterable[str]) -> None:
        """Take a member out of these claims; harmless where it is in none."""

        def edit(_key: str, _raw: Raw, now: Claim) -> Mapping[str, bytes] | None:
            if member not in now.members:
                return None
            return {who: says for who, says in now.members.items() if who != member}

        with self._link.limited():
            for some in _batches(keys):
                await self._claims.edit(await self._link.wire(), some, edit)

    async def remember(self, key: str, value: bytes) -> None:
        """Keep something small for 30 days; it may be lost, or an older one be kept."""
        name = self._claims.key("r", key)
        sealed = self._claims.seal(Purpose.REMEMBERED, key, value)
        with self._link.limited():
            wire = await self._link.wire()
            await wire.ask(b"SET", name, sealed, b"EX", REMEMBERED_S)

    async def recall(self, key: str) -> bytes:
        """Return what was remembered last; empty if nothing is."""
        with self._link.limited():
            wire = await self._link.wire()
            raw = as_bytes(await wire.ask(b"GET", self._claims.key("r", key)))
        value = raw and self._claims.open(Purpose.REMEMBERED, key, raw)
        return value or b""

    async def tell(self, key: str, value: bytes) -> None:
        """Say something to all nodes that are connected."""
        message = self._claims.message(key, {f"{self.name}/": value})
        with self._link.limited():
            wire = await self._link.wire()
            await wire.ask(b"PUBLISH", self.channel, message)

    async def connect(self, node: str) -> None:
        """Return nothing: a node is dialled at its address."""
        del node
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[list[Change]]]:
        """Hear of every change from now on, in order, those of this node included.

        An empty list says that some may have been missed: after each connection that
        was made again, and when this node's lease had run out. A change that is older
        than what a call has returned is left out.
        """
        with self._feed.listen() as listener:
            yield listener

    # What the link asks ---------------------------------------------------------------

    async def begin(self, wire: Wire) -> None:
        """Be a node of this Redis from now on, and learn what it says."""
        names = [f"{self._prefix}{what}" for what in ("nodes", "cluster", "fence")]
        mark = self._claims.seal(Purpose.CLUSTER, "", b"")
        # A node that runs goes on, whatever somebody has written there.
        go_on = "yes" if self._begun else ""
        words = (*self._lease(), mark, self._claims.sealed_fence(), go_on)
        answer = await wire.run(_BEGIN, names, words)
        if not isinstance(answer, list):
            raise UsageError(
                "the names in this Redis are of a cluster with another secret",
                fix=f"give all nodes one secret, or delete {names[1]} if it is old",
            )
        self._claims.learn_fence(as_bytes(answer[0]))
        self._take_nodes(as_list(answer[1]))
        self._begun = True

    async def work(self) -> None:
        """Renew the lease, and follow who lives."""
        self._feed.tell([])
        self._sweep_due.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew_always)
            nursery.start_soon(self._follow_nodes)
            nursery.start_soon(self._sweep_always)

    def hear(self, message: bytes) -> None:
        """Take a message of the channel."""
        if not message:
            self._nodes_changed.set()
        elif changes := self._claims.heard(message):
            self._feed.tell(changes)

    async def leave(self, wire: Wire) -> None:
        """Be no node any more."""
        await wire.ask(b"ZREM", f"{self._prefix}nodes", self._record)
        await wire.ask(b"PUBLISH", self.channel, b"")

    # Nodes ----------------------------------------------------------------------------

    async def _renew_always(self) -> None:
        while True:
            await trio.sleep(self._times.renew)
            wire = await self._link.wire()
            if await self._renew(wire):
                await self.begin(wire)
                self._feed.tell([])

    async def _renew(self, wire: Wire) -> bool:
        """Renew the lease; say whether there was none."""
        return await wire.run(_RENEW, (f"{self._prefix}nodes",), self._lease()) == 1

    def _lease(self) -> tuple[bytes, int, str]:
        return self._record, int(self._times.lease * 1_000), self.channel

    async def _follow_nodes(self) -> None:
        while True:
            await self._nodes_changed.wait()
            self._nodes_changed = trio.Event()
            wire = await self._link.wire()
            records = await wire.ask(b"ZRANGE", f"{self._prefix}nodes", 0, -1)
            self._take_nodes(as_list(records))

    def _take_nodes(self, records: list[object]) -> None:
        nodes = {self.name: self._address}
        for raw in records:
            content = self._claims.open(Purpose.NODE, "", as_bytes(raw) or b"")
            if content is not None:
                name, address = map(decoded, split_words(content))
                nodes[name] = address
        had, self._nodes = self._nodes, nodes
        if had != nodes:
            self._feed.tell([Change("")])
        if had.keys() - nodes.keys():
            self._sweep_due.set()

    async def _sweep_always(self) -> None:
        """Some time after a node has gone, remove what only such nodes have claimed.

        One node does, the first by name: it goes through all keys once.
        """
        while True:
            await self._sweep_due.wait()
            await trio.sleep(self._times.sweep)
            self._sweep_due = trio.Event()
            if self.name == min(self._nodes):
                await self._sweep()

    async def _sweep(self) -> None:
        def edit(_key: str, raw: Raw, now: Claim) -> Mapping[str, bytes] | None:
            lives = any(who.partition("/")[0] in self._nodes for who in now.members)
            return None if raw is None or lives else {}

        begin = self._claims.key("c", "")
        words = (b"MATCH", begin + b"*", b"COUNT", _BATCH)
        cursor = b"0"
        while True:
            wire = await self._link.wire()
            answer = as_list(await wire.ask(b"SCAN", cursor, *words))
            cursor = as_bytes(answer[0]) or b"0"
            names = (as_bytes(name) or b"" for name in as_list(answer[1]))
            keys = [decoded(name.removeprefix(begin)) for name in names]
            if keys:
                await self._claims.edit(wire, keys, edit)
            if cursor == b"0":
                return
            await trio.sleep(_BREATH_S)


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    """Give each key once, in lists that Redis answers at once."""
    rest = iter(dict.fromkeys(keys))
    while some := list(islice(rest, _BATCH)):
        yield some
