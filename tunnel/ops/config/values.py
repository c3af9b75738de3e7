"""The forms of values in a configuration file, each a reader.

A reader takes what ``tomllib`` found, and where, and returns the words that a flag
would have; it raises UsageError or StateError, or ``Several`` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from tunnel.access.user_file import utc_time
from tunnel.errors import TunnelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.ops.config.place import Place

Words = list[str]
Check = Callable[[str], object]
"""Raises TunnelError where a text is no value of its key."""
Read = Callable[[object, "Place"], Words]
T = TypeVar("T")

MAX_TEXT: Final = 65_536
"""Characters of one value: more than any header or path may have."""
_KINDS: Final = (
    (bool, "true or false"),
    (str, "a text"),
    (int, "a number"),
    (float, "a number with a fraction"),
    (list, "a list"),
    (dict, "a table"),
)


class Several(Exception):
    """Faults of parts of a value, each with the index or key of the part."""

    def __init__(self, faults: Sequence[tuple[str | int, Exception]]) -> None:
        super().__init__(faults)
        self.faults = faults


def kind_of(value: object) -> str:
    """Return what a TOML value is, for people."""
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a time")


def each(
    parts: Sequence[tuple[str | int, object]], make: Callable[[object], T]
) -> list[T]:
    """Return what ``make`` makes of each part; raise ``Several`` for all it refuses."""
    made, faults = [], []
    for index, part in parts:
        try:
            made.append(make(part))
        except (TunnelError, Several, ExceptionGroup) as error:
            faults.append((index, error))
    if faults:
        raise Several(faults)
    return made


def _text(value: object, *, number: bool) -> str:
    if number and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        fix = "put it in quotes" if type(value) in (int, float) else ""
        raise UsageError(f"it is a text, not {kind_of(value)}", fix=fix)
    if not value.strip():
        raise UsageError("it is empty", fix="leave the key out for the default")
    if len(value) > MAX_TEXT:
        raise UsageError(f"it has more than {MAX_TEXT} characters")
    if any(char < " " or char == "\x7f" for char in value):
        raise UsageError("it has a control character")
    return value


def word(check: Check | None = None, *, number: bool = False) -> Read:
    """Read one text; with ``number`` also a number, as a port alone."""

    def read(value: object, _: Place) -> Words:
        text = _text(value, number=number)
        if check is not None:
            check(text)
        return [text]

    return read


def number(check: Check) -> Read:
    """Read a whole number."""

    def read(value: object, _: Place) -> Words:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"it is a number, not {kind_of(value)}")
        check(str(value))
        return [str(value)]

    return read


def switch(check: Callable[[], object] = lambda: None) -> Read:
    """Read ``true`` or ``false``."""

    def read(value: object, _: Place) -> Words:
        if not isinstance(value, bool):
            raise UsageError(f"it is true or false, not {kind_of(value)}")
        if value:
            check()
        return ["true" if value else "false"]

    return read


def words(
    check: Check | None = None,
    together: Callable[[Words], object] = lambda _: None,
    *,
    number: bool = False,
) -> Read:
    """Read a list of texts, or one alone; with ``number`` also of numbers.

    ``check`` looks at each of them, and ``together`` at all.
    """
    one = word(check, number=number)

    def read(value: object, place: Place) -> Words:
        if isinstance(value, str) or (number and isinstance(value, int)):
            return one(value, place)
        if not isinstance(value, list):
            raise UsageError(f"it is a list of texts, not {kind_of(value)}")
        read = each(list(enumerate(value)), lambda part: one(part, place)[0])
        together(read)
        return read

    return read


def file(value: object, place: Place) -> Words:
    """Read the path of a file that is there."""
    path = place.file(_text(value, number=False))
    try:
        is_there = path.is_file()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not is_there:
        raise UsageError(f"there is no file {path}")
    return [str(path)]


def folder(value: object, place: Place) -> Words:
    """Read the path of a folder or a file that may be made later."""
    return [str(place.file(_text(value, number=False)))]


def files(value: object, place: Place) -> Words:
    """Read ``[CERT, KEY]``."""
    if not isinstance(value, list) or len(value) != 2:
        raise UsageError('it is a list of two files: ["cert.pem", "key.pem"]')
    return each(list(enumerate(value)), lambda part: file(part, place)[0])


def secret_file(check: Check | None = None, *, several: bool = False) -> Read:
    """Read what is in a file that others cannot read; ``several`` words, or one."""

    def read(value: object, place: Place) -> Words:
        text = place.secret(_text(value, number=False))
        found = text.split() if several else [text]
        for one in found if check else ():
            check(one)  # type: ignore[misc]  # it is there: mypy forgets in a loop
        return found

    return read


def secret(read: Read, is_secret: Callable[[str], bool] = lambda _: True) -> Read:
    """Read what makes the configuration a file that others must not read."""

    def read_secret(value: object, place: Place) -> Words:
        found = read(value, place)
        if any(map(is_secret, found)):
            place.insist_private()
        return found

    return read_secret


def time(value: object, _: Place) -> Words:
    """Read a point in time, by default in UTC, as seconds of Unix time."""
    if not isinstance(value, datetime):
        what = "a day without a time" if isinstance(value, date) else kind_of(value)
        raise UsageError(
            f"it is a point in time, not {what}", fix="2026-12-31T00:00:00Z"
        )
    return [str(utc_time(value))]
