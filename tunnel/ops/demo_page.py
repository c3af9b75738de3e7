"""The small web page that ``tunnel demo`` publishes, and how the demo visits it.

``GET /`` is for people, ``GET /bytes/N`` sends N predictable bytes, and ``POST /hash``
answers the hash of what arrived. h11 speaks HTTP/1.1. Knows nothing of the tunnel.
"""

from __future__ import annotations

import html
import random
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import h11
import trio

from tunnel.errors import Code, Exit, TunnelError
from tunnel.net.listen import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tunnel.addresses import Address
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
_TEXT: Final = "text/plain; charset=utf-8"

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

    async def serve_one(stream: trio.abc.HalfCloseableStream, _peer: Address) -> None:
        await serve_visitor(stream, page=f"{host}:{port}")

    await serve(listeners, serve_one, max_visitors=MAX_VISITORS)


async def serve_visitor(stream: trio.abc.Stream, *, page: str) -> None:
    """Answer one connection's requests until it ends or idles, then close the stream.

    Cancelled, it leaves the stream to ``serve``, which resets it: after a quiet end in
    the middle of an answer, the rest would wait for a visitor who may not be reading.
    """
    visitor = _Visitor(stream, page)
    try:
        while await visitor.serve_request():
            pass
    except (trio.BrokenResourceError, trio.TooSlowError):
        pass  # the visitor is gone, or takes too long
    await trio.aclose_forcefully(stream)


class _Visitor:
    """One connection of a visitor, and its HTTP state."""

    def __init__(self, stream: trio.abc.Stream, page: str) -> None:
        self._stream = stream
        self._page = page
        self._http = h11.Connection(h11.SERVER)
        self._is_head = False

    async def serve_request(self) -> bool:
        """Serve one request; return whether another may follow."""
        try:
            event = await self._next_event()
            if not isinstance(event, h11.Request):
                return False
            self._is_head = event.method == b"HEAD"
            await self._route(event)
            if self._http.their_state is h11.SEND_BODY and not isinstance(
                self._http.next_event(), h11.EndOfMessage
            ):
                return False  # an unexpected body, or too much of one
            self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._answer_text(error.error_status_hint, f"{error}\n")
            return False
        except h11.LocalProtocolError:
            return False  # closing was agreed: there is no next cycle
        return True

    async def _route(self, request: h11.Request) -> None:
        method = request.method.decode()
        path = request.target.decode("ascii", "replace").partition("?")[0]
        size = path.removeprefix("/bytes/")
        if path == "/hash" and method == "POST":
            await self._answer_hash()
        elif method not in ("GET", "HEAD"):
            await self._answer_text(405, "GET and HEAD, or POST to /hash\n")
        elif path == "/":
            await self._answer_page(request)
        elif size != path and size.isascii() and size.isdigit():
            await self._answer_bytes(size)
        else:
            await self._answer_text(404, "there are /, /bytes/N and POST /hash\n")

    async def _answer_page(self, request: h11.Request) -> None:
        hosts = [value.decode("latin-1") for name, value in request.headers
                 if name == b"host"]  # fmt: skip
        host = html.escape(hosts[0] if hosts else "no host at all")
        text = _HTML.format(host=host, page=html.escape(self._page))
        await self._answer_text(200, text, "text/html; charset=utf-8")

    async def _answer_bytes(self, digits: str) -> None:
        if len(digits) > MAX_DIGITS or int(digits) > MAX_BYTES:
            await self._answer_text(400, f"at most {MAX_BYTES} bytes\n")
            return
        size = int(digits)
        await self._answer(200, "application/octet-stream", size, demo_bytes(size))

    async def _answer_hash(self) -> None:
        digest, size = sha256(), 0
        while isinstance(event := await self._next_event(), h11.Data):
            digest.update(event.data)
            size += len(event.data)
            if size > MAX_BYTES:
                await self._answer_text(413, f"at most {MAX_BYTES} bytes\n")
                return
        if isinstance(event, h11.EndOfMessage):
            await self._answer_text(200, f"{digest.hexdigest()} {size}\n")

    async def _answer_text(self, status: int, text: str, kind: str = _TEXT) -> None:
        data = text.encode()
        await self._answer(status, kind, len(data), [data])

    async def _answer(
        self, status: int, kind: str, size: int, body: Iterable[bytes]
    ) -> None:
        headers = [("content-type", kind), ("content-length", str(size))]
        await self._send(h11.Response(status_code=status, headers=headers))
        if not self._is_head:
            for chunk in body:
                await self._send(h11.Data(data=chunk))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            with trio.fail_after(IDLE_S):
                await self._stream.send_all(data)

    async def _next_event(self) -> h11.Event | None:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        with trio.fail_after(IDLE_S):
            return await _next_event(self._http, self._stream)


# Visiting ----------------------------------------------------------------------------


class CheckFailedError(TunnelError):
    """A check of the demo failed."""

    def __init__(self, what: str, cause: str = "", fix: str = _BY_HAND) -> None:
        super().__init__(Code.GENERAL, what, cause, fix)

    @property
    def exit_status(self) -> Exit:
        """Always 9."""
        return Exit.CHECK_FAILED


class Visit:
    """A kept-alive HTTP connection to the page."""

    def __init__(self, stream: trio.abc.Stream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._http = h11.Connection(h11.CLIENT)

    async def ask(
        self,
        method: str,
        target: str,
        take: Callable[[bytes | bytearray], None],
        body: Sequence[bytes] = (),
    ) -> None:
        """Send one request, and pass the answer's body to ``take``, piece by piece."""
        headers = [("host", self._host), ("content-length", str(sum(map(len, body))))]
        await self._send(h11.Request(method=method, target=target, headers=headers))
        for chunk in body:
            await self._send(h11.Data(data=chunk))
        await self._send(h11.EndOfMessage())
        while True:
            event = await _next_event(self._http, self._stream)
            if isinstance(event, h11.Response) and event.status_code != 200:
                raise CheckFailedError(f"{method} {target}: got {event.status_code}")
            if isinstance(event, h11.Data):
                take(event.data)
            if isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                break
        self._http.start_next_cycle()

    async def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            await self._stream.send_all(data)


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


async def _next_event(
    http: h11.Connection, stream: trio.abc.ReceiveStream
) -> h11.Event | None:
    """Read until the peer's next event and return it; None when there is none left."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(bytes(await stream.receive_some(CHUNK_BYTES)))
    return event if isinstance(event, h11.Event) else None
