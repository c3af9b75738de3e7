"""The server's half of a SOCKS4 or 4a conversation, as bytes in and bytes out.

Names (4a) are carried, never resolved. SOCKS4 has no password: the user id is read, and
nothing depends on it.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final

from tunnel.addresses import NOWHERE, Address, decode_host, parse_ip
from tunnel.errors import Code, RemoteStreamError
from tunnel.socks.common import SocksCommand, SocksRequest

_VERSION: Final = 4
_HEAD_BYTES: Final = 8
"""Version, command, port, address."""
_MAX_TEXT_BYTES: Final = 255
"""Of the user id and of the name, each: what SOCKS5 allows."""
_GRANTED: Final = 90
_REJECTED: Final = 91
_COMMANDS: Final = (SocksCommand.CONNECT, SocksCommand.BIND)


class Socks4Server:
    """One conversation, the same for every way of cutting its bytes.

    Used like ``Socks5Server``. What is kept before the request is at most 8 + 2 * 256
    bytes and one read of the caller.

    Args:
        closed: refuse everybody, for a proxy with users: there is no password here.
    """

    __slots__ = ("_closed", "_input", "_output", "leftover", "refused", "request")

    def __init__(self, *, closed: bool = False) -> None:
        self._closed = closed
        self._input = bytearray()
        self._output = bytearray()
        self.request: SocksRequest | None = None
        self.refused: Code | None = None
        self.leftover = b""

    @property
    def over(self) -> bool:
        """Nothing more is wanted from the app before the answer to its request."""
        return self.request is not None or self.refused is not None

    def receive(self, data: bytes | bytearray) -> None:
        """Take bytes of the app.

        Raises:
            RemoteStreamError: this is not SOCKS4; close, there is nothing to answer.
        """
        if self.refused is not None:
            return
        self._input += data
        if self.request is None:
            self._read_request()
        if self.request is not None:
            self.leftover += bytes(self._input)
        if self.over:
            self._input.clear()

    def take_output(self) -> bytes:
        """Return what is to be sent now, once."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def succeed(self, bound: Address | None = None) -> bytes:
        """Return the reply that it is done, with ``bound`` if it can be written."""
        return _reply(_GRANTED, bound or NOWHERE)

    def fail(self, code: Code) -> bytes:
        """Return the reply that it is not done; SOCKS4 has one for all reasons."""
        del code
        return _reply(_REJECTED, NOWHERE)

    def _read_request(self) -> None:
        buffer = self._input
        if buffer and buffer[0] != _VERSION:
            del buffer[1:]
            raise RemoteStreamError(
                Code.PROTOCOL, f"not SOCKS4: a message begins with {buffer[0]}"
            )
        user_end = self._text_end(_HEAD_BYTES)
        if user_end is None:
            return
        ip = bytes(buffer[4:_HEAD_BYTES])
        has_name = ip[:3] == bytes(3) and ip[3] != 0
        host: str | None
        if has_name:
            end = self._text_end(user_end)
            if end is None:
                return
            host = decode_host(bytes(buffer[user_end : end - 1]))
        else:
            end, host = user_end, str(IPv4Address(ip))
        self._decide(buffer[1], host, int.from_bytes(buffer[2:4], "big"))
        del buffer[:end]

    def _text_end(self, start: int) -> int | None:
        """Return where the text from ``start`` ends, behind its NUL; None: not here."""
        end = self._input.find(0, start, start + _MAX_TEXT_BYTES + 1)
        if end >= 0:
            return end + 1
        if len(self._input) > start + _MAX_TEXT_BYTES:
            self._refuse(Code.ADDRESS_UNSUPPORTED)
        return None

    def _decide(self, command: int, host: str | None, port: int) -> None:
        if self._closed:
            self._refuse(Code.AUTH)
        elif command not in _COMMANDS:
            self._refuse(Code.UNSUPPORTED)
        elif host is None or (command == SocksCommand.CONNECT and port == 0):
            self._refuse(Code.ADDRESS_UNSUPPORTED)
        else:
            self.request = SocksRequest(SocksCommand(command), Address(host, port))

    def _refuse(self, code: Code) -> None:
        self.refused = code
        self._output += self.fail(code)


def _reply(status: int, address: Address) -> bytes:
    ip = parse_ip(address.host)
    if ip is None or ip.version != 4:  # there is no place for it
        return bytes((0, status)) + address.port.to_bytes(2, "big") + bytes(4)
    return bytes((0, status)) + address.port.to_bytes(2, "big") + ip.packed
