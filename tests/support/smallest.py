"""A center-client written from one page of protocol.md, and from nothing else.

It blocks, imports nothing of ``tunnel``, and does what "The smallest client" says.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import select
import socket
import ssl
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

if TYPE_CHECKING:
    from collections.abc import Callable

DATA, CREATE, CLOSE, MAPPING, HELLO, AUTH, PING, WINDOW, GO_AWAY = (
    *(0, 1, 2, 3, 5, 6, 7, 8, 9),
)
ACK, FIN = 0x01, 0x10
OURS = 262_144
"""What the server may send on a number before we grant more."""

Frame = tuple[int, int, int, bytes]
"""Kind, flag, number, payload."""


def base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def frame(kind: int, payload: bytes = b"", flag: int = 0, number: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flag))
    return head + number.to_bytes(3, "big") + payload


@dataclass
class Number:
    """One virtual TCP connection."""

    number: int
    limit: int
    to_send: memoryview = field(default_factory=lambda: memoryview(b""))
    last: bool = False
    """Nothing follows what is to be sent."""
    sent: int = 0
    came: bytearray = field(default_factory=bytearray)
    taken: int = 0
    granted: int = OURS
    accepted: bool = False
    ended: bool = False
    code: int | None = None
    finished: bool = False
    closed: bool = False


class SmallestClient:
    """``step`` until what is wanted has happened."""

    def __init__(self, join: str) -> None:
        self.numbers: dict[int, Number] = {}
        self.visitors: list[Number] = []
        self.answer: bytes | None = None
        self.max_frame, self.window = 65_528, 262_144
        self._next = 1
        self._out = bytearray()
        self._in = bytearray()
        scheme, _, rest = join.partition("://")
        rest, _, pin = rest.partition("#")
        user, _, where = rest.rstrip("/").rpartition("@")
        name, _, token = user.partition(":")
        host, _, port = where.partition(":")
        self._wire = socket.create_connection((host, int(port or 7443)), 10)
        binding = b"plain"
        if scheme == "tunnel":
            binding = self._secure(base64url(pin))
        self._prove(unquote(name).encode(), base64url(token), binding)

    # 1. Reach the server

    def _secure(self, pin: bytes) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["prot/1"])
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._wire = tls = context.wrap_socket(self._wire)
        assert tls.selected_alpn_protocol() == "prot/1"
        leaf = tls.getpeercert(binary_form=True)
        assert leaf is not None
        key = x509.load_der_x509_certificate(leaf).public_key()
        info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert hashlib.sha256(info).digest() == pin
        return hashlib.sha256(leaf).digest()

    # 2. Prove

    def _prove(self, name: bytes, token: bytes, binding: bytes) -> None:
        hello = frame(HELLO, b"PROT\x01\x01" + os.urandom(32))
        self._wire.sendall(hello)
        kind, flag, _, payload = self._frame()
        assert (kind, flag & ACK) == (HELLO, ACK), (kind, payload)
        assert payload[:5] == b"PROT\x01"
        self._read_fields(payload[38:])
        answer = frame(HELLO, payload, flag)
        before = text(name) + struct.pack(">IB", 1, 0) + b"\x01\x00\x04" + bytes(4)
        key = mac(mac(b"prot/1", token), b"auth" + name + b"\x01")
        client_key, server_key = mac(key, b"client key"), mac(key, b"server key")
        stored_key = hashlib.sha256(client_key).digest()
        both = hashlib.sha256(hello + answer + binding).digest()
        mask = mac(stored_key, b"client" + both + before)
        proof = bytes(a ^ b for a, b in zip(client_key, mask, strict=True))
        self._wire.sendall(frame(AUTH, before + proof))
        kind, flag, _, payload = self._frame()
        assert (kind, flag & ACK) == (AUTH, ACK), (kind, payload)
        theirs = mac(server_key, b"server" + both + proof + payload[:-32])
        assert hmac.compare_digest(theirs, payload[-32:])

    def _read_fields(self, fields: bytes) -> None:
        while fields:
            kind, size = struct.unpack(">BH", fields[:3])
            value, fields = fields[3 : 3 + size], fields[3 + size :]
            if kind == 1:
                self.max_frame = min(65_528, int.from_bytes(value, "big"))
            elif kind == 2:
                self.window = int.from_bytes(value, "big")
            else:
                assert kind in (3, 4, 5, 6, 7, 8, 10) or kind >= 128

    # 3. Take what comes

    def step(self) -> None:
        """Send what may be sent, wait for something to come, and take it."""
        for number in tuple(self.numbers.values()):
            self._offer(number)
        ready = self._is_whole()
        if isinstance(self._wire, ssl.SSLSocket):
            ready = ready or bool(self._wire.pending())
        want = [self._wire] if self._out else []
        can_read, can_write, _ = select.select(
            [self._wire], want, [], 0 if ready else 1
        )
        if can_write:
            piece, self._out = self._out[:65_536], self._out[65_536:]
            self._wire.sendall(piece)
        if can_read or (ready and not self._is_whole()):
            self._read()
        while self._is_whole():
            self._on(self._frame())

    def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.step()

    def _read(self) -> None:
        data = self._wire.recv(262_144)
        assert data, "the link has ended"
        self._in += data

    def _is_whole(self) -> bool:
        size = 8 + int.from_bytes(self._in[:3], "big")
        return len(self._in) >= max(8, size)

    def _frame(self) -> Frame:
        while not self._is_whole():
            self._read()
        size = 8 + int.from_bytes(self._in[:3], "big")
        raw, self._in = bytes(self._in[:size]), self._in[size:]
        return raw[3], raw[4], int.from_bytes(raw[5:8], "big"), raw[8:]

    def _on(self, came: Frame) -> None:
        kind, flag, number, payload = came
        if kind == CREATE and not flag & ACK:
            self._on_visitor(number, payload)
        elif kind in (DATA, CREATE, CLOSE, WINDOW):
            self._on_number(self.numbers[number], kind, flag, payload)
        elif kind == MAPPING and flag & ACK:
            self.answer = payload
        elif kind == PING:
            if not flag & ACK:
                self._out += frame(PING, payload, ACK)
        else:
            assert kind >= 0x80, came

    def _on_number(self, one: Number, kind: int, flag: int, payload: bytes) -> None:
        if kind == DATA and not one.closed:
            one.came += payload
            one.ended = one.ended or bool(flag & FIN)
        elif kind == CREATE:
            one.accepted = True
        elif kind == WINDOW:
            one.limit = max(one.limit, int.from_bytes(payload, "big"))
        elif kind == CLOSE:
            one.code = int.from_bytes(payload[:2], "big")
            one.ended, one.to_send = True, memoryview(b"")
            self.close(one)
            del self.numbers[one.number]

    def _on_visitor(self, number: int, payload: bytes) -> None:
        assert payload[0] == 1
        one = self.numbers[number] = Number(number, self.window, accepted=True)
        self._out += frame(CREATE, b"", ACK, number)
        self.visitors.append(one)

    # 4. Open, 5. carry

    def open(self, host: bytes, port: int) -> Number:
        number, self._next = self._next, self._next + 2
        address = b"\x03" + text(host) + port.to_bytes(2, "big")
        self._out += frame(CREATE, b"\x00" + address, 0, number)
        one = self.numbers[number] = Number(number, self.window)
        return one

    def _offer(self, one: Number) -> None:
        while one.to_send and one.sent < one.limit and len(self._out) < 1_000_000:
            size = min(self.max_frame, one.limit - one.sent, len(one.to_send))
            self._out += frame(DATA, bytes(one.to_send[:size]), 0, one.number)
            one.to_send, one.sent = one.to_send[size:], one.sent + size
        if one.last and not one.to_send and not one.finished and not one.closed:
            one.finished = True
            self._out += frame(DATA, b"", FIN, one.number)

    def take(self, one: Number) -> bytes:
        """Take what came for a number, and let more come."""
        data, one.came = bytes(one.came), bytearray()
        one.taken += len(data)
        grant = one.taken + OURS
        if grant - one.granted >= OURS // 2 and not one.closed and one.code is None:
            one.granted = grant
            self._out += frame(WINDOW, grant.to_bytes(8, "big"), 0, one.number)
        return data

    def close(self, one: Number) -> None:
        if not one.closed:
            one.closed = True
            self._out += frame(CLOSE, b"", 0, one.number)

    # 6. Publish, 7. leave

    def publish(self, port: int) -> int:
        """Ask for a public port; give the one that it is."""
        entry = b"\x01" + text(b"web") + text(b"") + struct.pack(">HHH", port, 1, 0)
        self._out += frame(MAPPING, b"\x01\x00\x01" + entry)
        self.until(lambda: self.answer is not None)
        assert self.answer is not None
        assert self.answer[:4] == b"\x00\x01\x00\x00", self.answer
        at = 5 + self.answer[4]
        return int.from_bytes(self.answer[at : at + 2], "big")

    def leave(self) -> None:
        self._wire.sendall(bytes(self._out) + frame(GO_AWAY, bytes(5)))
        self._wire.close()
