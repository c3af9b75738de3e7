"""Entries that a command adds to a running client, or takes away."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import ConfigError, TunnelError, UsageError
from tunnel.log import log_event
from tunnel.ops import entry_syntax as syntax
from tunnel.ops.entries import Local, refuse_twice
from tunnel.ops.entry_targets import led_to
from tunnel.ops.reload.aside import aside
from tunnel.redaction import keep_secret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tunnel.center.client import CenterClient
    from tunnel.ops.config.kept import Edit
    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.entries import Entry, Line
    from tunnel.ops.reload.entries import RunningEntries
    from tunnel.ops.reload.entry_plan import EntryPlan, Key

READERS: Final[Mapping[str, Callable[[str], Entry]]] = {
    "tcp": syntax.parse_tcp,
    "udp": syntax.parse_udp,
    "http": syntax.parse_http,
    "https": syntax.parse_https,
    "reach": lambda text: syntax.parse_reach(text, None),
    "socks": lambda text: syntax.parse_socks(text, None, None),
    "be-exit": syntax.parse_exit,
}
"""The flags of ``tunnel up``, and what reads the text behind each."""

logger = logging.getLogger("tunnel.control")


@dataclass(frozen=True, slots=True)
class EntryFile:
    """The file that a client was started with."""

    path: Path | None
    """None: it has none."""
    given: frozenset[str]
    """The flags that were given otherwise: the file's do not count."""
    held: Callable[[], AbstractAsyncContextManager[None]]
    """Holds reloads off; what the file has at the end is not read again."""

    def named(self) -> Path:
        """Return its path; raise UsageError if there is none."""
        if self.path is None or not os.path.lexists(self.path):
            raise no_file()
        return self.path


def no_file() -> UsageError:
    """Return the error of a client that was started without a file."""
    why = "it was started with words alone"
    return UsageError("this client has no file to save in", why, "tunnel up --config F")


class EntryCommands:
    """Changes the entries of a client, one command or reload after another.

    ``say`` is called with the lines of entries that the server is not asked for;
    ``file`` is where an entry is saved.
    """

    def __init__(
        self,
        client: CenterClient,
        entries: RunningEntries,
        say: Callable[[list[Line]], None],
        file: EntryFile | None = None,
    ) -> None:
        self._client = client
        self._entries = entries
        self._say = say
        self._file = file
        self._one_by_one = trio.Lock()

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket answers."""
        return {
            "add": self._add,
            "remove": self._remove,
            "lead": self._lead,
            "pause": partial(self._pause, True),
            "resume": partial(self._pause, False),
        }

    async def _pause(self, paused: bool, args: Args, by: str) -> Answer:
        """Refuse the next visitors of an entry, or serve them again.

        Raises:
            UsageError: there is none that is called so, or it is not published.
        """
        word = str(args.get("entry", ""))
        async with self._one_by_one:
            key = self._key_of(word, self._entries.wanted)
            self._entries.pause(key, paused=paused)
            name = self._entries.name_of(key)
        event = "entry.paused" if paused else "entry.resumed"
        log_event(logger, logging.INFO, event, by=by, entry=name)
        return {"entry": name, "paused": paused}

    async def _lead(self, args: Args, by: str) -> Answer:
        """Lead an entry to another target; its words, and who is in, stay.

        Raises:
            UsageError: there is no such entry, or it cannot lead there.
        """
        word, target = str(args.get("entry", "")), str(args.get("target", ""))

        async with self._one_by_one:
            key = self._key_of(word, self._entries.wanted)
            plan, lines = await self._entries.put(key, lambda had: led_to(had, target))
            return self._changed(plan, lines, by)

    async def _add(self, args: Args, by: str) -> Answer:
        """Start an entry: ``flag`` is that of ``tunnel up``, ``text`` what follows it.

        With ``save`` it is in the client's file too, or nothing is changed.

        Raises:
            UsageError: it cannot be read, or wants what another entry has.
            AddressError: it cannot listen. Nothing has changed.
            StateError: its file is not as it should be, or cannot be written.
        """
        flag, text = str(args.get("flag", "")), str(args.get("text", ""))
        flag = flag.removeprefix("--")
        read = READERS.get(flag)
        if read is None:
            known = ", ".join(READERS)
            raise UsageError(f"no entry is a {flag:.40}", f"there are: {known}")
        keep_secret([f"--{flag}", text], {})
        entry = read(text)

        async def add(entry: Entry) -> Answer:
            def choose(had: dict[Key, Entry]) -> list[Entry]:
                wanted = [*had.values(), entry]
                refuse_twice(wanted)
                return wanted

            return await self._change(choose, by, now=False)

        async with self._one_by_one:
            if not args.get("save"):
                return await add(entry)
            key = flag.replace("-", "_")

            def edit(path: Path, given: frozenset[str]) -> Callable[[], Edit]:
                from tunnel.ops.config.kept import adding  # most clients save nothing

                return partial(adding, path, given, key, text, entry)

            return await self._save(edit, add, by)

    async def _remove(self, args: Args, by: str) -> Answer:
        """Stop an entry; who is in stays, unless ``now`` cuts it; ``save`` as above.

        Raises:
            UsageError: there is none that is called so, or it is the last.
            StateError: its file is not as it should be, or cannot be written.
        """
        word, now = str(args.get("entry", "")), bool(args.get("now"))

        def choose(had: dict[Key, Entry]) -> list[Entry]:
            del had[self._key_of(word, had)]
            if not had:
                raise UsageError("it is the last entry", fix="tunnel stop")
            return list(had.values())

        async def remove(_: object = None) -> Answer:
            return await self._change(choose, by, now=now)

        def edit(path: Path, given: frozenset[str]) -> Callable[[], Edit]:
            from tunnel.ops.config.kept import removing

            had = self._entries.wanted
            return partial(removing, path, given, had[self._key_of(word, had)])

        async with self._one_by_one:
            if not args.get("save"):
                return await remove()
            return await self._save(edit, remove, by)

    async def _change(
        self, choose: Callable[[dict[Key, Entry]], list[Entry]], by: str, *, now: bool
    ) -> Answer:
        return self._changed(*await self._entries.edit(choose, now=now), by)

    def _changed(self, plan: EntryPlan, lines: list[Line], by: str) -> Answer:
        self._say(lines)
        for change in plan.lines:
            log_event(logger, logging.INFO, "entry.changed", by=by, change=str(change))
        return {"changes": [str(change) for change in plan.lines]}

    async def _save(
        self,
        edit: Callable[[Path, frozenset[str]], Callable[[], Edit]],
        change: Callable[[Entry], Awaitable[Answer]],
        by: str,
    ) -> Answer:
        """Change what runs and the file, or neither; no reload comes between."""
        file = self._file
        if file is None:
            raise no_file()
        path = file.named()
        async with file.held():
            try:
                ready = await aside(edit(path, file.given))
            except ConfigError as error:
                return {"changes": [], "faults": error.faults}
            try:
                had = list(self._entries.wanted.values())
                answer = await change(ready.entry)
                try:
                    await aside(ready.file.put)
                except TunnelError:
                    await self._change(lambda _: had, by, now=False)
                    raise
            finally:
                ready.file.drop()
        where = str(path.absolute())
        log_event(logger, logging.INFO, "entry.saved", by=by, file=where)
        return {**answer, "file": where}

    def _key_of(self, word: str, had: Mapping[Key, Entry]) -> Key:
        """Return which entry a word means: its name, its address or its port."""
        known: list[str] = []
        for key, entry in had.items():
            name, place = self._called(key, entry)
            known.append(name)
            if word in (name, place, place.rpartition(":")[2] or name):
                return key
        raise UsageError(
            f"no entry is called {word:.60}", f"there are: {', '.join(known)}"
        )

    def _called(self, key: Key, entry: Entry) -> tuple[str, str]:
        if isinstance(entry, Local):
            return f"{key[0]}-{key[1]}", key[1]
        name = self._entries.name_of(key)
        public = self._client.public(name)
        return name, "" if public is None else str(public)
