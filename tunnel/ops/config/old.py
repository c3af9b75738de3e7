"""A file of another program that is carried over: what was taken of it, what is left.

What is taken is written as tables of ours; what is left is told with its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.ops.config.lines import line_at
from tunnel.words import as_toml, escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tunnel.ops.config.lines import Path as Keys

Rows = dict[str, object]
NOTHING_LIKE_IT: Final = "there is nothing like it here"


@dataclass(slots=True)
class Table:
    """One table of ours, to be written."""

    head: str
    about: str = ""
    rows: Rows = field(default_factory=dict)
    """What is None or empty is not written."""
    notes: list[str] = field(default_factory=list)
    """What its reader has to fill in."""

    def is_for_the_same(self, other: Table) -> bool:
        """Say whether two entries would be public under one name and path."""
        mine, others = (
            (one.head, one.rows.get("name"), one.rows.get("path") or "")
            for one in (self, other)
        )
        return bool(mine[1]) and mine == others

    def text(self) -> str:
        """Return the table in TOML."""
        rows = [f"{key} = {as_toml(one)}" for key, one in self.rows.items() if one]
        above = [f"# {self.about}"] if self.about else []
        notes = [f"# {one}" for one in self.notes]
        comments = [*map(escaped, above), self.head, *map(escaped, notes)]
        return "\n".join([*comments, *rows]) + "\n"


class Old:
    """A document, of which every key is taken or told.

    Args:
        path: of the file.
        document: what it says.
        lines: where each key of it stands.
        reasons: why keys are left, by patterns of their dotted names.
    """

    def __init__(
        self,
        path: Path,
        document: dict[str, object],
        lines: Mapping[Keys, int],
        reasons: Sequence[tuple[str, str]],
    ) -> None:
        self._path = path
        self._document = document
        self._lines = lines
        self._reasons = reasons
        self._taken: dict[Keys, str] = {}
        """What was looked at, and why it is left all the same; "" if it is not."""

    def take(self, *keys: str | int) -> object:
        """Return what stands at some keys, and count it as taken; None: nothing."""
        found = self._at(keys)
        if found is not None:
            self._taken.setdefault(keys, "")
        return found

    def text(self, *keys: str | int) -> str:
        """Return what stands there as a text; a list or a table is none."""
        found = self.take(*keys)
        if isinstance(found, str | int | float):
            return str(found)
        return ""

    def texts(self, *keys: str | int) -> list[str]:
        """Return the texts of a list, or the one that stands there alone."""
        found = self.take(*keys)
        listed = found if isinstance(found, list) else [found]
        return [str(one) for one in listed if isinstance(one, str | int)]

    def table(self, *keys: str | int) -> dict[str, object]:
        """Return the table there without taking it."""
        found = self._at(keys)
        return found if isinstance(found, dict) else {}

    def count(self, key: str) -> int:
        """Return how many tables a list has."""
        found = self._document.get(key)
        return len(found) if isinstance(found, list) else 0

    def leave(self, why: str, *keys: str | int) -> None:
        """Have a key told as left, with a reason of its own."""
        self._taken[keys] = why

    def left(self) -> list[str]:
        """Return a line for each key that was not carried over."""
        told = []
        for keys in self._leaves((), self._document):
            why = self._why(keys)
            if why:
                line = line_at(self._lines, keys)
                name = ".".join(str(one) for one in keys if isinstance(one, str))
                told.append((line, f"{self._path}:{line}: {escaped(name)}: {why}"))
        return list(dict.fromkeys(text for _, text in sorted(told)))

    def _at(self, keys: Keys) -> object:
        found: object = self._document
        for key in keys:
            found = _inside(found, key)
        return found

    def _why(self, keys: Keys) -> str:
        for size in range(len(keys), 0, -1):
            if keys[:size] in self._taken:
                return self._taken[keys[:size]]
        name = ".".join(str(one) for one in keys if isinstance(one, str))
        for pattern, why in self._reasons:
            if re.match(pattern, name):
                return why
        return NOTHING_LIKE_IT

    def _leaves(self, keys: Keys, value: object) -> Iterator[Keys]:
        """Yield the keys of values; a left table is one."""
        whole = self._taken.get(keys)
        if isinstance(value, dict) and not whole:
            for key, one in value.items():
                yield from self._leaves((*keys, key), one)
        elif isinstance(value, list) and value and isinstance(value[0], dict) and (
            not whole
        ):  # fmt: skip
            for index, one in enumerate(value):
                yield from self._leaves((*keys, index), one)
        else:
            yield keys


def _inside(found: object, key: str | int) -> object:
    """Return a member of a table or a list; None where there is none."""
    if isinstance(found, dict):
        return found.get(key)
    if isinstance(found, list) and isinstance(key, int) and key < len(found):
        return found[key]
    return None
