"""Answers with a text of our own, that is here already."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from tunnel.front.http.pages import date_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.front.http.request import Request
    from tunnel.front.http.server import Visit


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
