"""A web server that answers with what its paths say, byte by byte, as programs do.

Every answer to a good request is a fixed string; ``/heard`` says what has come. How
often a path was asked for is on ``asked``.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import re
import socket
import threading
from typing import TYPE_CHECKING, BinaryIO, Final

from support.processes import WAIT_S
from support.targets import END, READ_BYTES, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG_BYTES: Final = 100_000_000
PIECE: Final = bytes(range(256)) * 1024
EVENTS: Final = 3


def with_length(body: bytes, first: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n"
    return head % (first, len(body), fields) + body


def lines(first: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + first, *fields, b"", body))


OK_2: Final = b"Content-Length: 2"
ANSWERS: Final = {
    "/fields": lines(
        b"200 OK", b"set-cookie: a=1", b"Set-Cookie: b=2", b"X_Under: 1",
        b"x-lower: \xe4\xc3\xa4", b"X-Empty:", b"WWW-Authenticate: NTLM",
        b"WWW-Authenticate: Negotiate", OK_2, body=b"ok",
    ),
    "/trailers": lines(
        b"200 OK", b"Trailer: X-Sum", b"Transfer-Encoding: chunked",
        body=b"5;ext=1\r\nhello\r\n0\r\nX-Sum: 1\r\ngrpc-status: 0\r\n\r\n",
    ),
    "/hints": lines(b"103 Early Hints", b"Link: </a.css>; rel=preload")
    + with_length(b"ok"),
    "/reasons": lines(b"102 Still At It") + with_length(b"ok", b"299 As You Like"),
    "/no-content": lines(b"204 No Content", b"X-A: 1"),
    "/not-modified": lines(b"304 Not Modified", b"ETag: x", b"Content-Length: 700"),
    "/reset-content": lines(b"205 Reset Content", b"Content-Length: 0"),
    "/until-end": lines(b"200 OK", b"Content-Type: text/plain", body=b"all of it"),
    "/no-colon": lines(b"200 OK", b"this line is broken", OK_2, body=b"ok"),
    "/space-before-colon": lines(b"200 OK", b"X-A : 1", OK_2, body=b"ok"),
    "/broken-length": lines(b"200 OK", b"Content-Length : 2", body=b"ok"),
    "/identity": lines(b"200 OK", b"Transfer-Encoding: identity", OK_2, body=b"ok"),
    "/no-reason": lines(b"200", OK_2, body=b"ok"),
    "/empty-reason": lines(b"200 ", OK_2, body=b"ok"),
    "/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "/bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "/big-head": lines(
        b"200 OK", *(b"X-%d: %b" % (i, b"x" * 1000) for i in range(100)), OK_2,
        body=b"ok",
    ),
    "/300-fields": lines(
        b"200 OK", *(b"X-%d: 1" % i for i in range(299)), OK_2, body=b"ok"
    ),
    "/two-lengths": lines(b"200 OK", OK_2, b"Content-Length: 5", body=b"okGET"),
    "/short": lines(b"200 OK", b"Content-Length: 9", body=b"half"),
    "/short-chunks": lines(
        b"200 OK", b"Transfer-Encoding: chunked", body=b"4\r\nhalf\r\n"
    ),
    "/range": lines(
        b"206 Partial Content", b"Content-Range: bytes 1-2/9", OK_2, body=b"ok"
    ),
    "/nonsense": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "/nothing": b"",
}  # fmt: skip
FIRST_BYTES: Final = 100
"""Of a body, however it was cut into chunks on its way: so much is told."""
LEAVES: Final = frozenset((
    "/until-end", "/short", "/short-chunks", "/nonsense", "/nothing", "/1.0",
    "/broken-length", "/two-lengths",
))  # fmt: skip
"""The connection ends behind these."""

_ABOUT_THE_WAY: Final = re.compile(
    rb"(?i)(host|via|forwarded|x-forwarded-\w+|x-real-ip):"
)


class OddSite:
    """One of them, on a loopback port, until ``close``."""

    def __init__(self) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        self.go = threading.Semaphore(0)
        self.piece_bytes = 1 << 20
        """Of the answers in ``ANSWERS``: so much at once."""
        self._target = Target(self._serve)
        self.port = self._target.port

    def close(self) -> None:
        self._target.close()

    def _serve(self, conn: socket.socket) -> object:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with conn.makefile("rb") as file, contextlib.suppress(ValueError):
            number = 0
            while self._one(conn, file, number):
                number += 1
        return END

    def _one(self, conn: socket.socket, file: BinaryIO, number: int) -> bool:
        """Answer the connection's request of this number; return if more may come."""
        head = read_head(file)
        if not head:
            return False
        verb, path = (word.decode("latin-1") for word in head[0].split(b" ")[:2])
        self.asked[path] += 1
        if path == "/early":
            conn.sendall(with_length(b"too large", b"413 Too Large"))
            return _read_on(conn)
        if path.startswith("/leaves") and number:
            return False  # with the request read, and no word
        if _value(head, b"expect"):
            conn.sendall(lines(b"100 Go On", b"X-Go: 1"))
        digest, body, trailers = read_body(file, head)
        upgrade = _value(head, b"upgrade")
        if upgrade and path == "/upgrade":
            _upgraded(conn, file, upgrade, body)
            return False
        if path == "/after-end":
            conn.settimeout(WAIT_S)
            conn.sendall(with_length(b"end" if not file.read(1) else b"more"))
            return False
        return self._answer(conn, verb, path, (head, digest, body, trailers))

    def _events(self, conn: socket.socket) -> None:
        """Send an event each time that the test says so on ``go``."""
        kind = b"Content-Type: text/event-stream"
        conn.sendall(lines(b"200 OK", kind, b"Transfer-Encoding: chunked"))
        for number in range(EVENTS):
            self.go.acquire(timeout=WAIT_S)
            conn.sendall(b"9\r\ndata: %d\n\n\r\n" % number)
        conn.sendall(b"0\r\n\r\n")

    def _answer(
        self, conn: socket.socket, verb: str, path: str,
        came: tuple[list[bytes], str, bytes, list[bytes]],
    ) -> bool:  # fmt: skip
        head, digest, body, trailers = came
        if path == "/big":
            conn.sendall(lines(b"200 OK", b"Content-Length: %d" % BIG_BYTES))
            for piece in big():
                conn.sendall(piece)
        elif path == "/digest":
            conn.sendall(with_length(digest.encode()))
        elif path == "/events":
            self._events(conn)
        elif path in ANSWERS and path != "/heard":
            answer = ANSWERS[path]
            end = answer.index(b"\r\n\r\n") + 4 if verb == "HEAD" and answer else None
            for at in range(0, len(answer[:end]), self.piece_bytes):
                conn.sendall(answer[:end][at : at + self.piece_bytes])
        else:
            said = b" / ".join((head[0], *without_the_way(head[1:]), body, *trailers))
            conn.sendall(with_length(b"" if verb == "HEAD" else said))
        stays = path not in LEAVES and not head[0].endswith(b"1.0")
        return stays or _read_on(conn)


def without_the_way(fields: list[bytes]) -> list[bytes]:
    """Leave out what each hop writes itself; bring the rest into one order.

    Fields of different names have none (RFC 9110 5.3).
    """
    kept = [line for line in fields if not _ABOUT_THE_WAY.match(line)]
    return sorted(kept, key=lambda line: line.partition(b":")[0].lower())


def read_head(file: BinaryIO) -> list[bytes]:
    """Read the lines of a head; none at the end."""
    head = []
    while line := file.readline(200_000).rstrip(b"\r\n"):
        head.append(line)
    return head


def _value(head: list[bytes], name: bytes) -> bytes:
    for line in head[1:]:
        found, _, value = line.partition(b":")
        if found.lower() == name:
            return value.strip()
    return b""


def read_body(file: BinaryIO, head: list[bytes]) -> tuple[str, bytes, list[bytes]]:
    """Give the SHA-256 of a body, its first bytes, and its trailers."""
    digest, first, trailers = hashlib.sha256(), b"", []
    if _value(head, b"transfer-encoding"):
        while size := int(file.readline(100).split(b";")[0], 16):
            piece = file.read(size)
            digest.update(piece)
            first += piece[: FIRST_BYTES - len(first)]
            file.readline(10)
        trailers = read_head(file)
    left = int(_value(head, b"content-length") or b"0")
    while left and (piece := file.read(min(left, READ_BYTES))):
        digest.update(piece)
        first += piece[: FIRST_BYTES - len(first)]
        left -= len(piece)
    return digest.hexdigest(), first, trailers


def big() -> Iterator[bytes]:
    left = BIG_BYTES
    while left:
        piece = PIECE[:left]
        yield piece
        left -= len(piece)


def big_digest() -> str:
    digest = hashlib.sha256()
    for piece in big():
        digest.update(piece)
    return digest.hexdigest()


def _upgraded(conn: socket.socket, file: BinaryIO, upgrade: bytes, body: bytes) -> None:
    """Say what the body was, then all back; after the other's end, one more word."""
    fields = b"Connection: Upgrade", b"Upgrade: " + upgrade, b"X-Body: " + body
    conn.sendall(lines(b"101 UPGRADED", *fields, body=b"hi "))
    while data := file.read(1):  # buffered, and few
        conn.sendall(data)
    conn.sendall(b" bye")
    conn.shutdown(socket.SHUT_WR)


def _read_on(conn: socket.socket) -> bool:
    """End our side and read to the end: a close would be a reset."""
    conn.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        while conn.recv(READ_BYTES):
            """Nobody wants it."""
    return False
