"""The small web page that ``tunnel demo`` publishes, and how the demo visits it.

``GET /`` is for people, ``GET /bytes/N`` sends N predictable bytes, and ``POST /hash``
answers the hash of what arrived. The engine of names and folders serves it. Knows
nothing of the tunnel.
"""

from __future__ import annotations

import html
import random
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, Exit, TunnelError
from tunnel.front.http.bodies import BodyReader
from tunnel.front.http.heads import end_of_answer, read_answer
from tunnel.front.http.limits import HEAD_BYTES, MAX_FIELDS
from tunnel.front.http.pages import HttpError, date_line
from tunnel.front.http.server import Visit, serve_requests
from tunnel.front.http.whole import take_body
from tunnel.net.listen import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import trio

    from tunnel.addresses import Address
    from tunnel.front.http.request import Request
    from tunnel.net.listen import PortListener

CHUNK_BYTES: Final = 65_536
MAX_BYTES: Final = 1 << 30
"""Of one answer or one body: enough for a large test, but not for one without end."""
MAX_DIGITS: Final = 10
MAX_VISITORS: Final = 64
"""At once: enough for several browsers; each visitor costs a task and a chunk."""
IDLE_S: Final = 30.0
"""Longest silence of a visitor, in a request and between two."""
_SEED: Final = 2024
_BY_HAND: Final = "run `tunnel serve --listen 127.0.0.1:0` to see what it says"
_TEXT: Final = b"text/plain; charset=utf-8"

_HTML: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>It works: tunnel demo</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 40em; margin: 3em auto;
  padding: 0 1em; color: #222; background: #fcfcfa }}
h1 {{ font-size: 1.6em }} h2 {{ font-size: 1.1em; margin-top: 2em }}
code {{ background: #eee; padding: .1em .3em; border-radius: .2em }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #1b1b1d }}
  code {{ background: #333 }} a {{ color: #8bf }} }}
</style>
<h1>Your bytes came through the tunnel.</h1>
<p>You asked for <code>{host}</code>; this page listens on <code>{page}</code>.</p>
<h2>If you used the public port</h2>
<ol>
<li>your program connected to a public port of the <b>center-server</b>
<li>which opened a virtual TCP connection over its one TLS 1.3 link
<li>the <b>center-client</b> at the other end of the link dialled this page
</ol>
<h2>If you used the SOCKS5 proxy</h2>
<ol>
<li>your program asked the <b>center-client</b> for this page
<li>which opened a virtual TCP connection over the same link, the other way
<li>the <b>center-server</b> dialled this page
</ol>
<h2>More to try</h2>
<p><a href="/bytes/16777216">/bytes/16777216</a> sends 16 MiB, the same every time.
<code>POST /hash</code> answers the SHA-256 and the size of what you send.</p>
</html>
"""


def demo_bytes(size: int) -> Iterator[bytes]:
    """Yield ``size`` pseudo-random bytes in chunks, the same ones every time."""
    source = random.Random(_SEED)  # noqa: S311 - predictable, not secret
    while size > 0:
        yield source.randbytes(CHUNK_BYTES)[:size]
        size -= CHUNK_BYTES


def demo_sha256(size: int) -> str:
    """Return the SHA-256 of ``demo_bytes(size)``, in hexadecimal."""
    return sha256(b"".join(demo_bytes(size))).hexdigest()


async def serve_page(listeners: Sequence[PortListener]) -> None:
    """Serve visitors until cancelled, which resets them; closes the listeners."""
    host, port = listeners[0].socket.getsockname()[:2]

    async def serve_one(stream: trio.abc.HalfCloseableStream, peer: Address) -> None:
        await serve_visitor(stream, peer, page=f"{host}:{port}")

    await serve(listeners, serve_one, max_visitors=MAX_VISITORS)


async def serve_visitor(
    stream: trio.abc.HalfCloseableStream, peer: Address, *, page: str
) -> None:
    """Answer one connection's requests until it ends or idles; closes the stream.

    Cancelled, it resets: after a quiet end in the middle of an answer, the rest would
    wait for a visitor who may not be reading.
    """
    visit = Visit(stream, peer, head_s=IDLE_S, keep_alive_s=IDLE_S)
    visit.idle_s = IDLE_S
    await serve_requests(visit, lambda request: _answer(visit, request, page))


async def _answer(visit: Visit, request: Request, page: str) -> None:
    path = request.target.partition("?")[0]
    digits = path.removeprefix("/bytes/")
    if path == "/hash" and request.method == "POST":
        text = await _hash(visit)
        await _send(visit, _TEXT, len(text), [text])
    elif request.method not in ("GET", "HEAD"):
        raise HttpError(
            HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD, or POST to /hash",
            headers=[("Allow", "POST" if path == "/hash" else "GET, HEAD")],
        )  # fmt: skip
    elif path == "/":
        host = html.escape(request.authority or "no host at all")
        text = _HTML.format(host=host, page=html.escape(page)).encode()
        await _send(visit, b"text/html; charset=utf-8", len(text), [text])
    elif digits != path and digits.isdigit():
        if len(digits) > MAX_DIGITS or int(digits) > MAX_BYTES:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"at most {MAX_BYTES} bytes")
        size = int(digits)
        await _send(visit, b"application/octet-stream", size, demo_bytes(size))
    else:
        raise HttpError(HTTPStatus.NOT_FOUND, "there are /, /bytes/N and POST /hash")


async def _hash(visit: Visit) -> bytes:
    """Take the request's body, and return its hash and size."""
    digest, size = sha256(), 0

    def take(piece: bytes) -> None:
        nonlocal size
        digest.update(piece)
        size += len(piece)

    await take_body(visit, MAX_BYTES, IDLE_S, take)
    return f"{digest.hexdigest()} {size}\n".encode()


async def _send(visit: Visit, kind: bytes, size: int, body: Iterable[bytes]) -> None:
    lines = [date_line(), b"Content-Type: " + kind, b"Content-Length: %d" % size]
    await visit.send(visit.head(HTTPStatus.OK, lines, b"OK"))
    request = visit.request
    if request is None or request.method != b"HEAD":
        for piece in body:
            await visit.send(piece)


# Visiting ----------------------------------------------------------------------------


class CheckFailedError(TunnelError):
    """A check of the demo failed."""

    def __init__(self, what: str, cause: str = "", fix: str = _BY_HAND) -> None:
        super().__init__(Code.GENERAL, what, cause, fix)

    @property
    def exit_status(self) -> Exit:
        """Always 9."""
        return Exit.CHECK_FAILED


class PageClient:
    """A kept-alive HTTP connection to the page."""

    def __init__(self, stream: trio.abc.Stream, host: str) -> None:
        self._stream = stream
        self._host = host

    async def ask(
        self,
        method: str,
        target: str,
        take: Callable[[bytes], None],
        body: Sequence[bytes] = (),
    ) -> None:
        """Send one request, and pass the answer's body to ``take``, piece by piece.

        Raises:
            CheckFailedError: the status is not 200.
            HeadError: the answer is not HTTP, or ended too soon.
            trio.BrokenResourceError: the connection broke.
        """
        size = sum(map(len, body))
        words = f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\n"
        await self._stream.send_all(f"{words}Content-Length: {size}\r\n\r\n".encode())
        for piece in body:
            await self._stream.send_all(piece)
        waiting = bytearray()
        while not (end := end_of_answer(waiting, 0)) and await self._more(waiting):
            pass
        answer = read_answer(bytes(waiting[:end]), method.encode(), MAX_FIELDS)
        if answer.status != HTTPStatus.OK:
            raise CheckFailedError(f"{method} {target}: got {answer.status}")
        reader = BodyReader(answer.body)
        data = bytes(waiting[end:])
        while True:
            for piece in reader.feed(data)[0]:
                take(piece)
            if reader.done:
                return
            data = bytes(await self._stream.receive_some(CHUNK_BYTES))
            if not data:
                reader.end()

    async def _more(self, waiting: bytearray) -> bool:
        data = await self._stream.receive_some(CHUNK_BYTES)
        waiting += data
        return bool(data) and len(waiting) <= HEAD_BYTES


async def socks5_connect(stream: trio.abc.Stream, target: Address) -> None:
    """Ask a SOCKS5 proxy for ``target`` (RFC 1928, no authentication).

    Raises:
        CheckFailedError: the proxy refused, or it is no SOCKS5 proxy.
        trio.BrokenResourceError: the connection broke.
    """
    host = target.host.encode("ascii")
    await stream.send_all(b"\5\1\0")
    if await _receive_exactly(stream, 2) != b"\5\0":
        raise CheckFailedError("what listens there is no SOCKS5 proxy")
    port = target.port.to_bytes(2, "big")
    await stream.send_all(b"\5\1\0\3" + bytes([len(host)]) + host + port)
    _, reply, _, kind = await _receive_exactly(stream, 4)
    if reply != 0:
        raise CheckFailedError(f"the SOCKS5 proxy refused {target} with reply {reply}")
    size = {1: 4, 4: 16}.get(kind) or (await _receive_exactly(stream, 1))[0]
    await _receive_exactly(stream, size + 2)


async def _receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := await stream.receive_some(size - len(data))):
            raise CheckFailedError("the SOCKS5 proxy hung up")
        data += more
    return data
