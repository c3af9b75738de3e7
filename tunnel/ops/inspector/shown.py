"""A record as JSON: a line of the list, and all of it."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from tunnel.ops.inspector.bodies import FORM, shown_body, text_in, unpack
from tunnel.ops.inspector.heads import (
    Head,
    host_of,
    kind_of,
    read_head,
    request_line,
)
from tunnel.ops.inspector.masks import HIDDEN, Masks

if TYPE_CHECKING:
    from tunnel.ops.inspector.record import Body, Message, Record

_MOST_PATH: Final = 2_048
"""Characters of a path in the list."""
_MOST_PAIRS: Final = 1_000
"""Of a form."""


def summary(record: Record, masks: Masks) -> dict[str, object]:
    """Return the line of a record in the list; times are in ms since it was asked."""
    method, target = request_line(record.head)
    path = masks.url(target[: 2 * _MOST_PATH])[:_MOST_PATH]
    return {
        "number": record.number,
        "version": record.version,
        "at": round(record.at, 3),
        "entry": record.entry,
        "visitor": str(record.visitor),
        "method": method,
        "host": host_of(record.head),
        "path": path,
        "status": record.status,
        "state": record.state,
        "failure": record.failure,
        "kind": kind_of(record.answer_head),
        "sent_bytes": record.request.size + record.up_bytes,
        "received_bytes": record.answer.size + record.down_bytes,
        "connected_ms": _ms(record.connected),
        "first_byte_ms": _ms(record.first_byte),
        "ended_ms": _ms(record.ended),
        "replay_of": record.replay_of,
        "websocket": record.messages is not None,
        "messages": record.said,
    }


def shown(record: Record, masks: Masks) -> dict[str, object]:
    """Return all of a record."""
    request = read_head(record.head)
    kept = record.messages or ()
    answer: dict[str, object] | None = None
    asked = _part(request, record.request, masks)
    if record.answer_head:
        answer = _part(read_head(record.answer_head), record.answer, masks)
    return {
        **summary(record, masks),
        "request": asked,
        "answer": answer,
        "trailers": _trailers(record, masks),
        "messages": [_message(one, masks) for one in kept],
        "messages_dropped": record.said - len(kept),
        "form": _form(request, record.request, masks),
        "hidden": list(masks.hidden),
    }


def _part(head: Head, body: Body, masks: Masks) -> dict[str, object]:
    return {
        "line": masks.url(head.line),
        "fields": [list(pair) for pair in masks.fields(head.fields)],
        "body": shown_body(body, head, masks),
    }


def _trailers(record: Record, masks: Masks) -> list[list[str]]:
    head = read_head(b"\r\n" + record.trailers)
    return [list(pair) for pair in masks.fields(head.fields)]


def _form(head: Head, body: Body, masks: Masks) -> list[list[str]] | None:
    if head.kind != FORM:
        return None
    data, is_cut, coding = unpack(body, head.coding)
    text = None if coding else text_in(data, head, is_cut=is_cut)
    pairs = parse_qsl("&".join((text or "").split("&", _MOST_PAIRS)[:_MOST_PAIRS]),
        keep_blank_values=True)  # fmt: skip
    return [
        [name, HIDDEN if value and masks.hides(name) else value]
        for name, value in pairs
    ]


def _message(message: Message, masks: Masks) -> dict[str, object]:
    data, cut = message.data, message.size > len(message.data)
    text = raw = None
    if message.kind in ("text", "close"):
        text = masks.text(data.decode("utf-8", "ignore"))
    else:
        raw = b64encode(data).decode()
    return {
        "at_ms": _ms(message.at),
        "from": "target" if message.to_visitor else "visitor",
        "kind": message.kind,
        "size": message.size,
        "text": text,
        "base64": raw,
        "cut": cut,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1_000 * seconds, 2)
