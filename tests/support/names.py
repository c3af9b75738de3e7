"""A resolver for tests: what names mean, without a thread and without a network."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from outcome import capture

from tunnel.net.lookup import Found, lookups

if TYPE_CHECKING:
    from collections.abc import Callable

    from outcome import Outcome

_T = TypeVar("_T")


class Names:
    """A resolver of one answer, or of one failure; it keeps who was asked for."""

    def __init__(self, *answer: str, error: Exception | None = None) -> None:
        self.answer = answer
        self.error = error
        self.asked: list[bytes] = []

    def __call__(self, host: bytes) -> list[Found]:
        self.asked.append(host)
        if self.error:
            raise self.error
        return [found(ip) for ip in self.answer]


def found(ip: str) -> Found:
    if ":" in ip:
        return Found(socket.AF_INET6, ip, (0, 0))
    return Found(socket.AF_INET, ip)


def resolve_to(*answer: str, error: Exception | None = None) -> Names:
    """Have every look-up of this run of trio answered so, at once."""
    names = Names(*answer, error=error)
    these = lookups()
    these.ask, these.start_thread = names, _at_once
    return names


class Threads:
    """Look-ups that the test answers, where threads would ask a resolver."""

    def __init__(self) -> None:
        self.open: dict[bytes, Callable[[Outcome[Any]], object]] = {}
        self.begun: list[bytes] = []
        these = lookups()
        these.ask = self._ask
        these.start_thread = self._start
        self._asked = b""

    def _ask(self, host: bytes) -> list[Found]:
        self._asked = host
        return []

    def _start(
        self,
        fn: Callable[[], _T],
        deliver: Callable[[Outcome[_T]], object],
        name: str | None = None,
    ) -> None:
        del name
        fn()
        self.begun.append(self._asked)
        self.open[self._asked] = deliver

    def answer(self, host: str, *ips: str, error: OSError | None = None) -> None:
        def what() -> list[Found]:
            if error:
                raise error
            return [found(ip) for ip in ips]

        self.open.pop(host.encode())(capture(what))


def silent() -> Threads:
    """Have no look-up answered but those that the test answers."""
    return Threads()


def _at_once(
    fn: Callable[[], _T],
    deliver: Callable[[Outcome[_T]], object],
    name: str | None = None,
) -> None:
    del name
    deliver(capture(fn))


async def settled() -> None:
    """Let everybody go on who was told something."""
    await trio.testing.wait_all_tasks_blocked()
