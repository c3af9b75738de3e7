"""Answers that are ours and not a target's: what went wrong, said to people."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class HttpError(Exception):
    """A request that gets this answer from us, and not from the target.

    Args:
        status: of the answer.
        words: one line for the person who reads it.
        close: whether nothing more is read from this visitor.
        headers: of the answer, besides those that every page has.
    """

    def __init__(
        self,
        status: HTTPStatus,
        words: str,
        *,
        close: bool = False,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"{status.value} {words}")
        self.status = status
        self.words = words
        self.close = close
        self.headers = headers


def bad_request(words: str) -> HttpError:
    """Refuse what cannot be read in one way only; nothing behind it is believed."""
    return HttpError(HTTPStatus.BAD_REQUEST, words, close=True)


def head_bytes(status: int, reason: bytes, lines: Sequence[bytes]) -> bytes:
    """Return the head of an answer as bytes."""
    first = b"HTTP/1.1 %d %b" % (status, reason)
    return b"\r\n".join((first, *lines, b"", b""))


def date_line() -> bytes:
    """Return the field Date of an answer of our own (RFC 9110 §6.6.1)."""
    return _date_line(int(time.time()))


@lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}".encode()


def page(error: HttpError, *, html: bool) -> tuple[list[bytes], bytes]:
    """Return fields and text of a small page that says what went wrong."""
    kind, text = _html(error) if html else _plain(error)
    lines = [
        date_line(),
        b"Content-Type: " + kind,
        b"Content-Length: %d" % len(text),
        b"Cache-Control: no-store",
        b"X-Content-Type-Options: nosniff",
        *(f"{name}: {value}".encode() for name, value in error.headers),
    ]
    return lines, text


def _plain(error: HttpError) -> tuple[bytes, bytes]:
    title = f"{error.status.value} {error.status.phrase}"
    return b"text/plain; charset=utf-8", f"{title}: {error.words}\n".encode()


def _html(error: HttpError) -> tuple[bytes, bytes]:
    title = f"{error.status.value} {error.status.phrase}"
    text = (
        '<!doctype html><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title>"
        '<body style="font:16px/1.5 system-ui,sans-serif;margin:15vh auto;'
        'max-width:34em;padding:0 1em">'
        f"<h1>{title}</h1><p>{escape(error.words)}</p>\n"
    )
    return b"text/html; charset=utf-8", text.encode()
