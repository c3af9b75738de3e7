"""The flags of how long silence is borne, the same for all that stays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from tunnel.errors import UsageError

if TYPE_CHECKING:
    from tunnel.net.timeouts import Timeouts

LEAST_DEAD_AFTER_S: Final = 5
"""Lines are lost for that long every day, and come back."""
MOST_DEAD_AFTER_S: Final = 43_200
"""Twelve hours: the kernel counts no more than nine before it asks."""
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


@Parameter(name="*")
@dataclass(frozen=True)
class TimeoutFlags:
    """How long silence is borne."""

    idle: Annotated[
        str,
        Parameter(
            help="End connections that carried nothing for so long, or up to a fifth "
            "more: 2h; 0: never."
        ),
    ] = "0"
    udp_idle: Annotated[
        str,
        Parameter(
            help="End UDP flows that carried nothing for so long; before the first "
            "answer 60s at most. Give both ends the same."
        ),
    ] = "180s"
    dead_after: Annotated[
        str,
        Parameter(
            help="Reset visitors, apps and targets whose machine has not answered for "
            "so long."
        ),
    ] = "150s"

    def patience(self) -> Timeouts:
        """Give them as the layers below take them.

        Raises:
            UsageError: one cannot be read, or is out of range.
        """
        from tunnel.net.timeouts import Timeouts

        udp_idle_s = seconds("--udp-idle", self.udp_idle)
        if not udp_idle_s:
            raise UsageError("--udp-idle 0 would end every flow at once", "1s or more")
        dead_after_s = seconds("--dead-after", self.dead_after)
        if not LEAST_DEAD_AFTER_S <= dead_after_s <= MOST_DEAD_AFTER_S:
            raise UsageError(
                f"--dead-after {self.dead_after} is out of range", "it is 5s to 12h"
            )
        idle_s = seconds("--idle", self.idle) or math.inf
        return Timeouts(idle_s, udp_idle_s, dead_after_s)


def seconds(flag: str, text: str) -> int:
    """Read the duration of a flag: ``30``, ``30s``, ``5m``, ``2h``.

    Raises:
        UsageError: it is none.
    """
    number = text.rstrip("smh")
    unit = text[len(number) :]
    if number.isascii() and number.isdigit() and unit in _UNITS:
        return int(number) * _UNITS[unit]
    raise UsageError(
        f"{flag} {text!r} is not a duration",
        "it is a number with s, m or h",
        f"for example {flag} 30s",
    )
