"""The server's half of a SOCKS5 conversation (RFC 1928), as bytes in and bytes out.

Names are carried, never resolved: that is the exit's business. Only the method "no
authentication" and the command CONNECT are served.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from tunnel.errors import CODES, Code, RemoteStreamError
from tunnel.proto.frames import Address

_VERSION: Final = 5
_NO_AUTHENTICATION: Final = 0
_NO_METHOD: Final = 0xFF
_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_GENERAL_FAILURE: Final = 1
_NAME_LETTERS: Final = frozenset(string.ascii_letters + string.digits + ".-_")


class SocksCommand(IntEnum):
    """CMD of a request; anything but CONNECT is refused with REP 7."""

    CONNECT = 1


@dataclass(frozen=True, slots=True)
class Socks5Request:
    """What the app asks for; ``address.host`` is what it wrote, name or literal."""

    command: SocksCommand
    address: Address


class Socks5Server:
    """One conversation, the same for every way of cutting its bytes.

    Feed it with ``receive`` and send what ``take_output`` returns. It is over when
    ``request`` is set (answer it with ``succeed`` or ``fail``) or ``refused`` is (the
    answer is in the output already; close after sending it).

    What is kept before that is at most 2 + 255 bytes of greeting and 262 of request;
    ``leftover`` holds what came behind the request, so it is the caller's reads that
    bound it.
    """

    __slots__ = ("_greeted", "_input", "_output", "leftover", "refused", "request")

    def __init__(self) -> None:
        self._greeted = False
        self._input = bytearray()
        self._output = bytearray()
        self.request: Socks5Request | None = None
        self.refused: Code | None = None
        self.leftover = b""

    @property
    def over(self) -> bool:
        """Nothing more is wanted from the app before the answer to its request."""
        return self.request is not None or self.refused is not None

    def receive(self, data: bytes | bytearray) -> None:
        """Take bytes of the app.

        Raises:
            RemoteStreamError: this is not SOCKS5; close, there is nothing to answer.
        """
        if self.refused is not None:
            return
        self._input += data
        if self.request is None:
            self._advance()
        if self.request is not None:
            self.leftover += bytes(self._input)
            self._input.clear()

    def take_output(self) -> bytes:
        """Return what is to be sent now, once."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def succeed(self, bound: Address | None = None) -> bytes:
        """Return the reply that the target is connected, from ``bound`` if known."""
        if bound is None:
            return _reply(0, IPv4Address(0), 0)
        try:
            ip = ip_address(bound.host)
        except ValueError:  # a name says nothing that an app could use
            return _reply(0, IPv4Address(0), 0)
        return _reply(0, ip, bound.port)

    def fail(self, code: Code) -> bytes:
        """Return the reply that says why the target is not connected."""
        return _reply(CODES[code].socks5 or _GENERAL_FAILURE, IPv4Address(0), 0)

    def _advance(self) -> None:
        if not self._greeted:
            self._read_greeting()
        if self._greeted and self.refused is None:
            self._read_request()
        if self.refused is not None:
            self._input.clear()

    def _read_greeting(self) -> None:
        buffer = self._input
        self._check_version()
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return
        end = 2 + buffer[1]
        self._greeted = True
        if _NO_AUTHENTICATION in buffer[2:end]:
            self._output += bytes((_VERSION, _NO_AUTHENTICATION))
        else:
            self._output += bytes((_VERSION, _NO_METHOD))
            self.refused = Code.NOT_ALLOWED
        del buffer[:end]

    def _read_request(self) -> None:
        buffer = self._input
        self._check_version()
        if len(buffer) < 4:
            return
        kind = buffer[3]
        if kind not in (_IPV4, _NAME, _IPV6):
            # Its length is unknown, so nothing behind it can be read either.
            self._refuse(Code.ADDRESS_UNSUPPORTED)
            return
        if kind == _NAME and len(buffer) < 5:
            return
        start = 5 if kind == _NAME else 4
        end = start + (buffer[4] if kind == _NAME else 4 if kind == _IPV4 else 16)
        if len(buffer) < end + 2:
            return
        host = _host(kind, bytes(buffer[start:end]))
        port = int.from_bytes(buffer[end : end + 2], "big")
        if buffer[1] != SocksCommand.CONNECT:
            self._refuse(Code.UNSUPPORTED)
        elif host is None or port == 0:
            self._refuse(Code.ADDRESS_UNSUPPORTED)
        else:
            self.request = Socks5Request(SocksCommand.CONNECT, Address(host, port))
            del buffer[: end + 2]

    def _check_version(self) -> None:
        if self._input and self._input[0] != _VERSION:
            # Kept to one byte: however long a caller goes on, nothing piles up.
            del self._input[1:]
            raise RemoteStreamError(
                Code.PROTOCOL, f"not SOCKS5: a message begins with {self._input[0]}"
            )

    def _refuse(self, code: Code) -> None:
        self.refused = code
        self._output += self.fail(code)


def _host(kind: int, raw: bytes) -> str | None:
    """Return the host as text, or None for a name that no resolver should see.

    REP 8 (address type not supported) is the nearest that RFC 1928 has for those.
    """
    if kind == _IPV4:
        return str(IPv4Address(raw))
    if kind == _IPV6:
        return str(IPv6Address(raw))
    name = raw.decode("latin-1")
    if ":" in name:
        return name if _is_ipv6(name) else None
    return name if name and _NAME_LETTERS.issuperset(name) else None


def _is_ipv6(text: str) -> bool:
    try:
        return IPv6Address(text).scope_id is None  # a scope means this machine's cards
    except ValueError:
        return False


def _reply(rep: int, ip: IPv4Address | IPv6Address, port: int) -> bytes:
    kind = _IPV4 if ip.version == 4 else _IPV6
    return bytes((_VERSION, rep, 0, kind)) + ip.packed + port.to_bytes(2, "big")
