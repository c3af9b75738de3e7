"""A server that a client trusts, and that then floods it: a program of its own.

``python -m support.hostile KIND MODE`` prints a join line, serves whoever logs in, and
floods from the line ``go`` on stdin: this link, and each later one from its first
moment. It prints ``floods``, and ``ended CODE`` for each link that the client ended.
MODE is ``plain``, ``tls``, or ``leaving``: plain, and the client's last word is heeded.

What the client opens is accepted, and what it publishes is granted; of the first
connection of a link the flood makes use.
"""

from __future__ import annotations

import secrets
import select
import socket
import ssl
import sys
from contextlib import suppress
from hashlib import sha256
from itertools import chain, count, islice, repeat
from typing import TYPE_CHECKING

import trustme
from support import frames

from tunnel.access.identity import pin_of
from tunnel.access.join import JoinLine, make_token
from tunnel.errors import Code
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    MappingType,
    ProtAccept,
    ProtClose,
    ProtCreate,
    ProtGoAway,
    ProtMapping,
    ProtPing,
    ProtWindow,
    Terms,
)
from tunnel.proto.handshake import ServerHandshake
from tunnel.proto.proofs import PLAIN_BINDING, verifier_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.proto.frames import ProtFrame

PIECE_BYTES = 262_144
"""What a link reads at once."""
MADE_BEFORE = 60
NAME = "default"
CALM_AFTER = ("draining", "ping", "received", "again", "extension")
"""What has no effect, and is counted."""
BROKEN_AFTER = ("answers", "accepts")
"""What nobody asked for."""
WORK = ("window", "data", "datagram", "open", "passing")
"""What means something, if little: it goes on."""
KINDS = (*CALM_AFTER, *BROKEN_AFTER, *WORK)
AN_EXTENSION = 0x80


def much_of(frame: bytes) -> bytes:
    return frame * (PIECE_BYTES // len(frame))


class Listener:
    """Where clients come in, with or without TLS."""

    def __init__(self, *, tls: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.token = make_token()
        self.binding = PLAIN_BINDING
        self._tls: ssl.SSLContext | None = None
        pin = None
        if tls:
            self._tls, certificate = _tls()
            self.binding, pin = sha256(certificate).digest(), pin_of(certificate)
        port = self._listener.getsockname()[1]
        self.join = JoinLine(NAME, self.token, "127.0.0.1", port, pin, not tls)

    def accept(self) -> socket.socket:
        wire, _ = self._listener.accept()
        if self._tls is None:
            return wire
        return self._tls.wrap_socket(wire, server_side=True)


def _tls() -> tuple[ssl.SSLContext, bytes]:
    leaf = trustme.CA().issue_cert("tunnel.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["prot/1"])
    context.num_tickets = 0
    leaf.configure_cert(context)
    return context, ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


class Victim:
    """The link of a client that has logged in, over a blocking socket."""

    def __init__(self, listener: Listener, *, leaving: bool) -> None:
        self.wire = listener.accept()
        self._leaving = leaving
        self._decoder = FrameDecoder()
        self._opened = 0
        """The client's connection that the flood makes use of."""
        self._limit = 0
        self._names: dict[int, str] = {}
        self._accepted = False
        verifier = verifier_of(NAME, listener.token.reveal())
        handshake = ServerHandshake(
            Terms(capabilities=CAN_MAP | CAN_UDP),
            secrets.token_bytes(32),
            listener.binding,
            lambda _name: verifier,
            verifier,
        )
        while handshake.claim is None:
            handshake.receive(self._recv())
            self.wire.sendall(handshake.data_to_send())
        handshake.accept(secrets.token_bytes(16), 0, resumed=False)
        self.wire.sendall(handshake.data_to_send())
        self._window = handshake.claim.peer_terms.initial_window

    def _recv(self) -> bytes:
        data = self.wire.recv(PIECE_BYTES)
        if not data:
            raise ConnectionResetError
        return data

    def hear(self) -> None:
        """Wait for what the client says, and answer."""
        for frame in self._decoder.feed(self._recv()):
            self._take(frame)

    def hear_rest(self) -> None:
        """Do so without a wait."""
        while select.select([self.wire], [], [], 0)[0]:
            self.hear()

    def serve_until_told(self) -> None:
        """Behave well until there is a line on stdin."""
        while sys.stdin not in (
            ready := select.select([self.wire, sys.stdin], [], [])[0]
        ):
            assert ready
            self.hear()
        sys.stdin.readline()

    def _take(self, frame: ProtFrame) -> None:
        match frame:
            case ProtWindow(number, limit) if number == self._opened:
                self._limit = limit
            case ProtPing(opaque, ack=False):
                self.wire.sendall(frames.ping(opaque, ack=True))
            case ProtCreate(number):
                self.wire.sendall(frames.accept(number))
                if not self._opened:
                    self._opened, self._limit = number, self._window
            case ProtAccept():
                self._accepted = True
            case ProtMapping(_, entries):
                self._names |= {entry.type: entry.name for entry in entries}
                given = frames.mapping_answer(0, "127.0.0.1", 9)
                self.wire.sendall(frames.mapping_answers(*repeat(given, len(entries))))
            case ProtGoAway(code):
                print("ended", code.name, flush=True)
                if self._leaving:
                    raise ConnectionResetError
            case ProtClose(number) if number % 2:
                self.wire.sendall(frames.close(number))
            case _:
                pass

    # The floods ------------------------------------------------------------------

    def pieces(self, kind: str) -> Iterator[bytes]:
        """Give without end what the flood consists of."""
        match kind:
            case "draining":
                return repeat(much_of(frames.go_away(int(Code.DRAINING))))
            case "ping":
                return repeat(much_of(frames.ping()))
            case "received":
                return repeat(much_of(frames.received(0)))
            case "again":
                return repeat(much_of(frames.window(self._connection(), 0)))
            case "extension":
                return repeat(much_of(frames.frame(AN_EXTENSION)))
            case "answers":
                answer = frames.mapping_answer(0, "127.0.0.1", 9)
                return repeat(much_of(frames.mapping_answers(answer)))
            case "accepts":
                return repeat(much_of(frames.accept(self._connection())))
            case "window":
                return self._windows()
            case "data":
                return self._bytes()
            case "datagram":
                return self._datagrams()
            case "open":
                return self._visitors(int(Code.RESET))
            case _:
                return self._visitors(int(Code.NORMAL))

    def _connection(self) -> int:
        while not self._opened:
            self.hear()
        return self._opened

    def _name(self, of_type: MappingType) -> str:
        while of_type not in self._names:
            self.hear()
        return self._names[of_type]

    def _windows(self) -> Iterator[bytes]:
        number = self._connection()
        for at in count(1 << 25, PIECE_BYTES):
            limits = range(at, at + PIECE_BYTES // 16)
            yield b"".join(frames.window(number, limit) for limit in limits)

    def _bytes(self) -> Iterator[bytes]:
        number = self._connection()
        piece = much_of(frames.data(number, b"x"))
        for sent in count(len(piece) // 9, len(piece) // 9):
            while self._limit < sent:
                self.hear()
            yield piece

    def _datagrams(self) -> Iterator[bytes]:
        self.wire.sendall(frames.create_udp(2, self._name(MappingType.UDP)))
        while not self._accepted:
            self.hear()
        address = frames.ipv4(127, 0, 0, 1, 7)
        yield from repeat(much_of(frames.datagram(2, address, b"x")))

    def _visitors(self, code: int) -> Iterator[bytes]:
        name = self._name(MappingType.TCP)
        for first in range(2, 1 << 23, 16_384):
            yield b"".join(
                frames.create_name(number, name) + frames.close(number, code)
                for number in range(first, first + 16_384, 2)
            )

    def flood(self, kind: str) -> None:
        """Flood until the client ends the link."""
        pieces = self.pieces(kind)
        # Made before: it stands for another machine, and must not take our core.
        made = [] if kind == "data" else list(islice(pieces, MADE_BEFORE))
        for number, piece in enumerate(chain(made, pieces)):
            if not number:  # the first may end it already
                print("floods", flush=True)
            self.wire.sendall(piece)
            self.hear_rest()


def main(kind: str, mode: str) -> None:
    listener = Listener(tls=mode == "tls")
    print(listener.join.render(), flush=True)
    for number in count():
        victim = Victim(listener, leaving=mode == "leaving")
        if number == 0:
            victim.serve_until_told()
        with suppress(OSError):
            victim.flood(kind)
        victim.wire.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
