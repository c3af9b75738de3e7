"""What a reload changes in the entries of a client; the rest is in ``plan``.

Apart from it, for a server has no entries, and need not have in memory what they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Final

from tunnel.ops.entries import Local, Published
from tunnel.ops.reload.plan import Change
from tunnel.proto.frames import MappingType
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tunnel.ops.entries import Entry

Key = tuple[str, str, int]
"""Of an entry: its kind, what is public or where it listens, and which of several."""

_WORDS: Final = {
    "guard": "auth",
    "users": "auth",
    "own": "host",
    "request": "header",
    "answer": "response_header",
    "networks": "network",
    "exit_name": "exit",
    "udp_public": "udp_public_address",
    "expires_s": "expires",
    "per_s": "requests",
    "server_host": "host",
    "count": "target",
    "folder": "target",
    "endpoint": "target",
}
"""What a user says, where the field has another name."""


def keyed(entries: Iterable[Entry]) -> dict[Key, Entry]:
    """Return entries by what each one is, for a next version to be found by."""
    seen = Counter[tuple[str, str]]()
    found: dict[Key, Entry] = {}
    for entry in entries:
        key = _kind(entry), _place(entry)
        found[*key, seen[key]] = entry
        seen[key] += 1
    return found


@dataclass(frozen=True, slots=True)
class EntryPlan:
    """What becomes of the entries of a client; what is in no list stays as it is."""

    removed: tuple[Key, ...]
    changed: tuple[Key, ...]
    added: tuple[Key, ...]
    lines: tuple[Change, ...]


def plan_entries(old: Mapping[Key, Entry], new: Mapping[Key, Entry]) -> EntryPlan:
    """Return what leads from the entries that run to those that are wanted."""
    removed = tuple(key for key in old if key not in new)
    added = tuple(key for key in new if key not in old)
    changed = tuple(key for key in old if key in new and old[key] != new[key])
    lines = [Change("-", _named(key)) for key in removed]
    for key in changed:
        words = dict.fromkeys(_differences(old[key], new[key]))
        lines.append(Change("~", _named(key), ", ".join(words)))
    lines += [Change("+", _named(key)) for key in added]
    return EntryPlan(removed, changed, added, tuple(lines))


def _kind(entry: Entry) -> str:
    if isinstance(entry, Published):
        return entry.kind
    return "socks" if entry.target is None else "reach"


def _place(entry: Entry) -> str:
    if isinstance(entry, Local):
        return str(entry.listen)
    wanted = entry.wanted
    if wanted.type in (MappingType.TCP, MappingType.UDP):
        if not wanted.port:  # of several without one each is known by its target
            return str(entry.endpoint)
        port = str(wanted.port)
        return f"{wanted.host}:{port}" if wanted.host else port
    if not wanted.host:
        return str(entry.endpoint)
    return f"{wanted.host.lower()}{(wanted.rules or _NO_RULES).path}"


def _named(key: Key) -> str:
    kind, place, number = key
    return f"{kind} {place} #{number + 1}" if number else f"{kind} {place}"


_NO_RULES: Final = Rules()
_PARTS: Final = ("", "wanted", "endpoint", "rules")
"""What is looked into: an entry, and the fields of it that have parts of their own."""


def _differences(old: object, new: object, word: str = "") -> Iterator[str]:
    """Yield the words in which two versions of an entry differ."""
    if old == new:
        return
    if word == "rules":  # nothing said is as good as the usual
        old, new = old or type(new)(), new or type(old)()
    if word in _PARTS and is_dataclass(old) and type(old) is type(new):
        for one in fields(old):
            if one.compare:
                parts = getattr(old, one.name), getattr(new, one.name)
                yield from _differences(*parts, one.name)
    else:
        yield _WORDS.get(word, word)
