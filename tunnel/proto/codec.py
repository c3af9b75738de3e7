"""Bytes of a link to ProtFrames: the header, FrameDecoder (protocol.md#header, #kinds).

Kind, number and length are checked with the header, before a byte of the payload is
kept; a frame has no effect before its last byte arrived, and nothing is allocated ahead
of what arrived. Malformed bytes raise ``RemoteSessionError`` and nothing else.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.fields import broken
from tunnel.proto.frames import (
    FIRST_LINK_EXTENSION,
    FIRST_SESSION_EXTENSION,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_SOCK_MAP,
    ProtData,
    ProtFlag,
    ProtKind,
    SockMap,
)
from tunnel.proto.payloads import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tunnel.proto.frames import ProtFrame

MAX_PAYLOAD: Final[Mapping[int, int]] = {
    ProtKind.DATA: MAX_FRAME_BYTES,
    ProtKind.CREATE: 1_024,
    ProtKind.CLOSE: 1_024,
    ProtKind.MAPPING: 65_528,
    ProtKind.HELLO: 4_096,
    ProtKind.AUTH: 1_024,
    ProtKind.PING: 8,
    ProtKind.WINDOW: 8,
    ProtKind.GO_AWAY: 1_024,
    ProtKind.DATAGRAM: 65_535 + 262,
    ProtKind.RECEIVED: 8,
}
"""Largest payload of each kind, in bytes; DATA's is what the receiver announced."""

_STREAM_KINDS: Final = {ProtKind.DATA, ProtKind.CREATE, ProtKind.CLOSE, ProtKind.WINDOW}
SESSION_KINDS: Final = frozenset((*_STREAM_KINDS, ProtKind.MAPPING))
"""Kinds with a place in the session's byte sequence (protocol.md#position)."""

_LINK_ID_KINDS: Final = frozenset(MAX_PAYLOAD) - _STREAM_KINDS - {ProtKind.DATAGRAM}
_EXACT: Final = frozenset((ProtKind.PING, ProtKind.WINDOW, ProtKind.RECEIVED))

_unpack_header: Final = struct.Struct(">II").unpack_from
_KIND_DATA: Final = int(ProtKind.DATA)
_FIN: Final = int(ProtFlag.FIN)


def check_header(
    kind: int, flag: int, sock_map: int, length: int, max_frame: int
) -> None:
    """Refuse what can be refused before a byte of the payload (protocol.md#header).

    Raises:
        RemoteSessionError: ``PROTOCOL``; ``AUTH`` for the reserved kind 0x04.
    """
    limit = MAX_PAYLOAD.get(kind)
    if limit is None:
        if kind == ProtKind.TOKEN:
            raise RemoteSessionError(Code.AUTH, "the peer sent a login in clear text")
        if kind < FIRST_LINK_EXTENSION:
            raise broken(f"a frame of unknown kind {kind:#04x}")
        limit = max_frame
    else:
        if (kind in _LINK_ID_KINDS) != (sock_map == 0):
            raise broken(f"{ProtKind(kind).name} with sock_map {sock_map}")
        if kind in _EXACT and length != limit:
            raise broken(f"{ProtKind(kind).name} with a payload of {length} bytes")
        if kind == _KIND_DATA:
            limit = max_frame
            if not length and not flag & _FIN:
                raise broken("an empty DATA without FIN")
    if length > limit:
        raise broken(f"a payload of {length} bytes where {limit} are allowed")


def decode_one(
    data: bytes, max_frame: int = MAX_FRAME_BYTES
) -> tuple[ProtFrame, int] | None:
    """Return the first frame of ``data`` and its size, or None when it is incomplete.

    For the few frames of a link start; a running link uses ``FrameDecoder``.

    Raises:
        RemoteSessionError: as soon as the header is there, if it is illegal.
    """
    if len(data) < HEADER_BYTES:
        return None
    first, second = _unpack_header(data)
    size = HEADER_BYTES + (first >> 8)
    head = first & 0xFF, second >> 24, second & MAX_SOCK_MAP
    check_header(*head, first >> 8, max_frame)
    if len(data) < size:
        return None
    return decode(*head, data[HEADER_BYTES:size]), size


def _admit_all(kind: int, flag: int, sock_map: int, length: int) -> None:
    """Stand in for a core that allows every frame."""


class FrameDecoder:
    """Turn what the peer of a link sends, split in any way, into frames.

    Args:
        max_frame: the largest DATA payload that this side announced.
        admit: called with the header of a frame whose payload is still on its way, so
            that state and credit refuse it before its payload is kept. It raises.

    What is kept between calls is at most one incomplete frame.
    """

    __slots__ = ("_admit", "_held", "_max_frame", "_size", "session_bytes")

    def __init__(
        self,
        max_frame: int = MAX_FRAME_BYTES,
        admit: Callable[[int, int, int, int], None] = _admit_all,
    ) -> None:
        self._max_frame = max_frame
        self._admit = admit
        self._held = bytearray()
        self._size = 0
        self.session_bytes = 0
        """Bytes of the session frames that were given out whole."""

    @property
    def held_bytes(self) -> int:
        """Bytes of the incomplete frame."""
        return len(self._held)

    def let_go(self) -> None:
        """Ask nobody any more; nothing is fed after this."""
        self._admit = _admit_all

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[ProtFrame]:
        """Yield the frames that ``data`` completes, in order.

        To be read to its end before the next call. The payloads of DATA are views into
        ``data``: whoever keeps one copies it before the buffer is used again.

        Raises:
            RemoteSessionError: where the first illegal frame begins; the frames before
                it have been yielded by then. The decoder is of no use after that.
        """
        max_frame = self._max_frame
        for view in self._complete(data) if self._held else (memoryview(data),):
            at, end = 0, len(view)
            while end - at >= HEADER_BYTES:
                first, second = _unpack_header(view, at)
                start = at + HEADER_BYTES
                stop = start + (first >> 8)
                if stop > end:
                    self._size = self._begin(view, at)
                    break
                kind = first & 0xFF
                # Most frames are well-formed DATA: one test, no calls, for those.
                if (
                    kind == _KIND_DATA
                    and at + 8 < stop <= start + max_frame
                    and (sock_map := second & MAX_SOCK_MAP)
                ):
                    self.session_bytes += stop - at
                    yield ProtData(
                        SockMap(sock_map), view[start:stop], second >> 28 & 1 == 1
                    )
                else:
                    head = kind, second >> 24, second & MAX_SOCK_MAP
                    check_header(*head, first >> 8, max_frame)
                    frame = decode(*head, bytes(view[start:stop]))
                    if kind in SESSION_KINDS or kind >= FIRST_SESSION_EXTENSION:
                        self.session_bytes += stop - at
                    yield frame
                at = stop
            if at < end:
                self._held += view[at:]

    def _complete(self, data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
        """Yield the held frame when ``data`` completes it, then what comes behind."""
        view = memoryview(data)
        at = self._fill(view)
        if self._size and len(self._held) == self._size:
            held, self._held, self._size = self._held, bytearray(), 0
            yield memoryview(held)
        yield view[at:]

    def _fill(self, view: memoryview) -> int:
        """Complete the held header, then the held frame; return how much was used."""
        used = 0
        if not self._size:
            used = min(HEADER_BYTES - len(self._held), len(view))
            self._held += view[:used]
            if len(self._held) < HEADER_BYTES:
                return used
            self._size = self._begin(self._held, 0)
        more = min(self._size - len(self._held), len(view) - used)
        self._held += view[used : used + more]
        return used + more

    def _begin(self, data: bytearray | memoryview, at: int) -> int:
        """Check a header whose payload is not all there; return the frame's size."""
        first, second = _unpack_header(data, at)
        head = first & 0xFF, second >> 24, second & MAX_SOCK_MAP, first >> 8
        check_header(*head, self._max_frame)
        self._admit(*head)
        return HEADER_BYTES + int(first >> 8)
