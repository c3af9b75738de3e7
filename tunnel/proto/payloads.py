"""One payload to bytes and back, for each kind of frame (protocol.md#payloads).

Malformed bytes raise ``RemoteSessionError`` and nothing else. Knows no header, no state
and no credit.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from tunnel.errors import CODES, Code, LocalStreamError, RemoteSessionError
from tunnel.proto.calm import Calm, calm
from tunnel.proto.frames import (
    MAX_MAPPING_COUNT,
    MAX_MAPPING_ENTRIES,
    PROTOCOL_VERSION,
    Address,
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
    ProtDatagram,
    ProtGoAway,
    ProtHello,
    ProtMapping,
    ProtMappingAnswer,
    SockMap,
    TcpTarget,
    UdpTarget,
    UnixPath,
)
from tunnel.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from tunnel.proto.frames import Target

MAGIC: Final = b"PROT"
_pack_tlv: Final = struct.Struct(">BH").pack

MAX_FIELDS: Final = 32
"""In one list; three times what any has. An empty one is three bytes, but is not taken
apart for nothing."""
MAX_OFFSET: Final = 1 << 62
"""No offset or count may pass this: far beyond any transfer, far from overflow."""


_HOST_CHARACTERS: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
)


def broken(what: str) -> RemoteSessionError:
    """Make the error for what ``the peer sent``."""
    return RemoteSessionError(Code.PROTOCOL, f"the peer sent {what}")


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
            raise broken(f"a {self._what} that is cut short")
        return self._bytes[start : self._at]

    def byte(self) -> int:
        # One of these is every second thing that is read: no slice, no second call.
        at, self._at = self._at, self._at + 1
        if at >= len(self._bytes):
            raise broken(f"a {self._what} that is cut short")
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
        return len(self._bytes) - self._at

    def tlvs(self, size: int) -> dict[int, bytes]:
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
        if self.left():
            raise broken(f"a {self._what} with {self.left()} bytes too many")


def _text(raw: bytes, what: str) -> str:
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


def _code_for(frame: str, number: int, otherwise: Code) -> Code:
    """Read a code; what a later version may send becomes ``otherwise``."""
    try:
        code = Code(number)
    except ValueError:
        return otherwise
    return code if frame in CODES[code].frames else otherwise


# CREATE ------------------------------------------------------------------------


def encode_create(frame: ProtCreate) -> bytes:
    """Write CREATE."""
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


def decode_create(sock_map: SockMap, payload: bytes) -> ProtCreate:
    """Read CREATE; a form that is not served here is an ``OtherTarget``."""
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
        reader = _Reader(tlvs[1], "visitor's address")
        visitor = reader.address()
        reader.end()
    if 2 in tlvs:
        reader = _Reader(tlvs[2], "deadline")
        deadline = reader.number(4)
        reader.end()
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


def decode_accept(sock_map: SockMap, payload: bytes) -> ProtAccept:
    """Read CREATE|ACK."""
    if not payload:
        return ProtAccept(sock_map)
    reader = _Reader(payload, "CREATE|ACK")
    bound = reader.address()
    reader.end()
    return ProtAccept(sock_map, bound)


# CLOSE, GO_AWAY ---------------------------------------------------------------


def decode_close(sock_map: SockMap, payload: bytes) -> ProtClose:
    """Read CLOSE."""
    if not payload:
        return ProtClose(sock_map)
    reader = _Reader(payload, "CLOSE")
    code = _code_for("C", reader.number(2), Code.GENERAL)
    reason = reader.text()
    reader.end()
    return ProtClose(sock_map, code, reason)


def decode_go_away(payload: bytes) -> ProtGoAway:
    """Read GO_AWAY."""
    reader = _Reader(payload, "GO_AWAY")
    code = _code_for("G", reader.number(2), Code.INTERNAL)
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


def encode_mapping(op: MappingOp, entries: Sequence[MappingEntry]) -> bytes:
    """Write MAPPING."""
    payload = bytes((op,)) + len(entries).to_bytes(2, "big")
    return payload + b"".join(map(_encode_entry, entries))


def encode_mapping_answer(answers: Sequence[MappingAnswer]) -> bytes:
    """Write MAPPING|ACK."""
    return len(answers).to_bytes(2, "big") + b"".join(map(_encode_answer, answers))


def _count(reader: _Reader) -> int:
    """Read how many entries follow, before one of them is taken apart."""
    count = reader.number(2)
    if count > MAX_MAPPING_COUNT:
        raise calm(Calm.NAMES)
    return count


def decode_mapping(payload: bytes) -> ProtMapping:
    """Read MAPPING."""
    reader = _Reader(payload, "MAPPING")
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


def decode_mapping_answer(payload: bytes) -> ProtMappingAnswer:
    """Read MAPPING|ACK."""
    reader = _Reader(payload, "MAPPING|ACK")
    answers = []
    for _ in range(_count(reader)):
        code = _code_for("M", reader.number(2), Code.GENERAL)
        host, port = reader.text(), reader.number(2)
        answers.append(MappingAnswer(code, host, port, reader.text()))
    reader.end()
    return ProtMappingAnswer(answers)


# HELLO, AUTH --------------------------------------------------------------------


def encode_hello(frame: ProtHello) -> bytes:
    """Write HELLO of either side."""
    versions = bytes((frame.min_version, frame.max_version))
    return MAGIC + versions + frame.nonce + encode_tlvs(frame.tlvs)


def decode_hello(ack: bool, payload: bytes) -> ProtHello:
    """Read HELLO of either side."""
    reader = _Reader(payload, "HELLO")
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


def decode_auth(payload: bytes) -> ProtAuth:
    """Read AUTH of the client."""
    reader = _Reader(payload, "AUTH")
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


def decode_auth_answer(payload: bytes) -> ProtAuthAnswer:
    """Read AUTH of the server."""
    reader = _Reader(payload, "AUTH|ACK")
    session_id, count, resumed = reader.take(16), reader.number(8), reader.byte()
    if resumed > 1:
        raise broken(f"an AUTH|ACK with resumed {resumed}")
    answer = ProtAuthAnswer(session_id, count, resumed == 1)
    answer.tlvs = reader.tlvs(max(reader.left() - 32, 0))
    answer.proof = reader.take(32)
    return answer


# DATAGRAM, WINDOW, RECEIVED ------------------------------------------------------


def decode_datagram(sock_map: SockMap, payload: bytes) -> ProtDatagram:
    """Read DATAGRAM."""
    reader = _Reader(payload, "DATAGRAM")
    address = reader.address()
    return ProtDatagram(sock_map, address, reader.take(reader.left()))


def decode_number(payload: bytes, what: str) -> int:
    """Read an offset or a count."""
    number = int.from_bytes(payload, "big")
    if number > MAX_OFFSET:
        raise broken(f"a {what} beyond 2^62")
    return number
