"""Where in a TOML text each key stands: ``tomllib`` tells the values alone."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

Path = tuple[str | int, ...]
"""The keys that lead to a value; a number counts in an array."""

_BLANK: Final = re.compile(r"(?:[\s,]|#[^\n]*)*")
"""What may stand between two things: commas too, for the text is known to be valid."""
_SPACE: Final = re.compile(r"[ \t]*")
_KEY: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+')
_SCALAR: Final = re.compile(
    r'"""(?:\\[\s\S]|[^\\])*?"{3,5}'
    r"|'''[\s\S]*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[^,\]}#\n]+"
)


def lines_of(text: str) -> dict[Path, int]:
    """Return the line, from 1, of each table, key and element of an array.

    ``text`` is valid TOML whose lines end in LF; of another text the answer is some.
    """
    return _Walk(text).lines()


def spans_of(text: str) -> dict[Path, tuple[int, int]]:
    """Return where each table with a header of its own stands in a valid text.

    That is from its bracket to behind its last value; a comment may follow there.
    """
    walk = _Walk(text)
    walk.lines()
    return walk.spans


def line_at(lines: Mapping[Path, int], path: Path) -> int:
    """Return the line of a key, or of the nearest table around it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


class _Walk:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        """How far the lines are counted."""
        self._found: dict[Path, int] = {}
        self._last: dict[Path, int] = {}
        """The last index of each array of tables."""
        self.spans: dict[Path, tuple[int, int]] = {}
        """As ``spans_of``, once all is walked."""

    def lines(self) -> dict[Path, int]:
        table: Path = ()
        begin = -1
        while self._skip(_BLANK) < len(self._text):
            before = self._at
            if self._text.startswith("[", self._at):
                begin = before
                table = self._header()
            else:
                self._pair(table)
            if begin >= 0:
                self.spans[table] = begin, self._at
            if self._at == before:
                break  # it is no TOML
        return self._found

    def _skip(self, what: re.Pattern[str]) -> int:
        found = what.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return self._at

    def _note(self, path: Path) -> None:
        if self._counted < self._at:
            self._line += self._text.count("\n", self._counted, self._at)
            self._counted = self._at
        self._found.setdefault(path, self._line)

    def _header(self) -> Path:
        is_array = self._text.startswith("[[", self._at)
        begin = self._at
        self._at += 2 if is_array else 1
        keys = self._keys()
        self._at, end = begin, self._at
        path: Path = ()
        for key in keys:
            path += (key,)
            is_last = len(keys) == sum(isinstance(one, str) for one in path)
            if is_last and is_array:
                self._last[path] = self._last.get(path, -1) + 1
            self._note(path)
            if path in self._last:
                path += (self._last[path],)
        self._note(path)
        self._found[path] = self._line  # a table that was implied before
        self._at = end + (2 if is_array else 1)
        return path

    def _keys(self) -> list[str]:
        """Read ``a . "b" . c``."""
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            found = _KEY.match(self._text, self._at)
            if found is None:
                return keys
            self._at = found.end()
            keys.append(_unquoted(found[0]))
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _pair(self, table: Path) -> None:
        """Read ``KEY = VALUE``."""
        for key in self._keys():
            table += (key,)
            self._note(table)
        self._skip(_SPACE)
        if self._text.startswith("=", self._at):
            self._at += 1
            self._value(table)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        opened = self._text[self._at : self._at + 1]
        if opened not in ("[", "{"):
            self._skip(_SCALAR)
            return
        self._at += 1
        closing, index = ("]" if opened == "[" else "}"), 0
        while self._skip(_BLANK) < len(self._text):
            if self._text.startswith(closing, self._at):
                self._at += 1
                return
            before = self._at
            if opened == "[":
                self._note((*path, index))
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
            if self._at == before:
                return


def _unquoted(key: str) -> str:
    if key[0] not in "\"'":
        return key
    try:
        return str(tomllib.loads(f"key = {key}")["key"])
    except ValueError:
        return key
