"""Text from outside: made fit for one line of a log or a terminal, or not understood.

``str.isprintable`` decides: it refuses control characters, line ends, marks that turn
the direction of text, and halves of surrogate pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH: Final = 32
"""Of tables and lists of TOML within one another: ours and others' have six."""
_TOO_DEEP: Final = "tables within tables without end"


def printable(text: str) -> str:
    """Return a peer's text with a ``?`` for each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "?" for char in text)


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the known word that is most like one that is not known, if any is.

    Args:
        word: as it was written.
        known: what could have been meant.
        likeness: from 0, anything, to 1, the same.
    """
    from difflib import (
        get_close_matches,
    )  # nobody waits for it who writes no wrong word

    return next(iter(get_close_matches(word, list(known), 1, likeness)), None)


def meant(
    word: str, known: Mapping[str, str] | Iterable[str], otherwise: str = ""
) -> str:
    """Return ``did you mean …?`` about a word that is not known, or ``otherwise``.

    Args:
        word: as it was written.
        known: what could have been meant; of a mapping the values are what is shown.
        otherwise: where nothing is like it.
    """
    found = nearest(word, known)
    if found is None:
        return otherwise
    return f"did you mean {known[found] if isinstance(known, Mapping) else found}?"


def bare(text: str) -> str:
    """Return a value without a byte order mark, white space and one pair of quotes.

    Editors, ``echo "…"`` and ``docker --env-file`` leave these around it.
    """
    text = text.removeprefix("\ufeff").strip()
    inner = text[1:-1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text if text[0] in inner else inner.strip()
    return text


def whole_number(text: str, most: int) -> int | None:
    """Return the number that a text says in the digits 0 to 9; None: none up to
    ``most``.

    ``int`` would refuse thousands of digits, and takes those of other scripts.
    """
    digits = text.lstrip("0") or text[:1]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(most))):
        return None
    number = int(digits)
    return number if number <= most else None


def read_toml(text: str) -> dict[str, object]:
    """Return what a text in TOML says.

    Raises:
        ValueError: it is none, or has a number of more than 64 bits, which no reader
            has to take: Python would not even write some of them. Or tables stand
            within tables without end.
    """
    import tomllib  # most commands read none

    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _insist_on_bounds(document, 0)
    return document


def as_toml(value: object) -> str:
    """Return a text, a number, true, false or a list of these as TOML has it."""
    import json  # most commands write none

    # JSON's escapes are TOML's.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _insist_on_bounds(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _insist_on_bounds(one, depth + 1)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a number has more than 64 bits")


def is_utf_8(text: str) -> bool:
    """Say whether ``text`` can be sent: a command line may be in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    """Return ``text`` as one printable line, written as in JSON if it is not one."""
    return text if text.isprintable() else encode_basestring_ascii(text)[1:-1]
