"""ProtFrames built by hand, good and bad, from the tables of protocol.md.

Does not import the codec: what it builds is a second opinion on the layout.
"""

from __future__ import annotations

DATA, CREATE, CLOSE, MAPPING, TOKEN, HELLO = range(6)
AUTH, PING, WINDOW, GO_AWAY, DATAGRAM, RECEIVED = range(6, 12)
ACK, FIN = 0x01, 0x10


def u8(number: int) -> bytes:
    return number.to_bytes(1, "big")


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def header(kind: int, length: int, flag: int = 0, sock_map: int = 0) -> bytes:
    return length.to_bytes(3, "big") + bytes((kind, flag)) + sock_map.to_bytes(3, "big")


def frame(kind: int, payload: bytes = b"", flag: int = 0, sock_map: int = 0) -> bytes:
    return header(kind, len(payload), flag, sock_map) + payload


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u8(len(raw)) + raw


def tlv(kind: int, value: bytes) -> bytes:
    return u8(kind) + u16(len(value)) + value


def ipv4(a: int, b: int, c: int, d: int, port: int) -> bytes:
    return bytes((1, a, b, c, d)) + u16(port)


def host(name: str | bytes, port: int) -> bytes:
    return b"\x03" + text(name) + u16(port)


def data(sock_map: int, payload: bytes = b"", *, fin: bool = False) -> bytes:
    return frame(DATA, payload, FIN if fin else 0, sock_map)


def create_tcp(sock_map: int, address: bytes, tlvs: bytes = b"") -> bytes:
    return frame(CREATE, b"\0" + address + tlvs, 0, sock_map)


def create_name(sock_map: int, name: str, index: int = 0, tlvs: bytes = b"") -> bytes:
    return frame(CREATE, b"\1" + text(name) + u16(index) + tlvs, 0, sock_map)


def create_udp(sock_map: int, name: str = "", index: int = 0) -> bytes:
    return frame(CREATE, b"\2" + text(name) + u16(index), 0, sock_map)


def create_bind(sock_map: int, address: bytes) -> bytes:
    return frame(CREATE, b"\4" + address, 0, sock_map)


def create_throughput(sock_map: int, way: int, most_ms: int, most_bytes: int) -> bytes:
    body = b"\5" + u8(way) + u32(most_ms) + u64(most_bytes)
    return frame(CREATE, body, 0, sock_map)


def accept(sock_map: int, bound: bytes = b"") -> bytes:
    return frame(CREATE, bound, ACK, sock_map)


def close(sock_map: int, code: int | None = None, reason: str | bytes = "") -> bytes:
    payload = b"" if code is None else u16(code) + text(reason)
    return frame(CLOSE, payload, 0, sock_map)


def mapping(op: int, *entries: bytes) -> bytes:
    return frame(MAPPING, u8(op) + u16(len(entries)) + b"".join(entries))


def mapping_try(client_id: bytes, *entries: bytes) -> bytes:
    count = u16(len(entries))
    return frame(MAPPING, u8(4) + client_id + count + b"".join(entries))


def mapping_entry(
    kind: int,
    name: str,
    host_text: str = "",
    port: int = 0,
    count: int = 1,
    tlvs: bytes = b"",
) -> bytes:
    head = u8(kind) + text(name) + text(host_text) + u16(port) + u16(count)
    return head + u16(len(tlvs)) + tlvs


def mapping_answers(*answers: bytes) -> bytes:
    return frame(MAPPING, u16(len(answers)) + b"".join(answers), ACK)


def mapping_answer(
    code: int, host_text: str = "", port: int = 0, reason: str = ""
) -> bytes:
    return u16(code) + text(host_text) + u16(port) + text(reason)


def hello(
    nonce: bytes = bytes(32),
    tlvs: bytes = b"",
    low: int = 1,
    high: int = 1,
    magic: bytes = b"PROT",
) -> bytes:
    return frame(HELLO, magic + bytes((low, high)) + nonce + tlvs)


def hello_ack(nonce: bytes = bytes(32), tlvs: bytes = b"", version: int = 1) -> bytes:
    return frame(HELLO, b"PROT" + bytes((version, 0)) + nonce + tlvs, ACK)


def auth(
    name: str | bytes,
    link_no: int = 1,
    resume: bytes = b"\0",
    tlvs: bytes = b"",
    proof: bytes = bytes(32),
) -> bytes:
    return frame(AUTH, text(name) + u32(link_no) + resume + tlvs + proof)


def resuming(session_id: bytes, count: int, proof: bytes) -> bytes:
    return b"\1" + session_id + u64(count) + proof


def auth_ack(
    session_id: bytes = bytes(16),
    count: int = 0,
    resumed: int = 0,
    tlvs: bytes = b"",
    proof: bytes = bytes(32),
) -> bytes:
    return frame(AUTH, session_id + u64(count) + u8(resumed) + tlvs + proof, ACK)


def ping(opaque: bytes = bytes(8), *, ack: bool = False) -> bytes:
    return frame(PING, opaque, ACK if ack else 0)


def window(sock_map: int, limit: int) -> bytes:
    return frame(WINDOW, u64(limit), 0, sock_map)


def go_away(code: int, retry_after_s: int = 0, reason: str | bytes = "") -> bytes:
    return frame(GO_AWAY, u16(code) + u16(retry_after_s) + text(reason))


def datagram(sock_map: int, address: bytes, payload: bytes) -> bytes:
    return frame(DATAGRAM, address + payload, 0, sock_map)


def received(count: int) -> bytes:
    return frame(RECEIVED, u64(count))
