"""Bodies of HTTP/1 messages: where one ends, and how it is framed anew. Sans-IO.

The chunked coding is read by the letter of RFC 9112 §7.1. Chunk extensions are left
out. What a reader holds is at most one line, or the trailers.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.front.http.heads import HeadError, read_field

if TYPE_CHECKING:
    from tunnel.front.http.heads import Body, Field

MAX_LINE_BYTES: Final = 4_096
"""Of a chunk's size with its extensions."""
MAX_TRAILER_BYTES: Final = 16_384
MAX_LINES: Final = 512
"""Read in one go; then others have their turn, for a line may bring a single byte."""

_SIZE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?", re.DOTALL
)
_LAST_CHUNK: Final = b"0\r\n"


class BodyError(HeadError):
    """A body that cannot be read in one way only; nothing behind it is believed."""

    def __init__(self, words: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(status, words)


class BodyReader:
    """Tells a body from what comes behind it.

    Args:
        body: how it is framed.
    """

    __slots__ = ("_chunks", "_left", "done", "trailers")

    def __init__(self, body: Body) -> None:
        self.done = body.size == 0
        """All of it has come."""
        self.trailers: list[Field] = []
        self._left = body.size
        self._chunks = _ChunkReader(self.trailers) if body.chunked else None

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the pieces of the body that ``data`` holds, and what is behind it.

        While it is not ``done``, what is behind are chunks, to be given again: there
        are many.

        Raises:
            BodyError: the coding is broken.
        """
        if self._chunks is not None:
            pieces, rest = self._chunks.feed(data)
            self.done = self._chunks.done
            return pieces, rest
        if self._left is None:
            return [data] if data else [], b""
        size = len(data)
        if size < self._left:
            self._left -= size
            return [data] if data else [], b""
        piece, rest = data[: self._left], data[self._left :]
        self._left, self.done = 0, True
        return [piece] if piece else [], rest

    @property
    def certain(self) -> int:
        """So many bytes belong to it, and are not its last; 0 if that is not known."""
        return self._left - 1 if self._left else 0

    def skip(self, size: int) -> None:
        """Take it that ``size`` bytes have come, of those that are ``certain``."""
        assert self._left is not None and size < self._left  # noqa: S101, PT018
        self._left -= size

    def end(self) -> None:
        """Take the end of the connection.

        Raises:
            BodyError: there was to be more.
        """
        if self._left is None and self._chunks is None:
            self.done = True
        if not self.done:
            raise BodyError("the body ended too soon")


class LimitedBody(BodyReader):
    """A body of unknown length that may have so many bytes.

    Args:
        body: how it is framed.
        most: bytes, without what frames them.
    """

    __slots__ = ("_most", "_room")

    def __init__(self, body: Body, most: int) -> None:
        super().__init__(body)
        self._most = self._room = most

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Do as a ``BodyReader`` does.

        Raises:
            BodyError: also 413, it is too long.
        """
        pieces, rest = super().feed(data)
        self._room -= sum(map(len, pieces))
        if self._room < 0:
            words = f"a request's body may have {self._most} bytes here"
            raise BodyError(words, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return pieces, rest


class _ChunkReader:
    __slots__ = ("_in_trailers", "_left", "_line", "_trailers", "_used", "done")

    def __init__(self, trailers: list[Field]) -> None:
        self.done = False
        self._trailers = trailers
        self._in_trailers = False
        self._left = 0
        """Of the chunk; -1 when only its line end is missing."""
        self._line = b""
        """A line that has not ended."""
        self._used = 0
        """Bytes of trailers."""

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        pieces: list[bytes] = []
        at = 0
        if self._line:
            data, self._line = self._line + data, b""
        lines = 0
        while at < len(data):
            if self._left > 0:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left = self._left - len(piece) or -1
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._keep(data[at:])
                break
            if lines == MAX_LINES:
                return pieces, data[at:]
            lines += 1
            line, at = data[at : end + 1], end + 1
            if not line.endswith(b"\r\n"):
                raise BodyError("a line of the body does not end with CR LF")
            self._take(line[:-2])
            if self.done:
                break
        return pieces, data[at:] if self.done else b""

    def _keep(self, line: bytes) -> None:
        most = 1 if self._left < 0 else MAX_LINE_BYTES
        if len(line) > (MAX_TRAILER_BYTES if self._in_trailers else most):
            raise BodyError("a line of the body is too long")
        self._line = line

    def _take(self, line: bytes) -> None:
        if self._left < 0:
            if line:
                raise BodyError("a chunk is longer than its size")
            self._left = 0
        elif self._in_trailers:
            self._used += len(line) + 2
            if not line:
                self.done = True
                return
            field = read_field(line)
            if field is None or self._used > MAX_TRAILER_BYTES:
                raise BodyError("a trailer is no header field, or too long")
            self._trailers.append(field)
        else:
            found = _SIZE.fullmatch(line)
            if found is None or len(line) > MAX_LINE_BYTES:
                raise BodyError("a chunk has no size")
            self._left = int(found[1], 16)
            self._in_trailers = not self._left


def framed(pieces: list[bytes], *, chunked: bool) -> list[bytes]:
    """Return pieces of a body as they are sent."""
    if not chunked:
        return pieces
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]


def last_chunk(trailers: list[Field]) -> bytes:
    """Return the end of a chunked body."""
    lines = b"".join(field.line + b"\r\n" for field in trailers)
    return _LAST_CHUNK + lines + b"\r\n"
