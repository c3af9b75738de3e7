"""What the HTTP front ends believe of a head, what of it goes on, and its limits.

Pure functions over the fields that h11 has parsed: heads are never looked at as text,
and what is sent on is written anew from what these return.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.addresses import Address, decode_host

if TYPE_CHECKING:
    from collections.abc import Iterable

Fields = list[tuple[bytes, bytes]]
"""Names as they were written, and values."""

HEAD_BYTES: Final = 65_536
"""A head may have no more."""
MAX_FIELDS: Final = 100
"""Browsers send about 20; the size of a head alone would allow 16,000."""
HEAD_S: Final = 10.0
"""From the first byte of a head to its last: honest ones need one round trip."""
BETWEEN_S: Final = 75.0
"""Between two requests: longer than most browsers and proxies keep one idle, so that
they close first."""
HTTP_PORT: Final = 80
_HIGH: Final = re.compile(rb"[\x80-\xff]")
_QUOTED: Final = re.compile(rb"%([89A-Fa-f][0-9A-Fa-f])")
"""A byte of UTF-8 that is no ASCII. Those that are were hidden for a reason."""
_SCHEMES: Final = (b"http", b"ws")

# RFC 9110 §7.6.1, and what older programs use.
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)
NEVER_BY_CONNECTION: Final = frozenset(
    # Connection may name what is meant for one hop; it cannot take these away.
    (
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"max-forwards",
        b"range",
        b"set-cookie",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    )
)


class TargetError(ValueError):
    """A request line that names nothing a proxy can reach; the text says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class AbsoluteTarget:
    """Where a request in absolute form goes."""

    address: Address
    authority: bytes
    """For the Host field: as it was written, in ASCII."""
    path: bytes
    """With the query; what the origin's request line says."""


def quoted_line(data: bytes) -> bytes:
    """Return the start of a head, its first line in ASCII.

    Some programs write a name, or a path, in UTF-8; RFC 3986 has ``%C3%BC`` for that.
    """
    line, end, rest = data.partition(b"\n")
    if line.isascii():
        return data
    return _HIGH.sub(lambda found: b"%%%02X" % ord(found[0]), line) + end + rest


def without_frames(error: Exception) -> Exception:
    """Return an error of h11 or of ours without its traceback.

    h11's own code keeps an error in a frame that the error's traceback holds, and so
    does who keeps one to say it later: a cycle, which only the collector frees.
    """
    return error.with_traceback(None)


def absolute_target(target: bytes, method: bytes) -> AbsoluteTarget:
    """Take apart ``http://HOST[:PORT]/PATH`` (RFC 9112 §3.2.2).

    Raises:
        TargetError: not that, or with something in it that a parser may take otherwise.
    """
    scheme, separator, rest = target.partition(b"://")
    if not separator:
        raise TargetError(
            400,
            "This is a proxy (HTTP, SOCKS5 and SOCKS4 on one port), not a web server. "
            "Set it as the proxy of a program and ask for http://HOST/PATH.",
        )
    if scheme.lower() not in _SCHEMES:
        raise TargetError(
            501, "Only http:// is fetched here; use CONNECT for anything else."
        )
    end = min(i for i in (rest.find(b"/"), rest.find(b"?"), len(rest)) if i >= 0)
    authority, path = rest[:end], rest[end:]
    if b"#" in rest:
        raise TargetError(400, "A fragment (#) does not belong into a request.")
    address = _authority(authority, HTTP_PORT)
    if b"%" in authority:  # a name in another script: its other form for the origin too
        host, colon, port = authority.rpartition(b":")
        authority = address.host.encode() + (colon + port if host else b"")
    if not path and method == b"OPTIONS":
        path = b"*"
    elif not path.startswith(b"/"):
        path = b"/" + path
    return AbsoluteTarget(address, authority, path)


def connect_target(target: bytes) -> Address:
    """Read ``HOST:PORT``, the target of a CONNECT (RFC 9112 §3.2.3).

    Since there is always a port, an IPv6 address may stand without brackets.

    Raises:
        TargetError: not that.
    """
    return _authority(target, None)


def _authority(raw: bytes, default_port: int | None) -> Address:
    host, colon, port = raw.rpartition(b":")
    if raw.endswith(b"]") or not colon:
        host, colon, port = raw, b"", b""
    in_brackets = host.startswith(b"[")
    needs_brackets = default_port is not None and b":" in host
    if b"%" in host and not in_brackets:
        host = _QUOTED.sub(lambda found: bytes.fromhex(found[1].decode()), host)
    name = None if needs_brackets and not in_brackets else decode_host(host)
    if name is None:
        raise TargetError(400, "The request names no host that could be asked for.")
    if not colon and default_port is not None:
        return Address(name, default_port)
    if not (port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        raise TargetError(400, "The request names no port from 1 to 65535.")
    return Address(name, int(port))


def check_host(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a Host field that is none; nothing else depends on it (RFC 9112 §3.2).

    Raises:
        TargetError: not ``HOST[:PORT]``.
    """
    for host in values(fields, b"host"):
        if not host:  # the target has no authority
            continue
        try:
            _authority(host, HTTP_PORT)
        except TargetError:
            _authority(host, None)  # an IPv6 address without brackets, as CONNECT has


def passed_on(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return the end-to-end fields: what is for this hop alone is left out.

    So is Trailer: who asks for these does not keep trailers.
    """
    fields = list(fields)
    named = set(tokens(fields, b"connection")) - NEVER_BY_CONNECTION
    gone = HOP_BY_HOP | named | {b"trailer"}
    return [(name, value) for name, value in fields if name.lower() not in gone]


def tokens(fields: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """Return the comma-separated values of all fields of a name, in lower case."""
    return [
        token.strip().lower()
        for value in values(fields, wanted)
        for token in value.split(b",")
        if token.strip()
    ]


def values(fields: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """Return the values of all fields of a name, which is given in lower case."""
    return [value for name, value in fields if name.lower() == wanted]


def without(fields: Fields, *names: bytes) -> Fields:
    """Return the fields that do not have one of these names, given in lower case."""
    return [(name, value) for name, value in fields if name.lower() not in names]


def is_ambiguous(fields: Fields, http_version: bytes) -> bool:
    """Say whether two parsers could find two ends of this message (RFC 9112 §6.1)."""
    coded = bool(values(fields, b"transfer-encoding"))
    return coded and (bool(values(fields, b"content-length")) or http_version < b"1.1")


def has_body(fields: Fields) -> bool:
    """Say whether a request has a body."""
    lengths = values(fields, b"content-length")
    coded = values(fields, b"transfer-encoding")
    return bool(coded) or any(int(length) for length in lengths)


def wants_websocket(fields: Fields) -> bool:
    """Say whether a request asks for an upgrade that is passed on.

    Only WebSocket is: what else there is (h2c) would have to be understood here.
    """
    return b"upgrade" in tokens(fields, b"connection") and tokens(
        fields, b"upgrade"
    ) == [b"websocket"]
