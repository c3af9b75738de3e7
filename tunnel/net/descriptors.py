"""The descriptors of this process: how many there are, and who gives way when few are.

The kernel always gives the lowest number that is free. So nothing has to be counted: a
socket whose number is at the edge or above proves that so many are open. A few are kept
back above it, for links and for what the process itself needs.

When that is reached, or when one entry has its share, the silent go first: visitors
that have said nothing since they came, the oldest before the others. The kernel knows
who has spoken, and is asked only then; nothing is noted while bytes pass.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.log import log_event
from tunnel.platform.process import (
    descriptor_hard_limit,
    descriptor_limit,
    raise_descriptor_limit,
)
from tunnel.platform.sockets import passed

if TYPE_CHECKING:
    import socket

    from tunnel.net.sockets import FastSocket

RESERVE: Final = 96
"""Kept back: 64 links that prove themselves at the same time, and 32 for files, for the
resolver and for what comes in one turn of the loop. Where there are fewer than four
times as many in all, it is a quarter of them."""
GREETING_BYTES: Final = 4_096
"""Who came in and was told more than this, without a word, is not silent but listens: a
data connection of FTP, a stream of prices. Greetings are shorter."""
LOOKS: Final = 1_024
"""How many are asked about at most to find one who is silent: about 3 ms. Who has
spoken is asked about once and never again."""
LEAVERS_TURNS: Final = 1_000
"""Of the loop, for which a newcomer waits for others to leave; each takes two."""
SAY_EVERY_S: Final = 10.0
"""A bad time is one line when it begins, and one so often while it goes on."""

LOG: Final = logging.getLogger("tunnel.descriptors")


def raise_limit() -> None:
    """Take as many descriptors as this process may have; say so if that fails."""
    try:
        raise_descriptor_limit()
    except (OSError, ValueError) as error:
        log_event(LOG, logging.WARNING, "descriptors.limited",
            limit=descriptor_limit(), wanted=descriptor_hard_limit(),
            reason=str(error))  # fmt: skip
    DESCRIPTORS.look()


class Carrier(Protocol):
    """What carries a socket, and is told of it where nobody may be reading."""

    def vanished(self) -> None:
        """End it: the other end is gone. Must not wait."""
        ...


PRESENT: Final[dict[FastSocket, Carrier | None]] = {}
"""Local connections of this process, with what carries each once something does."""


def carried(stream: FastSocket, by: Carrier) -> None:
    """Have ``by`` hear of it when the other end of ``stream`` has vanished."""
    if stream in PRESENT:
        PRESENT[stream] = by


class Arrivals:
    """The sockets of one entry, in the order in which they came."""

    __slots__ = ("_said", "_turn")

    def __init__(self) -> None:
        self._turn: trio.Lock | None = None  # most never need it, and it is large
        self._said: dict[FastSocket, int] = {}

    def __len__(self) -> int:
        return len(self._said)

    def came_in(self, visitor: FastSocket) -> None:
        """Add a visitor: silent for as long as nothing has come from there."""
        if not self._said:
            DESCRIPTORS.crowds.add(self)
        self._said[visitor] = -1
        PRESENT[visitor] = None

    def dialled(self, target: FastSocket, said_bytes: int = 0) -> None:
        """Add one that was dialled: silent for as long as nobody speaks to it.

        Args:
            target: connected.
            said_bytes: said, or about to be, by ourselves.
        """
        if not self._said:
            DESCRIPTORS.crowds.add(self)
        self._said[target] = said_bytes
        PRESENT[target] = None

    def left(self, stream: FastSocket) -> None:
        """Take one out again that was added; it is closed, or about to be."""
        self._said.pop(stream, None)
        PRESENT.pop(stream, None)
        if stream.given_up:
            stream.given_up = False
            DESCRIPTORS.leaving -= 1
        if not self._said:
            DESCRIPTORS.crowds.discard(self)

    async def wait_for_leavers(self) -> None:
        """Let those who were given up leave, one newcomer of this entry after another.

        Any number may come in one turn of the loop, in which nobody can leave: without
        this they would be refused, and if all looked again in each turn, those of other
        entries would wait for them.
        """
        self._turn = self._turn or trio.Lock()
        async with self._turn:
            for _ in range(LEAVERS_TURNS):
                if not DESCRIPTORS.many_leave:
                    break
                await trio.lowlevel.checkpoint()

    def give_up_one(self) -> bool:
        """Reset who is silent and was here longest; False if nobody is silent.

        Its descriptor is free when the task that owns it has heard of it: soon.
        """
        for _ in range(min(len(self._said), LOOKS)):
            stream, said_bytes = next(iter(self._said.items()))
            del self._said[stream]
            if _is_silent(stream.socket, said_bytes):
                stream.give_up()
                DESCRIPTORS.leaving += 1
                return True
        return False


def _is_silent(sock: socket.socket, said_bytes: int) -> bool:
    """Ask the kernel; where it cannot say, nobody is silent."""
    bytes_of = passed(sock)
    if bytes_of is None:
        return False
    acked, received = bytes_of
    if said_bytes < 0:
        return not received and acked <= GREETING_BYTES
    # The kernel counts the SYN of who dials as a byte.
    return acked <= said_bytes + 1 and received <= GREETING_BYTES


class Descriptors:
    """How many descriptors the process may have, and who has them.

    The limit is looked up when this is made, and again when there was none left: it can
    be changed from outside.
    """

    def __init__(self) -> None:
        self.limit = self.edge = 0
        self.crowds: set[Arrivals] = set()
        """Entries that somebody came in by who may be silent."""
        self.leaving = 0
        """Those who were given up and are not closed yet."""
        self._given_up = Told("silent.reset")
        self._refused = Told("newcomer.refused")
        self.look()

    def look(self) -> None:
        """Learn the limit anew."""
        self.limit = descriptor_limit()
        self.edge = self.limit - self._reserve

    @property
    def _reserve(self) -> int:
        return min(RESERVE, self.limit // 4)

    @property
    def many_leave(self) -> bool:
        """More of them than fit into what is kept back, beside links."""
        return self.leaving * 4 >= self._reserve

    def share(self, part: float, most: int) -> int:
        """Give a part of all descriptors: at least 1, and no more than ``most``."""
        return max(1, min(most, int(self.limit * part)))

    def few(self) -> bool:
        """Say whether only those are left that are kept back."""
        try:
            number = os.dup(0)
        except OSError:
            return True
        os.close(number)
        return number >= self.edge

    def make_room(self, number: int, who: object) -> bool:
        """Reset silent ones for a newcomer; False if too few give way.

        Of the entry that has most: a crowd at one is not paid for by the others.

        Args:
            number: of the newcomer's descriptor: as many are open at the least.
            who: it is.
        """
        # Not one for one: who comes next gets the low number that becomes free.
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
                return False  # so many who are not: others may look further
            self.crowds.discard(largest)
        return False

    def admit(self, sock: socket.socket, who: object = "a target") -> None:
        """Keep a new socket; if it has one of the last numbers, another gives way.

        Args:
            sock: just opened; the caller closes it, also when this raises.
            who: it is for, in the log.

        Raises:
            OSError: EMFILE, as if there were none at all: nobody gave way.
        """
        number = sock.fileno()
        if number >= self.edge and not self.make_room(number, who):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Told:
    """A warning about what goes on: given at once, and then at times, with a count.

    Args:
        event: its name in the log.
    """

    def __init__(self, event: str) -> None:
        self._event = event
        self._count = 0
        self._next_at = 0.0

    def tell(self, reason: str, most: int, peer: object = None) -> None:
        """Say it, or count it for the next time that it is said."""
        self._count += 1
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + SAY_EVERY_S
            log_event(LOG, logging.WARNING, self._event, reason=reason, most=most,
                count=self._count, peer=str(peer) if peer else None)  # fmt: skip
            self._count = 0


class Flow(Protocol):
    """What holds a descriptor for datagrams and can be ended by others."""

    def give_way(self) -> None:
        """End at once: its descriptors are free when this returns."""
        ...


class Flows:
    """Flows of datagrams, of which the one that was idle longest gives way.

    Args:
        event: that is logged when one has to.
    """

    def __init__(self, event: str) -> None:
        self._flows: dict[Flow, None] = {}
        self._told = Told(event)

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, flow: Flow, most: int) -> None:
        """Add one that is about to begin, and end others so that there are ``most``."""
        while len(self._flows) >= most:
            self.give_up_one()
        self._flows[flow] = None

    def give_up_one(self, but: Flow | None = None) -> bool:
        """End the one that was idle longest; False if there is none ``but`` one."""
        for oldest in self._flows:
            if oldest is but:
                continue
            del self._flows[oldest]
            self._told.tell("idle longest", len(self._flows) + 1)
            oldest.give_way()
            return True
        return False

    def touch(self, flow: Flow) -> None:
        """Note that something passed; harmless when it had to give way."""
        if self._flows.pop(flow, 0) is None:
            self._flows[flow] = None

    def drop(self, flow: Flow) -> None:
        """Take one out again; harmless when it is."""
        self._flows.pop(flow, None)


DESCRIPTORS: Final = Descriptors()
"""Of this process, whatever runs in it: the kernel has one table for all."""
TARGETS: Final = Arrivals()
"""What was dialled for nobody's entry in particular."""
