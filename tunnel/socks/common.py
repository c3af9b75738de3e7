"""What the versions of SOCKS share: requests, and the course of a conversation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from tunnel.errors import Code, RemoteStreamError

if TYPE_CHECKING:
    from tunnel.addresses import Address


class SocksCommand(IntEnum):
    """What an app may ask for; SOCKS4 knows the first two."""

    CONNECT = 1
    BIND = 2
    ASSOCIATE = 3


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """What the app asks for; the host is what the app wrote, name or IP address.

    For CONNECT the address is the target, for BIND the peer that the app expects, for
    ASSOCIATE where its datagrams will come from. The last two may be all zeros: not
    known.
    """

    command: SocksCommand
    address: Address


class SocksServer(ABC):
    """The server's half of a conversation, the same however its bytes are cut.

    Feed it with ``receive`` and send what ``take_output`` returns. It is over when
    ``request`` is set (answer it with ``succeed`` or ``fail``; a BIND twice when it
    came to be) or ``refused`` is (close after sending the output). ``leftover`` holds
    what came behind the request: the caller's reads bound it.
    """

    __slots__ = ("_input", "_output", "leftover", "refused", "request")

    _COMMANDS: frozenset[int]

    def __init__(self) -> None:
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
            RemoteStreamError: this is not SOCKS; close, there is nothing to answer.
        """
        if self.refused is not None:
            return
        self._input += data
        while not self.over and self._read_message():
            pass
        if self.request is not None:
            self.leftover += bytes(self._input)
        if self.over:
            self._input.clear()

    def take_output(self) -> bytes:
        """Return what is to be sent now, once."""
        output, self._output = bytes(self._output), bytearray()
        return output

    @abstractmethod
    def succeed(self, bound: Address | None = None) -> bytes:
        """Return the reply that the request is done, with ``bound`` if known.

        For CONNECT that is the exit's own end, for BIND where the exit listens and then
        the peer that came, for ASSOCIATE where the app's datagrams are to go.
        """

    @abstractmethod
    def fail(self, code: Code) -> bytes:
        """Return the reply that says why the request is not done, as far as it can."""

    @abstractmethod
    def _read_message(self) -> bool:
        """Take the next message off the input; return False if it is not there yet."""

    def _check_version(self, version: int, socks: int) -> None:
        if self._input and self._input[0] != version:
            # Kept to one byte: however long a caller goes on, nothing piles up.
            del self._input[1:]
            why = f"not SOCKS{socks}: a message begins with {self._input[0]}"
            raise RemoteStreamError(Code.PROTOCOL, why)

    def _decide(self, command: int, address: Address | None) -> None:
        """Take a whole request, or refuse it."""
        if command not in self._COMMANDS:
            self._refuse(Code.UNSUPPORTED)
        elif address is None or (command == SocksCommand.CONNECT and not address.port):
            # REP 8 (address type not supported) is the nearest that there is for those.
            self._refuse(Code.ADDRESS_UNSUPPORTED)
        else:
            self.request = SocksRequest(SocksCommand(command), address)

    def _refuse(self, code: Code) -> None:
        self.refused = code
        self._output += self.fail(code)
