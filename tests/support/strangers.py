"""What may come to a tunnel and go again, well-behaved or not, one function each."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import secrets
import socket
import ssl
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from support import frames
from support.targets import ask_socks, drain, read_exactly, visit

from tunnel.access.join import make_token, parse_join
from tunnel.access.tls import client_tls_context
from tunnel.proto.claims import HandshakeResult, ResumeState
from tunnel.proto.frames import Terms
from tunnel.proto.handshake import ClientHandshake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.access.join import JoinLine

_ANYBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_ANYBODY.check_hostname = False
_ANYBODY.verify_mode = ssl.CERT_NONE

Session = tuple[ResumeState, int]
"""What a client needs to resume, and the number of its last link."""


@contextlib.contextmanager
def tls_link(join: JoinLine) -> Iterator[ssl.SSLSocket]:
    """A wire to the server, before the first frame."""
    context = client_tls_context(join.pin)
    with visit(join.port) as raw, context.wrap_socket(raw) as wire:
        yield wire


def shake(
    wire: ssl.SSLSocket,
    join: JoinLine,
    *,
    token: str | None = None,
    session: Session | None = None,
) -> HandshakeResult:
    """Prove who we are; raises what the handshake raises."""
    leaf = wire.getpeercert(binary_form=True)
    assert leaf is not None
    handshake = ClientHandshake(
        join.name,
        token or join.token.reveal(),
        replace(Terms(), client_id=secrets.token_bytes(16)),
        secrets.token_bytes(32),
        hashlib.sha256(leaf).digest(),
        link_no=session[1] + 1 if session else 1,
        resume=session[0] if session else None,
    )
    while handshake.result is None:
        wire.sendall(handshake.data_to_send())
        data = wire.recv(4096)
        if not data:
            raise ConnectionResetError
        handshake.receive(data)
    return handshake.result


class Links:
    """Link starts and links, as strangers and users begin and end them."""

    def __init__(self, line: str) -> None:
        self._join = parse_join(line)
        self._sessions: list[Session] = []

    def __len__(self) -> int:
        """Return how many sessions wait for one to come back."""
        return len(self._sessions)

    def silence(self) -> None:
        with visit(self._join.port):
            pass

    def junk(self) -> None:
        with visit(self._join.port) as wire:
            wire.sendall(b"GET / HTTP/1.1\r\n\r\n")
            drain(wire)

    def half_a_hello(self) -> None:
        with visit(self._join.port) as wire:
            wire.sendall(b"\x16\x03\x01\x02\x00\x01")

    def tls_and_nothing(self) -> None:
        with tls_link(self._join):
            pass

    def tls_and_junk(self) -> None:
        with tls_link(self._join) as wire:
            wire.sendall(bytes(100))
            wire.recv(1)

    def too_much_before_the_proof(self) -> None:
        with tls_link(self._join) as wire, contextlib.suppress(OSError):
            wire.sendall(frames.hello() + bytes(9_000))
            while wire.recv(4096):
                pass

    def hello_and_nothing(self) -> None:
        with tls_link(self._join) as wire:
            wire.sendall(frames.hello())
            wire.recv(1)

    def another_version(self) -> None:
        with tls_link(self._join) as wire:
            wire.sendall(frames.hello(low=9, high=9))
            while wire.recv(4096):
                pass

    def wrong_token(self) -> None:
        with tls_link(self._join) as wire, contextlib.suppress(Exception):
            shake(wire, self._join, token=make_token().reveal())

    def lost_session(self) -> None:
        """Log in for the first time, and vanish."""
        with tls_link(self._join) as wire:
            shake(wire, self._join)
            wire.sendall(frames.go_away(0))

    def lost_link(self) -> None:
        """Log in, vanish without a word, and come back again and again."""
        session = self._sessions.pop() if self._sessions else None
        with tls_link(self._join) as wire:
            result = shake(wire, self._join, session=session)
            assert result.resumed == (session is not None)
        state = ResumeState(result.session_id, 0, result.resume_secret, result.hint)
        self._sessions.append((state, session[1] + 1 if session else 1))

    def broken_rule(self) -> None:
        with tls_link(self._join) as wire:
            shake(wire, self._join)
            wire.sendall(frames.frame(0x33))
            while wire.recv(4096):
                pass


@dataclass
class Ports:
    """Visitors of public ports and names, and apps of a proxy.

    The target behind ``tcp`` and ``echo`` gives back what it hears.
    """

    tcp: int
    refused: int
    http: int
    https: int
    socks: int
    echo: int
    closed: int
    guarded: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def tcp_visitor(self) -> None:
        with visit(self.tcp) as conn:
            conn.sendall(b"hello")
            read_exactly(conn, 5)

    def tcp_visitor_who_resets(self) -> None:
        with visit(self.tcp) as conn:
            conn.sendall(b"hello")
            conn.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )

    def silent_tcp_visitor(self) -> None:
        with visit(self.tcp) as conn:
            conn.shutdown(socket.SHUT_WR)
            drain(conn)

    def tcp_visitor_of_nobody(self) -> None:
        with contextlib.suppress(OSError), visit(self.refused) as conn:
            drain(conn)

    def _http(self, said: bytes) -> bytes:
        with visit(self.http) as conn:
            conn.sendall(said)
            conn.shutdown(socket.SHUT_WR)
            answer = b""
            while data := conn.recv(65_536):
                answer += data
            return answer

    def http_exchange(self) -> None:
        head = b"GET /0/1000 HTTP/1.1\r\nHost: web.localhost\r\n\r\n"
        assert b" 200 " in self._http(head + head)

    def http_unknown_name(self) -> None:
        said = b"GET / HTTP/1.1\r\nHost: nobody-%d.localhost\r\n\r\n"
        assert b" 404 " in self._http(said % next(self._numbers))

    def http_junk(self) -> None:
        assert b" 400 " in self._http(b"junk\x00\r\n\r\n")

    def http_half_a_head(self) -> None:
        self._http(b"GET / HTTP/1.1\r\nHost: web.lo")

    def http_upload_broken_off(self) -> None:
        with visit(self.http) as conn:
            conn.sendall(
                b"PUT / HTTP/1.1\r\nHost: web.localhost\r\n"
                b"Content-Length: 100000\r\n\r\nhalf"
            )

    def wrong_password(self) -> None:
        host = f"Host: {self.guarded}\r\n".encode()
        said = b"GET / HTTP/1.1\r\n" + host + b"Authorization: Basic eDp5\r\n\r\n"
        assert b" 401 " in (answer := self._http(said)) or b" 429 " in answer

    def _tls(self, name: str | None, said: bytes = b"") -> bytes:
        with (
            contextlib.suppress(OSError),
            visit(self.https) as raw,
            _ANYBODY.wrap_socket(raw, server_hostname=name) as conn,
        ):
            conn.sendall(said)
            return conn.recv(65_536)
        return b""

    def tls_exchange(self) -> None:
        said = (
            b"GET /0/100 HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n"
        )
        got = self._tls("web.localhost", said)
        assert b" 200 " in got, got

    def tls_unknown_name(self) -> None:
        name = f"nobody-{next(self._numbers)}.example"  # never the same
        self._tls(name, b"GET / HTTP/1.1\r\n\r\n")

    def tls_without_name(self) -> None:
        self._tls(None, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")

    def tls_passed_through(self) -> None:
        self._tls("pass.localhost")  # what answers there speaks no TLS

    def tls_junk(self) -> None:
        with visit(self.https) as conn:
            conn.sendall(b"junk")
            drain(conn)

    def tls_half_a_hello(self) -> None:
        with visit(self.https) as conn:
            conn.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")

    def socks5(self) -> None:
        reply, app = ask_socks(self.socks, "localhost", self.echo)
        with app:
            assert reply == 0
            app.sendall(b"hello")
            read_exactly(app, 5)

    def socks5_failed_dial(self) -> None:
        reply, app = ask_socks(self.socks, "127.0.0.1", self.closed)
        app.close()
        assert reply == 5

    def socks_broken_off(self) -> None:
        with visit(self.socks) as app:
            app.sendall(b"\x05\x01\x00\x05\x01")

    def http_connect(self) -> None:
        with visit(self.socks) as app:
            app.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % self.echo)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += read_exactly(app, 1)
            app.sendall(b"hello")
            read_exactly(app, 5)

    def association(self) -> None:
        with visit(self.socks) as app:
            app.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
            reply = read_exactly(app, 12)
            port = int.from_bytes(reply[10:], "big")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.sendto(
                    b"\0\0\0\x01\x7f\0\0\x01" + self.closed.to_bytes(2, "big") + b"x",
                    ("127.0.0.1", port),
                )

    def bind(self) -> None:
        with visit(self.socks) as app:
            app.sendall(b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x00")
            reply = read_exactly(app, 12)
            with visit(int.from_bytes(reply[10:], "big")) as peer:
                read_exactly(app, 10)
                peer.sendall(b"hello")
                read_exactly(app, 5)

    def bind_given_up(self) -> None:
        with visit(self.socks) as app:
            app.sendall(b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x00")
            read_exactly(app, 12)
