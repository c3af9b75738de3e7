"""Begin in order what tasks shall end.

trio starts the tasks of one turn in any order. Where the order is seen from outside,
that of connections for instance, the first part of what they do is therefore a plain
function, which gives what the task awaits; and the first task of a turn to run calls
those of all the others as well, in the right order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

K = TypeVar("K")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class InOrder(Generic[K, T]):
    """First parts, in the order in which their keys were added.

    It knows nobody who begins: it is theirs, and a cycle would be the collector's.
    """

    def __init__(self) -> None:
        self._added: list[K] = []
        self._begun: dict[K, T] = {}

    def add(self, key: K) -> None:
        """Have it begun behind the others; a task that was started takes it."""
        self._added.append(key)

    def take(self, key: K, begin: Callable[[K], T]) -> T:
        """Begin all that was added, and give what became of this one.

        ``begin`` neither waits nor raises.
        """
        begun = self._begun
        if self._added:
            added, self._added = self._added, []
            for one in added:
                begun[one] = begin(one)
        return begun.pop(key)


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
