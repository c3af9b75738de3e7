"""The server's half of a SOCKS5 conversation (RFC 1928, 1929), bytes in and bytes out.

Names are carried, never resolved: that is the exit's business. With users the one
method is "user and password". Without them it is "no authentication", or, for an app
that offers only a user and a password, that, and any of them will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tunnel.addresses import (
    NOWHERE,
    AddressKindError,
    ShortAddressError,
    encode_address,
    parse_ip,
)
from tunnel.errors import CODES, Code, RemoteStreamError
from tunnel.socks.common import SocksCommand, SocksRequest, read_target

if TYPE_CHECKING:
    from tunnel.addresses import Address

_VERSION: Final = 5
_LOGIN_VERSION: Final = 1
_NO_AUTHENTICATION: Final = 0
_PASSWORD: Final = 2
_NO_METHOD: Final = 0xFF
_LOGIN_FAILED: Final = 1
_GENERAL_FAILURE: Final = 1
_ADDRESS_AT: Final = 3
_COMMANDS: Final = frozenset(SocksCommand)

CheckUser = Callable[[bytes, bytes], bool]
"""Say whether this is the password (second) of this user (first), in constant time."""


class Socks5Server:
    """One conversation, the same for every way of cutting its bytes.

    Feed it with ``receive`` and send what ``take_output`` returns. It is over when
    ``request`` is set (answer it with ``succeed`` or ``fail``; a BIND is answered
    twice when it came to be) or ``refused`` is (the answer is in the output already;
    close after sending it).

    What is kept before that is at most 2 + 255 bytes of greeting, 513 of login and 262
    of request; ``leftover`` holds what came behind the request, so it is the caller's
    reads that bound it.

    Args:
        check_user: None for a proxy without users.
    """

    __slots__ = (
        "_check_user",
        "_input",
        "_output",
        "_reading",
        "leftover",
        "refused",
        "request",
    )

    def __init__(self, check_user: CheckUser | None = None) -> None:
        self._check_user = check_user
        self._input = bytearray()
        self._output = bytearray()
        # Functions, not methods of this object: those would hold it, a cycle.
        self._reading: Callable[[Socks5Server], bool] = Socks5Server._read_greeting
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
            RemoteStreamError: this is not SOCKS5; close, there is nothing to answer.
        """
        if self.refused is not None:
            return
        self._input += data
        while not self.over and self._reading(self):
            pass
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
        """Return the reply that it is done, with ``bound`` if known.

        For CONNECT that is the exit's own end, for BIND where the exit listens and then
        the peer that came, for ASSOCIATE where the app's datagrams are to go.
        """
        # A name says nothing that an app could use.
        known = bound is not None and parse_ip(bound.host) is not None
        return _reply(0, bound if bound is not None and known else NOWHERE)

    def fail(self, code: Code) -> bytes:
        """Return the reply that says why it is not done."""
        return _reply(CODES[code].socks5 or _GENERAL_FAILURE, NOWHERE)

    # Each reads one message: True when it was there as a whole and is taken off.

    def _read_greeting(self) -> bool:
        buffer = self._input
        self._check_version(_VERSION)
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
        self._check_version(_LOGIN_VERSION)
        name_end = 2 + buffer[1] if len(buffer) > 1 else 2
        if len(buffer) <= name_end:
            return False
        end = name_end + 1 + buffer[name_end]
        if len(buffer) < end:
            return False
        name, password = bytes(buffer[2:name_end]), bytes(buffer[name_end + 1 : end])
        if self._check_user is None or self._check_user(name, password):
            self._output += bytes((_LOGIN_VERSION, 0))
        else:
            self._output += bytes((_LOGIN_VERSION, _LOGIN_FAILED))
            self.refused = Code.AUTH
        self._reading = Socks5Server._read_request
        del buffer[:end]
        return True

    def _read_request(self) -> bool:
        buffer = self._input
        self._check_version(_VERSION)
        try:
            address, end = read_target(buffer, _ADDRESS_AT)
        except ShortAddressError:
            return False
        except AddressKindError:  # nothing behind it can be read either
            self._refuse(Code.ADDRESS_UNSUPPORTED)
            return False
        command = buffer[1]
        if command not in _COMMANDS:
            self._refuse(Code.UNSUPPORTED)
        elif address is None or (command == SocksCommand.CONNECT and not address.port):
            # REP 8 (address type not supported) is the nearest that there is for those.
            self._refuse(Code.ADDRESS_UNSUPPORTED)
        else:
            self.request = SocksRequest(SocksCommand(command), address)
        del buffer[:end]
        return True

    def _check_version(self, version: int) -> None:
        if self._input and self._input[0] != version:
            # Kept to one byte: however long a caller goes on, nothing piles up.
            del self._input[1:]
            raise RemoteStreamError(
                Code.PROTOCOL, f"not SOCKS5: a message begins with {self._input[0]}"
            )

    def _refuse(self, code: Code) -> None:
        self.refused = code
        self._output += self.fail(code)


def _reply(rep: int, address: Address) -> bytes:
    return bytes((_VERSION, rep, 0)) + encode_address(address)
