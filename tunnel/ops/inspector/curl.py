"""A request as a command for a shell, that sends the same again."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from tunnel.errors import UsageError
from tunnel.ops.inspector.bodies import text_in, unpack
from tunnel.ops.inspector.heads import bytes_of, read_head, request_line, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.ops.inspector.masks import Masks
    from tunnel.ops.inspector.record import Record

MOST_WORD_BYTES: Final = 100_000
"""Of a body in a word: Linux takes 128 KiB of each. A longer one goes by a pipe."""
_OF_THE_WAY: Final = frozenset(
    (
        "connection", "content-length", "expect", "forwarded", "host", "keep-alive",
        "te", "trailer", "transfer-encoding", "upgrade", "via", "x-forwarded-for",
        "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip",
    )
)  # fmt: skip
"""Fields that frame the message, or that our server has written."""


def curl(record: Record, masks: Masks) -> str:
    """Return the command, for bash and zsh; where every byte has a character, for sh.

    Raises:
        UsageError: its body is not kept as a whole.
    """
    head = read_head(record.head)
    has_body = bool(record.request.size)
    words = ["curl", "-g", "--path-as-is", *_asked(record, masks)]
    for name, value in masks.fields(head.fields):
        if name.lower() not in _OF_THE_WAY:
            field = f"{name}: {value}" if value else f"{name};"
            words += "-H", _of_head(field, record.head)
    if not has_body:
        return " ".join(words)
    if record.request.is_cut:
        raise UsageError("the body of this request is not kept as a whole")
    if not head.first("content-type"):  # curl would say that it is a form
        words += "-H", quoted("Content-Type:")
    data = record.request.data
    text = _text(record, masks)
    if text is not None:
        word = quoted(text)
        if len(word.encode()) <= MOST_WORD_BYTES:
            return " ".join([*words, "--data-raw", word])
        data = text.encode("utf-8", "surrogatepass")
    octal = "".join(f"\\{byte:03o}" for byte in data)
    return f"printf '{octal}' | {' '.join([*words, '--data-binary', '@-'])}"


def _asked(record: Record, masks: Masks) -> Iterator[str]:
    """Yield the words for method and target."""
    method, target = request_line(record.head)
    if method == "HEAD":
        yield "-I"
    elif method != ("POST" if record.request.size else "GET"):
        yield from ("-X", quoted(method))
    if target == "*":
        yield from ("--request-target", quoted("*"))
    yield _of_head(masks.url(url_of(record)), record.head)


def _text(record: Record, masks: Masks) -> str | None:
    """Return the body, if a shell can hold it as it is, or what is shown of it."""
    head = read_head(record.head)
    data = record.request.data
    unpacked = unpack(record.request, head.coding)
    shown = text_in(unpacked.data, head)
    if shown is not None and masks.text(shown, head.kind) != shown:
        return masks.text(shown, head.kind)  # with *** in it: not the same anyway
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _of_head(text: str, head: bytes) -> str:
    """Return a word with the bytes that stand in a head, whatever they are."""
    raw = bytes_of(text, head)
    if raw == text.encode("utf-8", "surrogatepass"):
        return quoted(text)
    safe = (chr(one) if 0x20 <= one < 0x7F and one not in b"\\'" else f"\\x{one:02x}"
            for one in raw)  # fmt: skip
    return f"$'{''.join(safe)}'"


def quoted(text: str) -> str:
    """Return a word of a shell; what moves a cursor is not in it as it is."""
    if text.isprintable():
        return shlex.quote(text)
    out = []
    for char in text:
        if char in "\\'":
            out.append("\\" + char)
        elif char == "\n":
            out.append("\\n")
        elif char.isprintable():
            out.append(char)
        else:
            out += (f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
    return f"$'{''.join(out)}'"
