"""CorePair: two MuxCores, a pretend wire between them, and a virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tunnel.addresses import Address
from tunnel.proto.events import StreamOffered, StreamOpened
from tunnel.proto.frames import MAX_SOCK_MAP, TcpTarget, Terms
from tunnel.proto.limits import OPEN_DEADLINE_S
from tunnel.proto.mux import MuxCore
from tunnel.proto.pools import HELD_LIMIT_BYTES, HeldPool, Pools

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event

TARGET = TcpTarget(Address("target.test", 80))
BUDGET_BYTES = 65_536

_E = TypeVar("_E")


@dataclass
class End:
    """One core, the bytes on their way from it, and all that it has reported."""

    core: MuxCore
    pool: HeldPool
    pools: Pools
    wire: bytearray = field(default_factory=bytearray)
    heard: list[Event] = field(default_factory=list)

    def hear(self) -> list[Event]:
        """Give, once, what was reported since the last call."""
        heard, self.heard = self.heard, []
        return heard

    def heard_of(self, kind: type[_E]) -> list[_E]:
        """Give the reported events of one kind; they stay to be heard."""
        return [event for event in self.heard if isinstance(event, kind)]


class CorePair:
    """Two ends of a session whose bytes move only when a test says so.

    Args:
        client, server: what each announces.
        top: the highest number, for tests of wrapping.
        pool_bytes: bound of each end's own pool.
        replay_limit: what each end keeps for another link.
        open_deadline_s: how long a CREATE may wait for its answer.
    """

    def __init__(
        self,
        client: Terms | None = None,
        server: Terms | None = None,
        *,
        top: int = MAX_SOCK_MAP,
        pool_bytes: int = HELD_LIMIT_BYTES,
        replay_limit: int = 0,
        open_deadline_s: float = OPEN_DEADLINE_S,
    ) -> None:
        self.now = 1_000.0
        terms = client or Terms(), server or Terms()

        def end(who: int) -> End:
            pool: HeldPool = HeldPool(pool_bytes)
            pools = Pools(pool)
            core = MuxCore(
                client=who == 0,
                ours=terms[who],
                theirs=terms[1 - who],
                now=self.now,
                pools=pools,
                top=top,
                replay_limit=replay_limit,
                open_deadline_s=open_deadline_s,
            )
            return End(core, pool, pools)

        self.client, self.server = self.ends = end(0), end(1)

    def other(self, end: End) -> End:
        """Give the end across the wire."""
        return self.server if end is self.client else self.client

    def notice(self, end: End) -> None:
        """Collect what no call returned."""
        end.heard += end.core.take_notices()

    def flush(self, end: End, budget: int = BUDGET_BYTES) -> bytes:
        """Let ``end`` write to the wire what it has, once; give what it wrote."""
        written = b"".join(end.core.data_to_send(budget, self.now))
        end.wire += written
        self.notice(end)
        return written

    def deliver(self, end: End, size: int | None = None) -> bytes:
        """Carry ``size`` bytes (or all) that are on their way *from* ``end``."""
        size = len(end.wire) if size is None else min(size, len(end.wire))
        data = bytes(end.wire[:size])
        del end.wire[:size]
        if data:
            self.inject(self.other(end), data)
        return data

    def inject(self, end: End, data: bytes) -> None:
        """Let ``end`` receive bytes that need not come from the other core."""
        end.heard += end.core.receive_data(data, self.now)
        while end.core.has_input():
            end.heard += end.core.receive_more(self.now)
        self.notice(end)

    def cross(self) -> None:
        """Let both write everything, and only then both read it."""
        for end in self.ends:
            while end.core.has_output():
                self.flush(end)
        for end in self.ends:
            self.deliver(end)

    def settle(self) -> None:
        """Carry bytes both ways until nobody has anything to say."""
        while any(end.wire or end.core.has_output() for end in self.ends):
            self.cross()

    def cut(self) -> None:
        """Lose the link, and all that is on its way."""
        for end in self.ends:
            end.wire.clear()

    def resume(self) -> list[int]:
        """Begin another link; give how many bytes each end sends again.

        Both counts are fixed before either end goes on, as AUTH does.
        """
        counts = [end.core.received for end in self.ends]
        for end, count in zip(self.ends, reversed(counts), strict=True):
            assert end.core.can_resume(count)
        return [
            end.core.resume(count, self.now)
            for end, count in zip(self.ends, reversed(counts), strict=True)
        ]

    def wait(self, seconds: float) -> None:
        """Let time pass at both ends."""
        self.now += seconds
        for end in self.ends:
            end.core.on_time(self.now)
            self.notice(end)

    def opened(self, by: End | None = None) -> tuple[VirtualConn, VirtualConn]:
        """Open and accept one; give the opener's and the other side's handle."""
        opener = by or self.client
        accepter = self.other(opener)
        ours, theirs = self.offered(opener)
        accepter.core.accept(theirs)
        self.settle()
        assert any(event.conn is ours for event in opener.heard_of(StreamOpened))
        opener.heard.clear()
        return ours, theirs

    def offered(self, by: End | None = None) -> tuple[VirtualConn, VirtualConn]:
        """Open one without an answer; give both sides' handles."""
        opener = by or self.client
        accepter = self.other(opener)
        ours = opener.core.open(TARGET, self.now)
        self.settle()
        [offer] = accepter.heard_of(StreamOffered)
        accepter.heard.clear()
        return ours, offer.conn
