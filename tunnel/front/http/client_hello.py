"""The first message of a TLS visitor: which name it wants, and what it can do.

Sans-IO, and read before OpenSSL sees a byte: a name decides whether there is a TLS of
ours at all, and a group decides what a handshake costs. Only what routes is read (RFC
8446 §4.1.2, RFC 6066 §3); who ends the TLS checks the message again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HELLO_BYTES: Final = 16_384
"""A first message has some 600 bytes, with keys against quantum computers 2 KiB."""

X25519: Final = 0x001D
P256: Final = 0x0017

_HANDSHAKE: Final = b"\x16"
_MAJOR_VERSION: Final = b"\x03"
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_SUPPORTED_GROUPS: Final = 10
_ALPN: Final = 16
_KEY_SHARE: Final = 51
_RECORD_HEADER_BYTES: Final = 5
_MAX_RECORD_BYTES: Final = 16_384

UNEXPECTED_MESSAGE: Final = 10
HANDSHAKE_FAILURE: Final = 40
ACCESS_DENIED: Final = 49
ILLEGAL_PARAMETER: Final = 47
DECODE_ERROR: Final = 50
INTERNAL_ERROR: Final = 80
UNRECOGNIZED_NAME: Final = 112
"""Descriptions of alerts (RFC 8446 §6)."""


class ClientHello(NamedTuple):
    """What is read of a first message."""

    name: str = ""
    """As it was written; empty if none was, or none that could be a host's."""
    groups: tuple[int, ...] = ()
    """Key exchanges that the visitor can do; none said means P-256 (RFC 8422 §4)."""
    shares: tuple[int, ...] = ()
    """Those for which it has sent its part already."""
    protocols: tuple[bytes, ...] = ()
    """What it would speak inside, the best first (RFC 7301); none said, none."""


class HelloError(Exception):
    """What came is no first message of TLS.

    Args:
        alert: the description of the alert that says so.
        what: the same in words.
    """

    def __init__(self, alert: int, what: str) -> None:
        super().__init__(what)
        self.alert = alert


def alert_record(description: int) -> bytes:
    """Return a fatal alert as its record."""
    return bytes((21, 3, 3, 0, 2, 2, description))


def read_client_hello(data: bytes | bytearray) -> ClientHello | None:
    """Read what has come so far; None while the message is not whole.

    Raises:
        HelloError: it never will be one, or has more than ``HELLO_BYTES``.
    """
    message = _message(data)
    if message is None:
        return None
    body = _Reader(message)
    version, _random = body.take(2), body.take(32)
    if version[0] != 3:
        raise HelloError(DECODE_ERROR, "a first message of another protocol")
    body.vector(1)  # session id
    body.vector(2)  # cipher suites
    body.vector(1)  # compression
    if not body.left:  # as TLS allowed before there were extensions
        return ClientHello()
    extensions = _extensions(_Reader(body.vector(2)))
    body.end()
    return ClientHello(
        _name(extensions.get(_SERVER_NAME)),
        _groups(extensions.get(_SUPPORTED_GROUPS)),
        _shares(extensions.get(_KEY_SHARE)),
        _protocols(extensions.get(_ALPN)),
    )


def _message(data: bytes | bytearray) -> bytes | None:
    """Return the body of the message, put together from its records."""
    message = bytearray()
    at = 0
    while (size := _record_bytes(data, at)) is not None:
        message += data[at + _RECORD_HEADER_BYTES : at + size]
        at += size
        if message[0] != _CLIENT_HELLO:
            raise HelloError(UNEXPECTED_MESSAGE, "not a first message")
        length = int.from_bytes(message[1:4], "big")
        if len(message) >= 4 + length and len(message) >= 4:
            return bytes(message[4 : 4 + length])
        if len(message) >= 4 and length > HELLO_BYTES:
            break
    else:
        if len(data) <= HELLO_BYTES:
            return None
    raise HelloError(DECODE_ERROR, "a first message without end")


def _record_bytes(data: bytes | bytearray, at: int) -> int | None:
    """Return the size of the record at ``at`` with its header; None: not whole yet."""
    head = data[at : at + _RECORD_HEADER_BYTES]
    if head[:1] not in (b"", _HANDSHAKE) or head[1:2] not in (b"", _MAJOR_VERSION):
        raise HelloError(UNEXPECTED_MESSAGE, "this is not TLS")
    if len(head) < _RECORD_HEADER_BYTES:
        return None
    size = int.from_bytes(head[3:], "big")
    if not 0 < size <= _MAX_RECORD_BYTES:
        raise HelloError(DECODE_ERROR, f"a record of {size} bytes")
    size += _RECORD_HEADER_BYTES
    return size if len(data) >= at + size else None


class _Reader:
    """Takes a message apart."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise HelloError(DECODE_ERROR, "a first message that is cut short")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))

    def end(self) -> None:
        if self.left:
            raise HelloError(DECODE_ERROR, "a first message with bytes too many")


def _extensions(rest: _Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while rest.left:
        kind = rest.number(2)
        if kind in found:
            raise HelloError(ILLEGAL_PARAMETER, f"extension {kind} twice")
        found[kind] = rest.vector(2)
    return found


def _list(raw: bytes) -> _Reader:
    whole = _Reader(raw)
    inner = _Reader(whole.vector(2))
    whole.end()
    return inner


def _name(raw: bytes | None) -> str:
    if raw is None:
        return ""
    names = _list(raw)
    kind, name = names.number(1), names.vector(2)
    names.end()  # there never was a second kind, nor a second name of one
    if kind or not name.isascii():
        return ""
    return name.decode("ascii")


def _groups(raw: bytes | None) -> tuple[int, ...]:
    if raw is None:
        return ()
    groups = _list(raw)
    return tuple(groups.number(2) for _ in range((groups.left + 1) // 2))


def _shares(raw: bytes | None) -> tuple[int, ...]:
    if raw is None:
        return ()
    shares, found = _list(raw), []
    while shares.left:
        found.append(shares.number(2))
        shares.vector(2)
    return tuple(found)


def _protocols(raw: bytes | None) -> tuple[bytes, ...]:
    if raw is None:
        return ()
    names, found = _list(raw), []
    while names.left:
        found.append(names.vector(1))
    return tuple(found)
