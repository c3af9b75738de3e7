"""Requests that an inspector has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.addresses import Address
from tunnel.ops.inspector.watcher import Looker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.ops.inspector.record import Record
    from tunnel.ops.inspector.store import Store

VISITOR = Address("192.0.2.9", 5)
HEAD = (
    b"POST /a?token=abc&b=1 HTTP/1.1\r\nHost: shop.test\r\n"
    b"Authorization: Bearer xyz\r\nCookie: a=b\r\nContent-Type: application/json\r\n"
    b"X-Mine: seven\r\nContent-Length: 31\r\n\r\n"
)
BODY = b'{"user": "me", "password": "p"}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nSet-Cookie: c=d\r\n\r\n"


def seen(
    store: Store, head: bytes = HEAD, body: bytes = BODY, answer: bytes = ANSWER,
    text: bytes = b"hello", pieces: Sequence[bytes] | None = None,
) -> Record:  # fmt: skip
    record = store.add("http shop", VISITOR, head)
    looker = Looker(store, record)
    looker.connected()
    looker.asked([body])
    looker.answers(200, answer)
    for piece in [memoryview(text)] if pieces is None else pieces:
        looker.answered([piece])
    looker.over(whole=True)
    return record
