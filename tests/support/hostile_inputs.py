"""Every parser of what others say: how it is fed, what it may raise, where to begin."""

from __future__ import annotations

import gc
import os
import re
import ssl
import sys
from contextlib import suppress
from functools import _lru_cache_wrapper
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from support import frames
from support.hostile_words import TOKEN, VERIFIER, WORDS, Parser

from tunnel.access.proxy_users import ProxyUsers
from tunnel.addresses import Address
from tunnel.center.health import _answers
from tunnel.errors import (
    LocalLinkError,
    LocalStreamError,
    RemoteSessionError,
    RemoteStreamError,
    TunnelError,
)
from tunnel.front.http import files
from tunnel.front.http.bodies import BodyError, BodyReader, LimitedBody
from tunnel.front.http.client_hello import HelloError, read_client_hello
from tunnel.front.http.forwarded import Origin, _forwarded, _host, _node
from tunnel.front.http.guard import Guard
from tunnel.front.http.heads import (
    CHUNKED,
    HeadError,
    end_of_answer,
    end_of_request,
    read_answer,
    read_request,
)
from tunnel.front.http.hints import Look, say_broken, spoken
from tunnel.front.http.login_cookie import is_login, take_cookie
from tunnel.front.http.overheard import Overheard
from tunnel.front.http.pages import HttpError
from tunnel.front.http.places import _plain
from tunnel.front.http.request import by_name
from tunnel.front.http.targets import TargetError, absolute_target, connect_target
from tunnel.link.bind import BoundPort
from tunnel.link.upstream_proxy import UpstreamProxy, _ask_http
from tunnel.net.proxy_protocol import read_proxy_header
from tunnel.ops.check.measure import Marks
from tunnel.ops.inspector.store import Store
from tunnel.ops.inspector.watcher import EntryWatch
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.frames import CAN_MAP, CAN_RULE, CAN_UDP, Terms
from tunnel.proto.handshake import ClientHandshake, ServerHandshake
from tunnel.proto.mux import MuxCore
from tunnel.proto.proofs import PLAIN_BINDING
from tunnel.proto.rules import Rules, read_rules, rules_tlvs
from tunnel.proto.throughput import REPORT
from tunnel.socks.v4 import Socks4Server
from tunnel.socks.v5 import Socks5Server, decode_datagram

if TYPE_CHECKING:
    from collections.abc import Coroutine

_ADDRESS: Final = frames.ipv4(127, 0, 0, 1, 80)
_HERE: Final = Origin(Address("192.0.2.1", 1), "https", "a.test")
_VIA: Final = UpstreamProxy.parse("http://a:b@c.test:3128")
_GUARD: Final = Guard("anna", "secret")
_OPENED: Final = files._Opened(-1, os.stat(__file__))
_USERS: Final = ProxyUsers({"anna": "secret"})


# Frames ------------------------------------------------------------------------------


def _frames(data: bytes) -> None:
    for _ in FrameDecoder().feed(data):
        """Each is looked at by the decoder."""


def _payload(data: bytes) -> None:
    """The header is right: the first byte chooses kind, flag and number."""
    kind = data[:1] and data[0] % 12
    number = data[1:2] and data[1] % 2
    flag = frames.ACK if data[2:3] > b"\x7f" else 0
    said = frames.frame(kind or 0, data[3:], flag, number or 0)
    _frames(said)


def _server_handshake(data: bytes) -> None:
    ServerHandshake(
        Terms(), bytes(32), PLAIN_BINDING, lambda _: VERIFIER, VERIFIER
    ).receive(data)


def _hello_fields(data: bytes) -> None:
    _server_handshake(frames.hello(tlvs=data))


def _client_handshake(data: bytes) -> None:
    terms = Terms()
    side = ClientHandshake("anna", TOKEN, terms, bytes(32), PLAIN_BINDING)
    side.data_to_send()
    side.receive(data)


def _session(data: bytes) -> None:
    """A session that both have proved; the first byte says which role we have."""
    terms = Terms(capabilities=CAN_MAP | CAN_UDP | CAN_RULE)
    core = MuxCore(client=data[:1] > b"\x7f", ours=terms, theirs=terms, now=0.0)
    try:
        core.receive_data(data[1:], 0.0)
        while core.has_input():
            core.receive_more(0.0)
        core.data_to_send(65_536, 0.0)
        core.on_time(1.0)
    finally:  # as its promise wants it
        core.end()
        core.let_go()


def _rules(data: bytes) -> None:
    """Fields of a byte, a length and so many bytes."""
    tlvs: dict[int, bytes] = {}
    while len(data) > 1:
        tlvs[data[0]], data = data[2 : 2 + data[1]], data[2 + data[1] :]
    read_rules(tlvs)


# HTTP --------------------------------------------------------------------------------


def _request(data: bytes) -> None:
    if size := end_of_request(bytearray(data), 0):
        read_request(data[:size], 100)


def _answer(data: bytes) -> None:
    if size := end_of_answer(bytearray(data), 0):
        read_answer(data[:size], b"GET", 100)


def _body(data: bytes) -> None:
    for reader in (BodyReader(CHUNKED), LimitedBody(CHUNKED, 1_000)):
        rest = data
        while rest and not reader.done:
            _, rest = reader.feed(rest)


def _target(data: bytes) -> None:
    for take in (
        lambda: absolute_target(data, b"GET"),
        lambda: absolute_target(b"http://" + data, b"GET"),
        lambda: connect_target(data),
    ):
        with suppress(TargetError):
            take()


def _said_fields(data: bytes) -> None:
    """What a trusted proxy says, cookies and passwords: believed or not, no error."""
    text = data.decode("latin-1")
    _forwarded(text)
    _node(text)
    _host(text)
    take_cookie([b"Cookie: " + data, data], _HERE)
    is_login(data, b"k" * 32, "a.test", 0.0)
    _USERS.check_basic(data)
    _USERS.check_basic(b"Basic " + data)


def _asked(data: bytes) -> None:
    """A whole request: for whom it is, and which part of which file it wants."""
    head = b"GET /a HTTP/1.1\r\nHost: a.test\r\n"
    raw = data if data.startswith(b"GET") else head + data + b"\r\n\r\n"
    size = end_of_request(bytearray(raw), 0)
    if not size:
        return
    request = by_name(read_request(raw[:size], 100))
    request.words(b"connection")
    _GUARD.is_right(request)
    _plain(request.target)
    files._parts(request.target.partition("?")[0])
    files._type_of(data)
    files._has_it(request, _OPENED)
    files._check_preconditions(request, _OPENED)
    files._range(request, _OPENED)


def _hints(data: bytes) -> None:
    spoken(data)
    say_broken("a.test", [data])
    Look("a.test").take([data[:7], data[7:]])


def _overheard(data: bytes) -> None:
    """As a target says it, and as a visitor; in pieces, with all that is kept of it."""
    for asked in (_GET + b"abc", b""):
        store = Store(1_048_576)
        ear = Overheard(EntryWatch(store, "a"), _HERE.visitor)
        ear.wrote(asked)
        for at in range(0, len(data), 7):
            (ear.read if asked else ear.wrote)(data[at : at + 7])
        ear.read(b"")
        ear.closed()
        assert all(record.ended is not None for record in store)


# Others that are asked ---------------------------------------------------------------


class _Said:
    """A stream that brings some bytes, in pieces, and its end."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    async def send_all(self, data: bytes) -> None:
        """Take what nobody reads."""

    async def receive_some(self, most: int = 7) -> bytes:
        """Bring the next piece."""
        size = min(most, 7)
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def _run(task: Coroutine[object, None, object]) -> None:
    with suppress(StopIteration):
        task.send(None)
        raise AssertionError("it waits for what has come")


def _upstream(data: bytes) -> None:
    _run(_ask_http(_Said(data), _VIA, "a.test:7443"))  # type: ignore[arg-type]


def _check(data: bytes) -> None:
    _run(_answers(_Said(data), _HERE.visitor, "/h"))  # type: ignore[arg-type]


class _Bound(_Said):
    """What a bound port brings."""

    bound = None


def _peer(data: bytes) -> None:
    _run(BoundPort(_Bound(data))._read_address())  # type: ignore[arg-type]


def _reports(data: bytes) -> None:
    marks = Marks()
    marks.note(0.0, 0)
    marks.take(marks.take(data[:30]) + data[30:])
    marks.rate()


# SOCKS -------------------------------------------------------------------------------


def _socks5(data: bytes) -> None:
    """However it is cut; the first byte says whether there are users."""
    for size in (1, 7, 1_000):
        side = Socks5Server(_USERS.check if data[:1] > b"\x7f" else None)
        for at in range(1, len(data), size):
            side.receive(data[at : at + size])
        side.take_output()


def _socks4(data: bytes) -> None:
    for size in (1, 7, 1_000):
        side = Socks4Server()
        for at in range(0, len(data), size):
            side.receive(data[at : at + size])
        side.take_output()


_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_GET: Final = b"GET /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\n"
_OK: Final = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)


def _client_hello() -> bytes:
    """Return the first message of a real TLS client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    said = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="a.test").do_handshake()
    return said.read()


_RULES: Final = Rules(allow=(ip_network("10.0.0.0/8"),), path="/a", group="blue")

PARSERS: Final = {
    "frames": Parser(
        _frames,
        (RemoteSessionError,),
        (
            frames.data(1, b"hello", fin=True) + frames.window(1, 1 << 20),
            frames.create_tcp(1, frames.host("a", 80)) + frames.close(1, 0x14, "x"),
            frames.ping() + frames.received(9) + frames.go_away(8, 5, "later"),
        ),
    ),
    "payloads": Parser(
        _payload,
        (RemoteSessionError,),
        (
            b"\x03\0\0\1\0\1" + frames.mapping_entry(1, "a", "", 80),
            b"\x03\0\xff\0\1" + frames.mapping_answer(0, "127.0.0.1", 9),
            b"\x01\1\0\0" + _ADDRESS + frames.tlv(1, _ADDRESS),
            b"\x03\0\0\4" + bytes(16) + b"\0\1" + frames.mapping_entry(1, "a", "", 80),
            b"\x01\1\0\5\1" + bytes(12),
        ),
    ),
    "server handshake": Parser(
        _server_handshake, (TunnelError,), (frames.hello() + frames.auth("anna"),)
    ),
    "client handshake": Parser(
        _client_handshake, (TunnelError,), (frames.hello_ack() + frames.auth_ack(),)
    ),
    "fields of HELLO": Parser(
        _hello_fields,
        (TunnelError,),
        (frames.tlv(1, bytes(4)) + frames.tlv(7, b"agent"), frames.tlv(8, bytes(16))),
    ),
    "a session": Parser(
        _session,
        (RemoteSessionError,),
        (
            b"\0" + frames.create_tcp(1, _ADDRESS) + frames.data(1, b"hello", fin=True),
            b"\0" + frames.create_udp(1) + frames.datagram(1, _ADDRESS, b"hello"),
            b"\0" + frames.mapping(1, frames.mapping_entry(1, "a", "", 80)),
            b"\0" + frames.mapping_try(bytes(16), frames.mapping_entry(1, "a", "", 80)),
            b"\0" + frames.create_throughput(1, 0, 2_000, 1 << 20),
            b"\xff" + frames.create_name(2, "a") + frames.close(2, 0),
        ),
    ),
    "rules": Parser(
        _rules, (RemoteSessionError,), (b"".join(bytes((kind, len(said))) + said
                for kind, said in rules_tlvs(_RULES).items()),)
    ),
    "request heads": Parser(_request, (HeadError,), (_GET,)),
    "answer heads": Parser(_answer, (HeadError,), (_OK,)),
    "bodies": Parser(
        _body, (BodyError,), (b"5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\n", b"1\r\na\r\n")
    ),
    "targets": Parser(
        _target, (), (b"http://a.test:80/x?y", b"a.test:443", b"[::1]:443")
    ),
    "fields of requests": Parser(
        _said_fields,
        (),
        (b'for="[2001:db8::1]:80";proto=https, for=192.0.2.1', b"YW5uYTpzZWNyZXQ=",
         b"__Host-tunnel-login=99999999999.x; a=b"),
    ),
    "whole requests": Parser(
        _asked,
        (HeadError, HttpError),
        (
            b"Range: bytes=5-9\r\nIf-Range: \"1-2-3\"",
            b"If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: x, close",
            b"If-None-Match: W/\"1-2-3\", *\r\nAuthorization: Basic YW5uYTpzZWNyZXQ=",
            b"If-Unmodified-Since: Sunday, 06-Nov-94 08:49:37 GMT\r\nIf-Match: *",
            b"GET http://a:b@a.test:80/%2e%2e/b;c?d HTTP/1.1\r\nHost: [::1]:5\r\n\r\n",
        ),
    ),
    "overheard": Parser(
        _overheard,
        (),
        (_OK + b"5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 103 A\n\n" + _OK,
         _GET + b"abc" + _GET,
         b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n\x81\5hello\x88\2\3\xe8"),
    ),
    "hints": Parser(
        _hints,
        (),
        (b"Blocked request. This host (x)", b"\x15\x03\x03\0\2\2F",
         bytes(3) + b"\4" + bytes(5)),
    ),
    "upstream proxies": Parser(
        _upstream,
        (LocalLinkError,),
        (b"HTTP/1.1 200 Connection established\r\n\r\n",
         b"HTTP/1.0 407 Who\r\nProxy-Authenticate: B\r\nContent-Length: 2\r\n\r\nno"),
    ),
    "checks": Parser(_check, (), (b"HTTP/1.1 200 OK\r\n\r\n",)),
    "bound ports": Parser(
        _peer, (LocalStreamError,), (_ADDRESS, b"\4" + bytes(15) + b"\1\0\x50x")
    ),
    "throughput reports": Parser(
        _reports, (), (REPORT.pack(100, 9_999) + REPORT.pack(200, 1 << 30),)
    ),
    "SOCKS5": Parser(
        _socks5,
        (RemoteStreamError,),
        (
            b"\0\5\1\0\5\1\0\3\6a.test\0\x50",
            b"\xff\5\1\2\1\4anna\6secret\5\3\0" + _ADDRESS,
        ),
    ),
    "SOCKS4": Parser(
        _socks4, (RemoteStreamError,), (b"\4\1\0\x50\0\0\0\1me\0a.test\0",)
    ),
    "datagrams of SOCKS5": Parser(
        decode_datagram,
        (),
        (bytes(3) + _ADDRESS + b"x", bytes(3) + frames.host("a", 9)),
    ),
    "PROXY headers": Parser(
        read_proxy_header,
        (ValueError,),
        (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP6 ::1 ::2 1 2\r\n",
            _V2 + b"\x21\x11\0\x0c\x7f\0\0\1\x7f\0\0\1\0\1\0\2",
        ),
    ),
    "ClientHello": Parser(read_client_hello, (HelloError,), (_client_hello(),)),
    **WORDS,
}  # fmt: skip
"""What parses bytes or words of a peer, a visitor, an app, a target or a user."""


def take(name: str, data: bytes) -> bool:
    """Feed a parser; return whether it took the input. Else it raises what it may."""
    parser = PARSERS[name]
    try:
        parser.feed(data)
    except parser.may_raise:
        return False
    return True


def blocks() -> int:
    """Return how many objects Python holds, but for those in caches of a bound size.

    The collector must be off for that. It empties the lists of tuples to be used again,
    and finds no garbage, for that is frozen.
    """
    assert not gc.isenabled()
    re.purge()
    for one in gc.get_objects():
        if isinstance(one, _lru_cache_wrapper):
            one.cache_clear()
    gc.freeze()
    gc.collect()
    gc.unfreeze()
    return sys.getallocatedblocks()
