"""``tunnel up`` and its short forms: a center-client, its entries, its user's news."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.files import insist_writable, write_private
from tunnel.access.identity import client_id
from tunnel.addresses import Address
from tunnel.center.client import CenterClient
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
from tunnel.center.why import Why
from tunnel.errors import StateError
from tunnel.log import log_event
from tunnel.net.given import take_given
from tunnel.ops import saved
from tunnel.ops.control.client_handlers import ClientHandlers
from tunnel.ops.control.handlers import CommonHandlers
from tunnel.ops.control.service import OwnSocket
from tunnel.ops.entries import refuse_twice
from tunnel.ops.entry_commands import EntryCommands, EntryFile
from tunnel.ops.flags import UpFlags
from tunnel.ops.inspecting import Inspecting
from tunnel.ops.life import Life
from tunnel.ops.reload.client import ClientChanges, nothing_to_do
from tunnel.ops.reload.entries import RunningEntries
from tunnel.ops.reload.reloader import Reloader
from tunnel.ops.runtime import END_S, Ending
from tunnel.ops.systemd import tell_systemd
from tunnel.ops.texts import connections, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunnel.access.identity import ClientId
    from tunnel.access.join import JoinLine
    from tunnel.center.events import Notice
    from tunnel.errors import Exit, TunnelError
    from tunnel.link.upstream_proxy import UpstreamProxy
    from tunnel.ops.control import Handler, Handlers
    from tunnel.ops.entries import Entry, Line
    from tunnel.ops.flags import Dashboard, ServerFlags
    from tunnel.ops.metrics.facts import Facts
    from tunnel.ops.reload.client import UpAgain
    from tunnel.ops.show import Show

UP_FLAGS: Final = UpFlags()
STATUS_S: Final = 1.0
"""How often a terminal's line of moving numbers is written."""

logger = logging.getLogger("tunnel.client")


async def run_up(
    entries: list[Entry],
    server: ServerFlags,
    drain_s: int,
    show: Show,
    *,
    of_file: bool = False,
    again: UpAgain | None = None,
    run: UpFlags = UP_FLAGS,
) -> Exit:
    """Run a center-client with its entries until a signal, or a final failure.

    ``of_file``: the server is known from a configuration file, and not saved too.
    ``again``: how what was told is read again; None: it never is. ``run``: where
    people and programs look, and what is kept for them.

    Raises:
        AddressError: it was given sockets to listen on.
        UsageError: there is no entry, two want the same, or no server is known.
        TunnelError: in a group, what ended the client.
    """
    if not entries:
        raise nothing_to_do()
    refuse_twice(entries)
    take_given(os.environ).check(())
    join, is_new = saved.find(server.to)
    via = saved.find_via(server.via, join)
    with client_id(saved.client_folder()) as own_id:
        async with trio.open_nursery() as nursery:
            is_new = is_new and not of_file
            up = _Up(join, via, server, is_new, own_id, show, nursery, of_file, run)
            status = await up.run(entries, drain_s, again)
            nursery.cancel_scope.cancel()
    return status


@dataclass(eq=False)
class _Up:
    """One run of ``tunnel up``: its entries, and what its user is told of them.

    All its tasks are in ``nursery``. Once an entry works, the server is saved as
    ``--save-as`` says, or else, if ``is_new``, as the default where there is no other.
    """

    join: JoinLine
    via: UpstreamProxy | None
    server: ServerFlags
    is_new: bool
    own_id: ClientId
    show: Show
    nursery: trio.Nursery
    of_file: bool
    flags: UpFlags

    def __post_init__(self) -> None:
        self._client = CenterClient(
            self.join,
            client_id=self.own_id.value,
            new_id=self.own_id.renew,
            tell=self._tell,
            via=self.via,
            pins=saved.pins(self.join),
            certificate=self.server.client_cert,
            keeper=self,
        )
        self._life = Life()
        self._inspecting = Inspecting(self.nursery, self.flags)
        self._entries = RunningEntries(
            self._client, self.nursery, self._inspecting.watch
        )
        self._said: dict[str, Address] = {}
        self._had: set[str] = set()
        self._without: dict[str, Exit] = {}
        """Mappings that never opened or never will again, each with its exit status."""
        self._local: list[Line] = []
        """Said once there is a link."""
        self._about = ClientHandlers(
            self._client,
            self.join,
            self._entries.shown,
            self._entries.lines,
            lambda: self._entries.paused,
        )
        self._works = False
        """Whether an entry has ever been ready."""
        self._trouble = ""
        """Why the last attempt of this outage failed."""
        self._failure: Exit | None = None

    async def run(
        self,
        entries: list[Entry],
        drain_s: int,
        again: UpAgain | None,
    ) -> Exit:
        """Start the entries, and keep the client running until it is told to stop."""
        await self.nursery.start(tell_systemd, self._life)
        client = self._client
        reloads = again is not None or bool(self.show.files)
        ending = Ending(
            self.show, lambda: client.connections, self._life, reloads=reloads
        )
        self._local = await self._entries.start(entries)
        changes: ClientChanges | None = None
        handlers: Handlers = {}
        file: EntryFile | None = None
        if again is not None:
            changes = ClientChanges(again, self._entries, self._changed)
            reloader = Reloader(changes.apply, self.show, again.path, self._life)
            await reloader.start(self.nursery)
            handlers = reloader.handlers
            file = EntryFile(again.path, again.given, reloader.held)

        def most_s() -> float:
            return changes.run.drain_s() if changes else drain_s

        await self.nursery.start(ending.watch, client.drain, client.leave, most_s)
        ports = self.flags.ports()
        common = await self._answer_commands(ending, handlers, file, ports.dashboard)
        if ports.metrics is not None:
            await self._start_metrics(ports.metrics, common)
        if self.show.terminal:
            self.nursery.start_soon(self._keep_status)
        await client.run()
        return self._failure or ending.status

    def _changed(self, lines: list[Line]) -> None:
        """Say what entries that were changed have become (``ops.reload``)."""
        for name in self._had | self._without.keys() | self._said.keys():
            if not self._entries.published(name):
                self._without.pop(name, None)
                self._said.pop(name, None)
                self._had.discard(name)
        for line in lines:
            self._say(line)

    async def _answer_commands(
        self,
        ending: Ending,
        more: Handlers,
        file: EntryFile | None,
        dashboard: Dashboard | None,
    ) -> CommonHandlers:
        """Have the control socket answer; returns when it can be asked."""
        own, about = OwnSocket("up"), self._about
        common = CommonHandlers("up", own, self.show.recent, ending, about.fill)
        why = Why(about.sessions)
        self.nursery.start_soon(about.meters.run)
        self.nursery.start_soon(about.limits.run)
        self.nursery.start_soon(why.run)
        changes = EntryCommands(self._client, self._entries, self._changed, file)
        handlers = {**more, **common.handlers, **about.handlers, **why.handlers}
        handlers |= changes.handlers
        handlers |= self._inspecting.handlers
        if dashboard is not None:
            url = await self._open_dashboard(dashboard, common, handlers)
            handlers["dashboard"] = url
        await self.nursery.start(own.serve, handlers)
        return common

    async def _open_dashboard(
        self, wanted: Dashboard, common: CommonHandlers, handlers: Handlers
    ) -> Handler:
        """Open the page; AddressError: not at this address."""
        from tunnel.ops.dashboard.live import Live
        from tunnel.ops.dashboard.opened import open_dashboard

        live = Live(common.status_now, handlers)
        return await open_dashboard(
            self.nursery, wanted, live, handlers, self.show, self._inspecting
        )

    async def _start_metrics(self, at: Address, common: CommonHandlers) -> None:
        """Have Prometheus answered; AddressError: not at this address."""
        from tunnel.ops.metrics.facts import facts_of, user_of_client
        from tunnel.ops.metrics.web import MetricsPort

        client, life = self._client, self._life

        async def facts() -> Facts:
            await trio.lowlevel.checkpoint()
            users = user_of_client(client, self.join.name)
            return facts_of(common, life, users, self._about.sessions(), client.pools)

        await self.nursery.start(MetricsPort(facts, life).serve, at)

    # What the client tells -----------------------------------------------------------

    def _tell(self, notice: Notice) -> None:
        self._about.take(notice)
        match notice:
            case LinkUp():
                self._trouble = ""
                self._life.ready(f"linked to {notice.peer}")
                self._link_up(notice)
            case LinkDown():
                self._life.not_ready(f"no link: {notice.reason.what}")
                self._link_down(notice)
            case LinkResumed():
                self._trouble = ""
                self._life.ready(f"linked to {notice.peer}")
                self.show.talk(
                    "link resumed",
                    f"after {notice.after_s:.1f} s, {connections(notice.connections)} "
                    f"kept, {size_text(notice.repeated_bytes)} sent again",
                )
            case SessionLost(reason, count):
                if count:  # otherwise nothing was lost
                    lost = f"{reason}; reset: {connections(count)}"
                    self.show.talk("session lost", lost)
            case ClientIdChanged():
                self.show.talk(
                    "warning",
                    "another machine has our client id (a copied state folder?); "
                    "this one has one of its own from now on",
                )
            case MappingReady(name, public, over_tls):
                self._without.pop(name, None)
                self._had.add(name)
                self.nursery.start_soon(self._ready, name, public, over_tls)
            case MappingRefused():
                self._refused(notice)

    def _link_up(self, notice: LinkUp) -> None:
        how = "TLS 1.3" if notice.encrypted else "plain, NOT encrypted"
        how += ", key pinned" if notice.pinned else ""
        self.show.talk(notice.peer, f"{how}, {notice.rtt_s * 1000:.0f} ms")
        lines, self._local = self._local, []
        for line in lines:
            self._say(line)

    def _link_down(self, notice: LinkDown) -> None:
        waiting = f"{connections(notice.waiting)} waiting, " if notice.waiting else ""
        again = f"{waiting}trying again in {notice.retry_s:.1f} s"
        if notice.was_up:
            self.show.talk("link lost", again)
        elif notice.reason.what != self._trouble:
            # Said in full once in each outage, and whenever the reason changes.
            self._trouble = notice.reason.what
            self.show.trouble(notice.reason, again)
        else:
            self.show.talk("no link", again)

    # Entries -------------------------------------------------------------------------

    async def _ready(self, name: str, public: Address, over_tls: bool) -> None:
        entry = self._entries.published(name)
        if entry is None:
            return  # it was removed meanwhile
        line = await (entry.over_tls() if over_tls else entry).ready(public)
        if line.warning:
            self.show.warn("target.not_ready", line.warning)
        # A script is told once, unless a new link brought another address.
        if self._said.get(name) != public or self.show.terminal:
            self._say(line)
        self._said[name] = public

    def _say(self, line: Line) -> None:
        """Print the line of an entry that works; the first saves the join line."""
        if not self._works:  # a command that fails changes no saved line
            self._works = True
            self._keep_join()
        text = line.text(terminal=self.show.terminal)
        self.show.line("entry", text, **line.fields)

    def _refused(self, notice: MappingRefused) -> None:
        entry = self._entries.published(notice.name)
        if entry is None:
            return  # it was removed meanwhile
        other = entry.instead(notice, self.join.host)
        if other is not None:
            self.nursery.start_soon(self._entries.replace, notice.name, entry, other)
            return
        error = entry.refused(notice)
        asked_again = notice.answer.code in ASKED_AGAIN
        if not (asked_again and notice.name in self._had):
            self._without[notice.name] = error.exit_status
        self.nursery.start_soon(self._say_refused, error, asked_again)

    async def _say_refused(self, error: TunnelError, asked_again: bool) -> None:
        # One message has several answers, and all must count in what follows.
        await trio.lowlevel.checkpoint()
        if len(self._without) < len(self._entries):
            until = "until it is free" if asked_again else "over the next link"
            self.show.trouble(error, f"it is asked for again {until}")
            return
        self.show.error(error)
        self._life.stopping(error.what, END_S)
        # No entry is left: the first one's status is that of the command.
        self._failure = next(iter(self._without.values()))
        self._client.stop()

    async def _keep_status(self) -> None:
        """Show moving numbers while something moves; silent while nothing does."""
        client = self._client
        last = (0, 0, 0)
        while True:
            await trio.sleep(STATUS_S)
            sent, received = client.traffic
            now = (client.connections, sent, received)
            if now != last:
                last = now
                bytes_in, bytes_out = size_text(received), size_text(sent)
                live = connections(client.connections)
                self.show.status(f"  {live}, {bytes_in} in, {bytes_out} out")

    # The join line -------------------------------------------------------------------

    def check(self) -> None:
        """Raise StateError if a line with an own token cannot be saved."""
        insist_writable(self._place())

    def keep(self, join: JoinLine) -> None:
        """Save the line with this machine's own token, in the place of the other."""
        path = self._place()
        write_private(path, join.render() + "\n")
        self.join, self.is_new = join, False
        self.show.talk("saved", f"{path} (a token of this machine's own)")

    def _place(self) -> Path:
        """Return the file of the line, or raise StateError if it has no place."""
        server = self.server
        return saved.place_of(server.to, server.save_as, of_file=self.of_file)

    def _keep_join(self) -> None:
        with _logged_if_not_saved():
            if self.server.save_as:
                saved.save(self.join, self.server.save_as)
            elif self.is_new and not saved.is_saved(saved.DEFAULT):
                path = saved.save(self.join, saved.DEFAULT)
                self.show.talk("saved", f"{path} (--to is not needed next time)")
            elif self.is_new:
                self.nursery.start_soon(self._replace_join)

    async def _replace_join(self) -> None:
        """Save the server instead of an older line that leads to it no more.

        A line that still does is another way to the server, which has not moved.
        """
        if (old := saved.outdated(self.join)) is None:
            return
        same_token = old.token == self.join.token
        if same_token and await is_there(old, self.via, saved.pins(old)):
            return
        with _logged_if_not_saved():
            path = saved.save(self.join, saved.DEFAULT)
            was, now = (Address(join.host, join.port) for join in (old, self.join))
            what = "the same server, a new token"
            if was != now:
                what = f"the same server moved from {was} to {now}"
                log_event(logger, logging.INFO, "server.moved", was=str(was),
                    now=str(now), saved=str(path))  # fmt: skip
            self.show.talk("saved", f"{path} ({what})")


@contextmanager
def _logged_if_not_saved() -> Iterator[None]:
    """Go on where the join line cannot be saved, and log why."""
    try:
        yield
    except StateError as error:
        log_event(logger, logging.WARNING, "join.not_saved", reason=error.what,
            cause=error.cause)  # fmt: skip
