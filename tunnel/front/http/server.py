"""One visitor's HTTP/1 connection: strict requests in, whole responses out.

h11 is the only parser. What it is lenient about is refused before it sees the head
(bare LF, folded lines, control characters), and what two parsers could read in two ways
after it (two framings, HTTP/1.0 with chunks). Nothing that was read is passed on as raw
bytes: heads are written anew, so that nobody behind reads another message than we did.

This module routes nothing and knows nobody but the visitor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio

from tunnel.front.http.headers import (
    BETWEEN_S,
    HEAD_BYTES,
    HEAD_S,
    MAX_FIELDS,
    Fields,
    has_body,
    is_ambiguous,
    tokens,
    values,
    without_frames,
)
from tunnel.net.relay import GRACE_S, reset_socket
from tunnel.net.timeouts import TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tunnel.addresses import Address

PAGE_S: Final = 60.0
"""For a visitor to take a page of ours: who reads nothing holds a place for nothing."""
_READ_BYTES: Final = 65_536

_SUSPECT: Final = re.compile(
    rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
_HOST: Final = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?)\.?"
    r"(?P<port>:[0-9]{0,5})?"
)


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


class VisitorGoneError(Exception):
    """The visitor's connection is dead."""


@dataclass(frozen=True, slots=True)
class Request:
    """The head of one request."""

    method: str
    target: str
    """Path and query, or ``*``; never with a host."""
    host: str
    """Lower case, without port and last dot; empty if none was named."""
    authority: str
    """The host as the visitor wrote it, with its port."""
    headers: Fields
    """Names in lower case, in their order."""
    http_1_0: bool
    has_body: bool
    chunked: bool

    def value(self, name: bytes) -> bytes:
        """Give a header that should stand once; empty if it is not there.

        Raises:
            HttpError: 400, it is there more than once.
        """
        found = values(self.headers, name)
        if len(found) > 1:
            raise bad_request(f"there is more than one {name.decode()} header")
        return found[0] if found else b""

    def words(self, name: bytes) -> list[str]:
        """Give the members of a list header, in lower case."""
        return [word.decode("latin-1") for word in tokens(self.headers, name)]


def bad_request(words: str) -> HttpError:
    """Refuse what cannot be read in one way only; nothing behind it is believed."""
    return HttpError(HTTPStatus.BAD_REQUEST, words, close=True)


class Visit:
    """A visitor and what it asks, request by request.

    Args:
        stream: the caller closes it, best with ``leave``.
        peer: the visitor's address.
        secure: it came over TLS.
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        peer: Address,
        *,
        secure: bool = False,
        early: bytes = b"",
        head_s: float = HEAD_S,
        keep_alive_s: float = BETWEEN_S,
    ) -> None:
        self.stream = stream
        self.peer = peer
        self.secure = secure
        self.waiting = bytearray(early)
        """What the visitor has sent behind what was used so far."""
        self.body_ended = False
        self.answering = False
        """Whether a final response has begun."""
        self._head_s = head_s
        self._keep_alive_s = keep_alive_s
        self._idle_s = TIMEOUTS.get().idle_s
        self._served = 0
        self._method = ""
        self._accepts_html = False
        self._conn = h11.Connection(h11.SERVER, HEAD_BYTES)

    # Hearing -------------------------------------------------------------------------

    async def next_request(self) -> Request | None:
        """Wait for the next request; None when the visitor has no more.

        Raises:
            HttpError: it is none that could be served; answer and ``leave``.
            VisitorGoneError: the visitor's connection is dead.
        """
        self._conn = h11.Connection(h11.SERVER, HEAD_BYTES)
        self.body_ended = self.answering = False
        self._method, self._accepts_html = "", False
        if not await self._first_byte():
            return None
        self._served += 1
        with trio.move_on_after(self._head_s) as limit:
            size = await self._head_size()
        if limit.cancelled_caught:
            raise HttpError(
                HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time",
                close=True,
            )  # fmt: skip
        self._conn.receive_data(bytes(self.waiting[:size]))
        del self.waiting[:size]
        event = self._next_event()
        assert isinstance(event, h11.Request)  # noqa: S101 - a whole head was given
        request = self._checked(event)
        if not request.has_body:
            self._next_event()  # the end of the message
            self.body_ended = True
        return request

    async def _first_byte(self) -> bool:
        # A browser opens connections before it needs them: their silence is no fault.
        silence_s = self._keep_alive_s if self._served else self._head_s
        with trio.move_on_after(silence_s):
            while True:
                while self.waiting[:2] == b"\r\n":  # RFC 9112 §2.2
                    del self.waiting[:2]
                if self.waiting and self.waiting != b"\r":
                    return True
                if not await self._more():
                    return False
        return False

    async def _head_size(self) -> int:
        """Collect a head and refuse what h11 would take; give its length."""
        seen = 0
        while True:
            end = self.waiting.find(b"\r\n\r\n", max(seen - 3, 0))
            stop = end + 4 if end >= 0 else len(self.waiting)
            # Nobody honest sends these, and other parsers see other messages in them.
            if _SUSPECT.search(self.waiting, max(seen - 2, 0), stop):
                raise bad_request("the request is not HTTP")
            if stop > HEAD_BYTES:
                raise HttpError(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"a head may have {HEAD_BYTES} bytes", close=True,
                )  # fmt: skip
            if end >= 0:
                return stop
            seen = stop
            if not await self._more():
                raise bad_request("the request ended within its head")

    def _checked(self, event: h11.Request) -> Request:
        headers = list(event.headers)
        self._method = event.method.decode("ascii")
        self._accepts_html = any(
            word.startswith(b"text/html") for word in tokens(headers, b"accept")
        )
        if len(headers) > MAX_FIELDS:
            raise HttpError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"a request may have {MAX_FIELDS} headers", close=True,
            )  # fmt: skip
        if event.http_version not in (b"1.0", b"1.1"):
            raise HttpError(
                HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this is HTTP/1.1", close=True
            )
        if is_ambiguous(headers, event.http_version):
            raise bad_request("the length of the body is said in two ways")
        hosts = values(headers, b"host")
        target, authority = _split_target(
            self._method,
            event.target.decode("ascii"),
            hosts[0].decode("latin-1") if hosts else "",
        )
        return Request(
            method=self._method,
            target=target,
            host=host_of(authority) if authority else "",
            authority=authority,
            headers=headers,
            http_1_0=event.http_version == b"1.0",
            has_body=has_body(headers),
            chunked=bool(values(headers, b"transfer-encoding")),
        )

    async def next_of_body(self) -> h11.Data | h11.EndOfMessage:
        """Wait for more of the request's body, or its end.

        Raises:
            HttpError: 400; nothing that follows may be believed.
            VisitorGoneError: the visitor's connection is dead.
        """
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                return event
            if isinstance(event, h11.EndOfMessage):
                self.body_ended = True
                self.waiting[:0] = self._conn.trailing_data[0]
                return event
            if not self.waiting:
                await self._more()
            # No bytes tell h11 that the visitor has ended.
            data, self.waiting = bytes(self.waiting), bytearray()
            self._conn.receive_data(data)

    async def wait_for_more(self) -> bool:
        """Wait for what comes behind the body, at most 64 KiB; False at its end.

        Raises:
            VisitorGoneError: the visitor's connection is dead.
        """
        if len(self.waiting) >= HEAD_BYTES:
            await trio.sleep_forever()
        return await self._more()

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(_READ_BYTES)
        except trio.BrokenResourceError:
            raise VisitorGoneError from None
        self.waiting += data
        return bool(data)

    def _next_event(self) -> object:
        try:
            return self._conn.next_event()
        except h11.RemoteProtocolError as error:
            without_frames(error)
            status = HTTPStatus(error.error_status_hint)
            raise HttpError(status, str(error), close=True) from None

    # Answering -----------------------------------------------------------------------

    def interim(self, status: int, headers: Fields) -> bytes:
        """Give a 1xx response as bytes; none for who does not know them."""
        if self._conn.their_http_version == b"1.0":
            return b""
        event = h11.InformationalResponse(status_code=status, headers=headers)
        return self._conn.send(event) or b""

    def head(self, status: int, headers: Fields, reason: bytes = b"") -> bytes:
        """Begin the final response; give its head as bytes.

        Without a Content-Length it is chunked, or ends with the connection for an
        HTTP/1.0 visitor. A response that comes before the request's end is the last.
        """
        self.answering = True
        if not self.body_ended:
            headers = [*headers, (b"connection", b"close")]
        event = h11.Response(status_code=status, headers=headers, reason=reason)
        return self._conn.send(event) or b""

    def part(self, data: bytes) -> bytes:
        """Give a piece of the body as bytes."""
        return self._conn.send(h11.Data(data=data)) or b""

    def end(self, trailers: Fields) -> bytes:
        """End the response; give what is to be sent for it.

        Raises:
            h11.LocalProtocolError: there was less of it than its length said.
        """
        return self._conn.send(h11.EndOfMessage(headers=trailers)) or b""

    async def send(self, data: bytes, within_s: float | None = None) -> None:
        """Send to the visitor.

        Raises:
            VisitorGoneError: its connection is dead, or it does not read.
        """
        if not data:
            return
        with trio.move_on_after(within_s or self._idle_s) as limit:
            try:
                await self.stream.send_all(data)
            except trio.BrokenResourceError:
                raise VisitorGoneError from None
        if limit.cancelled_caught:
            raise VisitorGoneError

    async def say(self, error: HttpError) -> None:
        """Answer with a small page, unless another response has begun."""
        if self.answering:
            raise VisitorGoneError
        kind, text = _page(error, html=self._accepts_html)
        headers: Fields = [
            (b"content-type", kind),
            (b"content-length", str(len(text)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *((name.encode(), value.encode()) for name, value in error.headers),
        ]
        if error.close and self.body_ended:
            headers.append((b"connection", b"close"))
        reason = error.status.phrase.encode()
        output = self.head(error.status, headers, reason)
        if self._method != "HEAD":
            output += self.part(text)
        await self.send(output + self.end([]), PAGE_S)

    @property
    def may_go_on(self) -> bool:
        """Whether another request may follow on this connection."""
        return (
            self._conn.our_state is h11.DONE
            and self._conn.their_state is h11.DONE
            and self.body_ended
        )

    async def leave(self) -> None:
        """Close, after the visitor had the time to read what was sent.

        Closed with bytes unread, the kernel would destroy the response.
        """
        with trio.move_on_after(GRACE_S):
            try:
                await self.stream.send_eof()
                while await self.stream.receive_some(_READ_BYTES):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await self.stream.aclose()


async def serve_requests(
    visit: Visit, answer: Callable[[Request], Awaitable[bool]]
) -> None:
    """Answer the requests of one visitor; closes its stream unless given away.

    What ``answer`` raises as ``HttpError`` becomes a page. ``VisitorGoneError`` resets.

    Args:
        visit: the visitor.
        answer: sends one whole response; False when the stream has another owner now.
    """
    try:
        while True:
            close = False
            try:
                request = await visit.next_request()
                if request is None:
                    break
                if not await answer(request):
                    return
            except HttpError as error:
                await visit.say(error)
                close = error.close
            if close or not visit.may_go_on:
                break
    except VisitorGoneError:
        await reset_socket(visit.stream)
        return
    await visit.leave()


def host_of(authority: str) -> str:
    """Give the host of ``HOST[:PORT]``: lower case, without port and last dot.

    Raises:
        HttpError: 400, it is no host.
    """
    found = _HOST.fullmatch(authority.lower())
    if found is None:
        raise bad_request("the host is not a name")
    return found["host"].strip("[]")


def _split_target(method: str, target: str, host: str) -> tuple[str, str]:
    """Give path and authority; an absolute form wins over Host (RFC 9112 §3.2.2)."""
    if method in ("CONNECT", "TRACE"):
        raise HttpError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not served here", close=True
        )
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        return target, host
    scheme, sign, rest = target.partition("://")
    if not sign or scheme.lower() not in ("http", "https"):
        raise bad_request("the request names no path")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    if not authority:
        raise bad_request("the host is empty")
    return path if path.startswith("/") else "/" + path, authority


def _page(error: HttpError, *, html: bool) -> tuple[bytes, bytes]:
    title = f"{error.status.value} {error.status.phrase}"
    if not html:
        return b"text/plain; charset=utf-8", f"{title}: {error.words}\n".encode()
    text = (
        '<!doctype html><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title>"
        '<body style="font:16px/1.5 system-ui,sans-serif;margin:15vh auto;'
        'max-width:34em;padding:0 1em">'
        f"<h1>{title}</h1><p>{escape(error.words)}</p>\n"
    )
    return b"text/html; charset=utf-8", text.encode()
