"""Frames to bytes, and payloads back, kind by kind (protocol.md#payloads).

Malformed bytes raise ``RemoteSessionError`` and nothing else. Knows no state and no
credit; the headers of what arrives are checked by ``codec``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tunnel.addresses import UnixPath, encode_address, is_host_name
from tunnel.errors import Code
from tunnel.proto.calm import Calm, calm
from tunnel.proto.fields import (
    MAX_OFFSET,
    Reader,
    broken,
    check_tlvs,
    decode_text,
    encode_text,
    encode_tlvs,
)
from tunnel.proto.frames import (
    MAX_MAPPING_COUNT,
    MAX_MAPPING_ENTRIES,
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
)
from tunnel.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnel.proto.frames import ProtFrame, Target

MAGIC: Final = b"PROT"
_pack_header: Final = struct.Struct(">II").pack
_ACK: Final = int(ProtFlag.ACK)
_FIN: Final = int(ProtFlag.FIN)
_KIND_DATA: Final = int(ProtKind.DATA)
_KIND_CLOSE: Final = int(ProtKind.CLOSE)
_KIND_CREATE: Final = int(ProtKind.CREATE)
_KIND_WINDOW: Final = int(ProtKind.WINDOW)
_CODES: Final[Mapping[str, Mapping[int, Code]]] = {
    frame: {code: code for code in Code if frame in code.info.frames} for frame in "CGM"
}
"""The codes that each kind of frame may bear; others are a later version's."""


# CREATE ------------------------------------------------------------------------


def _encode_create(frame: ProtCreate) -> bytes:
    tlvs: dict[int, bytes] = {}
    if frame.visitor is not None:
        tlvs[1] = encode_address(frame.visitor)
    if frame.deadline_ms is not None:
        tlvs[2] = frame.deadline_ms.to_bytes(4, "big")
    if frame.host_name is not None:
        tlvs[3] = frame.host_name.encode()
    if frame.exit is not None:
        tlvs[4] = frame.exit.encode()
    match frame.target:
        case TcpTarget(address):
            kind, target = CreateType.TCP, encode_address(address)
        case UnixPath(path):
            kind, target = CreateType.UNIX, encode_text(path)
        case BindTarget(expected):
            kind, target = CreateType.BIND, encode_address(expected)
        case OtherTarget(other, body):
            return bytes((other,)) + body
        case named:
            is_udp = isinstance(named, UdpTarget)
            kind = CreateType.UDP if is_udp else CreateType.NAME
            target = encode_text(named.name) + named.index.to_bytes(2, "big")
    return bytes((kind,)) + target + encode_tlvs(tlvs)


def _decode_create(sock_map: SockMap, payload: bytes) -> ProtCreate:
    reader = Reader(payload, "CREATE")
    kind = reader.byte()
    read = _TARGETS.get(kind)
    if read is None:
        return ProtCreate(sock_map, OtherTarget(kind, payload[1:]))
    target = read(reader)
    tlvs = reader.tlvs(reader.left())
    check_tlvs(tlvs, _CREATE_TLVS)
    visitor = deadline = None
    if 1 in tlvs:
        reader = Reader(tlvs[1], "visitor's address")
        visitor = reader.address()
        reader.end()
    if 2 in tlvs:
        reader = Reader(tlvs[2], "deadline")
        deadline = reader.number(4)
        reader.end()
    return ProtCreate(
        sock_map, target, visitor, deadline, _tlv_text(tlvs, 3), _tlv_text(tlvs, 4)
    )


_CREATE_TLVS: Final = range(1, 5)
_TARGETS: Final[Mapping[int, Callable[[Reader], Target]]] = {
    CreateType.TCP: lambda reader: TcpTarget(reader.address()),
    CreateType.NAME: lambda reader: NameTarget(reader.name(), reader.number(2)),
    CreateType.UDP: lambda reader: UdpTarget(reader.name(), reader.number(2)),
    CreateType.UNIX: lambda reader: UnixPath(reader.name()),
    CreateType.BIND: lambda reader: BindTarget(reader.address()),
}


def _tlv_text(tlvs: Mapping[int, bytes], kind: int) -> str | None:
    # No host and no exit has a name with a "?", so nothing is mistaken for another.
    return printable(decode_text(tlvs[kind], "field")) if kind in tlvs else None


def _decode_accept(sock_map: SockMap, payload: bytes) -> ProtAccept:
    if not payload:
        return ProtAccept(sock_map)
    reader = Reader(payload, "CREATE|ACK")
    bound = reader.address()
    reader.end()
    return ProtAccept(sock_map, bound)


# CLOSE, GO_AWAY ---------------------------------------------------------------


def _decode_close(sock_map: SockMap, payload: bytes) -> ProtClose:
    if not payload:
        return ProtClose(sock_map)
    reader = Reader(payload, "CLOSE")
    code = _CODES["C"].get(reader.number(2), Code.GENERAL)
    reason = reader.text()
    reader.end()
    return ProtClose(sock_map, code, reason)


def _decode_go_away(payload: bytes) -> ProtGoAway:
    reader = Reader(payload, "GO_AWAY")
    code = _CODES["G"].get(reader.number(2), Code.INTERNAL)
    away = ProtGoAway(code, reader.number(2), reader.text())
    reader.end()
    return away


# MAPPING -----------------------------------------------------------------------


def _encode_entry(entry: MappingEntry) -> bytes:
    return (
        bytes((entry.type,))
        + encode_text(entry.name)
        + encode_text(entry.host)
        + entry.port.to_bytes(2, "big")
        + entry.count.to_bytes(2, "big")
        + b"\0\0"
    )


def _encode_answer(answer: MappingAnswer) -> bytes:
    return (
        answer.code.to_bytes(2, "big")
        + encode_text(answer.host)
        + answer.port.to_bytes(2, "big")
        + encode_text(answer.reason)
    )


def _count(reader: Reader) -> int:
    """Read how many entries follow, before one of them is taken apart."""
    count = reader.number(2)
    if count > MAX_MAPPING_COUNT:
        raise calm(Calm.NAMES)
    return count


def _decode_mapping(payload: bytes) -> ProtMapping:
    reader = Reader(payload, "MAPPING")
    op = reader.byte()
    if op not in (MappingOp.ADD, MappingOp.REMOVE, MappingOp.REPLACE):
        raise broken(f"a MAPPING with operation {op}")
    entries: list[MappingEntry] = []
    size = _count(reader)
    for _ in range(size):
        kind, name, host = reader.byte(), reader.name(), reader.name()
        port, count = reader.number(2), reader.number(2)
        check_tlvs(reader.tlvs(reader.number(2)), ())
        if host and not is_host_name(host.removeprefix("*.").replace(":", ".")):
            raise broken("a MAPPING with an impossible host name")
        if len(entries) < MAX_MAPPING_ENTRIES:
            entries.append(MappingEntry(kind, name, host, port, count))
    reader.end()
    return ProtMapping(MappingOp(op), entries, size - len(entries))


def _decode_mapping_answer(payload: bytes) -> ProtMappingAnswer:
    reader = Reader(payload, "MAPPING|ACK")
    answers = []
    for _ in range(_count(reader)):
        code = _CODES["M"].get(reader.number(2), Code.GENERAL)
        host, port = reader.text(), reader.number(2)
        answers.append(MappingAnswer(code, host, port, reader.text()))
    reader.end()
    return ProtMappingAnswer(answers)


# HELLO, AUTH --------------------------------------------------------------------


def _decode_hello(ack: bool, payload: bytes) -> ProtHello:
    reader = Reader(payload, "HELLO")
    if reader.take(4) != MAGIC:
        raise broken("a HELLO of another protocol")
    low, high = reader.byte(), reader.byte()
    hello = ProtHello(ack, low, high, reader.take(32))
    # Of a version that is not spoken here, nobody knows how the fields are written.
    if low <= PROTOCOL_VERSION <= (low if ack else high):
        hello.tlvs = reader.tlvs(reader.left())
    return hello


def auth_before_proof(frame: ProtAuth) -> bytes:
    """Write AUTH of the client up to its proof: what the proof is made over."""
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


def _decode_auth(payload: bytes) -> ProtAuth:
    reader = Reader(payload, "AUTH")
    auth = ProtAuth(reader.name(), reader.number(4))
    resume = reader.byte()
    if resume > 1:
        raise broken(f"an AUTH with resume {resume}")
    if resume:
        auth.session_id = reader.take(16)
        auth.count = reader.number(8)
        auth.resume_proof = reader.take(32)
    auth.tlvs = reader.tlvs(max(reader.left() - 32, 0))
    auth.proof = reader.take(32)
    return auth


def auth_answer_before_proof(frame: ProtAuthAnswer) -> bytes:
    """Write AUTH of the server up to its proof: what the proof is made over."""
    return (
        frame.session_id
        + frame.count.to_bytes(8, "big")
        + bytes((frame.resumed,))
        + encode_tlvs(frame.tlvs)
    )


def _decode_auth_answer(payload: bytes) -> ProtAuthAnswer:
    reader = Reader(payload, "AUTH|ACK")
    session_id, count, resumed = reader.take(16), reader.number(8), reader.byte()
    if resumed > 1:
        raise broken(f"an AUTH|ACK with resumed {resumed}")
    answer = ProtAuthAnswer(session_id, count, resumed == 1)
    answer.tlvs = reader.tlvs(max(reader.left() - 32, 0))
    answer.proof = reader.take(32)
    return answer


# DATAGRAM, WINDOW, RECEIVED ------------------------------------------------------


def _decode_datagram(sock_map: SockMap, payload: bytes) -> ProtDatagram:
    reader = Reader(payload, "DATAGRAM")
    address = reader.address()
    return ProtDatagram(sock_map, address, reader.take(reader.left()))


def _decode_number(payload: bytes, what: str) -> int:
    number = int.from_bytes(payload, "big")
    if number > MAX_OFFSET:
        raise broken(f"a {what} beyond 2^62")
    return number


# Any kind -------------------------------------------------------------------------


def data_header(sock_map: int, length: int, *, fin: bool = False) -> bytes:
    """Return the eight bytes in front of ``length`` payload bytes of a DATA frame."""
    return _pack_header(length << 8, (_FIN << 24 | sock_map) if fin else sock_map)


def _frame(kind: int, flag: int, sock_map: int, payload: bytes) -> bytes:
    return _pack_header(len(payload) << 8 | kind, flag << 24 | sock_map) + payload


def close_frame(sock_map: int, code: Code = Code.NORMAL, reason: str = "") -> bytes:
    """Write a CLOSE: every connection needs one or two."""
    if not code and not reason:
        return _pack_header(_KIND_CLOSE, sock_map)
    payload = code.to_bytes(2, "big") + encode_text(reason)
    return _frame(ProtKind.CLOSE, 0, sock_map, payload)


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
            return _frame(ProtKind.CREATE, 0, sock_map, _encode_create(frame))
        case ProtAccept(sock_map, bound):
            payload = b"" if bound is None else encode_address(bound)
            return _frame(ProtKind.CREATE, _ACK, sock_map, payload)
        case ProtMapping(op, entries):
            payload = bytes((op,)) + len(entries).to_bytes(2, "big")
            payload += b"".join(map(_encode_entry, entries))
            return _frame(ProtKind.MAPPING, 0, 0, payload)
        case ProtMappingAnswer(answers):
            payload = len(answers).to_bytes(2, "big")
            payload += b"".join(map(_encode_answer, answers))
            return _frame(ProtKind.MAPPING, _ACK, 0, payload)
        case ProtHello(ack, low, high, nonce, tlvs):
            payload = MAGIC + bytes((low, high)) + nonce + encode_tlvs(tlvs)
            return _frame(ProtKind.HELLO, _ACK if ack else 0, 0, payload)
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


def decode(kind: int, flag: int, sock_map: int, payload: bytes) -> ProtFrame:
    """Read a payload; the header has passed ``codec.check_header``."""
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
