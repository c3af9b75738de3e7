"""Where a session is in its life."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """Where a session is in its life."""

    LINKED = "a link carries it, or will at once"
    WAITING = "its link is lost, and another may carry it on"
    ENDED = "its streams are reset; its tasks wind up"
    GONE = "its tasks are over too"


ALIVE: Final = (State.LINKED, State.WAITING)
