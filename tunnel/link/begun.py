"""Begin now what a task shall end.

trio starts the tasks of one turn in any order. Where the order is seen from outside,
that of connections for instance, the first part of what they do is therefore a plain
function, called here and now in the right order, which gives what the task awaits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Ts = TypeVarTuple("Ts")


def begun(serve: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> Awaitable[None]:
    """Call ``serve``; what it raises comes out where the result is awaited.

    So whoever supervises the task hears of it, and whoever begins is not ended by it.
    """
    try:
        return serve(*args)
    except Exception as error:
        return _failed(error.with_traceback(None))


async def _failed(error: Exception) -> None:
    raise error
