"""SOCKS5 (RFC 1928, 1929): the server's half of a conversation, and its datagrams.

Bytes in and bytes out. Names are carried, never resolved: that is the exit's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tunnel.addresses import (
    NOWHERE,
    Address,
    AddressKindError,
    ShortAddressError,
    decode_host,
    encode_address,
    parse_ip,
    read_address,
)
from tunnel.errors import CODES, Code
from tunnel.socks.common import SocksCommand, SocksServer

_VERSION: Final = 5
_LOGIN_VERSION: Final = 1
_NO_AUTHENTICATION: Final = 0
_PASSWORD: Final = 2
_NO_METHOD: Final = 0xFF
_LOGIN_FAILED: Final = 1
_GENERAL_FAILURE: Final = 1
_ADDRESS_AT: Final = 3
"""In a request, and in the header of a datagram: behind two reserved bytes and FRAG."""
_FRAGMENT_AT: Final = 2

CheckUser = Callable[[bytes, bytes], bool]
"""Say whether this is the password (second) of this user (first), in constant time."""


class Socks5Server(SocksServer):
    """A conversation of SOCKS5.

    With users the one method is "user and password". Without them it is "no
    authentication", or, for an app that offers only a user and a password, that, and
    any of them will do.

    What is kept before the request is at most 2 + 255 bytes of greeting, 513 of login
    and 262 of request.

    Args:
        check_user: None for a proxy without users.
    """

    __slots__ = ("_check_user", "_reading")

    _COMMANDS = frozenset(SocksCommand)

    def __init__(self, check_user: CheckUser | None = None) -> None:
        super().__init__()
        self._check_user = check_user
        # Functions, not methods of this object: those would hold it, a cycle.
        self._reading: Callable[[Socks5Server], bool] = Socks5Server._read_greeting

    def succeed(self, bound: Address | None = None) -> bytes:
        """Return the reply that the request is done, with ``bound`` if known."""
        if bound is None or parse_ip(bound.host) is None:
            bound = NOWHERE  # a name says nothing that an app could use
        return _reply(0, bound)

    def fail(self, code: Code) -> bytes:
        """Return the reply that says why it is not done."""
        return _reply(CODES[code].socks5 or _GENERAL_FAILURE, NOWHERE)

    def _read_message(self) -> bool:
        return self._reading(self)

    def _read_greeting(self) -> bool:
        buffer = self._input
        self._check_version(_VERSION, 5)
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return False
        end = 2 + buffer[1]
        method = self._method(buffer[2:end])
        self._output += bytes((_VERSION, method))
        if method == _NO_METHOD:
            self.refused = Code.NOT_ALLOWED
        has_login = method == _PASSWORD
        self._reading = (
            Socks5Server._read_login if has_login else Socks5Server._read_request
        )
        del buffer[:end]
        return True

    def _method(self, offered: bytes | bytearray) -> int:
        """Return the method to be used: no password is asked for where none counts."""
        if self._check_user is None and _NO_AUTHENTICATION in offered:
            return _NO_AUTHENTICATION
        return _PASSWORD if _PASSWORD in offered else _NO_METHOD

    def _read_login(self) -> bool:
        buffer = self._input
        self._check_version(_LOGIN_VERSION, 5)
        name_end = 2 + buffer[1] if len(buffer) > 1 else 2
        if len(buffer) <= name_end:
            return False
        end = name_end + 1 + buffer[name_end]
        if len(buffer) < end:
            return False
        name, password = bytes(buffer[2:name_end]), bytes(buffer[name_end + 1 : end])
        right = self._check_user is None or self._check_user(name, password)
        self._output += bytes((_LOGIN_VERSION, 0 if right else _LOGIN_FAILED))
        if not right:
            self.refused = Code.AUTH
        self._reading = Socks5Server._read_request
        del buffer[:end]
        return True

    def _read_request(self) -> bool:
        buffer = self._input
        self._check_version(_VERSION, 5)
        try:
            address, end = _read_target(buffer)
        except ShortAddressError:
            return False
        except AddressKindError:  # nothing behind it can be read either
            self._refuse(Code.ADDRESS_UNSUPPORTED)
            return False
        self._decide(buffer[1], address)
        del buffer[:end]
        return True


def _reply(rep: int, address: Address) -> bytes:
    return bytes((_VERSION, rep, 0)) + encode_address(address)


def _read_target(data: bytes | bytearray) -> tuple[Address | None, int]:
    """Return the address in a message, None if its name cannot be one; and its end.

    Raises:
        ShortAddressError: it is not there as a whole.
        AddressKindError: its length cannot be known.
    """
    host, port, end = read_address(data, _ADDRESS_AT)
    name = decode_host(host) if isinstance(host, bytes) else host
    return None if name is None else Address(name, port), end


# Datagrams (RFC 1928 §7) -------------------------------------------------------------


def encode_datagram(source: Address, payload: bytes) -> bytes:
    """Write the datagram that an app gets: where it comes from, then the payload.

    Raises:
        LocalStreamError: ``source`` is a name that cannot be written.
    """
    return bytes(_ADDRESS_AT) + encode_address(source) + payload


def decode_datagram(data: bytes) -> tuple[Address, bytes] | None:
    """Return where a datagram of the app is to go, and its payload.

    None for one that is to be dropped: cut short, to port 0, to an address that cannot
    be one, or a fragment (RFC 1928 lets us). The reserved bytes are not looked at.
    """
    if len(data) <= _ADDRESS_AT or data[_FRAGMENT_AT]:
        return None
    try:
        target, end = _read_target(data)
    except (ShortAddressError, AddressKindError):
        return None
    return (target, data[end:]) if target is not None and target.port else None
