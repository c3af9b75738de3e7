"""How fast the bytes of one user pass: a bucket for all sessions (protocol.md#rates).

A ``Meter`` holds what may pass now in one direction. A session has a share of it. While
there is enough, a share takes what it needs and keeps nothing. What finds the bucket
empty waits in its session, and then all that is filled in is dealt out, by turns of a
clock, in proportion to the connections that wait: so they get the same, whichever
session they are in, and nobody else takes it from them.

What goes out waits as unsent bytes, so whoever sends them feels it. What comes in waits
as bytes that no reader has taken, so the peer gets no credit for more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.proto.events import DataReceived, StreamClosed, StreamFinished

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event
    from tunnel.proto.limits import TokenBucket
    from tunnel.proto.scheduler import Buffer, SendQueue, SendScheduler

BURST_S: Final = 0.05
"""What passes at once after a rest, in seconds of the rate: a page's first answer."""
LEAST_BURST_BYTES: Final = 2_048
"""The same where the rate is small: at least one frame."""
LEAST_PIECE_BYTES: Final = 1_024
"""The smallest frame, or piece, into which a rate cuts: less is mostly headers."""
CATCH_UP_S: Final = 0.5
"""While something waits, a turn of the clock that is late loses none of the rate, up to
this: a machine that is busy gives what was promised all the same."""
DEBT_S: Final = 2.0
"""Bytes that cannot wait, as their sender has closed, are paid for later. More than
this is what somebody does on purpose: until it is paid, nothing new is opened."""


class Meter:
    """How many bytes may pass in one direction, for all sessions of a user.

    Args:
        rate: bytes per second.
        clock: returns the time in seconds; it does not jump.
        wanted: called when something begins to wait: ``tick`` is due soon, and again
            while ``waiting`` has something.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float], wanted: Callable[[], None]
    ) -> None:
        self.rate = rate
        self.waiting: dict[Share, None] = {}
        """Shares that wait, in turn; to be looked at only."""
        self._clock = clock
        self._wanted = wanted
        self._filled_at = clock()
        self.burst: float = 0
        """What may pass at once after a rest."""
        self.spare: float = 0
        """Bytes that may pass, as far as they were filled in; below 0 some are owed.

        Who finds enough while nobody waits takes it: no clock is read for that, so in a
        moment after a rest it may be two bursts.
        """
        self._set_burst()
        self.spare = self.burst

    def set_rate(self, rate: int) -> None:
        """Let so many bytes per second pass from now on."""
        self._fill()
        self.rate = rate
        self._set_burst()
        # What was saved, or owed, at another rate is not worth as much at this one.
        self.spare = max(min(self.spare, self.burst), -self.burst)

    @property
    def overdrawn(self) -> bool:
        """Whether more has passed than is soon made up for."""
        if self.spare >= 0:
            return False
        self._fill()
        return self.spare < -self.rate * DEBT_S

    def grab(self, most: int) -> int:
        """Take up to ``most`` bytes that nobody waits for; return how many."""
        if self.waiting:
            return 0
        if self.spare < most:
            self._fill()
        size = min(most, int(self.spare))
        if size <= 0:
            return 0
        self.spare -= size
        return size

    def passes(self, size: int) -> bool:
        """Take all of ``size`` bytes, which would not wait; False, and none, if not."""
        if self.waiting:
            return False
        if self.spare < size:
            self._fill()
        if self.spare < min(size, self.burst):
            return False
        self.spare -= size
        return True

    def available(self) -> int:
        """Return how many bytes may pass now, while nobody waits."""
        self._fill()
        return max(int(self.spare), 0)

    def pay(self, size: int) -> None:
        """Take bytes that have passed already; give them back if it is negative."""
        self.spare -= size

    def wait(self, share: Share) -> None:
        """Have a share released when it is its turn; harmless while it waits."""
        if share not in self.waiting:
            self.waiting[share] = None
            self._wanted()

    def leave(self, share: Share) -> None:
        """Wait no more, and take back what was dealt and not used."""
        self.waiting.pop(share, None)
        self.spare += share.left
        share.left = 0

    def tick(self) -> None:
        """Deal what is there to the shares that wait."""
        self._fill()
        left = int(self.spare)
        shares = list(self.waiting)
        total = sum(share.weight for share in shares)
        for share in shares:
            if left <= 0:
                break
            weight = share.weight
            # It may wait again at once: then it is the last.
            del self.waiting[share]
            if weight:  # else what waited in it has ended
                part = min(left, max(left * weight // total, LEAST_PIECE_BYTES))
                total -= weight
                left -= part
                self.spare -= part
                share.release(part)

    def _set_burst(self) -> None:
        self.burst = max(self.rate * BURST_S, LEAST_BURST_BYTES)

    def _fill(self) -> None:
        now = self._clock()
        most = self.burst
        if self.waiting:
            most = max(most, self.rate * CATCH_UP_S)
        filled = self.spare + (now - self._filled_at) * self.rate
        self.spare = min(filled, most)
        self._filled_at = now


class Share:
    """What one session has of a meter."""

    left: int = 0
    """Bytes that it was given and that have not passed; below 0 it owes some."""
    weight: int
    """Connections that wait in it."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def release(self, size: int) -> None:
        """Take ``size`` bytes, and let as many pass; called by the meter."""
        raise NotImplementedError

    def may_pass(self, most: int) -> int:
        """Return how many bytes may pass now, at most ``most``."""
        if self.left < most:
            self.left += self.meter.grab(most - self.left)
        return max(0, min(most, self.left))

    def give_back(self) -> None:
        """Keep nothing for later, and owe nothing."""
        self.meter.pay(-self.left)
        self.left = 0


class Outflow(Share):
    """A session's share in what goes to its peer.

    ``wake`` is called when something may be sent.
    """

    def __init__(
        self, meter: Meter, lanes: SendScheduler, wake: Callable[[], object]
    ) -> None:
        super().__init__(meter)
        self._lanes = lanes
        self._wake = wake

    @property
    def weight(self) -> int:  # type: ignore[override]
        """Connections with unsent bytes, that cannot be sent yet."""
        return len(self._lanes.parked)

    def take(self, budget: int, out: list[Buffer], served: list[SendQueue]) -> None:
        """Do as ``SendScheduler.take`` does, as far as the rate lets it."""
        lanes, meter = self._lanes, self.meter
        if meter.spare >= budget and not (self.left or meter.waiting):
            before = lanes.size
            lanes.take(budget, out, served)
            meter.spare -= before - lanes.size
            return None
        budget = self.may_pass(budget)
        if budget > 0:
            before = lanes.size
            lanes.take(budget, out, served, max(budget, LEAST_PIECE_BYTES))
            self.left -= before - lanes.size
            if not lanes.waiting:
                return self.give_back()
            if self.left > 0:
                return None
        lanes.park()
        meter.wait(self)
        return None

    def release(self, size: int) -> None:
        """Let the lanes that wait have turns, of ``size`` bytes in all."""
        self.left += size
        self._lanes.unpark()
        self._wake()

    def end(self) -> None:
        """Let everything pass from now on: there is no rate, or no session."""
        self.meter.leave(self)
        self._lanes.unpark()
        self._wake()


class Police:
    """What drops datagrams, which cannot wait, where a user sends too many.

    ``rate`` is of datagrams, ``up`` and ``down`` are of their bytes.
    """

    def __init__(
        self,
        rate: TokenBucket | None,
        up: Meter | None,
        down: Meter | None,
        clock: Callable[[], float],
    ) -> None:
        self._rate = rate
        self._up = up
        self._down = down
        self._clock = clock

    def lets_in(self, size: int) -> bool:
        """Say whether the peer's datagram goes on."""
        return self._lets(size, self._up)

    def lets_out(self, size: int) -> bool:
        """Say whether a datagram goes to the peer."""
        return self._lets(size, self._down)

    def _lets(self, size: int, meter: Meter | None) -> bool:
        if self._rate is not None and not self._rate.allow(self._clock()):
            return False
        return meter is None or meter.passes(size)


@dataclass(slots=True)
class _Held:
    """What one connection has received, behind what was let through."""

    pieces: deque[bytes | memoryview] = field(default_factory=deque)
    size: int = 0
    finished: bool = False
    """Its sender's direction has ended behind these bytes."""


class Inflow(Share):
    """A session's share in what comes from its peer, and what of it has to wait.

    ``deliver`` is given the events that are let through by and by.
    """

    def __init__(self, meter: Meter, deliver: Callable[[list[Event]], None]) -> None:
        super().__init__(meter)
        self._deliver = deliver
        self._held: dict[VirtualConn, _Held] = {}

    @property
    def weight(self) -> int:  # type: ignore[override]
        """Connections with bytes that wait."""
        return len(self._held)

    def admit(self, events: list[Event]) -> list[Event]:
        """Return the events that go on now; the others wait for their turn.

        Only bytes and the FIN behind them wait. A CLOSE does not: the connection is
        over for its user at once, so what waits for it goes in front, to be paid for.
        """
        if not self._held:
            size, meter = 0, self.meter
            for event in events:
                if type(event) is DataReceived:
                    size += event.size
            if not size or (size <= meter.spare and not meter.waiting):
                meter.spare -= size
                return events
        return self._admit_some(events)

    def _admit_some(self, events: list[Event]) -> list[Event]:
        held = self._held
        out: list[Event] = []
        for event in events:
            if type(event) is DataReceived:
                self._admit_data(event, out)
            elif type(event) is StreamFinished and event.conn in held:
                held[event.conn].finished = True
            else:
                if type(event) is StreamClosed and event.conn in held:
                    waiting = held.pop(event.conn)
                    if not event.local:  # which is to free memory
                        self.left -= waiting.size
                        _let_all_through(event.conn, waiting, out)
                out.append(event)
        self.give_back()
        if held:
            self.meter.wait(self)
        return out

    def _admit_data(self, event: DataReceived, out: list[Event]) -> None:
        held = self._held.get(event.conn)
        if held is None:
            room = self.may_pass(event.size)
            self.left -= room
            if room == event.size:
                out.append(event)
                return
            held = self._held[event.conn] = _Held()
            data = event.payload
            if room:
                out.append(DataReceived(event.conn, [data[:room]], room))
                data = data[room:]
        else:
            data = event.payload
        held.pieces.append(data)
        held.size += len(data)

    def release(self, size: int) -> None:
        """Let ``size`` bytes in, of the connections that wait in turn."""
        self.left += size
        out: list[Event] = []
        held = self._held
        piece = max(size // max(len(held), 1), LEAST_PIECE_BYTES)
        while held and self.left > 0:
            conn, waiting = next(iter(held.items()))
            del held[conn]
            most = min(piece, self.left, waiting.size)
            if most == waiting.size:
                _let_all_through(conn, waiting, out)
            else:
                out.append(DataReceived(conn, _cut(waiting, most), most))
                held[conn] = waiting
            self.left -= most
        self.give_back()
        if held:
            self.meter.wait(self)
        self._deliver(out)

    def holds(self, conn: VirtualConn) -> bool:
        """Say whether bytes of a connection wait."""
        return conn in self._held

    def forget(self, conn: VirtualConn) -> None:
        """Drop what a connection has waiting: nobody reads it."""
        self._held.pop(conn, None)

    def end(self) -> None:
        """Let through what waits: there is no rate any more, or no session."""
        out: list[Event] = []
        for conn, waiting in self._held.items():
            self.meter.pay(waiting.size)
            _let_all_through(conn, waiting, out)
        self._held.clear()
        self.meter.leave(self)
        self._deliver(out)


def _let_all_through(conn: VirtualConn, held: _Held, out: list[Event]) -> None:
    if held.size:
        out.append(DataReceived(conn, list(held.pieces), held.size))
    if held.finished:
        out.append(StreamFinished(conn))


def _cut(held: _Held, size: int) -> list[bytes | memoryview]:
    """Take the first ``size`` bytes out; there are more."""
    out: list[bytes | memoryview] = []
    held.size -= size
    while size:
        piece = held.pieces.popleft()
        if len(piece) > size:
            view = memoryview(piece)
            held.pieces.appendleft(view[size:])
            piece = view[:size]
        out.append(piece)
        size -= len(piece)
    return out
