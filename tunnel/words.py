"""Text from outside, made fit for one line of a log or a terminal.

``str.isprintable`` decides: it refuses control characters, line ends, marks that turn
the direction of text, and halves of surrogate pairs.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii


def printable(text: str) -> str:
    """Return a peer's text with a ``?`` for each character that is not printable."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "?" for char in text)


def bare(text: str) -> str:
    """Return a value without a byte order mark, white space and one pair of quotes.

    Editors, ``echo "…"`` and ``docker --env-file`` leave these around it.
    """
    text = text.removeprefix("\ufeff").strip()
    inner = text[1:-1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text if text[0] in inner else inner.strip()
    return text


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
