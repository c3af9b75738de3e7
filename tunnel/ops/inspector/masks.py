"""Which values are hidden until somebody asks for them, and how they come back.

Fields of heads, of queries, forms and JSON are hidden by their names. All else stays
byte for byte, whether it can be read or not.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.ops.inspector.heads import Fields

HIDDEN: Final = "***"
HIDDEN_JSON: Final = '"***"'
_SECRET: Final = re.compile(
    r"authorization|cookie|api-?key|secret|passw|passphrase|credential|private-?key|"
    r"token(?!s)|\A(?:pwd|pin|otp|sig|signature)\Z"
)
"""Names that say it themselves; max_tokens is none."""
_USER: Final = re.compile(r"(://)[^/?#@\s]*@")
_PAIR: Final = re.compile(r"(^|[?&#;])([^=&#;?\s]+)=([^&#;\s]*)")
_INSIDE: Final = r'[^"\\]*+(?:\\.[^"\\]*+)*+'
"""Of a string of JSON, written so that it is read fast."""
_NAME: Final = re.compile(rf'(?<!\\)"({_INSIDE})"\s*+:\s*+', re.DOTALL)
"""A name of JSON: no other string has a colon behind it."""
_SCALAR: Final = re.compile(rf'"{_INSIDE}(?:"|\\?\Z)|[^\s,}}\]]*+', re.DOTALL)
_NEST: Final = re.compile(rf'"{_INSIDE}(?:"|\\?\Z)|[][{{}}]', re.DOTALL)
_JSON: Final = re.compile(r"[\s\d]*+[{\[]")
"""Socket.IO puts a number in front."""
_PART: Final = re.compile(
    r'(?P<head>\r?\ncontent-disposition:[^\r\n]*?\bname="?(?P<name>[^";\r\n]*)"?'
    r"[^\r\n]*\r?\n(?:[^\r\n]+\r?\n)*\r?\n)(?P<value>.*?)(?=\r?\n--|\Z)",
    re.DOTALL | re.IGNORECASE,
)


def normal(name: str) -> str:
    """Return a name as names are compared."""
    return name.strip().lower().replace("_", "-")


class Masks:
    """Hides values.

    Args:
        names: hidden besides those that say it themselves.
        reveal: hide nothing.
    """

    def __init__(self, names: Iterable[str] = (), *, reveal: bool = False) -> None:
        self._names = frozenset(map(normal, names))
        self._reveal = reveal
        self._known: dict[str, bool] = {}
        self.hidden: dict[str, None] = {}
        """The names whose values were hidden."""

    def hides(self, name: str) -> bool:
        """Say whether the values of a name are hidden."""
        known = self._known.get(name)
        if known is None:
            plain = normal(name)
            is_secret = plain in self._names or _SECRET.search(plain) is not None
            known = self._known[name] = is_secret and not self._reveal
        return known

    def _mask(self, name: str, value: str) -> str:
        if not value or not self.hides(name):
            return value
        self.hidden[name] = None
        return HIDDEN

    def fields(self, fields: Fields) -> Fields:
        """Return the fields of a head."""
        if self._reveal:
            return fields
        shown = []
        for name, value in fields:
            masked = self._mask(name, value)
            shown.append((name, self.url(value) if masked == value else masked))
        return shown

    def url(self, text: str) -> str:
        """Return a URL or a path, or any text that may have one."""
        if self._reveal or not ("=" in text or "@" in text):
            return text
        if _USER.search(text):
            self.hidden["user"] = None
            text = _USER.sub(rf"\1{HIDDEN}@", text)
        return edit_pairs(text, self._mask, at_start=False)

    def text(self, text: str, kind: str = "") -> str:
        """Return the text of a body or of a message."""
        if self._reveal:
            return text
        return self.edit_text(text, kind, self._mask)

    def edit_text(self, text: str, kind: str, edit: Callable[[str, str], str]) -> str:
        """Return a text with other values, where its kind has names for them.

        ``edit`` is given a name and its value as it is written, and returns one to be
        written, or ``HIDDEN``; in JSON it is asked only about names that are hidden.
        """
        if kind == "application/x-www-form-urlencoded":
            return edit_pairs(text, edit)
        if kind == "multipart/form-data":
            return edit_parts(text, edit)
        if kind.endswith("json") or _JSON.match(text):
            return edit_json(text, lambda *one: _as_json(edit(*one)), self.hides)
        return text

    def keeps_back(self, kind: str, coding: str) -> bool:
        """Say whether a body that is no text here may hold what is hidden."""
        if self._reveal:
            return False
        packed = coding and (kind.endswith("json") or kind.startswith("text/"))
        if packed or "form" in kind:
            self.hidden["body"] = None
            return True
        return False


def _as_json(value: str) -> str:
    return HIDDEN_JSON if value == HIDDEN else value


def edit_pairs(
    text: str, edit: Callable[[str, str], str], *, at_start: bool = True
) -> str:
    """Return a query or a form with other values; all else as it was.

    Args:
        text: ``NAME=VALUE&…``, or with ``at_start`` False a URL with a query.
        edit: is given name and value as they are meant, returns one to be written.
        at_start: a pair may stand at the beginning.
    """

    def one(found: re.Match[str]) -> str:
        before, name, value = found.groups()
        if not (before or at_start):
            return found[0]
        meant = unquote_plus(name)
        edited = edit(meant, value)
        return found[0] if edited == value else f"{before}{name}={edited}"

    return _PAIR.sub(one, text)


def edit_parts(text: str, edit: Callable[[str, str], str]) -> str:
    """Do the same with a multipart form, whose values are its parts."""

    def one(found: re.Match[str]) -> str:
        return found["head"] + edit(found["name"], found["value"])

    return _PART.sub(one, text)


def edit_json(
    text: str, edit: Callable[[str, str], str], wanted: Callable[[str], bool]
) -> str:
    """Do the same with JSON, or with a part of it that has lost its end.

    Args:
        text: JSON.
        edit: is given a name and the text of its value, a whole object maybe.
        wanted: says whether a name is asked for at all.
    """
    output: list[str] = []
    at = done = 0
    while (found := _NAME.search(text, at)) is not None:
        at = found.end()
        if not wanted(name := _unescaped(found[1])):
            continue
        end = _end_of_value(text, at)
        value = text[at:end]
        edited = edit(name, value)
        if edited != value:
            output += text[done:at], edited
            done = end
        at = max(end, at)
    return "".join((*output, text[done:]))


def _unescaped(raw: str) -> str:
    if "\\" not in raw:
        return raw
    try:
        return str(json.loads(f'"{raw}"', strict=False))
    except ValueError:
        return raw


def _end_of_value(text: str, at: int) -> int:
    if text[at : at + 1] not in ("{", "["):
        found = _SCALAR.match(text, at)
        return found.end() if found else at
    depth = 0
    for found in _NEST.finditer(text, at):
        if found[0] in ("{", "["):
            depth += 1
        elif found[0] in ("}", "]"):
            depth -= 1
            if not depth:
                return found.end()
    return len(text)
