"""The addresses of this machine, as they are at the moment.

Linux tells them, and tells when one has come or gone. Elsewhere, and where it is kept
from telling, the kernel is asked about the one address: only an own one can be bound.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
import sys
import time
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUTES_S: Final = 60.0
"""How old what was read may be. Of an address the kernel tells at once; of a whole
network that is routed to this machine it would tell among all other routes."""

# <linux/netlink.h>, <linux/rtnetlink.h>, <linux/if_addr.h>
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = 2
_DONE: Final = 3
_REQUEST_ALL: Final = 0x301
_GET_ADDRESSES: Final = 22
_GET_ROUTES: Final = 26
_ADDRESS_CHANGES: Final = 0x10 | 0x100  # of IPv4 and of IPv6
_SOL_NETLINK: Final = 270
_STRICT: Final = 12  # the kernel looks at what is asked for, since Linux 4.20
_TABLE_LOCAL: Final = 255
_ROUTE_LOCAL: Final = 2
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_BROADCAST: Final = 4
_RTA_DESTINATION: Final = 1
_ANSWER_S: Final = 1.0
_MOST_EVENTS: Final = 64

_Prefixes = dict[tuple[int, int], set[int]]
"""By bytes of an address, and bits behind the prefix."""


class OwnAddresses:
    """All addresses of this machine: ``ip in own``. Keeps one socket for the news."""

    def __init__(self) -> None:
        self._news: socket.socket | None = None
        self._prefixes: _Prefixes | None = None
        self._read_at = -math.inf

    def __contains__(self, ip: object) -> bool:
        if not isinstance(ip, IPv4Address | IPv6Address):
            return False
        if sys.platform == "linux":
            try:
                self._refresh()
            except OSError:  # not even a socket: what was read is not sure any more
                self._prefixes = None
            if self._prefixes is not None:
                size, value = len(ip.packed), int(ip)
                return any(
                    size == of_size and value >> shift in known
                    for (of_size, shift), known in self._prefixes.items()
                )
        return _can_bind(ip)

    def close(self) -> None:
        """Close the socket; the next question opens another."""
        if self._news is not None:
            self._news.close()
            self._news = None

    if sys.platform == "linux":

        def _refresh(self) -> None:
            """Read the addresses again if they may have changed; or raise OSError."""
            now = time.monotonic()
            if self._has_news() or now > self._read_at + ROUTES_S:
                self._prefixes = _read_prefixes()
                self._read_at = now

        def _has_news(self) -> bool:
            if self._news is None:  # open before all is read: nothing is missed
                self._news = _open_netlink(_ADDRESS_CHANGES)
                self._news.setblocking(False)
                return True
            heard = 0
            try:
                while heard < _MOST_EVENTS:
                    self._news.recv(65_536)
                    heard += 1
            except BlockingIOError:
                return heard > 0
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # which says that some were lost
                    raise
            return True


OWN_ADDRESSES: Final = OwnAddresses()
"""Of the process."""


def _can_bind(ip: IPv4Address | IPv6Address) -> bool:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError as error:
        # Without a descriptor nobody knows: then it counts as our own.
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS)
    return True


if sys.platform == "linux":

    def _open_netlink(groups: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            sock.bind((0, groups))
        except OSError:
            sock.close()
            raise
        return sock

    def _read_prefixes() -> _Prefixes:
        """Return all addresses, and the networks that are routed to this machine."""
        found: _Prefixes = {}
        with _open_netlink() as sock:
            sock.settimeout(_ANSWER_S)
            for body in _ask(sock, _GET_ADDRESSES, bytes(8)):
                attributes = dict(_attributes(body, 8))
                # Of a line between two machines ADDRESS is the other one's.
                own = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS, b""))
                for raw in (own, attributes.get(_IFA_BROADCAST, b"")):
                    _add(found, raw, 0)
            try:
                sock.setsockopt(_SOL_NETLINK, _STRICT, 1)
            except OSError:  # an old kernel would tell all routes of the Internet
                return found
            for family in (socket.AF_INET, socket.AF_INET6):
                head = bytes((family, 0, 0, 0, _TABLE_LOCAL, 0, 0, 0)) + bytes(4)
                for body in _ask(sock, _GET_ROUTES, head):
                    raw = dict(_attributes(body, 12)).get(_RTA_DESTINATION, b"")
                    if body[7] == _ROUTE_LOCAL:
                        _add(found, raw, 8 * len(raw) - body[1])
        return found

    def _add(found: _Prefixes, raw: bytes, shift: int) -> None:
        if raw:
            prefix = int.from_bytes(raw, "big") >> shift
            found.setdefault((len(raw), shift), set()).add(prefix)

    def _ask(sock: socket.socket, what: int, head: bytes) -> Iterator[bytes]:
        """Yield the body of each message of the answer; or raise OSError."""
        size = _HEADER.size + len(head)
        sock.sendall(_HEADER.pack(size, what, _REQUEST_ALL, 1, 0) + head)
        while True:
            answer, at = sock.recv(65_536), 0
            while at + _HEADER.size <= len(answer):
                size, kind, _, _, _ = _HEADER.unpack_from(answer, at)
                body = answer[at + _HEADER.size : at + size]
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    raise OSError(code, os.strerror(code))
                yield body
                at += -(-size // 4) * 4

    def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
        while at + _ATTRIBUTE.size <= len(body):
            size, kind = _ATTRIBUTE.unpack_from(body, at)
            if size < _ATTRIBUTE.size:
                return
            yield kind, body[at + _ATTRIBUTE.size : at + size]
            at += -(-size // 4) * 4
