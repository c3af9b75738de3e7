"""Begin in order what separate tasks finish.

trio starts the tasks of one turn in any order. Where that can be seen from outside, the
first part of each task is a plain function, which returns what the task awaits then;
and the first task that runs in a turn calls the functions of all, in the right order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

K = TypeVar("K")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class InOrder(Generic[K, T]):
    """The first parts of tasks, in the order in which their keys were added.

    It keeps no reference to what begins them: that owns it, and would be a cycle.
    """

    def __init__(self) -> None:
        self._added: list[K] = []
        self._begun: dict[K, T] = {}

    def add(self, key: K) -> None:
        """Add a first part behind the others; the task that was started takes it."""
        self._added.append(key)

    def take(self, key: K, begin: Callable[[K], T]) -> T:
        """Begin all that were added, and return what became of this one.

        ``begin`` neither waits nor raises.
        """
        begun = self._begun
        if self._added:
            added, self._added = self._added, []
            for one in added:
                begun[one] = begin(one)
        return begun.pop(key)


def begun(serve: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> Awaitable[T]:
    """Call ``serve``; what it raises is raised where the result is awaited.

    So the task's supervisor hears of it, and the task that begins others goes on.
    """
    try:
        return serve(*args)
    except Exception as error:
        return _failed(error.with_traceback(None))


async def _failed(error: Exception) -> NoReturn:
    raise error
