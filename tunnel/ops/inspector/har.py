"""Records as an HTTP Archive (HAR 1.2), which browsers' tools read."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import trio

from tunnel import __version__
from tunnel.ops.inspector.bodies import FORM, text_in, unpack
from tunnel.ops.inspector.heads import Head, read_head, request_line, url_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.ops.inspector.masks import Masks
    from tunnel.ops.inspector.record import Body, Record

UNKNOWN: Final = -1
"""What HAR says for a number that is not known."""
MOST_BYTES: Final = 8_388_608
"""Of bodies in one archive: what is beyond is said to be left out. It is written as
JSON in one go, which must not be felt."""
_OPCODES: Final = {"text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}
_MOST_PAIRS: Final = 1_000

Json = dict[str, object]


async def har(records: Iterable[Record], masks: Masks, left_out: int = 0) -> Json:
    """Return an archive of records, in the order in which they were asked.

    ``left_out`` is how many older ones are not among them. Others have their turn
    between any two.
    """
    room = MOST_BYTES
    entries = []
    for record in sorted(records, key=lambda one: one.number):
        kept = record.request.kept + record.answer.kept
        entries.append(_entry(record, masks, bodies=kept <= room))
        room -= kept if kept <= room else 0
        await trio.lowlevel.checkpoint()
    log: Json = {
        "version": "1.2",
        "creator": {"name": "tunnel", "version": __version__},
        "entries": entries,
    }
    if left_out:
        log["comment"] = f"{left_out} older requests are left out"
    return {"log": log}


def _entry(record: Record, masks: Masks, *, bodies: bool) -> Json:
    ended = record.ended if record.ended is not None else record.age
    began = datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds")
    connected, first = record.connected, record.first_byte
    wait = (first if first is not None else ended) - (connected or 0)
    entry: Json = {
        "startedDateTime": began,
        "time": _ms(ended),
        "request": _request(record, masks, bodies=bodies),
        "response": _response(record, masks, bodies=bodies),
        "cache": {},
        "timings": {
            "blocked": UNKNOWN,
            "dns": UNKNOWN,
            "connect": UNKNOWN if connected is None else _ms(connected),
            "send": 0,
            "wait": _ms(max(wait, 0)),
            "receive": 0 if first is None else _ms(max(ended - first, 0)),
            "ssl": UNKNOWN,
        },
        "comment": f"{record.entry} for {record.visitor}",
    }
    if record.messages is not None:
        entry["_webSocketMessages"] = [
            {
                "type": "receive" if one.to_visitor else "send",
                "time": record.at + one.at,
                "opcode": _OPCODES[one.kind],
                "data": masks.text(one.data.decode("utf-8", "replace"))
                if one.kind in ("text", "close")
                else b64encode(one.data).decode(),
            }
            for one in record.messages
        ]
    return entry


def _request(record: Record, masks: Masks, *, bodies: bool) -> Json:
    head = read_head(record.head)
    method, _ = request_line(record.head)
    url = masks.url(url_of(record))
    query = url.partition("?")[2].partition("#")[0]
    pairs = parse_qsl("&".join(query.split("&", _MOST_PAIRS)[:_MOST_PAIRS]),
        keep_blank_values=True)  # fmt: skip
    request: Json = {
        "method": method,
        "url": url,
        "httpVersion": head.line.rpartition(" ")[2] or "HTTP/1.1",
        "cookies": [],
        "headers": _headers(head, masks),
        "queryString": [{"name": name, "value": value} for name, value in pairs],
        "headersSize": len(record.head),
        "bodySize": record.request.size,
    }
    if record.request.size:
        text = _text(record.request, head, masks) if bodies else None
        request["postData"] = {
            "mimeType": head.first("content-type") or "application/octet-stream",
            "text": text or "",
            **({} if text is not None else {"comment": "its bytes are left out"}),
            **({"params": _params(text)} if head.kind == FORM and text else {}),
        }
    return request


def _params(text: str) -> list[Json]:
    pairs = parse_qsl("&".join(text.split("&", _MOST_PAIRS)[:_MOST_PAIRS]),
        keep_blank_values=True)  # fmt: skip
    return [{"name": name, "value": value} for name, value in pairs]


def _response(record: Record, masks: Masks, *, bodies: bool) -> Json:
    head = read_head(record.answer_head)
    body, kind = record.answer, head.first("content-type")
    content: Json = {"size": body.size, "mimeType": kind or "x-unknown"}
    if bodies and body.kept:
        text = _text(body, head, masks)
        if text is not None:
            content["text"] = text
        elif not masks.keeps_back(head.kind, head.coding):
            content["text"] = b64encode(body.data).decode()
            content["encoding"] = "base64"
        if body.is_cut:
            content["comment"] = f"the first {body.kept} bytes"
    elif body.kept:
        content["comment"] = "left out: the archive would be too large"
    version, _, rest = head.line.partition(" ")
    return {
        "status": record.status or 0,
        "statusText": rest.partition(" ")[2] or record.failure,
        "httpVersion": version or "HTTP/1.1",
        "cookies": [],
        "headers": _headers(head, masks),
        "content": content,
        "redirectURL": masks.url(head.first("location")),
        "headersSize": len(record.answer_head) or UNKNOWN,
        "bodySize": body.size,
        **({"comment": record.failure} if record.failure else {}),
    }


def _headers(head: Head, masks: Masks) -> list[Json]:
    return [{"name": name, "value": value} for name, value in masks.fields(head.fields)]


def _text(body: Body, head: Head, masks: Masks) -> str | None:
    data, is_cut, coding = unpack(body, head.coding)
    text = None if coding else text_in(data, head, is_cut=is_cut)
    return None if text is None else masks.text(text, head.kind)


def _ms(seconds: float) -> float:
    return round(1_000 * seconds, 2)
