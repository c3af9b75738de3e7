"""The commands of a person to a server of several processes: all of them are asked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.channel import ChannelClosedError
from tunnel.errors import TunnelError, UsageError
from tunnel.ops.control.connections import MOST_LISTED
from tunnel.ops.control.handlers import MAX_LINES
from tunnel.ops.workers import merged
from tunnel.ops.workers.worker import COMMAND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.workers.running import Running

ANSWER_S: Final = 15.0
"""How long a worker may take to answer a command."""


class Commands:
    """Answers commands for all workers.

    Args:
        running: those that serve, by number.
        own: returns what the parent says of itself instead.
    """

    def __init__(
        self, running: Mapping[int, Running], own: Callable[[], Answer]
    ) -> None:
        self._running = running
        self._own = own

    def handlers(self) -> dict[str, Handler]:
        """Return what the control socket answers, where the workers answer it."""
        first = self._running[0]
        handlers: dict[str, Handler] = {
            name: partial(self._first_that_can, name) for name in first.commands
        }

        for name in first.commands:
            if name.startswith("users."):
                handlers[name] = partial(self._about_a_user, name)
        return handlers | {
            "status": self.status,
            "ps": self._greet,
            "top": self._top,
            "why": self._why,
            "logs": self._logs,
            "reload": self.reload,
            "users.ls": self._users,
        }

    async def status(self, args: Args, by: str) -> Answer:
        """Return what is so now, of all together."""
        return merged.status_of(await self.all("status", args, by), self._own())

    async def reload(self, args: Args, by: str) -> Answer:
        """Have all read their configuration anew; the first one says what it was."""
        return (await self.all("reload", args, by))[0]

    async def _greet(self, _args: Args, by: str) -> Answer:
        return merged.greeting_of(await self.status({}, by))

    async def _top(self, args: Args, by: str) -> Answer:
        asked = args.get("most")
        most = asked if isinstance(asked, int) and asked > 0 else MOST_LISTED
        return merged.top_of(await self.all("top", args, by), most)

    async def _why(self, args: Args, by: str) -> Answer:
        refusals: list[TunnelError] = []
        # Only those that have the connection know it.
        each = await self.all("why", args, by, refusals if args else None)
        if not each:
            raise refusals[0]
        return merged.why_of(each)

    async def _logs(self, args: Args, by: str) -> Answer:
        after = args.get("after", 0)
        if not isinstance(after, int):
            raise UsageError("after is the number of a line")
        return merged.logs_of(await self.all("logs", {}, by), after, MAX_LINES)

    async def _users(self, args: Args, by: str) -> Answer:
        return merged.users_of(await self.all("users.ls", args, by))

    async def _about_a_user(self, do: str, args: Args, by: str) -> Answer:
        """Have one worker do it, which tells the others; say what the user has."""
        answer = await self._first_that_can(do, args, by)
        asked = {"name": answer.get("user")}
        refusals: list[TunnelError] = []  # it has just been revoked
        return merged.user_of(answer, await self.all("users.show", asked, by, refusals))

    async def all(
        self, do: str, args: Args, by: str, refusals: list[TunnelError] | None = None
    ) -> list[Answer]:
        """Ask every worker, all at once; one that has died meanwhile is left out.

        Args:
            do: the command.
            args: its arguments.
            by: who asks, for the log.
            refusals: gets those of workers that refuse, which are left out then.

        Raises:
            TunnelError: one has refused, or none has answered.
        """
        answers: dict[int, Answer] = {}
        failures: list[TunnelError] = [] if refusals is None else refusals

        async def one(number: int, running: Running) -> None:
            try:
                answers[number] = await self._ask(running, do, args, by)
            except ChannelClosedError:
                pass
            except TunnelError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for number, running in tuple(self._running.items()):
                nursery.start_soon(one, number, running)
        if failures and refusals is None:
            raise failures[0]
        if not answers and not failures:
            raise UsageError("no worker of this server answers", fix="try again")
        return [answers[number] for number in sorted(answers)]

    async def _first_that_can(self, do: str, args: Args, by: str) -> Answer:
        """Ask one worker after the other, until one does not refuse."""
        failure: TunnelError = UsageError("no worker of this server answers")
        for running in tuple(self._running.values()):
            try:
                return await self._ask(running, do, args, by)
            except TunnelError as error:
                failure = error
        raise failure

    @staticmethod
    async def _ask(running: Running, do: str, args: Args, by: str) -> Answer:
        question = {"do": do, "with": args, "by": by}
        with trio.move_on_after(ANSWER_S):
            said, _none = await running.channel.ask(COMMAND, question)
            return dict(said)
        raise UsageError(f"worker {running.place.number} does not answer")
