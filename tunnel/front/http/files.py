"""A folder as a web site: files, ranges, and no way out of it.

A file is opened first and looked at then, without following the visitor's idea of where
it is: the kernel says which file was opened, and it is served if that one lies in the
folder. So a link, a ``..`` or a rename at the wrong moment leads to a 404. Names that
begin with a dot are never shown, but for ``.well-known``: nobody who shares a folder
means its ``.git``.

Nothing is ever written. A file is read in threads, piece by piece.
"""

from __future__ import annotations

import mimetypes
import os
import stat
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes

import trio

from tunnel.front.http.heads import values
from tunnel.front.http.pages import HttpError, date_line
from tunnel.front.http.server import Visit, VisitorGoneError, serve_requests
from tunnel.front.http.whole import check_reading, send_whole
from tunnel.front.login import Login
from tunnel.platform.files import open_real, read_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunnel.front.http.guard import Guard
    from tunnel.front.http.request import Request

PIECE_BYTES: Final = 262_144
"""One read of a file: large enough that the change of threads does not show."""
MAX_LISTED: Final = 10_000
INDEX: Final = b"index.html"
_TYPES: Final = mimetypes.MimeTypes()
_PACKED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2",
                  "xz": "application/x-xz", "br": "application/x-brotli",
                  "compress": "application/x-compress"}  # fmt: skip
_MORE_TYPES: Final = {
    ".avif": "image/avif", ".md": "text/markdown", ".mjs": "text/javascript",
    ".js": "text/javascript", ".wasm": "application/wasm", ".webp": "image/webp",
    ".woff2": "font/woff2", ".yaml": "application/yaml", ".toml": "application/toml",
}  # fmt: skip


class Folder:
    """A folder that is shared.

    Args:
        path: of the folder; a link is followed now, and not again.
        listing: show what is in a folder without an index.html.

    Raises:
        OSError: there is no such folder, or it may not be read.
    """

    def __init__(self, path: Path, *, listing: bool = False) -> None:
        self.listing = listing
        self.root = os.fsencode(path.resolve(strict=True))
        os.scandir(self.root).close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Folder):
            return NotImplemented
        return (self.root, self.listing) == (other.root, other.listing)

    def __hash__(self) -> int:
        return hash((self.root, self.listing))

    def open(self, parts: list[bytes]) -> _Opened | None:
        """Open what lies there; None if it is not to be shown, whatever the reason.

        The caller closes it.
        """
        path = b"/".join([self.root, *parts])
        found = open_real(path, self._shows)
        return _Opened(*found) if found is not None else None

    def _shows(self, really: bytes, status: os.stat_result) -> bool:
        if not _is_plain(status.st_mode):
            return False
        if really == self.root:
            return True
        inside = really.removeprefix(self.root.rstrip(b"/") + b"/")
        return inside != really and not _hidden(inside.split(b"/"))

    def names(
        self, parts: list[bytes], opened: _Opened
    ) -> Iterator[tuple[bytes, bool]]:
        """Give what is in an opened folder, and whether each is a folder."""
        found = sorted(os.fsencode(name) for name in os.listdir(opened.number))
        for name in found[:MAX_LISTED]:
            inside = None if _hidden([*parts, name]) else self.open([*parts, name])
            if inside is not None:
                with inside:
                    yield name, inside.is_folder


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open file or folder."""

    number: int
    status: os.stat_result

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self.number)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def etag(self) -> str:
        return f'"{self.status.st_ino:x}-{self.status.st_mtime_ns:x}-{self.size:x}"'

    @property
    def size(self) -> int:
        return self.status.st_size

    @property
    def changed(self) -> int:
        return int(self.status.st_mtime)


def _is_plain(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _hidden(parts: list[bytes]) -> bool:
    """Say whether a name on the way begins with a dot; ``..`` does too.

    At the top ``.well-known`` is meant to be seen (RFC 8615).
    """
    if parts[:1] == [b".well-known"]:
        parts = parts[1:]
    return any(part.startswith(b".") for part in parts)


async def handle_visitor(
    visit: Visit, folder: Folder, guard: Guard | None = None
) -> None:
    """Serve one visitor to its end; owns its stream.

    Args:
        visit: the visitor.
        folder: what it may see.
        guard: asked before anything else.
    """

    login = Login(visit.peer, "share")

    async def answer(request: Request) -> None:
        if guard is not None:
            guard.check(request, login)
        await _answer(visit, folder, request)

    await serve_requests(visit, answer)


async def _answer(visit: Visit, folder: Folder, request: Request) -> None:
    check_reading(request, "this folder is only for reading")
    path, _, query = request.target.partition("?")
    parts = _parts(path)
    opened = await trio.to_thread.run_sync(folder.open, parts)
    if opened is None:
        raise _not_found()
    if not opened.is_folder:
        if path.endswith("/"):
            os.close(opened.number)
            raise _not_found()
        await _send_file(visit, request, opened, parts[-1])
        return
    with opened:
        if not path.endswith("/"):
            # Relative, so that no path can name another host.
            where = quote(parts[-1]) + "/" + (f"?{query}" if query else "")
            raise HttpError(
                HTTPStatus.MOVED_PERMANENTLY, "this is a folder",
                headers=[("Location", "./" + where)],
            )  # fmt: skip
        index = await trio.to_thread.run_sync(folder.open, [*parts, INDEX])
        if index is not None and not index.is_folder:
            await _send_file(visit, request, index, INDEX)
            return
        if index is not None:
            os.close(index.number)
        if not folder.listing:
            raise _not_found()
        text = await trio.to_thread.run_sync(_listing, folder, parts, opened)
    await send_whole(visit, request, text, "text/html; charset=utf-8")


def _not_found() -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, "there is no such file")


def _parts(path: str) -> list[bytes]:
    """Give the names on the way.

    Raises:
        HttpError: 404, one of them is not to be shown.
    """
    parts = [part for part in unquote_to_bytes(path).split(b"/") if part]
    if _hidden(parts) or any(b"\0" in part for part in parts):
        raise _not_found()
    return parts


def _listing(folder: Folder, parts: list[bytes], opened: _Opened) -> bytes:
    title = escape("/" + "/".join(os.fsdecode(part) for part in parts))
    title = title.encode(errors="replace").decode()
    lines = ['<li><a href="../">../</a>'] if parts else []
    for name, is_folder in folder.names(parts, opened):
        end = "/" if is_folder else ""
        text = escape(name.decode(errors="replace"))
        lines.append(f'<li><a href="./{quote(name)}{end}">{text}{end}</a>')
    return (
        '<!doctype html><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title>"
        '<body style="font:16px/1.7 system-ui,sans-serif;margin:2em">'
        f"<h1>{title}</h1><ul>\n" + "\n".join(lines) + "\n</ul>\n"
    ).encode()


# One file ----------------------------------------------------------------------------


async def _send_file(
    visit: Visit, request: Request, opened: _Opened, name: bytes
) -> None:
    """Send a file, a range of it, or that it has not changed; closes it."""
    with opened:
        lines = [
            date_line(),
            f"ETag: {opened.etag}".encode(),
            f"Last-Modified: {formatdate(opened.changed, usegmt=True)}".encode(),
            b"Accept-Ranges: bytes",
            b"Cache-Control: no-cache",
            b"X-Content-Type-Options: nosniff",
        ]
        _check_preconditions(request, opened)
        if _has_it(request, opened):
            await visit.send(visit.head(HTTPStatus.NOT_MODIFIED, lines))
            return
        first, stop, status = 0, opened.size, HTTPStatus.OK
        wanted = _range(request, opened)
        if wanted is not None:
            first, stop = wanted
            status = HTTPStatus.PARTIAL_CONTENT
            text = f"Content-Range: bytes {first}-{stop - 1}/{opened.size}"
            lines.append(text.encode())
        lines += [
            b"Content-Type: " + _type_of(name).encode(),
            b"Content-Length: %d" % (stop - first),
        ]
        output = visit.head(status, lines, status.phrase.encode())
        if request.method == "HEAD":
            await visit.send(output)
            return
        while first < stop:
            size = min(PIECE_BYTES, stop - first)
            piece = await trio.to_thread.run_sync(read_at, opened.number, size, first)
            if not piece:  # shorter than it was: the visitor must not think it whole
                raise VisitorGoneError
            first += len(piece)
            await visit.send(output + piece)
            output = b""
        if output:
            await visit.send(output)


def _type_of(name: bytes) -> str:
    text = os.fsdecode(name).lower()
    known = _MORE_TYPES.get(os.path.splitext(text)[1])
    kind, packed = _TYPES.guess_type(text)
    if packed:
        return _PACKED.get(packed, "application/octet-stream")
    kind = known or kind or "application/octet-stream"
    is_text = kind.startswith("text/")
    return f"{kind}; charset=utf-8" if is_text else kind


def _time_of(value: bytes) -> int | None:
    try:
        return int(parsedate_to_datetime(value.decode("latin-1")).timestamp())
    except (ValueError, OverflowError):
        return None


def _tags(request: Request, name: bytes) -> list[str]:
    joined = b",".join(values(request.head.fields, name)).decode("latin-1")
    return [tag.strip() for tag in joined.split(",") if tag.strip()]


def _check_preconditions(request: Request, opened: _Opened) -> None:
    """Apply If-Match and If-Unmodified-Since (RFC 9110 §13.2.2)."""
    tags = _tags(request, b"if-match")
    if tags:
        failed = "*" not in tags and opened.etag not in tags
    else:
        since = _time_of(request.value(b"if-unmodified-since"))
        failed = since is not None and opened.changed > since
    if failed:
        raise HttpError(HTTPStatus.PRECONDITION_FAILED, "the file has changed")


def _has_it(request: Request, opened: _Opened) -> bool:
    """Apply If-None-Match, or else If-Modified-Since."""
    tags = _tags(request, b"if-none-match")
    if tags:
        return "*" in tags or opened.etag in [tag.removeprefix("W/") for tag in tags]
    since = _time_of(request.value(b"if-modified-since"))
    return since is not None and opened.changed <= since


def _range(request: Request, opened: _Opened) -> tuple[int, int] | None:
    """Give first and stop of what is wanted; None for the whole file.

    More than one range, and what is none, is answered with the whole (RFC 9110 §14.2).

    Raises:
        HttpError: 416, the file is too short.
    """
    unit, _, text = request.value(b"range").decode("latin-1").partition("=")
    low, dash, high = text.strip().partition("-")
    numbers = [n for n in (low, high) if n]
    if (
        unit.strip().lower() != "bytes"
        or request.method != "GET"
        or not (dash and numbers)
        or not all(n.isascii() and n.isdigit() and len(n) < 20 for n in numbers)
        or not _if_range(request, opened)
    ):
        return None
    if not low:
        first, stop = max(opened.size - int(high), 0), opened.size
    else:
        first = int(low)
        if high and int(high) < first:
            return None
        stop = min(int(high) + 1, opened.size) if high else opened.size
    if first >= stop:
        raise HttpError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"the file has {opened.size} bytes",
            headers=[("Content-Range", f"bytes */{opened.size}")],
        )
    return first, stop


def _if_range(request: Request, opened: _Opened) -> bool:
    """Say whether the visitor's other part is of this very file."""
    value = request.value(b"if-range").decode("latin-1").strip()
    if not value or value == opened.etag:
        return True
    return _time_of(value.encode("latin-1")) == opened.changed
