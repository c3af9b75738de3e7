"""Services behind a tunnel, in threads of the test, and visitors that go to them.

A target says on ``seen`` how each of its connections went: what its function returned,
or ``"reset"`` when the connection broke under it.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import random
import select
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self, TypeVar

from support.processes import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

BLOCK_BYTES: Final = 1 << 24
READ_BYTES: Final = 1 << 18
RESET: Final = "reset"
END: Final = "end"

T = TypeVar("T")
U = TypeVar("U")


class Content:
    """A file of bytes that are different everywhere, always the same ones.

    Args:
        path: made when it is not there.
        blocks: of 16 MiB.
    """

    def __init__(self, path: Path, blocks: int) -> None:
        self.path = path
        self.size = blocks * BLOCK_BYTES
        with path.open("wb") as file:
            for seed in range(blocks):
                file.write(random.Random(seed).randbytes(BLOCK_BYTES))

    def digest(self, offset: int = 0, size: int | None = None) -> str:
        """SHA-256 of a part."""
        left = self.size - offset if size is None else size
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(offset)
            while left:
                data = file.read(min(left, 1 << 20))
                digest.update(data)
                left -= len(data)
        return digest.hexdigest()


class Target:
    """A TCP service on a loopback port; one thread for each connection.

    Args:
        serve: is given the socket, which is closed behind it.
    """

    def __init__(self, serve: Callable[[socket.socket], object]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.seen: queue.Queue[object] = queue.Queue()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse and break everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for conn in self._open:
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RDWR)

    def next_seen(self) -> object:
        """Wait for how the next connection went."""
        return self.seen.get(timeout=WAIT_S)

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(conn)
            threading.Thread(target=self._run, args=(conn,), daemon=True).start()

    def _run(self, conn: socket.socket) -> None:
        try:
            seen = self._serve(conn)
        except OSError:
            seen = RESET
        with self._lock:
            self._open.discard(conn)
        conn.close()
        self.seen.put(seen)


def web(content: Content) -> Callable[[socket.socket], object]:
    """GET /OFFSET/SIZE gives a part of ``content``; PUT answers with the SHA-256."""

    def serve(conn: socket.socket) -> object:
        head = b""
        while b"\r\n\r\n" not in head:
            data = conn.recv(65_536)
            if not data:
                return END
            head += data
        head, _, body = head.partition(b"\r\n\r\n")
        verb, path = head.split()[:2]
        if verb == b"GET":
            offset, size = map(int, path.decode().strip("/").split("/"))
            _answer(conn, size)
            with content.path.open("rb") as file:
                conn.sendfile(file, offset, size)
        else:
            digest = _digest_body(conn, _content_length(head), body)
            _answer(conn, len(digest))
            conn.sendall(digest.encode())
        return _end_of(conn)

    return serve


def _answer(conn: socket.socket, size: int) -> None:
    text = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    conn.sendall(text.encode())


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _digest_body(conn: socket.socket, size: int, body: bytes) -> str:
    digest = hashlib.sha256(body)
    left = size - len(body)
    while left:
        data = conn.recv(min(left, READ_BYTES))
        if not data:
            raise ConnectionResetError
        digest.update(data)
        left -= len(data)
    return digest.hexdigest()


def _end_of(conn: socket.socket) -> str:
    """End our direction, then wait for the other's end."""
    conn.shutdown(socket.SHUT_WR)
    while conn.recv(READ_BYTES):
        pass
    return END


def echo(conn: socket.socket) -> object:
    """Give back what comes."""
    while data := conn.recv(READ_BYTES):
        conn.sendall(data)
    return END


def answer_at_end(conn: socket.socket) -> object:
    """Say nothing before the end of file, then the SHA-256 and 1 MiB."""
    digest = hashlib.sha256()
    while data := conn.recv(READ_BYTES):
        digest.update(data)
    conn.sendall(digest.hexdigest().encode() + bytes(1 << 20))
    return END


TOO_LARGE: Final = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"


def answer_early(conn: socket.socket) -> object:
    """Answer after the first bytes of an upload and read no more, as web servers do."""
    conn.recv(16)
    conn.sendall(TOO_LARGE)
    conn.shutdown(socket.SHUT_WR)
    return END


def flood(conn: socket.socket) -> object:
    """Send for ever, as to somebody who fetches 1 GB."""
    data = bytes(READ_BYTES)
    while True:
        conn.sendall(data)


def deaf(conn: socket.socket) -> object:
    """Read nothing, and wait for the end or a reset."""
    events = select.poll()
    events.register(conn, select.POLLRDHUP)
    events.poll()
    return END


def reset_midway(conn: socket.socket) -> object:
    """Send 100 kB when asked, then reset when asked again."""
    conn.recv(1)
    conn.sendall(bytes(100_000))
    conn.recv(1)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return RESET


# Visitors ----------------------------------------------------------------------------


def visit(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Connect to a loopback port."""
    return socket.create_connection((host, port), WAIT_S)


def ask_socks(port: int, host: str, target_port: int) -> tuple[int, socket.socket]:
    """Ask a SOCKS5 proxy to connect to a name; give its reply code and the socket."""
    app = visit(port)
    try:
        app.sendall(b"\x05\x01\x00")
        assert read_exactly(app, 2) == b"\x05\x00"
        name = host.encode()
        request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name
        app.sendall(request + target_port.to_bytes(2, "big"))
        head = read_exactly(app, 4)
        read_exactly(app, {1: 6, 4: 18}[head[3]])
    except BaseException:
        app.close()
        raise
    return head[1], app


def read_exactly(conn: socket.socket, size: int) -> bytes:
    """Read so many bytes; the other end must not end before."""
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        assert more, f"ended after {len(data)} of {size} bytes"
        data += more
    return data


def is_alive(conn: socket.socket) -> bool:
    """Say something to an echo; return whether it comes back."""
    conn.sendall(b"hello")
    return read_exactly(conn, 5) == b"hello"


def reaches(port: int) -> bool:
    """Return whether an echo answers behind a port."""
    with contextlib.suppress(OSError), visit(port) as conn:
        return is_alive(conn)
    return False


def read_to_end(conn: socket.socket) -> tuple[bytes, str]:
    """Read all that comes, and say whether its end was ``END`` or ``RESET``."""
    data = bytearray()
    try:
        while more := conn.recv(READ_BYTES):
            data += more
    except ConnectionResetError:
        return bytes(data), RESET
    return bytes(data), END


def visit_to_end(enter: Callable[[], socket.socket]) -> tuple[bytes, str]:
    """Connect and ``read_to_end``; a RST may come before connect has returned."""
    try:
        with enter() as conn:
            return read_to_end(conn)
    except ConnectionResetError:
        return b"", RESET


def drain(conn: socket.socket) -> tuple[int, str]:
    """Like ``read_to_end`` but only counts."""
    size = 0
    try:
        while more := conn.recv(READ_BYTES):
            size += len(more)
    except ConnectionResetError:
        return size, RESET
    return size, END


def fetch(conn: socket.socket, offset: int, size: int) -> str:
    """GET a part of the content from ``web``; give its SHA-256."""
    with conn:
        conn.sendall(f"GET /{offset}/{size} HTTP/1.1\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read_exactly(conn, 1)
        digest = _digest_body(conn, size, b"")
        conn.shutdown(socket.SHUT_WR)
        assert drain(conn) == (0, END)
    return digest


def at_once(count: int, do: Callable[[int], U]) -> list[U]:
    """Call ``do`` with 0, 1, ... in so many threads; give what they return."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(do, range(count)))


def shared_out(items: Iterable[T], do: Callable[[T], U], threads: int = 16) -> list[U]:
    """Call ``do`` for all items in a few threads; give what they return."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(do, items))
