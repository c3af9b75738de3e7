"""The parent of workers, for those who watch a server: Prometheus, and the page."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from tunnel.center.cluster.channel import ChannelClosedError
from tunnel.ops.control.status import Status
from tunnel.ops.workers.worker import FACTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tunnel.ops.control import Handler
    from tunnel.ops.flags import Ports
    from tunnel.ops.life import Life
    from tunnel.ops.metrics.facts import Facts, UserFacts
    from tunnel.ops.show import Show
    from tunnel.ops.workers.commands import Commands
    from tunnel.ops.workers.running import Running


class Watched:
    """The numbers of all workers together.

    Args:
        workers: those that serve, by number.
        months: returns the bytes of this month of each user.
        pids: returns the processes of the workers.
        commands: ask them.
        show: has counted what the parent has logged.
    """

    def __init__(
        self,
        workers: Mapping[int, Running],
        months: Callable[[], Mapping[str, int]],
        pids: Callable[[], Iterable[int]],
        commands: Commands,
        show: Show,
    ) -> None:
        self._workers = workers
        self._months = months
        self._pids = pids
        self._commands = commands
        self._show = show

    async def serve(
        self,
        nursery: trio.Nursery,
        ports: Ports,
        handlers: dict[str, Handler],
        life: Life,
    ) -> None:
        """Answer at these ports in ``nursery``, with the workers' own commands.

        Raises:
            AddressError: one of them cannot be listened on.
        """
        if ports.dashboard is not None:
            from tunnel.ops.dashboard.live import Live
            from tunnel.ops.dashboard.opened import open_dashboard

            live = Live(self._status, handlers, use=self._use)
            handlers["dashboard"] = await open_dashboard(
                nursery, ports.dashboard, live, handlers, self._show
            )
        if ports.metrics is not None:
            from tunnel.ops.metrics.web import MetricsPort

            await nursery.start(MetricsPort(self._facts, life).serve, ports.metrics)

    async def _status(self) -> Status:
        return Status.of_answer(await self._commands.status({}, "the page"))

    async def _use(self) -> tuple[UserFacts, ...]:
        return (await self._facts()).users

    async def _facts(self) -> Facts:
        """Return the numbers of this moment; one that has just died has none."""
        from tunnel.ops.metrics.facts import Facts, facts_together

        each: list[Facts] = []

        async def ask(running: Running) -> None:
            try:
                said, _none = await running.channel.ask(FACTS)
            except ChannelClosedError:
                return
            each.append(Facts.of_words(said))

        status = await self._status()
        async with trio.open_nursery() as nursery:
            for running in tuple(self._workers.values()):
                nursery.start_soon(ask, running)
        own = Facts(status, ready=False, events=dict(self._show.recent.counts))
        facts = facts_together(status, [*each, own])
        months = self._months()
        users = tuple(
            replace(one, month_bytes=months.get(one.name, one.month_bytes))
            for one in facts.users
        )
        pids = (os.getpid(), *self._pids())
        return replace(facts, users=users, pids=pids)
