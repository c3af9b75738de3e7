"""``tunnel up`` and its short forms: a center-client, its entries, its user's news."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.security import client_id
from tunnel.center.client import CenterClient
from tunnel.center.drain import DRAIN_S
from tunnel.center.events import (
    ClientIdChanged,
    LinkDown,
    LinkResumed,
    LinkUp,
    MappingReady,
    MappingRefused,
    SessionLost,
)
from tunnel.center.publisher import ASKED_AGAIN
from tunnel.center.whereabouts import is_there
from tunnel.errors import StateError, UsageError
from tunnel.log import log_event
from tunnel.net.timeouts import TIMEOUTS, Timeouts
from tunnel.ops import saved
from tunnel.ops.entries import Local, Published
from tunnel.ops.runtime import Ending
from tunnel.ops.show import connections, size_text
from tunnel.proto.frames import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.access.security import JoinLine
    from tunnel.center.events import Notice
    from tunnel.errors import Exit, TunnelError
    from tunnel.ops.entries import Entry, Line
    from tunnel.ops.show import Show

STATUS_S: Final = 1.0
"""How often a terminal's line of moving numbers is written."""

logger = logging.getLogger("tunnel.client")


@dataclass(frozen=True, slots=True)
class UpPlan:
    """What ``tunnel up`` or one of its short forms was asked for.

    Args:
        entries: what it brings up.
        to: the server's join line, or the name of a saved one; None for the default.
        save_as: the name under which the server is to be saved.
        via: the URL of a proxy on the way to the server.
        drain_s: how long running connections may go on after a signal.
        timeouts: how long silence is borne.
    """

    entries: list[Entry]
    to: str | None = None
    save_as: str | None = None
    via: str | None = None
    drain_s: int = int(DRAIN_S)
    timeouts: Timeouts = field(default_factory=Timeouts)


async def run_up(plan: UpPlan, show: Show) -> Exit:
    """Run a center-client with its entries until a signal, or a final failure.

    Raises:
        UsageError: there is no entry, or no server is known.
    """
    if not plan.entries:
        raise UsageError(
            "there is nothing to do",
            "no entry is given",
            "for example: tunnel up --tcp 8000, or --socks 127.0.0.1:1080",
        )
    TIMEOUTS.set(plan.timeouts)
    join, given = saved.find(plan.to)
    return await _Up(plan, join, given, show).run()


class _Up:
    """One run of ``tunnel up``: its entries, and what its user is told of them."""

    def __init__(self, plan: UpPlan, join: JoinLine, given: bool, show: Show) -> None:
        self._plan = plan
        self._via = saved.find_via(plan.via, join)
        self._join = join
        self._keep = given
        self._show = show
        self._published: dict[str, Published] = {}
        self._said: dict[str, Address] = {}
        self._had: set[str] = set()
        self._without: dict[str, Exit] = {}
        """Entries that have never been had, or never will be again, and why."""
        self._local: list[Line] = []
        self._was_up = False
        self._works = False
        """One of the entries has come to stand."""
        self._trouble = ""
        """Why the last attempt of this outage failed."""
        self._failure: Exit | None = None
        self._nursery: trio.Nursery | None = None
        self._client: CenterClient | None = None

    async def run(self) -> Exit:
        with ExitStack() as stack:
            own_id = stack.enter_context(client_id(saved.client_folder()))
            client = CenterClient(
                self._join,
                client_id=own_id.value,
                new_id=own_id.renew,
                tell=self._tell,
                via=self._via,
            )
            self._client = client
            ending = Ending(self._show, lambda: client.connections)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for entry in self._plan.entries:
                    await self._start(entry, client, nursery)
                drain = partial(client.drain, self._plan.drain_s)
                await nursery.start(ending.watch, drain, client.leave)
                if self._show.terminal:
                    nursery.start_soon(self._keep_status, client)
                await client.run()
                nursery.cancel_scope.cancel()
        return self._failure or ending.status

    async def _start(
        self, entry: Entry, client: CenterClient, nursery: trio.Nursery
    ) -> None:
        match entry:
            case Local():
                self._local.append(await entry.start(client, nursery))
            case Published():
                name = await entry.start(client)
                self._published[name] = entry

    def _tell(self, notice: Notice) -> None:
        match notice:
            case LinkUp():
                self._trouble = ""
                self._link_up(notice)
            case LinkDown():
                self._link_down(notice)
            case LinkResumed():
                self._trouble = ""
                self._show.talk(
                    "link resumed",
                    f"after {notice.after_s:.1f} s, {connections(notice.connections)} "
                    f"kept, {size_text(notice.repeated_bytes)} sent again",
                )
            case SessionLost(reason, count):
                if count:  # else nobody has lost anything
                    self._show.talk(
                        "session lost", f"{reason}; reset: {connections(count)}"
                    )
            case ClientIdChanged():
                self._show.talk(
                    "warning",
                    "another machine has our client id (a copied state folder?); "
                    "this one has one of its own from now on",
                )
            case MappingReady(name, public, over_tls):
                self._without.pop(name, None)
                self._had.add(name)
                if self._nursery is not None:
                    self._nursery.start_soon(self._ready, name, public, over_tls)
            case MappingRefused():
                self._refused(notice)

    def _link_up(self, notice: LinkUp) -> None:
        how = "TLS 1.3" if notice.encrypted else "plain, NOT encrypted"
        how += ", key pinned" if notice.pinned else ""
        self._show.talk(notice.peer, f"{how}, {notice.rtt_s * 1000:.0f} ms")
        if not self._was_up:
            self._was_up = True
            for line in self._local:
                self._say(line)

    def _keep_join(self) -> None:
        """The first line that worked is the default from now on, if it can be kept."""
        with _logged_if_not_saved():
            if self._plan.save_as:
                saved.save(self._join, self._plan.save_as)
            elif self._keep and not saved.is_saved(saved.DEFAULT):
                path = saved.save(self._join, saved.DEFAULT)
                self._show.talk("saved", f"{path} (--to is not needed next time)")
            elif self._keep and self._nursery is not None:
                self._nursery.start_soon(self._replace_join)

    async def _replace_join(self) -> None:
        """Keep ours instead of an older line that leads to the server no more.

        One that still does is another way to it, and nothing has moved.
        """
        if (old := saved.outdated(self._join)) is None:
            return
        same_token = old.token.reveal() == self._join.token.reveal()
        if same_token and await is_there(old, self._via):
            return
        with _logged_if_not_saved():
            path = saved.save(self._join, saved.DEFAULT)
            was, now = (Address(join.host, join.port) for join in (old, self._join))
            what = "the same server, a new token"
            if was != now:
                what = f"the same server moved from {was} to {now}"
                log_event(
                    logger,
                    logging.INFO,
                    "server.moved",
                    was=str(was),
                    now=str(now),
                    saved=str(path),
                )
            self._show.talk("saved", f"{path} ({what})")

    def _link_down(self, notice: LinkDown) -> None:
        waiting = f"{connections(notice.waiting)} waiting, " if notice.waiting else ""
        again = f"{waiting}trying again in {notice.retry_s:.1f} s"
        if notice.was_up:
            self._show.talk("link lost", again)
        elif notice.reason.what != self._trouble:
            # Said once in each outage; only what changes is news.
            self._trouble = notice.reason.what
            self._show.trouble(notice.reason, again)
        else:
            self._show.talk("no link", again)

    async def _ready(self, name: str, public: Address, over_tls: bool) -> None:
        entry = self._published[name]
        line = await (entry.over_tls() if over_tls else entry).ready(public)
        if line.warning:
            self._show.talk("warning", line.warning)
        # A script is told once, unless a new link brought another address.
        if self._said.get(name) != public or self._show.terminal:
            self._say(line)
        self._said[name] = public

    def _say(self, line: Line) -> None:
        if not self._works:  # a command that fails has changed nothing
            self._works = True
            self._keep_join()
        text = line.text(terminal=self._show.terminal)
        self._show.line("entry", text, **line.fields)

    def _refused(self, notice: MappingRefused) -> None:
        entry = self._published[notice.name]
        nursery, client = self._nursery, self._client
        if nursery is None or client is None:
            return
        other = entry.instead(notice, self._join.host)
        if other is not None:
            nursery.start_soon(self._start_other, notice.name, other, client, nursery)
            return
        error = entry.refused(notice)
        asked_again = notice.answer.code in ASKED_AGAIN
        if not (asked_again and notice.name in self._had):
            self._without[notice.name] = error.exit_status
        # Only once all answers of one message are counted: is there one that stands?
        nursery.start_soon(self._say_refused, error, asked_again, client)

    async def _start_other(
        self, name: str, other: Published, client: CenterClient, nursery: trio.Nursery
    ) -> None:
        await client.withdraw(name)
        await self._start(other, client, nursery)

    async def _say_refused(
        self, error: TunnelError, asked_again: bool, client: CenterClient
    ) -> None:
        await trio.lowlevel.checkpoint()
        if len(self._without) < len(self._plan.entries):
            until = "until it is free" if asked_again else "over the next link"
            self._show.trouble(error, f"it is asked for again {until}")
            return
        self._show.error(error)
        # No other entry stands: how that of the first ended is how we end.
        self._failure = next(iter(self._without.values()))
        client.stop()

    async def _keep_status(self, client: CenterClient) -> None:
        """Show moving numbers while something moves; silent while nothing does."""
        last = (0, 0, 0)
        while True:
            await trio.sleep(STATUS_S)
            sent, received = client.traffic
            now = (client.connections, sent, received)
            if now != last:
                last = now
                self._show.status(
                    f"  {connections(now[0])}, {size_text(received)} in, "
                    f"{size_text(sent)} out"
                )


@contextmanager
def _logged_if_not_saved() -> Iterator[None]:
    """Go on without what could not be kept, and say so."""
    try:
        yield
    except StateError as error:
        log_event(logger, logging.WARNING, "join.not_saved", reason=error.what,
            cause=error.cause)  # fmt: skip
