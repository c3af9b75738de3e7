"""Heads as they came, read for people: leniently, and never changed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tunnel.ops.inspector.record import Record

Fields = list[tuple[str, str]]
_HOST: Final = re.compile(rb"\nhost:[ \t]*([^\r\n]*?)[ \t]*\r?\n", re.IGNORECASE)
_KIND: Final = re.compile(
    rb"\ncontent-type:[ \t]*([^;\r\n]*?)[ \t]*[;\r\n]", re.IGNORECASE
)
_PROTO: Final = re.compile(
    rb"\nx-forwarded-proto:[ \t]*https[ \t]*\r?\n", re.IGNORECASE
)
_MOST_SHOWN: Final = 2_048
"""Of a method, host or path in a list."""


class Head(NamedTuple):
    """A head in parts."""

    line: str
    fields: Fields

    def all(self, name: str) -> list[str]:
        """Return the values of a name, which is given in lower case."""
        return [value for known, value in self.fields if known.lower() == name]

    def first(self, name: str) -> str:
        """Return the first of these; empty if there is none."""
        return next(iter(self.all(name)), "")

    @property
    def kind(self) -> str:
        """The media type, in lower case, without parameters."""
        return self.first("content-type").partition(";")[0].strip().lower()

    @property
    def coding(self) -> str:
        """What its body was packed with; empty if it was not."""
        words = ",".join(self.all("content-encoding")).lower().split(",")
        said = [word.strip() for word in words if word.strip() not in ("", "identity")]
        return ", ".join(said)


def text_of(raw: bytes) -> str:
    """Return bytes of a head as text: UTF-8, or else each byte a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def bytes_of(text: str, like: bytes = b"") -> bytes:
    """Return text of a head as bytes, in the encoding of a head that it is from."""
    try:
        like.decode()
    except UnicodeDecodeError:
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            pass
    return text.encode()


def read_head(raw: bytes) -> Head:
    """Read a head, or the part of one that came."""
    line, *rest = text_of(raw).split("\n")
    fields = []
    for one in rest:
        name, colon, value = one.rstrip("\r").partition(":")
        if colon:
            fields.append((name, value.strip(" \t")))
    return Head(line.rstrip("\r"), fields)


def request_line(raw: bytes) -> tuple[str, str]:
    """Return method and target of a request."""
    line = raw[: raw.find(b"\n")] if b"\n" in raw else raw
    method, _, rest = line.rstrip(b"\r").partition(b" ")
    target = rest.rpartition(b" ")[0] or rest
    return text_of(method)[:_MOST_SHOWN], text_of(target)


def host_of(raw: bytes) -> str:
    """Return the Host of a request; empty if it has none."""
    found = _HOST.search(raw)
    return text_of(found[1])[:_MOST_SHOWN] if found else ""


def kind_of(raw: bytes) -> str:
    """Return the media type that a head says."""
    found = _KIND.search(raw)
    return text_of(found[1]).lower()[:_MOST_SHOWN] if found else ""


def url_of(record: Record) -> str:
    """Return the URL that was asked for, as its visitor knows it."""
    _, target = request_line(record.head)
    if "://" in target.partition("?")[0]:
        return target
    scheme = "https" if _PROTO.search(record.head) else "http"
    path = target if target.startswith("/") else "/"
    return f"{scheme}://{host_of(record.head) or 'localhost'}{path}"
