"""The descriptors of this process: how many there are, and what gives way when few are.

The kernel always gives out the lowest free number. So nothing has to be counted: a
socket whose number is at the edge or above proves that so many are open. A few numbers
above the edge are kept back, for links and for what the process itself needs.

When the edge is reached, or when one entry has its share, silent connections go first,
the oldest before the others. The kernel knows which have spoken, and is asked only
then; nothing is noted while bytes pass.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.log import log_event
from tunnel.platform.process import descriptor_limits, raise_descriptor_limit
from tunnel.platform.sockets import passed

if TYPE_CHECKING:
    import socket

    from tunnel.net.sockets import FastSocket

RESERVE: Final = 96
"""Kept back: for 64 links that prove themselves at the same time, and 32 for files, for
the resolver and for what comes in one turn of the loop. Where there are fewer than four
times as many descriptors in all, a quarter of them."""
GREETING_BYTES: Final = 4_096
"""A visitor that was told more than this and says nothing is not silent but listens: a
data connection of FTP, a stream of prices. Greetings are shorter."""
LOOKS: Final = 1_024
"""How many connections are looked at, at most, to find a silent one: about 3 ms. One
that has spoken is looked at once and never again."""
LEAVERS_TURNS: Final = 1_000
"""Turns of the loop that a newcomer waits for others to leave; each takes two."""
SAY_EVERY_S: Final = 10.0
"""A bad time is one line in the log when it begins, and one so often while it lasts."""

LOG: Final = logging.getLogger("tunnel.descriptors")


def raise_limit() -> None:
    """Raise the limit of descriptors as far as possible; log it if that fails."""
    try:
        raise_descriptor_limit()
    except (OSError, ValueError) as error:
        limit, wanted = descriptor_limits()
        log_event(LOG, logging.WARNING, "descriptors.limited",
            limit=limit, wanted=wanted, reason=str(error))  # fmt: skip
    DESCRIPTORS.look()


class Carrier(Protocol):
    """What carries a socket, and has to be told of its end where nobody reads it."""

    def vanished(self) -> None:
        """End the relay: the other end of the socket is gone. Must not wait."""


PRESENT: Final[dict[FastSocket, Carrier | None]] = {}
"""Local connections of this process, each with its carrier once it has one."""


class Arrivals:
    """The sockets of one entry, in the order in which they came."""

    __slots__ = ("_said", "_turn")

    def __init__(self) -> None:
        self._turn: trio.Lock | None = None  # most never need it, and it is large
        self._said: dict[FastSocket, int | None] = {}

    def __len__(self) -> int:
        return len(self._said)

    def add(self, stream: FastSocket, said_bytes: int | None = None) -> None:
        """Add a visitor, silent until it speaks, or a target, silent until spoken to.

        ``said_bytes``: of this process itself to the target, now or soon; None: it is a
        visitor.
        """
        if not self._said:
            DESCRIPTORS.crowds.add(self)
        self._said[stream] = said_bytes
        PRESENT[stream] = None

    def left(self, stream: FastSocket) -> None:
        """Take out one that was added and is closed, or about to be."""
        self._said.pop(stream, None)
        PRESENT.pop(stream, None)
        if stream.given_up:
            stream.given_up = False
            DESCRIPTORS.leaving -= 1
        if not self._said:
            DESCRIPTORS.crowds.discard(self)

    async def wait_for_leavers(self) -> None:
        """Wait for those that were given up to leave; one newcomer waits at a time.

        Without it, what comes in one turn of the loop, in which none can leave, would
        be refused; and if all looked in each turn, other entries would wait for that.
        """
        self._turn = self._turn or trio.Lock()
        async with self._turn:
            for _ in range(LEAVERS_TURNS):
                if not DESCRIPTORS.many_leave:
                    break
                await trio.lowlevel.checkpoint()

    def give_up_one(self) -> bool:
        """Reset the silent one that came first; return False if none is found.

        No more than ``LOOKS`` are looked at; who has spoken is not looked at again.

        Its descriptor is free as soon as the task that owns it has noticed.
        """
        for _ in range(min(len(self._said), LOOKS)):
            stream, said_bytes = next(iter(self._said.items()))
            del self._said[stream]
            if _is_silent(stream.socket, said_bytes):
                stream.give_up()
                DESCRIPTORS.leaving += 1
                return True
        return False


def _is_silent(sock: socket.socket, said_bytes: int | None) -> bool:
    """Ask the kernel; where it does not know, none is silent."""
    bytes_of = passed(sock)
    if bytes_of is None:
        return False
    acked, received = bytes_of
    if said_bytes is None:
        return not received and acked <= GREETING_BYTES
    # The kernel counts the SYN of who dials as a byte.
    return acked <= said_bytes + 1 and received <= GREETING_BYTES


class Descriptors:
    """How many descriptors the process may have, and which entries have them."""

    def __init__(self) -> None:
        self.limit = self.edge = 0
        self.crowds: set[Arrivals] = set()
        """Entries with connections that may be silent."""
        self.leaving = 0
        """How many were given up and are not closed yet."""
        self._given_up = Told("silent.reset")
        self._refused = Told("newcomer.refused")
        self.look()

    def look(self) -> None:
        """Read the limit anew: it can be changed from outside."""
        self.limit, _hard = descriptor_limits()
        self.edge = self.limit - min(RESERVE, self.limit // 4)

    @property
    def many_leave(self) -> bool:
        """Whether more of them are leaving than fit beside links into the reserve."""
        return self.leaving * 4 >= self.limit - self.edge

    def share(self, part: float, most: int) -> int:
        """Return a part of all descriptors: at least 1, and no more than ``most``."""
        return max(1, min(most, int(self.limit * part)))

    def few(self) -> bool:
        """Say whether only the reserve is left."""
        try:
            number = os.dup(0)
        except OSError:
            return True
        os.close(number)
        return number >= self.edge

    def make_room(self, number: int, who: object) -> bool:
        """Reset silent connections for a newcomer; return False if too few give way.

        They are those of the entry that has most.

        Args:
            number: the newcomer's descriptor: at least so many are open.
            who: the newcomer, for the log.
        """
        # Not one for one: the next newcomer gets the low number that becomes free.
        while number - self.leaving >= self.edge:
            if not self._give_up_one():
                self._refused.tell("few descriptors are left", self.limit, who)
                return False
            self._given_up.tell("few descriptors are left", self.limit, who)
        return True

    def _give_up_one(self) -> bool:
        while self.crowds:
            largest = max(self.crowds, key=len)
            if largest.give_up_one():
                return True
            if largest:
                return False  # so many are not silent: the next call looks further
            self.crowds.discard(largest)
        return False

    def admit(self, sock: socket.socket, who: object = "a target") -> None:
        """Keep a new socket; if it has one of the last numbers, another gives way.

        Args:
            sock: was just opened; the caller closes it, also when this raises.
            who: what it is for, in the log.

        Raises:
            OSError: EMFILE, as if no descriptor were free: none gave way.
        """
        number = sock.fileno()
        if number >= self.edge and not self.make_room(number, who):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Told:
    """A warning that is logged at once, and then now and then, with a count."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._count = 0
        self._next_at = 0.0

    def tell(self, reason: str, most: int, peer: object = None) -> None:
        """Log it, or count it for the next time that it is logged."""
        self._count += 1
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + SAY_EVERY_S
            log_event(LOG, logging.WARNING, self._event, reason=reason, most=most,
                count=self._count, peer=str(peer) if peer else None)  # fmt: skip
            self._count = 0


class Flow(Protocol):
    """What holds a descriptor for datagrams, and can be ended by others."""

    def give_way(self) -> None:
        """End the flow at once: its descriptors are free when this returns."""


class Flows:
    """Flows of datagrams, of which the one that was idle longest gives way."""

    def __init__(self, event: str) -> None:
        self._flows: dict[Flow, None] = {}
        self._last: Flow | None = None
        """What was touched last, and so is the last: mostly it goes on."""
        self._told = Told(event)

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, flow: Flow, most: int) -> None:
        """Add one that is about to begin; end others if there are ``most`` already."""
        while len(self._flows) >= most:
            self.give_up_one()
        self._flows[flow] = None
        self._last = flow

    def give_up_one(self, but: Flow | None = None) -> bool:
        """End the one that was idle longest; False if there is none ``but`` one."""
        oldest = next((flow for flow in self._flows if flow is not but), None)
        if oldest is None:
            return False
        self._told.tell("idle longest", len(self._flows))
        self.drop(oldest)
        oldest.give_way()
        return True

    def touch(self, flow: Flow) -> None:
        """Note that something passed; harmless when the flow had to give way."""
        if flow is not self._last and self._flows.pop(flow, 0) is None:
            self._flows[flow] = None
            self._last = flow

    def drop(self, flow: Flow) -> None:
        """Take one out; harmless when it is out already."""
        self._flows.pop(flow, None)
        if flow is self._last:
            self._last = None


DESCRIPTORS: Final = Descriptors()
"""Those of this process, whatever runs in it: the kernel has one table for all."""
TARGETS: Final = Arrivals()
"""Sockets that were dialled for no entry in particular."""
