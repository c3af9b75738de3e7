"""What an entry of a web service can say behind its target: ``,WORD=VALUE…``.

One table is the grammar of all: of ``tunnel up --http`` and ``--https``, of ``tunnel
share`` and of the library. Each word is a row with a reader, which notes in
``WebWords`` what the word says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.errors import UsageError
from tunnel.ops.entry_values import parse_guard, unknown_word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.front.http.guard import Guard


@dataclass(slots=True)
class WebWords:
    """What the words of one entry say."""

    guard: Guard | None = None
    """What visitors need."""


class Word(NamedTuple):
    """A row of the table."""

    read: Callable[[WebWords, str], None]
    """Notes what a value says; raises UsageError, without a secret in its words."""
    takes: str
    """The form of its value, for people; empty if it takes none."""
    repeats: bool = False
    """It may be said several times, each adding a value."""
    needs_http: bool = True
    """It is about requests: TLS that passes through has none."""


def _read_auth(words: WebWords, value: str) -> None:
    words.guard = parse_guard(value)


WORDS: Final[dict[str, Word]] = {
    "auth": Word(_read_auth, "USER:PASSWORD"),
}


def read_words(said: Iterable[tuple[str, str]], *, http: bool = True) -> WebWords:
    """Read the words of an entry, pairs of name and value.

    Args:
        said: as ``split_words`` gives them.
        http: the entry's requests are seen; not those of TLS that passes through.

    Raises:
        UsageError: one is unknown, has no value or one too many, cannot be read, or
            cannot be enforced here.
    """
    words = WebWords()
    seen: set[str] = set()
    for name, value in said:
        word = WORDS.get(name)
        if word is None:
            raise unknown_word(name, {one: row.takes for one, row in WORDS.items()})
        if bool(value) != bool(word.takes):
            why = f"it is {name}={word.takes}" if word.takes else "it takes no value"
            raise UsageError(f"{name!r} is not said like that", why)
        if name in seen and not word.repeats:
            raise UsageError(f"{name!r} is said twice", "one of them would be ignored")
        if word.needs_http and not http:
            raise UsageError(
                f"{name!r} is not for TLS that passes through",
                "nobody on the way can read its requests",
                "--http, and `tunnel serve --certificate` at the server, end TLS there",
            )
        seen.add(name)
        word.read(words, value)
    return words
