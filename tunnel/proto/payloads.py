"""Frames to bytes, and payloads back, kind by kind (protocol.md#payloads).

Malformed bytes raise ``RemoteSessionError`` and nothing else; the headers of what
arrives are checked by ``codec``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tunnel.addresses import (
    IPV4_BYTES,
    UnixPath,
    encode_address,
    is_host_name,
    read_ipv4,
)
from tunnel.errors import Code
from tunnel.proto.calm import Calm, calm
from tunnel.proto.fields import (
    Reader,
    broken,
    check_tlvs,
    decode_text,
    encode_text,
    encode_tlvs,
    read_offset,
)
from tunnel.proto.frames import (
    CLIENT_ID_BYTES,
    MAX_MAPPING_COUNT,
    MAX_MAPPING_ENTRIES,
    PROTOCOL_VERSION,
    SESSION_ID_BYTES,
    AskTarget,
    BindTarget,
    CreateType,
    LinkTarget,
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
    ProtFrame,
    ProtGoAway,
    ProtHello,
    ProtKind,
    ProtMapping,
    ProtMappingAnswer,
    ProtPing,
    ProtReceived,
    ProtWindow,
    SessionTarget,
    SockMap,
    TcpTarget,
    ThroughputTarget,
    UdpTarget,
)
from tunnel.proto.rules import read_rules, rules_tlvs
from tunnel.words import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.addresses import Address
    from tunnel.proto.frames import Target

MAGIC: Final = b"PROT"
_pack_header: Final = struct.Struct(">II").pack
_pack_throughput: Final = struct.Struct(">BIQ").pack
_ACK: Final = int(ProtFlag.ACK)
_FIN: Final = int(ProtFlag.FIN)
_KIND_DATA: Final = int(ProtKind.DATA)
_KIND_CLOSE: Final = int(ProtKind.CLOSE)
_KIND_CREATE: Final = int(ProtKind.CREATE)
_KIND_DATAGRAM: Final = int(ProtKind.DATAGRAM)
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
    return _encode_target(frame.target) + encode_tlvs(tlvs)


def _encode_target(target: Target) -> bytes:
    match target:
        case TcpTarget(address):
            kind, what = CreateType.TCP, encode_address(address)
        case UnixPath(path):
            kind, what = CreateType.UNIX, encode_text(path)
        case BindTarget(expected):
            kind, what = CreateType.BIND, encode_address(expected)
        case ThroughputTarget(upload, most_ms, most_bytes):
            kind = CreateType.THROUGHPUT
            what = _pack_throughput(not upload, most_ms, most_bytes)
        case SessionTarget(session_id, inner):
            kind, what = CreateType.SESSION, session_id + _encode_target(inner)
        case LinkTarget(encrypted, users):
            kind = CreateType.LINK
            what = bytes((encrypted, len(users))) + b"".join(map(encode_text, users))
        case AskTarget():
            kind, what = CreateType.ASK, b""
        case OtherTarget(other, body):
            return bytes((other,)) + body
        case named:
            is_udp = isinstance(named, UdpTarget)
            kind = CreateType.UDP if is_udp else CreateType.NAME
            what = encode_text(named.name) + named.index.to_bytes(2, "big")
    return bytes((kind,)) + what


def _read_create(number: SockMap, reader: Reader) -> ProtCreate:
    kind = reader.byte()
    read = _TARGETS.get(kind)
    if read is None:
        return ProtCreate(number, OtherTarget(kind, reader.rest()))
    target = read(reader)
    tlvs = reader.tlvs(reader.left())
    check_tlvs(tlvs, _CREATE_TLVS)
    visitor = deadline = None
    if 1 in tlvs:
        field = Reader(tlvs[1], "visitor's address")
        visitor = field.address()
        field.end()
    if 2 in tlvs:
        field = Reader(tlvs[2], "deadline")
        deadline = field.number(4)
        field.end()
    return ProtCreate(
        number, target, visitor, deadline, _tlv_text(tlvs, 3), _tlv_text(tlvs, 4)
    )


def _read_throughput(reader: Reader) -> ThroughputTarget:
    way, most_ms = reader.byte(), reader.number(4)
    if way > 1:
        raise broken(f"a CREATE with direction {way}")
    most_bytes = read_offset(reader.take(8), "CREATE")
    return ThroughputTarget(way == 0, most_ms, most_bytes)


def _read_session(reader: Reader) -> SessionTarget:
    session_id, kind = reader.take(SESSION_ID_BYTES), reader.byte()
    if kind not in (CreateType.TCP, CreateType.NAME):
        raise broken(f"a CREATE for type {kind} at a session")
    target = _TARGETS[kind](reader)
    assert isinstance(target, TcpTarget | NameTarget)  # noqa: S101 - of those kinds
    return SessionTarget(session_id, target)


def _read_link(reader: Reader) -> LinkTarget:
    encrypted = reader.byte()
    if encrypted > 1:
        raise broken(f"a CREATE for a link encrypted {encrypted}")
    return LinkTarget(
        encrypted == 1, tuple(reader.name() for _ in range(reader.byte()))
    )


_CREATE_TLVS: Final = range(1, 5)
_TARGETS: Final[Mapping[int, Callable[[Reader], Target]]] = {
    CreateType.TCP: lambda reader: TcpTarget(reader.address()),
    CreateType.NAME: lambda reader: NameTarget(reader.name(), reader.number(2)),
    CreateType.UDP: lambda reader: UdpTarget(reader.name(), reader.number(2)),
    CreateType.UNIX: lambda reader: UnixPath(reader.name()),
    CreateType.BIND: lambda reader: BindTarget(reader.address()),
    CreateType.THROUGHPUT: _read_throughput,
    CreateType.SESSION: _read_session,
    CreateType.LINK: _read_link,
    CreateType.ASK: lambda _reader: AskTarget(),
}


def _tlv_text(tlvs: Mapping[int, bytes], kind: int) -> str | None:
    # No host and no exit has a name with a "?", so nothing is mistaken for another.
    return printable(decode_text(tlvs[kind], "field")) if kind in tlvs else None


# MAPPING -----------------------------------------------------------------------


def encode_entry(entry: MappingEntry) -> bytes:
    """Write one entry as a MAPPING has it."""
    tlvs = b"" if entry.rules is None else encode_tlvs(rules_tlvs(entry.rules))
    return (
        bytes((entry.type,))
        + encode_text(entry.name)
        + encode_text(entry.host)
        + entry.port.to_bytes(2, "big")
        + entry.count.to_bytes(2, "big")
        + len(tlvs).to_bytes(2, "big")
        + tlvs
    )


def entry_bytes(entry: MappingEntry) -> int:
    """Return how much of a MAPPING an entry takes."""
    return len(encode_entry(entry))


def decode_entry(raw: bytes) -> MappingEntry:
    """Read one entry as ``encode_entry`` writes it; raises as ``decode`` does."""
    reader = Reader(raw, "MAPPING")
    entry = _read_entry(reader)
    reader.end()
    return entry


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


def _read_mapping(reader: Reader) -> ProtMapping:
    op = reader.byte()
    if not MappingOp.ADD <= op <= MappingOp.TRY:
        raise broken(f"a MAPPING with operation {op}")
    client_id = reader.take(CLIENT_ID_BYTES) if op == MappingOp.TRY else b""
    entries: list[MappingEntry] = []
    size = _count(reader)
    for _ in range(size):
        entry = _read_entry(reader)
        if len(entries) < MAX_MAPPING_ENTRIES:
            entries.append(entry)
    return ProtMapping(MappingOp(op), entries, size - len(entries), client_id)


def _read_entry(reader: Reader) -> MappingEntry:
    kind, name, host = reader.byte(), reader.name(), reader.name()
    port, count = reader.number(2), reader.number(2)
    rules = read_rules(reader.tlvs(reader.number(2)))
    if host and not is_host_name(host.removeprefix("*.").replace(":", ".")):
        raise broken("a MAPPING with an impossible host name")
    return MappingEntry(kind, name, host, port, count, rules)


def _read_mapping_answer(reader: Reader) -> ProtMappingAnswer:
    answers = []
    for _ in range(_count(reader)):
        code = _CODES["M"].get(reader.number(2), Code.GENERAL)
        host, port = reader.text(), reader.number(2)
        answers.append(MappingAnswer(code, host, port, reader.text()))
    return ProtMappingAnswer(answers)


# HELLO, AUTH --------------------------------------------------------------------


def _read_hello(reader: Reader, *, ack: bool) -> ProtHello:
    if reader.take(4) != MAGIC:
        raise broken("a HELLO of another protocol")
    low, high = reader.byte(), reader.byte()
    hello = ProtHello(ack, low, high, reader.take(32))
    if low <= PROTOCOL_VERSION <= (low if ack else high):
        hello.tlvs = reader.tlvs(reader.left())
    else:
        reader.rest()  # written as nobody here knows
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


def _read_auth(reader: Reader) -> ProtAuth:
    auth = ProtAuth(reader.name(), reader.number(4))
    resume = reader.byte()
    if resume > 1:
        raise broken(f"an AUTH with resume {resume}")
    if resume:
        auth.session_id = reader.take(SESSION_ID_BYTES)
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


def _read_auth_answer(reader: Reader) -> ProtAuthAnswer:
    session_id = reader.take(SESSION_ID_BYTES)
    count, resumed = reader.number(8), reader.byte()
    if resumed > 1:
        raise broken(f"an AUTH|ACK with resumed {resumed}")
    answer = ProtAuthAnswer(session_id, count, resumed == 1)
    answer.tlvs = reader.tlvs(max(reader.left() - 32, 0))
    answer.proof = reader.take(32)
    return answer


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


def datagram_frame(sock_map: int, address: Address, payload: bytes) -> bytes:
    """Write a DATAGRAM; raises as ``encode`` does for a host."""
    where = encode_address(address)
    length = len(where) + len(payload)
    return _pack_header(length << 8 | _KIND_DATAGRAM, sock_map) + where + payload


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
        case ProtMapping(op, entries, _, client_id):
            payload = bytes((op,)) + client_id + len(entries).to_bytes(2, "big")
            payload += b"".join(map(encode_entry, entries))
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
            return datagram_frame(sock_map, address, payload)
        case ProtReceived(count):
            return _frame(ProtKind.RECEIVED, 0, 0, count.to_bytes(8, "big"))
        case ProtExtension(kind, sock_map, size):
            return _frame(kind, 0, sock_map, bytes(size))


_Read = Callable[[SockMap, Reader], ProtFrame]
_FRAMES: Final[Mapping[int, tuple[str, _Read]]] = {
    ProtKind.CREATE: ("CREATE", _read_create),
    ProtKind.CLOSE: (
        "CLOSE",
        lambda number, reader: ProtClose(
            number, _CODES["C"].get(reader.number(2), Code.GENERAL), reader.text()
        ),
    ),
    ProtKind.MAPPING: ("MAPPING", lambda _, reader: _read_mapping(reader)),
    ProtKind.HELLO: ("HELLO", lambda _, reader: _read_hello(reader, ack=False)),
    ProtKind.AUTH: ("AUTH", lambda _, reader: _read_auth(reader)),
    ProtKind.PING: ("PING", lambda _, reader: ProtPing(reader.rest())),
    ProtKind.GO_AWAY: (
        "GO_AWAY",
        lambda _, reader: ProtGoAway(
            _CODES["G"].get(reader.number(2), Code.INTERNAL),
            reader.number(2),
            reader.text(),
        ),
    ),
    ProtKind.DATAGRAM: (
        "DATAGRAM",
        lambda number, reader: ProtDatagram(number, reader.address(), reader.rest()),
    ),
    ProtKind.RECEIVED: (
        "RECEIVED",
        lambda _, reader: ProtReceived(read_offset(reader.rest(), "RECEIVED")),
    ),
}
"""What a payload is called in errors, and how it is read to its end."""
_ANSWERS: Final[Mapping[int, tuple[str, _Read]]] = {
    ProtKind.CREATE: (
        "CREATE|ACK",
        lambda number, reader: ProtAccept(number, reader.address()),
    ),
    ProtKind.MAPPING: ("MAPPING|ACK", lambda _, reader: _read_mapping_answer(reader)),
    ProtKind.HELLO: ("HELLO", lambda _, reader: _read_hello(reader, ack=True)),
    ProtKind.AUTH: ("AUTH|ACK", lambda _, reader: _read_auth_answer(reader)),
    ProtKind.PING: ("PING", lambda _, reader: ProtPing(reader.rest(), ack=True)),
}
"""The same for the kinds that ACK turns into answers."""


def decode(kind: int, flag: int, sock_map: int, payload: bytes) -> ProtFrame:
    """Read a payload; the header has passed ``codec.check_header``."""
    number = SockMap(sock_map)
    if kind == _KIND_DATA:
        return ProtData(number, payload, bool(flag & _FIN))
    if kind == _KIND_WINDOW:  # these two and the next come often
        return ProtWindow(number, read_offset(payload, "WINDOW"))
    if kind == _KIND_DATAGRAM and (whence := read_ipv4(payload[:IPV4_BYTES])):
        return ProtDatagram(number, whence, payload[IPV4_BYTES:])
    if not payload:
        if kind == _KIND_CLOSE:
            return ProtClose(number)
        if kind == _KIND_CREATE and flag & _ACK:
            return ProtAccept(number)
    row = (_ANSWERS.get(kind) if flag & _ACK else None) or _FRAMES.get(kind)
    if row is None:
        return ProtExtension(kind, number, len(payload))
    reader = Reader(payload, row[0])
    frame = row[1](number, reader)
    reader.end()
    return frame
