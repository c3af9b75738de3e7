"""Entries that come and go, by commands and by good reloads, leave nothing.

With the collector off, thousands of changes left some 2 MB: what Python and trio keep
to use again (free tuples, deadlines that have passed), the last lines of the log, and
ports that were chosen. Each has a bound. Nothing grew with each change, there was no
cycle, and that is to stay so.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.center import LOOPBACK, WAIT_S, center, running
from support.ports import in_a_row

from tunnel.addresses import Address
from tunnel.center.names import NameOptions
from tunnel.ops.entry_commands import EntryCommands
from tunnel.ops.entry_syntax import parse_http, parse_reach
from tunnel.ops.flags import RunFlags, ServerFlags
from tunnel.ops.reload.client import ClientChanges, UpAgain
from tunnel.ops.reload.entries import RunningEntries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tunnel.ops.entries import Entry

TIMES = 40
KEPT = {"MappingEntry": TIMES}
"""The ports that were chosen; see ``center.sites.KNOWN_CHOICES``."""


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps what is logged, and all that belongs to it
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


def alive() -> Counter[str]:
    """Count the objects of tunnel's own classes, and tasks."""
    ours = (type(one) for one in gc.get_objects())
    return Counter(
        kind.__name__
        for kind in ours
        if str(kind.__module__).startswith("tunnel.") or kind is trio.lowlevel.Task
    )


async def leaves_nothing(once: Callable[[], Awaitable[None]]) -> None:
    for _ in range(3):  # what is made once is made now
        await once()
    await trio.testing.wait_all_tasks_blocked(0.05)
    gc.collect()
    before = alive()
    for _ in range(TIMES):
        await once()

    def grown() -> dict[str, int]:
        more = alive() - before
        return {name: n for name, n in more.items() if n > KEPT.get(name, 2)}

    with trio.move_on_after(WAIT_S):  # the server hears of the last a moment later
        while grown():  # noqa: ASYNC110  # nobody announces it
            await trio.sleep(0.02)
    assert not grown()
    assert gc.collect() < TIMES  # less than one object for each


@pytest.mark.usefixtures("collector_off")
async def test_entries_that_come_and_go_leave_nothing() -> None:
    ports = in_a_row(4)
    names = NameOptions(http=Address(LOOPBACK, 0), domain="t.test")
    files: list[list[Entry]] = [
        [parse_http("base=9"), parse_http("shop=9")],
        [parse_http("base=9"), parse_http("shop=10,allow=10.0.0.0/8")],
        [parse_http("base=9"), parse_reach(f"{ports[-1]}=db:1", None)],
    ]
    turn = 0

    async with center(names=names, ports=ports[:-1]) as where:
        made, notices = where.client()
        async with trio.open_nursery() as nursery:
            entries = RunningEntries(made, nursery)
            await entries.start(files[0])
            again = UpAgain(
                ServerFlags(),
                RunFlags(),
                lambda: (ServerFlags(), list(files[turn % len(files)]), RunFlags()),
                None,
            )
            changes = ClientChanges(again, entries, lambda _lines: None)
            commands = EntryCommands(made, entries, lambda _lines: None).handlers

            async def add_and_remove() -> None:
                for flag, text in (("tcp", "9"), ("http", "more=9")):
                    await commands["add"]({"flag": flag, "text": text}, "a test")
                    await commands["remove"]({"entry": list(entries.shown)[-1]}, "me")
                notices.all.clear()

            async def reload() -> None:
                nonlocal turn
                turn += 1
                await changes.apply(False)
                notices.all.clear()

            async with running(made):
                await leaves_nothing(add_and_remove)
                await leaves_nothing(reload)
            nursery.cancel_scope.cancel()
