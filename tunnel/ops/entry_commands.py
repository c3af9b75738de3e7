"""Entries that a command adds to a running client, or takes away."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tunnel.errors import UsageError
from tunnel.log import log_event
from tunnel.ops import entry_syntax as syntax
from tunnel.ops.entries import Local, refuse_twice
from tunnel.redaction import keep_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnel.center.client import CenterClient
    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.entries import Entry, Line
    from tunnel.ops.reload.entries import RunningEntries
    from tunnel.ops.reload.entry_plan import Key

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


class EntryCommands:
    """Changes the entries of a client, one command or reload after another.

    ``say`` is called with the lines of entries that the server is not asked for.
    """

    def __init__(
        self,
        client: CenterClient,
        entries: RunningEntries,
        say: Callable[[list[Line]], None],
    ) -> None:
        self._client = client
        self._entries = entries
        self._say = say

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket answers."""
        return {"add": self._add, "remove": self._remove}

    async def _add(self, args: Args, by: str) -> Answer:
        """Start an entry: ``flag`` is that of ``tunnel up``, ``text`` what follows it.

        Raises:
            UsageError: it cannot be read, or wants what another entry has.
            AddressError: it cannot listen. Nothing has changed.
        """
        flag, text = str(args.get("flag", "")), str(args.get("text", ""))
        flag = flag.removeprefix("--")
        read = READERS.get(flag)
        if read is None:
            known = ", ".join(READERS)
            raise UsageError(f"no entry is a {flag:.40}", f"there are: {known}")
        keep_secret([f"--{flag}", text], {})
        entry = read(text)

        def choose(had: dict[Key, Entry]) -> list[Entry]:
            wanted = [*had.values(), entry]
            refuse_twice(wanted)
            return wanted

        return await self._change(choose, by, now=False)

    async def _remove(self, args: Args, by: str) -> Answer:
        """Stop an entry; who is in stays, unless ``now`` cuts it.

        Raises:
            UsageError: there is none that is called so, or it is the last.
        """
        word = str(args.get("entry", ""))

        def choose(had: dict[Key, Entry]) -> list[Entry]:
            del had[self._key_of(word, had)]
            if not had:
                raise UsageError("it is the last entry", fix="tunnel stop")
            return list(had.values())

        return await self._change(choose, by, now=bool(args.get("now")))

    async def _change(
        self, choose: Callable[[dict[Key, Entry]], list[Entry]], by: str, *, now: bool
    ) -> Answer:
        plan, lines = await self._entries.edit(choose, now=now)
        self._say(lines)
        for change in plan.lines:
            log_event(logger, logging.INFO, "entry.changed", by=by, change=str(change))
        return {"changes": [str(change) for change in plan.lines]}

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
