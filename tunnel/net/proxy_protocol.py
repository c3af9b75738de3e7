"""The PROXY protocol, versions 1 and 2: tells a target the address of its visitor.

The header stands before the first byte of a connection. It is written for targets, and
read only from proxies that the user trusts.

    encode_proxy_header     for a target
    read_proxy_header       from bytes
    vouched_peer            from a trusted proxy's connection

Text: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.addresses import Address, IpAddress, parse_ip, unmapped

if TYPE_CHECKING:
    from tunnel.net.sockets import FastSocket

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_VERSION_2_PROXY: Final = 0x21
_TCP: Final = {4: 0x11, 6: 0x21}
_UNSPECIFIED: Final[dict[int, IpAddress]] = {4: IPv4Address(0), 6: IPv6Address(0)}


class ProxyVersion(Enum):
    """The form that a target expects, which cannot be found out by asking it."""

    V1 = "v1"
    V2 = "v2"


def encode_proxy_header(
    version: ProxyVersion, visitor: Address | None, public: Address | None
) -> bytes:
    """Write the header for a connection of ``visitor`` to the address ``public``.

    A visitor without an IP address (unknown, or a unix socket) gets the form "unknown":
    the target then uses the connection's own addresses. A public address that is a
    name, or of the other family, is written as 0.0.0.0 or ``::``.
    """
    source = None if visitor is None else _ip(visitor)
    if visitor is None or source is None:
        if version is ProxyVersion.V1:
            return b"PROXY UNKNOWN\r\n"
        return _SIGNATURE + bytes((_VERSION_2_PROXY, 0, 0, 0))
    destination = _UNSPECIFIED[source.version]
    if public is not None and (ip := _ip(public)) and ip.version == source.version:
        destination = ip
    port = public.port if public is not None else 0
    if version is ProxyVersion.V1:
        text = f"TCP{source.version} {source} {destination} {visitor.port} {port}"
        return f"PROXY {text}\r\n".encode("ascii")
    ports = visitor.port.to_bytes(2, "big") + port.to_bytes(2, "big")
    addresses = source.packed + destination.packed + ports
    head = bytes((_VERSION_2_PROXY, _TCP[source.version], 0, len(addresses)))
    return _SIGNATURE + head + addresses


def _ip(address: Address) -> IpAddress | None:
    """Return an address as a number, without the zone; None for a name."""
    ip = parse_ip(address.host.partition("%")[0])
    return ip and unmapped(ip)


MAX_HEADER_BYTES: Final = 4_096
"""Largest header of version 2, whose length field allows 65,551: more than any load
balancer adds."""
FIRST_S: Final = 0.5
"""How long a first byte may take. A proxy that sends the header does so at once. Behind
one that sends none, a visitor whose server speaks first waits so long for nothing."""
HEADER_S: Final = 3.0
"""How long the rest of a header may take."""
_MAX_LINE_BYTES: Final = 107
_LINE: Final = b"PROXY "
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_SHORTEST: Final = {0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216, 0: 0}


class ProxyHeader(NamedTuple):
    """The header at the start of a connection."""

    size: int
    """Bytes of the header; 0 when there is none."""
    visitor: Address | None = None
    """The visitor that it names; None leaves that to the addresses of the socket."""


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header, of either version, that ``data`` may begin with.

    Returns:
        None while it could still be the beginning of one.

    Raises:
        ValueError: it begins like a header and is none; the text says what is wrong.
    """
    for start, read in ((_LINE, _read_line), (_SIGNATURE, _read_binary)):
        if data[: len(start)] == start[: len(data)]:
            return read(data) if len(data) >= len(start) else None
    return ProxyHeader(0)


def _read_line(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _MAX_LINE_BYTES)
    if end < 0:
        if len(data) >= _MAX_LINE_BYTES:
            raise ValueError(f"no end of the line in {_MAX_LINE_BYTES} bytes")
        return None
    words = data[len(_LINE) : end].decode("ascii").split(" ")
    if words[0] == "UNKNOWN":
        return ProxyHeader(end + 2)
    if len(words) != 5 or words[0] not in ("TCP4", "TCP6"):
        raise ValueError("neither TCP4, TCP6 nor UNKNOWN with its addresses")
    kind = IPv4Address if words[0] == "TCP4" else IPv6Address
    source, _destination = kind(words[1]), kind(words[2])
    port, _ = map(_port, words[3:])
    return ProxyHeader(end + 2, _visitor(source, port))


def _port(word: str) -> int:
    if not (_PORT.fullmatch(word) and int(word) < 65_536):
        raise ValueError("not a port")
    return int(word)


def _read_binary(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    version, command = data[12] >> 4, data[12] & 15
    family, length = data[13], int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1:
        raise ValueError("an unknown version or command")
    size = 16 + length
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"more than {MAX_HEADER_BYTES} bytes")
    if command and (family not in _SHORTEST or length < _SHORTEST[family]):
        raise ValueError("an unknown family, or too short for its addresses")
    if len(data) < size:
        return None
    if not command or family not in _TCP.values():  # its own, a unix socket, UDP
        return ProxyHeader(size)
    width = 4 if family == _TCP[4] else 16
    source = ip_address(data[16 : 16 + width])
    port = int.from_bytes(data[16 + 2 * width : 18 + 2 * width], "big")
    return ProxyHeader(size, _visitor(source, port))


def _visitor(ip: IpAddress, port: int) -> Address:
    if isinstance(ip, IPv6Address) and ip.scope_id:
        raise ValueError("an address with a scope")
    return Address(str(unmapped(ip)), port)


async def vouched_peer(stream: FastSocket, peer: Address) -> Address:
    """Return the visitor that the header names; the peer if there is no header.

    Exactly its bytes are read: what follows is left for the code that serves the
    connection, TLS or not. Nothing was read of ``stream``, a trusted proxy's, before.

    Raises:
        ValueError: the header is broken, never ends, or the proxy has left within it.
    """
    sock = stream.socket
    seen = 0
    try:
        with trio.move_on_after(FIRST_S) as patience:
            while True:
                await trio.lowlevel.wait_readable(sock)
                data = sock.recv(MAX_HEADER_BYTES, socket.MSG_PEEK)
                header = read_proxy_header(data)
                if header is not None:
                    if header.size:
                        sock.recv(header.size)
                    return header.visitor or peer
                if len(data) == seen:
                    break
                if not seen:
                    patience.deadline += HEADER_S
                seen = len(data)
                # Without it the bytes that are there would end each wait at once.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
    except OSError as error:
        raise ValueError(error.strerror) from error
    finally:
        if seen:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    if seen:
        raise ValueError("it ended within its header, or took too long for it")
    return peer
