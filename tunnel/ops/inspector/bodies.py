"""Bodies as people read them: unpacked, and as text where they are text."""

from __future__ import annotations

import codecs
import re
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.ops.inspector.record import BODY_BYTES

if TYPE_CHECKING:
    from tunnel.ops.inspector.heads import Head
    from tunnel.ops.inspector.masks import Masks
    from tunnel.ops.inspector.record import Body

UNPACKED_BYTES: Final = BODY_BYTES
"""Of a body that was packed: as much as is shown of others."""
FORM: Final = "application/x-www-form-urlencoded"
_TEXT: Final = re.compile(
    r"text/|.*[/+](json|xml|javascript|ecmascript|x-www-form-urlencoded|x-ndjson|yaml|"
    r"x-yaml|toml|graphql|sql|x-sh|http)\Z"
)
_CHARSET: Final = re.compile(
    r";\s*charset\s*=\s*\"?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE
)
_NO_TEXT: Final = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class Unpacked(NamedTuple):
    """What is inside of a body."""

    data: bytes
    is_cut: bool
    """There is more of it."""
    coding: str
    """What it is packed with still; empty if it is not."""


def unpack(body: Body, coding: str, most: int = UNPACKED_BYTES) -> Unpacked:
    """Return what is in a body, as far as it can be unpacked: ``most`` bytes."""
    data, is_cut = body.data, body.is_cut
    if not coding or not data:
        return Unpacked(data, is_cut, "")
    for bits in _bits(coding, data):
        reader = zlib.decompressobj(bits)
        try:
            out = reader.decompress(data, most)
        except zlib.error:
            continue
        if out:
            return Unpacked(out, is_cut or not reader.eof, "")
    return Unpacked(data, is_cut, coding)


def _bits(coding: str, data: bytes) -> tuple[int, ...]:
    if coding in ("gzip", "x-gzip"):
        return (16 + zlib.MAX_WBITS,)
    # "deflate" is zlib's form, but for those who took it by its word (RFC 9110 §8.4).
    return (zlib.MAX_WBITS, -zlib.MAX_WBITS) if coding == "deflate" else ()


def text_in(data: bytes, head: Head, *, is_cut: bool = False) -> str | None:
    """Return a body's text; None if it is none."""
    kind = head.kind
    found = _CHARSET.search(head.first("content-type"))
    charset = found[1] if found else ""
    if charset or _TEXT.match(kind):
        try:
            text = data.decode(_usable(charset), "replace")
        except (LookupError, ValueError):
            text = data.decode("utf-8", "replace")
        return text[:-1] if is_cut and text.endswith("\ufffd") else text
    if kind.startswith(("image/", "audio/", "video/", "font/")):
        return None
    try:  # nobody said what it is
        text = codecs.getincrementaldecoder("utf-8")().decode(data, not is_cut)
    except UnicodeDecodeError:
        return None
    return None if _NO_TEXT.search(text) else text


def _usable(charset: str) -> str:
    """Return a charset whose codec makes text of bytes; UTF-8 for what is none."""
    try:
        known = codecs.lookup(charset or "utf-8")
    except (LookupError, ValueError):
        return "utf-8"
    return known.name if known._is_text_encoding else "utf-8"


def charset_of(head: Head) -> str:
    """Return the charset in which text is written anew."""
    found = _CHARSET.search(head.first("content-type"))
    return _usable(found[1] if found else "")


def shown_body(body: Body, head: Head, masks: Masks) -> dict[str, object]:
    """Return a body as JSON has it; see ``shown``."""
    data, is_cut, coding = unpack(body, head.coding)
    text = None if coding else text_in(data, head, is_cut=is_cut)
    raw: str | None = None
    if text is not None:
        text = masks.text(text, head.kind)
    elif data and not masks.keeps_back(head.kind, coding):
        raw = b64encode(data).decode()
    return {
        "size": body.size,
        "kept": body.kept,
        "cut": is_cut,
        "kind": head.kind,
        "coding": head.coding,
        "text": text,
        "base64": raw,
    }
