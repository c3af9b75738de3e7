"""What a center-client answers to commands."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tunnel.access.identity import short_id
from tunnel.access.limits import parse_limits
from tunnel.center.events import LinkDown, LinkUp
from tunnel.center.why import Known
from tunnel.errors import CODES, Code, LocalLinkError, UsageError
from tunnel.link.live import live_bytes, open_streams
from tunnel.ops.control.connections import KICKED, Connections, mapping_of
from tunnel.ops.control.entry_limits import EntryLimits
from tunnel.ops.control.handlers import Meters
from tunnel.ops.control.server_handlers import since_1970
from tunnel.ops.control.status import (
    PAUSED,
    EntryStatus,
    LinkStatus,
    Passed,
    Status,
)
from tunnel.proto.frames import MappingType

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from tunnel.access.join import JoinLine
    from tunnel.center.client import CenterClient
    from tunnel.center.events import Notice
    from tunnel.link.tally import Live
    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.entries import Line, Published


@dataclass(slots=True)
class _Facts:
    """What the client has told of its link."""

    peer: str = ""
    encrypted: bool = False
    reason: str = ""
    retry_at: float | None = None
    was_up: bool = False


class ClientHandlers:
    """The commands about a client's link, entries and connections.

    Args:
        client: keeps the link.
        join: which server it is for, and as whom.
        published: its entries by the names of their mappings.
        local: the lines of those that listen here.
        paused: returns the names of those whose visitors are refused.
    """

    def __init__(
        self,
        client: CenterClient,
        join: JoinLine,
        published: Mapping[str, Published],
        local: Sequence[Line],
        paused: Callable[[], Container[str]] = lambda: (),
    ) -> None:
        self._client = client
        self._join = join
        self._published = published
        self._local = local
        self._paused = paused
        self._facts = _Facts()
        self.limits = EntryLimits(client, published)
        self.meters = Meters(lambda: {"": client.traffic})

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket answers, besides what every process does."""
        each = Connections(self.sessions)

        async def kick(args: Args, by: str) -> Answer:
            which = str(args.get("which", ""))
            return self._kick_link(which) or each.kick(which, by)

        return {
            "retry": self._retry,
            "top": each.top,
            "kick": kick,
            "limit": self._limit,
        }

    async def _limit(self, args: Args, _by: str) -> Answer:
        """Give an entry a rate each way; ``none`` lifts it.

        Raises:
            UsageError: there is no such entry, none can have a rate, or it is none.
        """
        rate = parse_limits([f"rate={args.get('rate', '')}"]).up
        name = self._name_of(str(args.get("entry", "")))
        if self._published[name].wanted.type == MappingType.UDP:
            raise UsageError("datagrams have no rate", "they would only be dropped")
        self.limits.set_rate(name, rate)
        return {"entry": name, "limit_per_s": rate}

    def _name_of(self, word: str) -> str:
        """Return the mapping that a word means: its name, its address or its port."""
        for name in self._published:
            public = self._client.public(name)
            where = () if public is None else (str(public), str(public.port))
            if word == name or word in where:
                return name
        known = ", ".join(self._published) or "none"
        raise UsageError(f"no entry is called {word:.60}", f"there are: {known}")

    def sessions(self) -> list[Known]:
        """Return the sessions that live, and whose they are."""
        session, own_id = self._client.session, short_id(self._client.client_id)
        return [Known(own_id, self._join.name, session)] if session else []

    def _kick_link(self, which: str) -> Answer | None:
        """Cut the link if it is meant; its session waits for another."""
        link = self._client.link
        if link is None or which != short_id(self._client.client_id):
            return None
        link.abandon(LocalLinkError(Code.LINK_LOST, KICKED))
        return {"kicked": which, "connections": 0}

    def take(self, notice: Notice) -> None:
        """Note what the client tells of its link."""
        facts = self._facts
        match notice:
            case LinkUp(peer, encrypted):
                facts.peer, facts.encrypted, facts.was_up = peer, encrypted, True
            case LinkDown(reason, retry_s):
                facts.reason = str(reason)
                facts.retry_at = trio.current_time() + retry_s
            case _:
                pass

    def fill(self, status: Status) -> None:
        """Say what the client does now."""
        link = self._link(trio.current_time())
        status.state = link.state
        status.address = f"{self._join.host}:{self._join.port}"
        status.links.append(link)
        status.connections, status.waiting = link.connections, link.waiting
        status.kept_bytes, status.passed = link.kept_bytes, link.passed
        live, bytes_now = self._count(), live_bytes(self._client.session)
        status.entries += [
            self._entry(name, entry, live, bytes_now)
            for name, entry in self._published.items()
        ]
        status.entries += map(_local, self._local)

    def _link(self, now: float) -> LinkStatus:
        client, facts = self._client, self._facts
        link, session = client.link, client.session
        state = "waiting" if facts.was_up else "connecting"
        rtt_s = None
        if link is not None:
            state, rtt_s = "linked", link.session.core.liveness.rtt_s
        live = client.connections
        down = link is None
        retry_s = None
        if down and facts.retry_at is not None:
            retry_s = round(max(facts.retry_at - now, 0), 1)
        return LinkStatus(
            id=short_id(client.client_id),
            peer=link.transport.peer if link else facts.peer,
            user=self._join.name,
            state=state,
            encrypted=not self._join.plain,
            linked_at=since_1970(link.began_at, now) if link else None,
            began_at=since_1970(session.began_at, now) if session else None,
            lost_at=since_1970(session.lost_at, now) if session else None,
            rtt_ms=None if rtt_s is None else round(rtt_s * 1000, 1),
            resumes=session.resumes if session else 0,
            connections=live,
            waiting=live if down else 0,
            kept_bytes=session.kept_bytes if session else 0,
            passed=self.meters.passed("", *client.traffic),
            reason=facts.reason if down else "",
            retry_s=retry_s,
        )

    def _count(self) -> Counter[str]:
        """Return how many visitors each mapping has."""
        session = self._client.session
        if session is None:
            return Counter()
        return Counter(filter(None, map(mapping_of, open_streams(session))))

    def _entry(
        self, name: str, entry: Published, live: Counter[str], bytes_now: Live
    ) -> EntryStatus:
        public = self._client.public(name)
        refusal = self._client.publisher.refusal(name)
        state = "open" if public else "refused" if refusal else "waiting"
        if public and name in self._paused():
            state = PAUSED
        reason = ""
        if state == "refused" and refusal is not None:
            reason = refusal.reason or CODES[refusal.code].meaning
        return EntryStatus(
            name=name,
            kind=entry.kind,
            public=entry.where(public) if public else None,
            target=str(entry.endpoint),
            state=state,
            reason=reason,
            connections=live[name],
            limit_per_s=self.limits.rate_of(name),
            passed=Passed(*self._client.publisher.passed(name, bytes_now)),
        )

    async def _retry(self, _args: Args, _by: str) -> Answer:
        return {"tried": self._client.retry()}


def _local(line: Line) -> EntryStatus:
    return EntryStatus(
        name=f"{line.kind}-{line.where}",
        kind=line.kind,
        public=line.where,
        target=None if line.target == "-" else line.target,
        state="open",
    )
