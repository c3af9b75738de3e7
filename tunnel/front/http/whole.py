"""Answers of our own that are here as a whole, and bodies of requests to ourselves."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from tunnel.front.http.bodies import BodyError, LimitedBody
from tunnel.front.http.heads import tokens
from tunnel.front.http.pages import HttpError, date_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunnel.front.http.request import Request
    from tunnel.front.http.server import Visit


def check_reading(request: Request, words: str = "this is only for reading") -> None:
    """Let GET and HEAD pass.

    Raises:
        HttpError: 405, it is another method.
    """
    if request.method not in ("GET", "HEAD"):
        raise HttpError(
            HTTPStatus.METHOD_NOT_ALLOWED, words, headers=[("Allow", "GET, HEAD")]
        )


async def send_whole(
    visit: Visit,
    request: Request,
    text: bytes,
    kind: str,
    status: HTTPStatus = HTTPStatus.OK,
    lines: Sequence[bytes] = (b"Cache-Control: no-cache",),
) -> None:
    """Answer with it, and its length and type; HEAD gets the head alone.

    Raises:
        VisitorGoneError: as ``Visit.send``.
    """
    lines = [
        date_line(),
        *lines,
        b"Content-Type: " + kind.encode(),
        b"Content-Length: %d" % len(text),
        b"X-Content-Type-Options: nosniff",
    ]
    output = visit.head(status, lines, status.phrase.encode())
    await visit.send(output if request.method == "HEAD" else output + text)


async def take_body(
    visit: Visit, most: int, pause_s: float, take: Callable[[bytes], object]
) -> None:
    """Give ``take`` the body of the request that was read, piece by piece.

    Args:
        visit: the visitor.
        most: bytes that the body may have.
        pause_s: for how long it may pause.
        take: called with each piece; it must not wait.

    Raises:
        HttpError: it is broken, too long, or does not come in time.
        VisitorGoneError: the visitor's connection is dead.
    """
    request = visit.request
    assert request is not None  # noqa: S101 - it was read
    visit.body = body = LimitedBody(request.body, most)
    if not visit.waiting and b"100-continue" in tokens(request.fields, b"expect"):
        await visit.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        while True:
            pieces, rest = body.feed(bytes(visit.waiting))
            visit.waiting[:] = rest
            for piece in pieces:
                take(piece)
            if body.done:
                return
            if rest:
                await trio.lowlevel.checkpoint()
                continue
            if visit.ended:
                body.end()
            await visit.more(trio.current_time() + pause_s)
            if not (visit.waiting or visit.ended):
                status, words = HTTPStatus.REQUEST_TIMEOUT, "did not come in time"
                raise HttpError(status, f"the body {words}", close=True)
    except BodyError as error:
        raise HttpError(error.status, error.words, close=True) from None
