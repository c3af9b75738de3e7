"""The server's half of a SOCKS4 or 4a conversation, as bytes in and bytes out.

Names (4a) are carried, never resolved. SOCKS4 has no password: the user id is read, and
nothing depends on it.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final

from tunnel.addresses import NOWHERE, Address, decode_host, parse_ip
from tunnel.errors import Code
from tunnel.socks.common import SocksCommand, SocksServer

_VERSION: Final = 4
_HEAD_BYTES: Final = 8
"""Version, command, port, address."""
_MAX_TEXT_BYTES: Final = 255
"""Of the user id and of the name, each: what SOCKS5 allows."""
_GRANTED: Final = 90
_REJECTED: Final = 91


class Socks4Server(SocksServer):
    """A conversation; before the request it keeps 8 + 2 * 256 bytes and one read.

    Args:
        closed: refuse everybody, for a proxy with users: there is no password here.
    """

    __slots__ = ("_closed",)

    _COMMANDS = frozenset((SocksCommand.CONNECT, SocksCommand.BIND))

    def __init__(self, *, closed: bool = False) -> None:
        super().__init__()
        self._closed = closed

    def succeed(self, bound: Address | None = None) -> bytes:
        """Return the reply that the request is done, with ``bound`` if it is IPv4."""
        return _reply(_GRANTED, bound or NOWHERE)

    def fail(self, code: Code) -> bytes:
        """Return the reply that it is not done; SOCKS4 has one for all reasons."""
        return _reply(_REJECTED, NOWHERE)

    def _read_message(self) -> bool:
        buffer = self._input
        self._check_version(_VERSION, 4)
        end = user_end = self._text_end(_HEAD_BYTES)
        if user_end is None:
            return False
        ip = bytes(buffer[4:_HEAD_BYTES])
        host: str | None = str(IPv4Address(ip))
        if ip[:3] == bytes(3) and ip[3] != 0:  # 4a: a name follows
            end = self._text_end(user_end)
            if end is None:
                return False
            host = decode_host(bytes(buffer[user_end : end - 1]))
        port = int.from_bytes(buffer[2:4], "big")
        if self._closed:
            self._refuse(Code.AUTH)
        else:
            self._decide(buffer[1], None if host is None else Address(host, port))
        del buffer[:end]
        return True

    def _text_end(self, start: int) -> int | None:
        """Return where the text from ``start`` ends, behind its NUL; None: not yet."""
        end = self._input.find(0, start, start + _MAX_TEXT_BYTES + 1)
        if end >= 0:
            return end + 1
        if len(self._input) > start + _MAX_TEXT_BYTES:
            self._refuse(Code.ADDRESS_UNSUPPORTED)
        return None


def _reply(status: int, address: Address) -> bytes:
    ip = parse_ip(address.host)
    packed = ip.packed if ip is not None and ip.version == 4 else bytes(4)
    return bytes((0, status)) + address.port.to_bytes(2, "big") + packed
