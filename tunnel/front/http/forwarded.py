"""Where a request comes from: the connection, or what a trusted proxy says of it.

X-Forwarded-For, -Proto and -Host, or where there is no X-Forwarded-For, Forwarded
(RFC 7239). Each proxy adds at the right whom it was connected with. So the list is read
from there, for as long as each is a trusted proxy itself; what stands further left was
sent by nobody knows whom.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.access.visitors import VISITORS
from tunnel.addresses import Address, parse_ip, unmapped
from tunnel.front.http.heads import values
from tunnel.front.http.pages import HttpError
from tunnel.front.http.request import host_of

if TYPE_CHECKING:
    from tunnel.front.http.heads import Field
    from tunnel.front.http.request import Request

MAX_HOPS: Final = 32
"""Of a chain; nobody has so many proxies, and each costs a look."""

_NODE: Final = re.compile(r"\[([0-9a-fA-F:.]+)\](?::(\d{1,5}))?|([0-9.]+):(\d{1,5})")
_PAIR: Final = re.compile(r'\s*([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^\s;,"]+)\s*([;,]|$)')


class Origin(NamedTuple):
    """What a target is told about the visitor of a request."""

    visitor: Address
    proto: str
    """``http`` or ``https``."""
    host: str
    """As the visitor wrote it, with its port."""


def origin_of(request: Request, peer: Address, *, secure: bool) -> Origin:
    """Say where a request comes from.

    Args:
        request: what came.
        peer: who is connected.
        secure: by TLS.
    """
    own = Origin(peer, "https" if secure else "http", request.authority)
    visitors = VISITORS.get()
    if not visitors.trusts(peer.host):
        return own
    headers = request.head.fields
    hops = [{"for": hop} for hop in _list(headers, b"x-forwarded-for")]
    if not hops:
        hops = _forwarded(_joined(headers, b"forwarded"))
    known: list[Address] = []
    for hop in hops[: -MAX_HOPS - 1 : -1]:
        address = _node(hop.get("for", ""))
        if address is None:  # "unknown", or nonsense: what is behind it, too
            break
        known.insert(0, address)
    at = visitors.visitor(peer, known) - len(known)
    said = hops[at] if at else {}
    proto = _list(headers, b"x-forwarded-proto") or [said.get("proto", "")]
    host = _list(headers, b"x-forwarded-host") or [said.get("host", "")]
    return Origin(
        known[at] if at else peer,
        _proto(proto[-1]) or own.proto,
        _host(host[-1]) or own.host,
    )


def _joined(headers: list[Field], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for value in values(headers, name))


def _list(headers: list[Field], name: bytes) -> list[str]:
    words = (word.strip() for word in _joined(headers, name).split(","))
    return [word for word in words if word]


def _forwarded(text: str) -> list[dict[str, str]]:
    """Read the elements of Forwarded; none of them if one cannot be read."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while at < len(text):
        found = _PAIR.match(text, at)
        if found is None:
            return []
        name, value, end = found.groups()
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        elements[-1][name.lower()] = value
        if end == ",":
            elements.append({})
        at = found.end()
    return [element for element in elements if element]


def _node(text: str) -> Address | None:
    found = _NODE.fullmatch(text)
    host, port = text, 0
    if found is not None:
        host = found[1] or found[3]
        port = int(found[2] or found[4] or 0)
    ip = parse_ip(host)
    if ip is None or port > 65_535 or "%" in host:
        return None
    return Address(str(unmapped(ip)), port)


def _proto(text: str) -> str:
    word = text.lower()
    return word if word in ("http", "https") else ""


def _host(text: str) -> str:
    try:
        host_of(text)
    except HttpError:
        return ""
    return text
