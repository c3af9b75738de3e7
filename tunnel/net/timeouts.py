"""How long silence is allowed, for everything that runs in one command.

Limits that guard against strangers (a head, a first byte, an open that nobody answers)
stand where they guard: nobody needs to change them.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

DEAD_AFTER_S: Final = 150.0
"""With a look every fifth of it, a vanished peer is found within 3 minutes. Phones lose
their network for one or two, and go on."""
UDP_IDLE_S: Final = 180.0
"""Without a datagram either way. Games, VPNs and QUIC send one every 15 to 120 s; RFC
4787 asks NATs for 2 minutes at the least and recommends 5."""
UDP_UNANSWERED_S: Final = 60.0
"""The same before the first answer, at most: the addresses of UDP visitors are easily
forged, and no program waits longer for an answer."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long silence is allowed, in seconds."""

    idle_s: float = math.inf
    """On a connection whose two ends are alive: for ever, for only they know what they
    wait for."""
    udp_idle_s: float = UDP_IDLE_S
    dead_after_s: float = DEAD_AFTER_S
    """Of the machine at the other end of a local connection, which the kernel asks."""

    def udp_s(self, *, answered: bool) -> float:
        """Return how long a flow of datagrams may be silent."""
        return self.udp_idle_s if answered else min(self.udp_idle_s, UDP_UNANSWERED_S)


TIMEOUTS: Final = ContextVar("TIMEOUTS", default=Timeouts())  # noqa: B039
"""Those of the command; every task that it starts sees them."""
