"""A client that proves itself and then floods its link: run as a program of its own.

``python flooder.py JOIN KIND SECONDS PORT`` prints, at its end, the code of the GO_AWAY
that it got, or ``-``. PORT is a target on loopback that reads nothing.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
import time
from itertools import chain, count, islice, repeat
from typing import TYPE_CHECKING

from support import frames

from tunnel.access.join import parse_join
from tunnel.access.limits import Limits
from tunnel.errors import Code
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    ProtAccept,
    ProtGoAway,
    ProtMappingAnswer,
    Terms,
)
from tunnel.proto.handshake import ClientHandshake
from tunnel.proto.proofs import PLAIN_BINDING

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES = 262_144
"""What a link reads at once."""
MADE_BEFORE = 60
CONNECTIONS = 16
UNANSWERED = 10
KINDS = ("draining", "ping", "window", "data", "datagram", "open", "remove", "try")


def much_of(frame: bytes) -> bytes:
    return frame * (PIECE_BYTES // len(frame))


def reset(number: int) -> bytes:
    return frames.close(number, int(Code.RESET))


class Flooder:
    """A link, made by hand over a blocking socket."""

    def __init__(self, join: str, port: int) -> None:
        line = parse_join(join)
        self.wire = socket.create_connection((line.host, line.port))
        self.address = frames.ipv4(127, 0, 0, 1, port)
        self.code = "-"
        self.accepted = threading.Event()
        self.answers = threading.Semaphore(UNANSWERED)
        terms = Terms(capabilities=CAN_MAP | CAN_UDP, client_id=secrets.token_bytes(16))
        handshake = ClientHandshake(
            line.name,
            line.token.reveal(),
            terms,
            secrets.token_bytes(32),
            PLAIN_BINDING,
            resume_s=0,
        )
        while handshake.result is None:
            self.wire.sendall(handshake.data_to_send())
            handshake.receive(self.wire.recv(65_536))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        decoder = FrameDecoder()
        while data := self.wire.recv(262_144):
            for frame in decoder.feed(data):
                if isinstance(frame, ProtAccept):
                    self.accepted.set()
                elif isinstance(frame, ProtMappingAnswer):
                    self.answers.release()
                elif isinstance(frame, ProtGoAway):
                    self.code = frame.code.name

    def open(self, create: bytes) -> None:
        self.accepted.clear()
        self.wire.sendall(create)
        assert self.accepted.wait(5)

    def have_names(self) -> None:
        """Register as many as a client may: exits, which cost no descriptor."""
        for first in range(0, Limits().names, 100):
            numbers = range(first, min(first + 100, Limits().names))
            entries = [frames.mapping_entry(6, f"e{n}", f"exit-{n}") for n in numbers]
            assert self.answers.acquire(timeout=5)
            self.wire.sendall(frames.mapping(1, *entries))
        for _ in range(UNANSWERED):
            assert self.answers.acquire(timeout=5)  # till all are had
        self.answers.release(UNANSWERED)

    def pieces(  # noqa: PLR0912 - flat, a case for each
        self, kind: str
    ) -> Iterator[bytes]:
        """Give without end, or till credit is used up, what the flood consists of."""
        if kind in ("window", "data"):
            for at in range(CONNECTIONS):
                self.open(frames.create_tcp(2 * at + 1, self.address))
        if kind == "datagram":
            self.open(frames.create_udp(1))
        match kind:
            case "draining":
                yield from repeat(much_of(frames.go_away(int(Code.DRAINING))))
            case "ping":
                yield from repeat(much_of(frames.ping()))
            case "datagram":
                yield from repeat(much_of(frames.datagram(1, self.address, b"x")))
            case "window":
                for at in count(300_000, PIECE_BYTES):
                    limits = range(at, at + PIECE_BYTES // 16)
                    yield b"".join(frames.window(1, limit) for limit in limits)
            case "data":
                for at in range(CONNECTIONS):
                    for _ in range(8):
                        yield much_of(frames.data(2 * at + 1, b"x"))
            case "open":
                for first in range(1, 1 << 23, 16_384):
                    yield b"".join(
                        frames.create_tcp(number, self.address) + reset(number)
                        for number in range(first, first + 16_384, 2)
                    )
            case "remove":
                self.have_names()
                names = [frames.mapping_entry(1, f"no-{at}") for at in range(100)]
                while self.answers.acquire(timeout=5):
                    yield frames.mapping(2, *names)
            case "try":
                wanted = [frames.mapping_entry(1, f"t-{at}") for at in range(100)]
                while self.answers.acquire(timeout=5):
                    yield frames.mapping_try(bytes(16), *wanted)
            case _:
                raise AssertionError(kind)

    def flood(self, kind: str, seconds: float) -> None:
        # Made before: it stands for another machine, and must not take our core.
        pieces = self.pieces(kind)
        made = [] if kind in ("remove", "try") else list(islice(pieces, MADE_BEFORE))
        until = time.monotonic() + seconds
        try:
            for number, piece in enumerate(chain(made, pieces)):
                if time.monotonic() > until:
                    break
                self.wire.sendall(piece)
                if number == 1:
                    print("floods", flush=True)
        except OSError:
            pass


if __name__ == "__main__":
    flooder = Flooder(sys.argv[1], int(sys.argv[4]))
    flooder.flood(sys.argv[2], float(sys.argv[3]))
    print("ended", flooder.code, flush=True)
