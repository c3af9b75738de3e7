"""Read a configuration beside busy connections."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
TURN_S: Final = 0.0002
"""How long Python computes in one thread while another wants to go on. By its own 5 ms
the loop would wait so long behind each of its system calls: to read a file of 1,000
entries takes 0.3 s, in which 60 calls would be all that the others get."""


async def aside(read: Callable[[], T]) -> T:
    """Call a function that computes in a thread of its own; return what it returns.

    Cancelled, it waits for the thread.
    """
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        return await trio.to_thread.run_sync(read)
    finally:
        sys.setswitchinterval(usual_s)
