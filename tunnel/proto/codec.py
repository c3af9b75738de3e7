"""Bytes to ProtFrames and back (protocol.md#header, #kinds).

Kind, number and length are checked with the header, before a byte of the payload is
kept; a frame has no effect before its last byte arrived, and nothing is allocated ahead
of what arrived. Malformed bytes raise ``RemoteSessionError`` and nothing else.

This module knows no state and no credit: ``admit`` asks the core about those.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tunnel.addresses import (
    Address,
    AddressKindError,
    ShortAddressError,
    encode_address,
    is_host_name,
    read_address,
)
from tunnel.errors import CODES, Code, RemoteSessionError
from tunnel.proto.calm import Calm, calm
from tunnel.proto.frames import (
    FIRST_LINK_EXTENSION,
    FIRST_SESSION_EXTENSION,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_MAPPING_COUNT,
    MAX_MAPPING_ENTRIES,
    MAX_SOCK_MAP,
    PROTOCOL_VERSION,
    BindTarget,
    CreateType,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    NameTarget,
    OtherTarget,
    ProtAccept,
    ProtAuth,
    ProtAuthAnswer,
    ProtClose,
    ProtCreate,
    ProtData,
    ProtDatagram,
    ProtExtension,
    ProtFlag,
    ProtGoAway,
    ProtHello,
    ProtKind,
    ProtMapping,
    ProtMappingAnswer,
    ProtPing,
    ProtReceived,
    ProtWindow,
    SockMap,
    TcpTarget,
    UdpTarget,
    UnixPath,
)
from tunnel.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from tunnel.proto.frames import ProtFrame, Target

MAGIC: Final = b"PROT"

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

SESSION_KINDS: Final = frozenset(
    (
        ProtKind.DATA,
        ProtKind.CREATE,
        ProtKind.CLOSE,
        ProtKind.MAPPING,
        ProtKind.WINDOW,
    )
)
"""Kinds with a place in the session's byte sequence (protocol.md#position)."""

_LINK_ID_KINDS: Final = frozenset(
    (
        ProtKind.MAPPING,
        ProtKind.HELLO,
        ProtKind.AUTH,
        ProtKind.PING,
        ProtKind.GO_AWAY,
        ProtKind.RECEIVED,
    )
)
_EXACT: Final = frozenset((ProtKind.PING, ProtKind.WINDOW, ProtKind.RECEIVED))

_HEADER: Final = struct.Struct(">II")
_pack_tlv: Final = struct.Struct(">BH").pack
_pack_header: Final = _HEADER.pack
_unpack_header: Final = _HEADER.unpack_from
_KIND_DATA: Final = int(ProtKind.DATA)
_KIND_CLOSE: Final = int(ProtKind.CLOSE)
_KIND_CREATE: Final = int(ProtKind.CREATE)
_KIND_WINDOW: Final = int(ProtKind.WINDOW)
_ACK: Final = int(ProtFlag.ACK)
_FIN: Final = int(ProtFlag.FIN)

MAX_FIELDS: Final = 32
"""In one list; three times what any has. An empty one is three bytes, but is not taken
apart for nothing."""
MAX_OFFSET: Final = 1 << 62
"""No offset or count may pass this: far beyond any transfer, far from overflow."""


def _broken(what: str) -> RemoteSessionError:
    return RemoteSessionError(Code.PROTOCOL, f"the peer sent {what}")


def data_header(sock_map: int, length: int, *, fin: bool = False) -> bytes:
    """Give the eight bytes in front of ``length`` payload bytes of a DATA frame."""
    return _pack_header(length << 8, (_FIN << 24 | sock_map) if fin else sock_map)


def _frame(kind: int, flag: int, sock_map: int, payload: bytes) -> bytes:
    return _pack_header(len(payload) << 8 | kind, flag << 24 | sock_map) + payload


# Pieces of payloads ----------------------------------------------------------------


class _Reader:
    """Takes a payload apart; whatever is missing or left over is the peer's fault."""

    __slots__ = ("_at", "_bytes", "_what")

    def __init__(self, payload: bytes, what: str) -> None:
        self._bytes = payload
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._bytes):
            raise _broken(f"a {self._what} that is cut short")
        return self._bytes[start : self._at]

    def byte(self) -> int:
        # One of these is every second thing that is read: no slice, no second call.
        at, self._at = self._at, self._at + 1
        if at >= len(self._bytes):
            raise _broken(f"a {self._what} that is cut short")
        return self._bytes[at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def name(self) -> str:
        """Read text that identifies something, as it was sent."""
        return _text(self.take(self.byte()), self._what)

    def text(self) -> str:
        """Read words for people, without what could move a terminal's cursor."""
        return printable(self.name())

    def address(self) -> Address:
        try:
            host, port, self._at = read_address(self._bytes, self._at)
        except ShortAddressError:
            raise _broken(f"a {self._what} that is cut short") from None
        except AddressKindError as error:
            raise _broken(f"a {self._what} with {error}") from None
        if isinstance(host, bytes):
            host = _text(host, self._what)
            if not is_host_name(host):
                raise _broken(f"a {self._what} with an impossible host name")
        return Address(host, port)

    def left(self) -> int:
        return len(self._bytes) - self._at

    def tlvs(self, size: int) -> dict[int, bytes]:
        stop = self._at + size
        found: dict[int, bytes] = {}
        while self._at < stop:
            kind = self.byte()
            if kind in found:
                raise _broken(f"a {self._what} with field {kind} twice")
            if len(found) == MAX_FIELDS:
                raise calm(Calm.FIELDS)
            found[kind] = self.take(self.number(2))
        if self._at != stop:
            raise _broken(f"a {self._what} whose fields overlap its end")
        return found

    def end(self) -> None:
        if self.left():
            raise _broken(f"a {self._what} with {self.left()} bytes too many")


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _broken(f"a {what} with text that is not UTF-8") from None


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


def _code_for(frame: str, number: int, otherwise: Code) -> Code:
    """Codes that a later version may send are read as the most general one."""
    try:
        code = Code(number)
    except ValueError:
        return otherwise
    return code if frame in CODES[code].frames else otherwise


# Encoding --------------------------------------------------------------------------


def close_frame(sock_map: int, code: Code = Code.NORMAL, reason: str = "") -> bytes:
    """Write a CLOSE, of which every connection needs one or two."""
    if not code and not reason:
        return _pack_header(_KIND_CLOSE, sock_map)
    payload = code.to_bytes(2, "big") + encode_text(reason)
    return _frame(ProtKind.CLOSE, 0, sock_map, payload)


def _create_payload(frame: ProtCreate) -> bytes:
    tlvs: dict[int, bytes] = {}
    if frame.visitor is not None:
        tlvs[1] = encode_address(frame.visitor)
    if frame.deadline_ms is not None:
        tlvs[2] = frame.deadline_ms.to_bytes(4, "big")
    if frame.host_name is not None:
        tlvs[3] = frame.host_name.encode()
    if frame.exit is not None:
        tlvs[4] = frame.exit.encode()
    target = frame.target
    if isinstance(target, OtherTarget):
        return bytes((target.type,)) + target.body
    return _target_payload(target) + encode_tlvs(tlvs)


def _target_payload(
    target: TcpTarget | NameTarget | UdpTarget | UnixPath | BindTarget,
) -> bytes:
    match target:
        case TcpTarget(address):
            return bytes((CreateType.TCP,)) + encode_address(address)
        case UnixPath(path):
            return bytes((CreateType.UNIX,)) + encode_text(path)
        case BindTarget(expected):
            return bytes((CreateType.BIND,)) + encode_address(expected)
        case _:
            udp = isinstance(target, UdpTarget)
            kind = CreateType.UDP if udp else CreateType.NAME
            name = encode_text(target.name)
            return bytes((kind,)) + name + target.index.to_bytes(2, "big")


def _entry_payload(entry: MappingEntry) -> bytes:
    return (
        bytes((entry.type,))
        + encode_text(entry.name)
        + encode_text(entry.host)
        + entry.port.to_bytes(2, "big")
        + entry.count.to_bytes(2, "big")
        + b"\0\0"
    )


def _answer_payload(answer: MappingAnswer) -> bytes:
    return (
        answer.code.to_bytes(2, "big")
        + encode_text(answer.host)
        + answer.port.to_bytes(2, "big")
        + encode_text(answer.reason)
    )


def auth_before_proof(frame: ProtAuth) -> bytes:
    """Give the payload of AUTH up to its proof: what the proof is made over."""
    resume = b"\0"
    if frame.session_id:
        resume = (
            b"\1"
            + frame.session_id
            + frame.count.to_bytes(8, "big")
            + frame.resume_proof
        )
    return (
        encode_text(frame.name)
        + frame.link_no.to_bytes(4, "big")
        + resume
        + encode_tlvs(frame.tlvs)
    )


def auth_answer_before_proof(frame: ProtAuthAnswer) -> bytes:
    """Give the payload of the server's AUTH up to its proof."""
    return (
        frame.session_id
        + frame.count.to_bytes(8, "big")
        + bytes((frame.resumed,))
        + encode_tlvs(frame.tlvs)
    )


def _hello_payload(frame: ProtHello) -> bytes:
    versions = bytes((frame.min_version, frame.max_version))
    return MAGIC + versions + frame.nonce + encode_tlvs(frame.tlvs)


def encode(frame: ProtFrame) -> bytes:  # noqa: C901, PLR0912 - one flat case per kind
    """Write one frame, header and payload.

    The caller keeps to the sizes of ``MAX_PAYLOAD``; a CREATE whose host cannot be
    written raises ``LocalStreamError``.
    """
    match frame:
        case ProtData(sock_map, payload, fin):
            return data_header(sock_map, len(payload), fin=fin) + payload
        case ProtWindow(sock_map, limit):
            return _frame(ProtKind.WINDOW, 0, sock_map, limit.to_bytes(8, "big"))
        case ProtClose(sock_map, code, reason):
            return close_frame(sock_map, code, reason)
        case ProtCreate(sock_map):
            return _frame(ProtKind.CREATE, 0, sock_map, _create_payload(frame))
        case ProtAccept(sock_map, bound):
            payload = b"" if bound is None else encode_address(bound)
            return _frame(ProtKind.CREATE, _ACK, sock_map, payload)
        case ProtMapping(op, entries):
            payload = bytes((op,)) + len(entries).to_bytes(2, "big")
            payload += b"".join(map(_entry_payload, entries))
            return _frame(ProtKind.MAPPING, 0, 0, payload)
        case ProtMappingAnswer(answers):
            payload = len(answers).to_bytes(2, "big")
            payload += b"".join(map(_answer_payload, answers))
            return _frame(ProtKind.MAPPING, _ACK, 0, payload)
        case ProtHello(ack):
            return _frame(ProtKind.HELLO, _ACK if ack else 0, 0, _hello_payload(frame))
        case ProtAuth():
            payload = auth_before_proof(frame) + frame.proof
            return _frame(ProtKind.AUTH, 0, 0, payload)
        case ProtAuthAnswer():
            payload = auth_answer_before_proof(frame) + frame.proof
            return _frame(ProtKind.AUTH, _ACK, 0, payload)
        case ProtPing(opaque, ack):
            return _frame(ProtKind.PING, _ACK if ack else 0, 0, opaque)
        case ProtGoAway(code, retry_after_s, reason):
            payload = code.to_bytes(2, "big") + retry_after_s.to_bytes(2, "big")
            return _frame(ProtKind.GO_AWAY, 0, 0, payload + encode_text(reason))
        case ProtDatagram(sock_map, address, payload):
            return _frame(
                ProtKind.DATAGRAM, 0, sock_map, encode_address(address) + payload
            )
        case ProtReceived(count):
            return _frame(ProtKind.RECEIVED, 0, 0, count.to_bytes(8, "big"))
        case ProtExtension(kind, sock_map, size):
            return _frame(kind, 0, sock_map, bytes(size))


# Decoding --------------------------------------------------------------------------


def _decode_create(sock_map: SockMap, payload: bytes) -> ProtCreate:
    reader = _Reader(payload, "CREATE")
    kind = reader.byte()
    read = _TARGETS.get(kind)
    if read is None:
        return ProtCreate(sock_map, OtherTarget(kind, payload[1:]))
    target = read(reader)
    tlvs = reader.tlvs(reader.left())
    check_tlvs(tlvs, _CREATE_TLVS)
    visitor = deadline = None
    if 1 in tlvs:
        field = _Reader(tlvs[1], "visitor's address")
        visitor = field.address()
        field.end()
    if 2 in tlvs:
        field = _Reader(tlvs[2], "deadline")
        deadline = field.number(4)
        field.end()
    return ProtCreate(
        sock_map, target, visitor, deadline, _tlv_text(tlvs, 3), _tlv_text(tlvs, 4)
    )


_CREATE_TLVS: Final = range(1, 5)
_TARGETS: Final[Mapping[int, Callable[[_Reader], Target]]] = {
    CreateType.TCP: lambda reader: TcpTarget(reader.address()),
    CreateType.NAME: lambda reader: NameTarget(reader.name(), reader.number(2)),
    CreateType.UDP: lambda reader: UdpTarget(reader.name(), reader.number(2)),
    CreateType.UNIX: lambda reader: UnixPath(reader.name()),
    CreateType.BIND: lambda reader: BindTarget(reader.address()),
}


def _tlv_text(tlvs: Mapping[int, bytes], kind: int) -> str | None:
    # No host and no exit has a name with a "?", so nothing is mistaken for another.
    return printable(_text(tlvs[kind], "field")) if kind in tlvs else None


def _decode_accept(sock_map: SockMap, payload: bytes) -> ProtAccept:
    if not payload:
        return ProtAccept(sock_map)
    reader = _Reader(payload, "CREATE|ACK")
    bound = reader.address()
    reader.end()
    return ProtAccept(sock_map, bound)


def _decode_close(sock_map: SockMap, payload: bytes) -> ProtClose:
    if not payload:
        return ProtClose(sock_map)
    reader = _Reader(payload, "CLOSE")
    code = _code_for("C", reader.number(2), Code.GENERAL)
    reason = reader.text()
    reader.end()
    return ProtClose(sock_map, code, reason)


def _count(reader: _Reader) -> int:
    """Read how many entries follow, before one of them is taken apart."""
    count = reader.number(2)
    if count > MAX_MAPPING_COUNT:
        raise calm(Calm.NAMES)
    return count


def _decode_mapping(payload: bytes) -> ProtMapping:
    reader = _Reader(payload, "MAPPING")
    op = reader.byte()
    if op not in (MappingOp.ADD, MappingOp.REMOVE, MappingOp.REPLACE):
        raise _broken(f"a MAPPING with operation {op}")
    entries: list[MappingEntry] = []
    size = _count(reader)
    for _ in range(size):
        kind, name, host = reader.byte(), reader.name(), reader.name()
        port, count = reader.number(2), reader.number(2)
        check_tlvs(reader.tlvs(reader.number(2)), ())
        if host and not is_host_name(host.removeprefix("*.").replace(":", ".")):
            raise _broken("a MAPPING with an impossible host name")
        if len(entries) < MAX_MAPPING_ENTRIES:
            entries.append(MappingEntry(kind, name, host, port, count))
    reader.end()
    return ProtMapping(MappingOp(op), entries, size - len(entries))


def _decode_mapping_answer(payload: bytes) -> ProtMappingAnswer:
    reader = _Reader(payload, "MAPPING|ACK")
    answers = []
    for _ in range(_count(reader)):
        code = _code_for("M", reader.number(2), Code.GENERAL)
        host, port = reader.text(), reader.number(2)
        answers.append(MappingAnswer(code, host, port, reader.text()))
    reader.end()
    return ProtMappingAnswer(answers)


def _decode_hello(ack: bool, payload: bytes) -> ProtHello:
    reader = _Reader(payload, "HELLO")
    if reader.take(4) != MAGIC:
        raise _broken("a HELLO of another protocol")
    low, high = reader.byte(), reader.byte()
    hello = ProtHello(ack, low, high, reader.take(32))
    # Of a version that is not spoken here, nobody knows how the fields are written.
    if low <= PROTOCOL_VERSION <= (low if ack else high):
        hello.tlvs = reader.tlvs(reader.left())
    return hello


def _decode_auth(payload: bytes) -> ProtAuth:
    reader = _Reader(payload, "AUTH")
    auth = ProtAuth(reader.name(), reader.number(4))
    resume = reader.byte()
    if resume > 1:
        raise _broken(f"an AUTH with resume {resume}")
    if resume:
        auth.session_id = reader.take(16)
        auth.count = reader.number(8)
        auth.resume_proof = reader.take(32)
    auth.tlvs = reader.tlvs(max(reader.left() - 32, 0))
    auth.proof = reader.take(32)
    return auth


def _decode_auth_answer(payload: bytes) -> ProtAuthAnswer:
    reader = _Reader(payload, "AUTH|ACK")
    session_id, count, resumed = reader.take(16), reader.number(8), reader.byte()
    if resumed > 1:
        raise _broken(f"an AUTH|ACK with resumed {resumed}")
    answer = ProtAuthAnswer(session_id, count, resumed == 1)
    answer.tlvs = reader.tlvs(max(reader.left() - 32, 0))
    answer.proof = reader.take(32)
    return answer


def _decode_go_away(payload: bytes) -> ProtGoAway:
    reader = _Reader(payload, "GO_AWAY")
    code = _code_for("G", reader.number(2), Code.INTERNAL)
    away = ProtGoAway(code, reader.number(2), reader.text())
    reader.end()
    return away


def _decode_datagram(sock_map: SockMap, payload: bytes) -> ProtDatagram:
    reader = _Reader(payload, "DATAGRAM")
    address = reader.address()
    return ProtDatagram(sock_map, address, reader.take(reader.left()))


def _decode_number(payload: bytes, what: str) -> int:
    number = int.from_bytes(payload, "big")
    if number > MAX_OFFSET:
        raise _broken(f"a {what} beyond 2^62")
    return number


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
            raise _broken(f"a frame of unknown kind {kind:#04x}")
        limit = max_frame
    else:
        if (kind in _LINK_ID_KINDS) != (sock_map == 0):
            raise _broken(f"{ProtKind(kind).name} with sock_map {sock_map}")
        if kind in _EXACT and length != limit:
            raise _broken(f"{ProtKind(kind).name} with a payload of {length} bytes")
        if kind == _KIND_DATA:
            limit = max_frame
            if not length and not flag & _FIN:
                raise _broken("an empty DATA without FIN")
    if length > limit:
        raise _broken(f"a payload of {length} bytes where {limit} are allowed")


def _decode(kind: int, flag: int, sock_map: int, payload: bytes) -> ProtFrame:
    """Take apart a payload whose header has passed ``check_header``."""
    number = SockMap(sock_map)
    ack = bool(flag & _ACK)
    # DATA and WINDOW are most of all frames on a busy link, so they are asked first.
    if kind == _KIND_DATA:
        return ProtData(number, payload, bool(flag & _FIN))
    if kind == _KIND_WINDOW:
        return ProtWindow(number, _decode_number(payload, "WINDOW"))
    if kind == _KIND_CLOSE:
        return _decode_close(number, payload)
    if kind == _KIND_CREATE:
        return (
            _decode_accept(number, payload) if ack else _decode_create(number, payload)
        )
    return _decode_rare(kind, ack, number, payload)


def _decode_rare(kind: int, ack: bool, number: SockMap, payload: bytes) -> ProtFrame:
    match kind:
        case ProtKind.MAPPING:
            return _decode_mapping_answer(payload) if ack else _decode_mapping(payload)
        case ProtKind.HELLO:
            return _decode_hello(ack, payload)
        case ProtKind.AUTH:
            return _decode_auth_answer(payload) if ack else _decode_auth(payload)
        case ProtKind.PING:
            return ProtPing(payload, ack)
        case ProtKind.GO_AWAY:
            return _decode_go_away(payload)
        case ProtKind.DATAGRAM:
            return _decode_datagram(number, payload)
        case ProtKind.RECEIVED:
            return ProtReceived(_decode_number(payload, "RECEIVED"))
        case _:
            return ProtExtension(kind, number, len(payload))


def decode_one(
    data: bytes, max_frame: int = MAX_FRAME_BYTES
) -> tuple[ProtFrame, int] | None:
    """Decode the first frame of ``data``: the frame and its size, None if incomplete.

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
    return _decode(*head, data[HEADER_BYTES:size]), size


def _admit_all(kind: int, flag: int, sock_map: int, length: int) -> None:
    """Stand in for a core that has nothing against any frame."""


class FrameDecoder:
    """Turns what a link's peer sends, split in any way, into frames.

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
        view = memoryview(data)
        at = 0
        if self._held:
            at = self._fill(view)
            if self._size and len(self._held) == self._size:
                held, self._held, self._size = self._held, bytearray(), 0
                yield from self._whole_frames(memoryview(held))
        if at < len(view):
            yield from self._whole_frames(view[at:])

    def _fill(self, view: memoryview) -> int:
        """Complete the held header, then the held frame; say how much was used."""
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
        """Check a header whose payload is not all there; give the frame's size."""
        first, second = _unpack_header(data, at)
        head = first & 0xFF, second >> 24, second & MAX_SOCK_MAP, first >> 8
        check_header(*head, self._max_frame)
        self._admit(*head)
        return HEADER_BYTES + int(first >> 8)

    def _whole_frames(self, view: memoryview) -> Iterator[ProtFrame]:
        """Yield every frame that lies wholly in ``view``; hold the rest."""
        at, end, max_frame = 0, len(view), self._max_frame
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
                frame = _decode(*head, bytes(view[start:stop]))
                if kind in SESSION_KINDS or kind >= FIRST_SESSION_EXTENSION:
                    self.session_bytes += stop - at
                yield frame
            at = stop
        if at < end:
            self._held += view[at:]
