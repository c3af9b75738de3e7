"""The pieces that payloads are made of: numbers, texts, addresses, typed fields.

Whatever is missing, left over or malformed raises ``RemoteSessionError``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tunnel.addresses import (
    Address,
    AddressKindError,
    ShortAddressError,
    is_host_name,
    read_address,
)
from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.calm import Calm, calm
from tunnel.words import printable

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

MAX_FIELDS: Final = 32
"""In one list; three times what any has. An empty one is three bytes, but is not taken
apart for nothing."""
MAX_OFFSET: Final = 1 << 62
"""No offset or count may pass this: far beyond any transfer, far from overflow."""
_FIRST_OPTIONAL_TLV: Final = 128
_pack_tlv: Final = struct.Struct(">BH").pack


def illegal(what: str) -> RemoteSessionError:
    """Make the error for something that the peer may not do."""
    return RemoteSessionError(Code.PROTOCOL, what)


def broken(what: str) -> RemoteSessionError:
    """Make the error for what ``the peer sent``."""
    return illegal(f"the peer sent {what}")


class Reader:
    """Take a payload apart; whatever is missing or left over is the peer's fault."""

    __slots__ = ("_at", "_bytes", "_what")

    def __init__(self, payload: bytes, what: str) -> None:
        self._bytes = payload
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """Read ``size`` bytes."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._bytes):
            raise broken(f"a {self._what} that is cut short")
        return self._bytes[start : self._at]

    def byte(self) -> int:
        """Read a number of one byte."""
        # One of these is every second thing that is read: no slice, no second call.
        at, self._at = self._at, self._at + 1
        if at >= len(self._bytes):
            raise broken(f"a {self._what} that is cut short")
        return self._bytes[at]

    def number(self, size: int) -> int:
        """Read a number of ``size`` bytes, the highest first."""
        return int.from_bytes(self.take(size), "big")

    def name(self) -> str:
        """Read text that identifies something, as it was sent."""
        return decode_text(self.take(self.byte()), self._what)

    def text(self) -> str:
        """Read words for people, without what could move a terminal's cursor."""
        return printable(self.name())

    def address(self) -> Address:
        """Read an address as ``encode_address`` writes it."""
        try:
            host, port, self._at = read_address(self._bytes, self._at)
        except ShortAddressError:
            raise broken(f"a {self._what} that is cut short") from None
        except AddressKindError as error:
            raise broken(f"a {self._what} with {error}") from None
        if isinstance(host, bytes):
            host = decode_text(host, self._what)
            if not is_host_name(host):
                raise broken(f"a {self._what} with an impossible host name")
        return Address(host, port)

    def left(self) -> int:
        """Return how many bytes are not read."""
        return len(self._bytes) - self._at

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(self.left())

    def tlvs(self, size: int) -> dict[int, bytes]:
        """Read ``size`` bytes of typed fields."""
        stop = self._at + size
        found: dict[int, bytes] = {}
        while self._at < stop:
            kind = self.byte()
            if kind in found:
                raise broken(f"a {self._what} with field {kind} twice")
            if len(found) == MAX_FIELDS:
                raise calm(Calm.FIELDS)
            found[kind] = self.take(self.number(2))
        if self._at != stop:
            raise broken(f"a {self._what} whose fields overlap its end")
        return found

    def end(self) -> None:
        """Refuse what is left over."""
        if self.left():
            raise broken(f"a {self._what} with {self.left()} bytes too many")


def read_offset(raw: bytes, what: str) -> int:
    """Read an offset or a count; ``what`` it is in is named in the error."""
    number = int.from_bytes(raw, "big")
    if number > MAX_OFFSET:
        raise broken(f"a {what} beyond 2^62")
    return number


def decode_text(raw: bytes, what: str) -> str:
    """Read UTF-8; ``what`` it is in is named in the error."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise broken(f"a {what} with text that is not UTF-8") from None


def encode_text(text: str) -> bytes:
    """Write ``u8 length`` and UTF-8, cut at a character if longer than 255 bytes."""
    raw = text.encode(errors="replace")[:255].decode(errors="ignore").encode()
    return bytes((len(raw),)) + raw


def encode_tlvs(tlvs: Mapping[int, bytes]) -> bytes:
    """Write ``u8 type, u16 length, value`` for each, in the order they are in."""
    return b"".join(_pack_tlv(kind, len(tlvs[kind])) + tlvs[kind] for kind in tlvs)


def check_tlvs(tlvs: Mapping[int, bytes], known: Container[int]) -> None:
    """Refuse an unknown field below 128; from 128 on they may be ignored.

    Raises:
        RemoteSessionError: ``VERSION``: the peer speaks a later dialect.
    """
    for kind in tlvs:
        if kind < _FIRST_OPTIONAL_TLV and kind not in known:
            raise RemoteSessionError(
                Code.VERSION, f"the peer needs field {kind}, unknown here"
            )
