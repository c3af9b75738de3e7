"""The entries of a running client: started, and changed into those of another file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from tunnel.errors import AddressError, UsageError
from tunnel.net.bind import is_in_use
from tunnel.net.listen import listen_at
from tunnel.ops.entries import Local, Published, refuse_twice
from tunnel.ops.reload.entry_plan import keyed, plan_entries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from tunnel.addresses import End
    from tunnel.center.client import CenterClient
    from tunnel.net.listen import PortListener
    from tunnel.ops.entries import Entry, Inspect, Line
    from tunnel.ops.reload.entry_plan import EntryPlan, Key

Place = tuple["Sequence[PortListener]", "End"]
"""What a local entry listens on, and where that is."""


@dataclass(eq=False, slots=True)
class Running:
    """An entry that runs."""

    entry: Entry
    """As it is wanted."""
    shown: Published | None = None
    """What is published for it: another, where the server does not offer it."""
    name: str = ""
    """Of its mapping."""
    place: Place | None = None
    """Where it listens, if it is local."""
    paused: bool = False
    """Its visitors are refused, until it is resumed."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Around what serves its apps, or asks its target whether it is well."""


class RunningEntries:
    """All entries of a client; what they run is in ``nursery``.

    ``inspect`` gives who looks at the requests of an entry.
    """

    def __init__(
        self,
        client: CenterClient,
        nursery: trio.Nursery,
        inspect: Inspect | None = None,
    ) -> None:
        self._client = client
        self._inspect = inspect
        self._publisher = client.publisher
        self._nursery = nursery
        self._running: dict[Key, Running] = {}
        self._one_by_one = trio.Lock()
        self.shown: dict[str, Published] = {}
        """What is published, by the names of the mappings."""
        self.lines: list[Line] = []
        """Of the local entries."""

    def __len__(self) -> int:
        return len(self._running)

    def published(self, name: str) -> Published | None:
        """Return what a mapping is for; None once its entry is gone."""
        return self.shown.get(name)

    def name_of(self, key: Key) -> str:
        """Return the name of an entry's mapping; "" for one that listens here."""
        return self._running[key].name

    @property
    def wanted(self) -> dict[Key, Entry]:
        """What runs, as it was wanted."""
        return {key: one.entry for key, one in self._running.items()}

    async def start(self, entries: Iterable[Entry]) -> list[Line]:
        """Start entries; return the lines of the local ones, for when there is a link.

        Raises:
            AddressError: one cannot listen; those before it run.
        """
        lines = []
        for key, entry in keyed(entries).items():
            if isinstance(entry, Local):
                lines.append(self._serve(key, entry, await listen_at(entry.listen)))
            else:
                self._publish(key, entry)
        await self._publisher.ask(list(self.shown))
        self._list_local()
        return lines

    async def change(
        self, wanted: Iterable[Entry], *, now: bool
    ) -> tuple[EntryPlan, list[Line]]:
        """Run these entries instead; what is the same is not touched.

        A visitor or an app that is in goes on to its end, unless ``now`` cuts those of
        what was changed or removed.

        Returns:
            What was done, and the lines of what the server is not asked for.

        Raises:
            AddressError: a new one cannot listen. Nothing has changed.
        """
        return await self.edit(lambda _had: wanted, now=now)

    async def edit(
        self, choose: Callable[[dict[Key, Entry]], Iterable[Entry]], *, now: bool
    ) -> tuple[EntryPlan, list[Line]]:
        """Do as ``change`` does with what ``choose`` makes of what runs then.

        No other change comes between the two. What ``choose`` raises is raised.
        """
        async with self._one_by_one:  # a reload and a command may come together
            return await self._become(keyed(choose(self.wanted)), now=now)

    async def _become(
        self, new: Mapping[Key, Entry], *, now: bool
    ) -> tuple[EntryPlan, list[Line]]:
        plan = plan_entries(self.wanted, new)
        places = await self._listen(plan, new)
        changed, others = self._split(plan.changed)
        gone = [self._stop(key, now=now) for key in (*plan.removed, *others)]
        lines: list[Line] = []
        asked: list[str] = []
        for key in changed:
            self._change(key, new[key], asked, lines, now=now)
        for key in (*others, *plan.added):
            entry = new[key]
            if isinstance(entry, Local):
                lines.append(self._serve(key, entry, places[key]))
            else:
                asked.append(self._publish(key, entry))
        self._list_local()
        # From here on the server is waited for.
        await self._publisher.withdraw_all(gone)
        await self._publisher.ask(asked)
        return plan, lines

    async def _listen(
        self, plan: EntryPlan, new: Mapping[Key, Entry]
    ) -> dict[Key, Place]:
        """Listen for the local entries that are new, or change nothing.

        Where one that is to be removed has the address, it is closed first.
        """
        added = {key: new[key] for key in plan.added}
        try:
            return await _listen(added)
        except AddressError as error:
            had = {key: self._running[key].place for key in plan.removed}
            freed = [key for key, place in had.items() if place is not None]
            if not freed or not is_in_use(error):
                raise
            old = {key: self._running[key].entry for key in freed}
            for key in freed:
                self._close(self._running[key])
            try:
                return await _listen(added)
            except BaseException:
                with trio.CancelScope(shield=True):  # what runs goes on, whoever leaves
                    again = await _listen(old)
                for key, place in again.items():
                    entry = old[key]
                    assert isinstance(entry, Local)  # noqa: S101 - it has a place
                    self._serve(key, entry, place)
                raise

    def _split(self, keys: Sequence[Key]) -> tuple[list[Key], list[Key]]:
        """Tell what can be changed as it is from what has to be published anew."""
        own: list[Key] = []
        others: list[Key] = []
        for key in keys:
            one = self._running[key]
            (own if one.shown in (None, one.entry) else others).append(key)
        return own, others

    async def replace(self, name: str, refused: Published, other: Published) -> None:
        """Publish something else for an entry that the server does not offer."""
        async with self._one_by_one:
            if (shown := self.shown.get(name)) is None:  # it was removed meanwhile
                return
            if shown is not refused:  # it was changed: the answer was about another
                await self._publisher.ask([name])
                return
            key = next(k for k, one in self._running.items() if one.name == name)
            await self._publisher.withdraw_all([name])
            wanted = self._running[key].entry
            del self.shown[name]
            asked = self._publish(key, other)
            self._running[key].entry = wanted
            await self._publisher.ask([asked])

    async def put(
        self, key: Key, become: Callable[[Entry], Entry]
    ) -> tuple[EntryPlan, list[Line]]:
        """Change one entry, which keeps its port and its name; see ``change``.

        What ``become`` raises is raised.
        """
        async with self._one_by_one:
            running = self._running[key]
            old, new = running.entry, become(running.entry)
            refuse_twice([*(e for k, e in self.wanted.items() if k != key), new])
            plan = plan_entries({key: old}, {key: new})
            lines: list[Line] = []
            if running.shown not in (None, old):  # another is shown in its place
                wanted = {**self.wanted, key: new}
                return await self._become(keyed(wanted.values()), now=False)
            asked: list[str] = []
            self._change(key, new, asked, lines, now=False)
            keys = keyed(self.wanted.values())  # the target may be part of the key
            self._running = dict(zip(keys, self._running.values(), strict=True))
            self._list_local()
            await self._publisher.ask(asked)
            return plan, lines

    def pause(self, key: Key, *, paused: bool) -> None:
        """Refuse new visitors of a published entry, or serve them again.

        Its port or name stays its own meanwhile; who is in stays. What follows when it
        is changed holds for it as it is then. Does nothing if it is so already.

        Raises:
            UsageError: it listens here.
        """
        running = self._running[key]
        if running.shown is None:
            what = "only what is published can be paused"
            raise UsageError(what, fix=f"tunnel remove {key[0]}-{key[1]}")
        running.paused = paused
        change = running.shown.change
        change(self._client, running.name, self._inspect, refused=paused)

    @property
    def paused(self) -> set[str]:
        """The mappings of the entries that are paused."""
        return {one.name for one in self._running.values() if one.paused}

    def _list_local(self) -> None:
        self.lines[:] = [
            one.entry.line(one.place[1])
            for one in self._running.values()
            if one.place is not None and isinstance(one.entry, Local)
        ]

    def _publish(self, key: Key, entry: Published) -> str:
        name = entry.add(self._client, self._inspect)
        running = self._running[key] = Running(entry, entry, name)
        self.shown[name] = entry
        self._check(running)
        return name

    def _serve(self, key: Key, entry: Local, place: Place) -> Line:
        running = self._running[key] = Running(entry, place=place)
        serve = partial(entry.serve, self._client, place[0])
        self._nursery.start_soon(_within, running.scope, serve)
        return entry.line(place[1])

    def _check(self, running: Running) -> None:
        entry = running.shown
        if entry is not None and entry.check is not None:
            running.scope = trio.CancelScope()
            check = partial(entry.keep_checking, self._client, running.name)
            self._nursery.start_soon(_within, running.scope, check)

    def _stop(self, key: Key, *, now: bool) -> str:
        """Stop one entry but for who is in; return the mapping to be given up."""
        running = self._running.pop(key)
        self._close(running)
        if now or running.place is None:
            running.scope.cancel()
        if running.place is None:
            del self.shown[running.name]
            if now:
                self._publisher.cut(running.name)
        return running.name

    def _close(self, running: Running) -> None:
        for listener in running.place[0] if running.place else ():
            listener.close()

    def _change(
        self,
        key: Key,
        entry: Entry,
        asked: list[str],
        lines: list[Line],
        *,
        now: bool,
    ) -> None:
        """Change one entry; note the mapping that is to be asked for, or its line."""
        running = self._running[key]
        if running.place is not None:
            assert isinstance(entry, Local)  # noqa: S101 - the key says the kind
            listeners, where = running.place
            place = [one.again() for one in listeners], where
            if now:
                running.scope.cancel()
            lines.append(self._serve(key, entry, place))
            return
        assert isinstance(entry, Published)  # noqa: S101 - the key says the kind
        running.scope.cancel()
        if now:
            self._publisher.cut(running.name)
        running.entry = running.shown = self.shown[running.name] = entry
        change = partial(entry.change, refused=running.paused)
        if change(self._client, running.name, self._inspect):
            asked.append(running.name)
        self._check(running)


async def _listen(added: Mapping[Key, Entry]) -> dict[Key, Place]:
    """Listen for all that are local, or for none."""
    places: dict[Key, Place] = {}
    try:
        for key, entry in added.items():
            if isinstance(entry, Local):
                places[key] = await listen_at(entry.listen)
    except BaseException:
        with trio.CancelScope(shield=True):
            for listeners, _where in places.values():
                for listener in listeners:
                    await trio.aclose_forcefully(listener)
        raise
    return places


async def _within(scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await work()
