"""Where a request of a proxy goes: ``http://HOST/PATH`` and ``HOST:PORT``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.addresses import Address, decode_host
from tunnel.front.http.heads import HeadError, values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.front.http.heads import Field

HTTP_PORT: Final = 80
_QUOTED: Final = re.compile(rb"%([89A-Fa-f][0-9A-Fa-f])")
"""A byte of UTF-8 that is no ASCII. Those that are were hidden for a reason."""
_SCHEMES: Final = (b"http", b"ws")


class TargetError(HeadError):
    """A request line that names nothing a proxy can reach; the text says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(HTTPStatus(status), text)


@dataclass(frozen=True, slots=True)
class AbsoluteTarget:
    """Where a request in absolute form goes."""

    address: Address
    authority: bytes
    """For the Host field: as it was written, in ASCII."""
    path: bytes
    """With the query; what the origin's request line says."""


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
    authority, path = rest[:end].rpartition(b"@")[2], rest[end:]
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


def check_host(fields: Iterable[Field]) -> None:
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
