"""The pieces that payloads are made of: numbers, texts, addresses, typed fields.

Whatever is missing, left over or malformed raises ``RemoteSessionError``.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, LocalStreamError, RemoteSessionError
from tunnel.proto.calm import Calm, calm
from tunnel.proto.frames import Address
from tunnel.words import printable

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

MAX_FIELDS: Final = 32
"""In one list; three times what any has. An empty one is three bytes, but is not taken
apart for nothing."""
MAX_OFFSET: Final = 1 << 62
"""No offset or count may pass this: far beyond any transfer, far from overflow."""


_pack_tlv: Final = struct.Struct(">BH").pack
_HOST_CHARACTERS: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
)


def broken(what: str) -> RemoteSessionError:
    """Make the error for what ``the peer sent``."""
    return RemoteSessionError(Code.PROTOCOL, f"the peer sent {what}")


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
        form = self.byte()
        if form == 1:
            a, b, c, d, high, low = self.take(6)
            # The library's way costs six times as much.
            return Address(f"{a}.{b}.{c}.{d}", high << 8 | low)
        if form == 4:
            host = str(IPv6Address(self.take(16)))
        elif form == 3:
            host = self.name()
            if not is_host_name(host):
                raise broken(f"a {self._what} with an impossible host name")
        else:
            raise broken(f"a {self._what} with address form {form}")
        return Address(host, self.number(2))

    def left(self) -> int:
        """Return how many bytes are not read."""
        return len(self._bytes) - self._at

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


def decode_text(raw: bytes, what: str) -> str:
    """Read UTF-8; ``what`` it is in is named in the error."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise broken(f"a {what} with text that is not UTF-8") from None


def is_host_name(text: str) -> bool:
    """Say whether this may be a name: 1 to 255 letters, digits, ``.``, ``-``, ``_``.

    Anything else could smuggle a line end, a NUL or a space into a log or a header.
    """
    return 0 < len(text) <= 255 and _HOST_CHARACTERS.issuperset(text)


def encode_address(address: Address) -> bytes:
    """Write the address form of RFC 1928 §5: type, host, port.

    Raises:
        LocalStreamError: ``ADDRESS_UNSUPPORTED`` for a host that cannot be sent.
    """
    return _encode_host(address.host) + address.port.to_bytes(2, "big")


@lru_cache(1_024)
def _encode_host(host: str) -> bytes:
    """Write type and host; remembered, for visitors come from the same again."""
    try:
        ip = ip_address(host)
    except ValueError:
        if not is_host_name(host):
            raise LocalStreamError(
                Code.ADDRESS_UNSUPPORTED, f"{host!r} is not a host name"
            ) from None
        name = host.encode()
        return bytes((3, len(name))) + name
    return bytes((1 if ip.version == 4 else 4,)) + ip.packed


def encode_text(text: str) -> bytes:
    """Write ``u8 length`` and UTF-8, cut at a character if longer than 255 bytes."""
    raw = text.encode(errors="replace")[:255].decode(errors="ignore").encode()
    return bytes((len(raw),)) + raw


def encode_tlvs(tlvs: Mapping[int, bytes]) -> bytes:
    """Write ``u8 type, u16 length, value`` for each."""
    out = b""
    for kind, value in tlvs.items():
        out += _pack_tlv(kind, len(value)) + value
    return out


_MANDATORY_TLVS: Final = 128


def check_tlvs(tlvs: Mapping[int, bytes], known: Container[int]) -> None:
    """Refuse an unknown field below 128; from 128 on they may be ignored.

    Raises:
        RemoteSessionError: ``VERSION``: the peer speaks a later dialect.
    """
    for kind in tlvs:
        if kind < _MANDATORY_TLVS and kind not in known:
            raise RemoteSessionError(
                Code.VERSION, f"the peer needs field {kind}, unknown here"
            )
