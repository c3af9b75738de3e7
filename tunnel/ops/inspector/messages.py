"""The messages of a WebSocket, read beside the bytes that pass: within bounds.

What cannot be read, or unpacks into too much, ends the reading and not the WebSocket.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Final

from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

from tunnel.ops.inspector.record import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsproto.frame_protocol import Frame, FrameDecoder

    from tunnel.front.http.observer import Piece

MOST_BYTES: Final = 65_536
"""Kept of a message."""
FED_BYTES: Final = 16_384
"""Read in one go, so that what it unpacks into is small too."""
MOST_UNPACKED: Final = 32
"""Bytes that one byte may unpack into: text gives 10. A bomb, which gives 1,000, would
only cost time."""
BURST_BYTES: Final = 1_048_576
"""Unpacked above that at once: a message of one character, or the same one again."""
UNPACKED_PER_S: Final = 262_144
"""Of that, what comes back in a second."""
READER_BYTES: Final = 4_096
"""Memory of what reads both ways, without a message (measured)."""
UNPACKER_BYTES: Final = 36_000
"""Memory of what unpacks one way: zlib's window of 32 KiB, and its state."""
_EXTENSION: Final = re.compile(
    rb"\r\nsec-websocket-extensions:[ \t]*(permessage-deflate[^\r\n]*)", re.IGNORECASE
)
_TAKEOVER: Final = ("client_no_context_takeover", "server_no_context_takeover")
_KINDS: Final = {
    Opcode.TEXT: "text", Opcode.BINARY: "binary", Opcode.PING: "ping",
    Opcode.PONG: "pong", Opcode.CLOSE: "close",
}  # fmt: skip


class Conversation:
    """Both directions of a WebSocket.

    Args:
        head: of the answer that began it.
    """

    def __init__(self, head: bytes) -> None:
        self.fault = ""
        """Why one direction is read no more."""
        found = _EXTENSION.search(head)
        packed = found[1].decode("latin-1") if found else ""
        self._ways = {True: _Way(True, packed), False: _Way(False, packed)}
        self._usual_bytes = READER_BYTES + (2 * UNPACKER_BYTES if packed else 0)

    @property
    def held_bytes(self) -> int:
        """Memory that reading takes at this moment."""
        return self._usual_bytes + sum(way.begun_bytes for way in self._ways.values())

    def part(self) -> None:
        """Read nothing more, and hold nothing that holds it."""
        for way in self._ways.values():
            way.part()

    def hear(self, data: Piece, at: float, to_visitor: bool) -> Iterator[Message]:
        """Yield the messages that end with what has come."""
        way = self._ways[to_visitor]
        for start in range(0, len(data), FED_BYTES):
            if way.is_over:
                return
            try:
                yield from way.hear(bytes(data[start : start + FED_BYTES]), at)
            except (ParseFailed, ValueError) as error:
                way.is_over = True
                who = "target" if to_visitor else "visitor"
                self.fault = f"messages of the {who} cannot be read: {str(error)[:100]}"
                return


class _Way:
    """One direction."""

    def __init__(self, to_visitor: bool, packed: str) -> None:
        self._unpacker = _Bounded()
        if packed:
            # The largest window reads what was packed with a smaller one.
            takeover = (word for word in _TAKEOVER if word in packed.lower())
            self._unpacker.finalize("; ".join((_Bounded.name, *takeover)))
        # Who receives it is a client; an extension that nobody agreed on is left out.
        self._frames = FrameProtocol(client=to_visitor, extensions=[self._unpacker])
        self._to_visitor = to_visitor
        self._size = 0
        self._begin = bytearray()
        self.is_over = False

    @property
    def begun_bytes(self) -> int:
        return len(self._begin)

    def part(self) -> None:
        self.is_over = True
        # What parses holds its parser: a cycle that would wait for the collector.
        vars(self._frames).pop("_parse_more", None)

    def hear(self, data: bytes, at: float) -> Iterator[Message]:
        self._unpacker.look_at(at)
        self._frames.receive_bytes(data)
        for frame in self._frames.received_frames():
            if frame.opcode.iscontrol():
                yield self._control(frame, at)
                if frame.opcode is Opcode.CLOSE:
                    self.is_over = True
                continue
            payload = frame.payload
            raw = _raw(payload)
            self._size += len(raw)
            self._begin += raw[: MOST_BYTES - len(self._begin)]
            if frame.frame_finished and frame.message_finished:
                yield self._message(frame, self._size, bytes(self._begin), at)
                self._size, self._begin = 0, bytearray()

    def _control(self, frame: Frame, at: float) -> Message:
        raw = _raw(frame.payload)
        return self._message(frame, len(raw), raw, at)

    def _message(self, frame: Frame, size: int, data: bytes, at: float) -> Message:
        return Message(at, self._to_visitor, _KINDS[frame.opcode], size, data)


def _raw(payload: object) -> bytes:
    """Return what a control frame says; of a close its code, and the reason."""
    if isinstance(payload, tuple):
        code, reason = payload
        return f"{int(code)} {reason or ''}".rstrip().encode()
    if isinstance(payload, str):
        return payload.encode()
    return bytes(payload) if isinstance(payload, bytes | bytearray) else b""


class _Bounded(PerMessageDeflate):
    """Unpacks no more than messages may be expected to have."""

    def __init__(self) -> None:
        super().__init__()
        self._room = BURST_BYTES
        self._at = 0.0

    def look_at(self, at: float) -> None:
        """Note the time."""
        more = int((at - self._at) * UNPACKED_PER_S)
        if more > 0:
            self._at, self._room = at, min(self._room + more, BURST_BYTES)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        if not (self._inbound_compressed and self._inbound_is_compressible):
            return data
        packed = self._decompressor
        assert packed is not None  # noqa: S101 - as wsproto does
        try:
            most = self._room + MOST_UNPACKED * len(data)
            out = packed.decompress(data, max(most, 1))
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        if packed.unconsumed_tail:
            raise ParseFailed("they are packed too much")
        self._room = min(most - len(out), BURST_BYTES)
        return out
