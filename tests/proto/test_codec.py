"""Bytes to frames and back: layout, limits, splits and hostile bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import frames as by_hand

from tunnel.addresses import Address, UnixPath, encode_address, is_host_name
from tunnel.errors import CODES, Code, LocalStreamError, RemoteSessionError
from tunnel.proto.codec import FrameDecoder, decode_one
from tunnel.proto.fields import (
    MAX_OFFSET,
    check_tlvs,
    encode_text,
)
from tunnel.proto.frames import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_SOCK_MAP,
    AskTarget,
    BindTarget,
    LinkTarget,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
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
    ProtFrame,
    ProtGoAway,
    ProtHello,
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
from tunnel.proto.payloads import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

# What may be said ------------------------------------------------------------------

sock_maps = st.integers(1, MAX_SOCK_MAP).map(SockMap)
u16s = st.integers(0, 0xFFFF)
u32s = st.integers(0, 0xFFFF_FFFF)
offsets = st.integers(0, MAX_OFFSET)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=63)
said = names.filter(str.isprintable)
host_names = st.text("abcXYZ019.-_", min_size=1, max_size=255).filter(
    lambda name: not name.replace(".", "").isdecimal()
)
hosts = host_names | st.ip_addresses().map(str)
addresses = st.builds(Address, hosts, u16s)
tlvs = st.dictionaries(st.integers(0, 255), st.binary(max_size=40), max_size=6)
proofs = st.binary(min_size=32, max_size=32)
ids = st.binary(min_size=16, max_size=16)


def codes(frame: str) -> st.SearchStrategy[Code]:
    return st.sampled_from([code for code in Code if frame in CODES[code].frames])


creates = st.builds(
    ProtCreate,
    sock_maps,
    st.builds(TcpTarget, addresses) | st.builds(NameTarget, names, u16s),
    st.none() | addresses,
    st.none() | u32s,
    st.none() | said.filter(lambda name: len(name.encode()) < 99),
    st.none() | said.filter(lambda name: len(name.encode()) < 99),
).filter(lambda frame: len(encode(frame)) <= HEADER_BYTES + 1024)

entries = st.builds(
    MappingEntry,
    st.integers(0, 255),
    names,
    st.just("") | hosts,
    u16s,
    u16s,
)
plain_auths = st.builds(
    ProtAuth, names, u32s, st.just(b""), st.just(0), st.just(b""), tlvs, proofs
)
resuming_auths = st.builds(ProtAuth, names, u32s, ids, offsets, proofs, tlvs, proofs)

any_frame: st.SearchStrategy[ProtFrame] = st.one_of(
    st.builds(ProtData, sock_maps, st.binary(min_size=1, max_size=300), st.booleans()),
    st.builds(ProtData, sock_maps, st.just(b""), st.just(True)),
    creates,
    st.builds(
        ProtCreate,
        sock_maps,
        st.builds(OtherTarget, st.integers(9, 255), st.binary(max_size=60))
        | st.builds(ThroughputTarget, st.booleans(), u32s, offsets)
        | st.builds(
            SessionTarget,
            ids,
            st.builds(TcpTarget, addresses) | st.builds(NameTarget, names, u16s),
        )
        | st.builds(LinkTarget, st.booleans(), st.lists(names, max_size=3).map(tuple))
        | st.builds(AskTarget),
    ),
    st.builds(ProtAccept, sock_maps, st.none() | addresses),
    st.builds(ProtClose, sock_maps, codes("C"), said),
    st.builds(
        ProtMapping,
        st.sampled_from([op for op in MappingOp if op is not MappingOp.TRY]),
        st.lists(entries, max_size=5),
    ),
    st.builds(
        ProtMapping,
        st.just(MappingOp.TRY),
        st.lists(entries, max_size=5),
        client_id=ids,
    ),
    st.builds(
        ProtMappingAnswer,
        st.lists(st.builds(MappingAnswer, codes("M"), said, u16s, said), max_size=5),
    ),
    st.builds(ProtHello, st.booleans(), st.just(1), st.integers(1, 255), proofs, tlvs),
    st.builds(ProtHello, st.just(False), st.integers(2, 255), st.just(255), proofs),
    plain_auths,
    resuming_auths,
    st.builds(ProtAuthAnswer, ids, offsets, st.booleans(), tlvs, proofs),
    st.builds(ProtPing, st.binary(min_size=8, max_size=8), st.booleans()),
    st.builds(ProtWindow, sock_maps, offsets),
    st.builds(ProtGoAway, codes("G"), u16s, said),
    st.builds(ProtDatagram, sock_maps, addresses, st.binary(max_size=100)),
    st.builds(ProtReceived, offsets),
    st.builds(
        ProtExtension,
        st.integers(0x80, 0xFF),
        st.integers(0, MAX_SOCK_MAP).map(SockMap),
        st.integers(0, 100),
    ),
)


def decode(data: bytes, max_frame: int = MAX_FRAME_BYTES) -> list[ProtFrame]:
    return list(FrameDecoder(max_frame).feed(data))


def only(data: bytes) -> ProtFrame:
    (frame,) = decode(data)
    return frame


def refusal(data: bytes, max_frame: int = MAX_FRAME_BYTES) -> RemoteSessionError:
    with pytest.raises(RemoteSessionError) as caught:
        decode(data, max_frame)
    return caught.value


# Round trips -----------------------------------------------------------------------


@given(any_frame)
def test_every_frame_comes_back_as_it_was_sent(frame: ProtFrame) -> None:
    data = encode(frame)
    assert only(data) == frame
    assert decode_one(data + b"more") == (frame, len(data))


SESSION = (
    ProtData,
    ProtWindow,
    ProtClose,
    ProtCreate,
    ProtAccept,
    ProtMapping,
    ProtMappingAnswer,
)


@given(st.lists(any_frame, max_size=6))
def test_session_bytes_counts_session_frames_only(frames: list[ProtFrame]) -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(b"".join(map(encode, frames)))) == frames
    expected = sum(
        len(encode(frame))
        for frame in frames
        if isinstance(frame, SESSION)
        or (isinstance(frame, ProtExtension) and frame.kind >= 0xC0)
    )
    assert decoder.session_bytes == expected


V4 = Address("192.0.2.1", 443)
V4_BYTES = by_hand.ipv4(192, 0, 2, 1, 443)
BY_HAND: list[tuple[ProtFrame, bytes]] = [
    (ProtData(SockMap(1), b"hi"), bytes.fromhex("000002 00 00 000001 6869")),
    (ProtData(SockMap(1), b"hi", True), bytes.fromhex("000002 00 10 000001 6869")),
    (ProtData(SockMap(2), b"", True), bytes.fromhex("000000 00 10 000002")),
    (
        ProtCreate(SockMap(1), TcpTarget(V4)),
        bytes.fromhex("000008 01 00 000001 00 01 c0000201 01bb"),
    ),
    (
        ProtCreate(SockMap(2), NameTarget("web", 7), V4, 10_000, "a.test", "home"),
        by_hand.create_name(
            2,
            "web",
            7,
            by_hand.tlv(1, V4_BYTES)
            + by_hand.tlv(2, by_hand.u32(10_000))
            + by_hand.tlv(3, b"a.test")
            + by_hand.tlv(4, b"home"),
        ),
    ),
    (
        ProtCreate(SockMap(3), TcpTarget(Address("db.test", 5432))),
        by_hand.create_tcp(3, by_hand.host("db.test", 5432)),
    ),
    (ProtAccept(SockMap(1)), by_hand.accept(1)),
    (ProtAccept(SockMap(1), V4), by_hand.accept(1, V4_BYTES)),
    (ProtClose(SockMap(1)), bytes.fromhex("000000 02 00 000001")),
    (ProtClose(SockMap(1), Code.REFUSED, "no"), by_hand.close(1, 0x14, "no")),
    (
        ProtMapping(MappingOp.ADD, [MappingEntry(1, "web", "::", 8080, 2)]),
        by_hand.mapping(1, by_hand.mapping_entry(1, "web", "::", 8080, 2)),
    ),
    (
        ProtMappingAnswer([MappingAnswer(Code.TAKEN, "::1", 8080, "by x")]),
        by_hand.mapping_answers(by_hand.mapping_answer(0x1B, "::1", 8080, "by x")),
    ),
    (
        ProtHello(False, 1, 3, b"n" * 32, {7: b"x", 200: b""}),
        by_hand.hello(b"n" * 32, by_hand.tlv(7, b"x") + by_hand.tlv(200, b""), 1, 3),
    ),
    (ProtHello(True, 1, 0, b"n" * 32), by_hand.hello_ack(b"n" * 32)),
    (
        ProtAuth("anna", 3, tlvs={1: bytes(4)}, proof=b"p" * 32),
        by_hand.auth("anna", 3, b"\0", by_hand.tlv(1, bytes(4)), b"p" * 32),
    ),
    (
        ProtAuth("anna", 4, b"s" * 16, 99, b"r" * 32, {}, b"p" * 32),
        by_hand.auth(
            "anna", 4, by_hand.resuming(b"s" * 16, 99, b"r" * 32), b"", b"p" * 32
        ),
    ),
    (
        ProtAuthAnswer(b"s" * 16, 7, True, {2: bytes(4)}, b"p" * 32),
        by_hand.auth_ack(b"s" * 16, 7, 1, by_hand.tlv(2, bytes(4)), b"p" * 32),
    ),
    (ProtPing(b"12345678"), by_hand.ping(b"12345678")),
    (ProtPing(b"12345678", True), by_hand.ping(b"12345678", ack=True)),
    (
        ProtWindow(SockMap(5), 262_144),
        bytes.fromhex("000008 08 00 000005 0000000000040000"),
    ),
    (ProtGoAway(Code.CALM, 30, "slow"), by_hand.go_away(6, 30, "slow")),
    (ProtDatagram(SockMap(7), V4, b"dgram"), by_hand.datagram(7, V4_BYTES, b"dgram")),
    (
        ProtCreate(SockMap(3), UdpTarget("dns", 2)),
        by_hand.create_udp(3, "dns", 2),
    ),
    (ProtCreate(SockMap(3), BindTarget(V4)), by_hand.create_bind(3, V4_BYTES)),
    (
        ProtCreate(SockMap(3), ThroughputTarget(False, 2_000, 1 << 40)),
        by_hand.create_throughput(3, 1, 2_000, 1 << 40),
    ),
    (
        ProtMapping(
            MappingOp.TRY, [MappingEntry(1, "web", "::", 8080, 2)], client_id=b"i" * 16
        ),
        by_hand.mapping_try(b"i" * 16, by_hand.mapping_entry(1, "web", "::", 8080, 2)),
    ),
    (ProtReceived(1 << 40), by_hand.received(1 << 40)),
    (ProtExtension(0x80, SockMap(0), 3), by_hand.frame(0x80, bytes(3))),
]


@pytest.mark.parametrize(("frame", "data"), BY_HAND, ids=lambda value: repr(value)[:40])
def test_a_frame_has_the_layout_of_the_protocol(frame: ProtFrame, data: bytes) -> None:
    assert encode(frame) == data
    assert only(data) == frame


def test_a_create_of_an_unknown_type_keeps_its_body_for_a_polite_refusal() -> None:
    frame = only(by_hand.frame(by_hand.CREATE, b"\x09whatever", sock_map=1))
    assert frame == ProtCreate(SockMap(1), OtherTarget(9, b"whatever"))


def test_unused_flags_are_ignored() -> None:
    assert only(by_hand.frame(by_hand.DATA, b"x", 0xEF, 1)) == ProtData(
        SockMap(1), b"x"
    )
    assert only(by_hand.frame(by_hand.RECEIVED, bytes(8), 0xFF)) == ProtReceived(0)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (by_hand.close(1, 0x7777), Code.GENERAL),
        (by_hand.close(1, Code.PROTOCOL), Code.GENERAL),
        (by_hand.go_away(0x7777), Code.INTERNAL),
        (by_hand.go_away(Code.REFUSED), Code.INTERNAL),
    ],
)
def test_a_code_of_a_later_version_is_read_as_the_most_general(
    data: bytes, code: Code
) -> None:
    frame = only(data)
    assert isinstance(frame, ProtClose | ProtGoAway)
    assert frame.code == code


def test_a_mapping_answer_with_a_later_code_is_a_general_failure() -> None:
    frame = only(by_hand.mapping_answers(by_hand.mapping_answer(0x7777)))
    assert frame == ProtMappingAnswer([MappingAnswer(Code.GENERAL)])


# Words of a peer -------------------------------------------------------------------

EVIL = "a\r\nerror\x1b[2J\x85\u2028\u202e\x00\x7f"
CLEAN = "a??error?[2J??????"[: len(EVIL)]


def test_words_of_a_peer_are_decoded_without_what_moves_a_cursor() -> None:
    assert only(by_hand.close(1, 16, EVIL)) == ProtClose(SockMap(1), Code(16), CLEAN)
    assert only(by_hand.go_away(0, 0, EVIL)) == ProtGoAway(Code(0), 0, CLEAN)
    answers = by_hand.mapping_answers(by_hand.mapping_answer(0, EVIL, 1, EVIL))
    assert only(answers) == ProtMappingAnswer([MappingAnswer(Code(0), CLEAN, 1, CLEAN)])


@pytest.mark.parametrize("field", [3, 4])
def test_a_name_that_nobody_can_have_is_cleaned_too(field: int) -> None:
    tlv = by_hand.tlv(field, EVIL.encode())
    frame = only(by_hand.create_name(2, "web", 0, tlv))
    assert isinstance(frame, ProtCreate)
    assert (frame.host_name, frame.exit)[field - 3] == CLEAN


def test_what_identifies_something_stays_as_it_was_sent() -> None:
    path = f"/{EVIL}"
    create = by_hand.frame(by_hand.CREATE, b"\3" + by_hand.text(path), 0, 1)
    assert only(create) == ProtCreate(SockMap(1), UnixPath(path))
    assert only(by_hand.create_name(2, EVIL)) == ProtCreate(
        SockMap(2), NameTarget(EVIL, 0)
    )
    frame = only(by_hand.mapping(1, by_hand.mapping_entry(1, EVIL)))
    assert isinstance(frame, ProtMapping)
    assert frame.entries[0].name == EVIL
    auth = ProtAuth(EVIL, 1, proof=bytes(32))
    assert only(encode(auth)) == auth


# What is refused -------------------------------------------------------------------

ADDRESS = by_hand.ipv4(127, 0, 0, 1, 80)
NONCE = bytes(32)
MALFORMED = {
    "CREATE without a type": by_hand.frame(1, b"", 0, 1),
    "CREATE cut in its address": by_hand.frame(1, b"\0\1\x7f", 0, 1),
    "CREATE cut in its port": by_hand.create_tcp(1, ADDRESS[:-1]),
    "CREATE with address form 2": by_hand.create_tcp(1, b"\x02" + ADDRESS[1:]),
    "CREATE to no host": by_hand.create_tcp(1, by_hand.host("", 80)),
    "CREATE to a host with a line end": by_hand.create_tcp(
        1, by_hand.host("a\r\nb", 80)
    ),
    "CREATE to a host that is not UTF-8": by_hand.create_tcp(
        1, by_hand.host(b"\xff", 80)
    ),
    "CREATE with a field twice": by_hand.create_tcp(
        1, ADDRESS, by_hand.tlv(3, b"a") + by_hand.tlv(3, b"a")
    ),
    "CREATE with a cut field": by_hand.create_tcp(1, ADDRESS, b"\x03\x00\x09a"),
    "CREATE with a short deadline": by_hand.create_tcp(
        1, ADDRESS, by_hand.tlv(2, b"abc")
    ),
    "CREATE with a long deadline": by_hand.create_tcp(
        1, ADDRESS, by_hand.tlv(2, bytes(5))
    ),
    "CREATE with a long visitor": by_hand.create_tcp(
        1, ADDRESS, by_hand.tlv(1, ADDRESS + b"x")
    ),
    "CREATE with a host name that is not UTF-8": by_hand.create_tcp(
        1, ADDRESS, by_hand.tlv(3, b"\xff")
    ),
    "CREATE|ACK with more than an address": by_hand.accept(1, ADDRESS + b"x"),
    "CREATE|ACK cut short": by_hand.accept(1, ADDRESS[:-1]),
    "CLOSE of one byte": by_hand.frame(2, b"\0", 0, 1),
    "CLOSE without its reason": by_hand.frame(2, b"\0\0", 0, 1),
    "CLOSE with a byte too many": by_hand.frame(2, b"\0\0\0\0", 0, 1),
    "CLOSE whose reason is not UTF-8": by_hand.close(1, 0, b"\xc3"),
    "MAPPING with operation 0": by_hand.mapping(0),
    "MAPPING with operation 5": by_hand.mapping(5),
    "MAPPING in nobody's place": by_hand.mapping(4),
    "CREATE with direction 2": by_hand.create_throughput(1, 2, 1, 1),
    "CREATE of more than 2^62 bytes": by_hand.create_throughput(1, 0, 1, (1 << 62) + 1),
    "MAPPING with fewer entries than said": by_hand.frame(3, b"\1\0\2"),
    "MAPPING with bytes after its entries": by_hand.frame(3, b"\1\0\0\0"),
    "MAPPING with an impossible host": by_hand.mapping(
        1, by_hand.mapping_entry(1, "a", "a b")
    ),
    "MAPPING whose entry's fields overlap its end": by_hand.frame(
        3,
        b"\1\0\1"
        + by_hand.mapping_entry(1, "a")[:-2]
        + b"\0\2"
        + by_hand.tlv(200, b"12"),
    ),
    "MAPPING|ACK cut short": by_hand.frame(3, b"\0\1\0\0", by_hand.ACK),
    "MAPPING|ACK with bytes left": by_hand.frame(3, b"\0\0\0", by_hand.ACK),
    "HELLO of another protocol": by_hand.hello(magic=b"WMT1"),
    "HELLO without a whole nonce": by_hand.hello(NONCE[:-1]),
    "HELLO with a field twice": by_hand.hello(NONCE, by_hand.tlv(1, b"") * 2),
    "HELLO with a cut field": by_hand.hello(NONCE, b"\x01\x00"),
    "AUTH with resume 2": by_hand.auth("a", 1, b"\2"),
    "AUTH without a whole proof": by_hand.auth("a", proof=bytes(31)),
    "AUTH whose field runs into its proof": by_hand.auth("a", 1, b"\0", b"\1\0\x09abc"),
    "AUTH that resumes nothing": by_hand.auth("a", 1, b"\1", proof=bytes(8)),
    "AUTH|ACK with resumed 2": by_hand.auth_ack(resumed=2),
    "AUTH|ACK cut short": by_hand.auth_ack(proof=bytes(31)),
    "GO_AWAY cut short": by_hand.frame(9, b"\0\0\0"),
    "GO_AWAY with a byte too many": by_hand.frame(9, bytes(6)),
    "DATAGRAM without an address": by_hand.frame(10, b"", 0, 1),
    "WINDOW beyond 2^62": by_hand.window(1, MAX_OFFSET + 1),
    "RECEIVED beyond 2^62": by_hand.received((1 << 64) - 1),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_payload_is_the_peers_fault(name: str) -> None:
    assert refusal(MALFORMED[name]).code == Code.PROTOCOL


@pytest.mark.parametrize("name", MALFORMED)
def test_a_frame_before_a_malformed_one_is_still_given_out(name: str) -> None:
    found, error, _ = one_by_one([by_hand.data(1, b"x") + MALFORMED[name]])
    assert error is not None
    assert found == [ProtData(SockMap(1), b"x")]


@pytest.mark.parametrize(
    "data",
    [
        by_hand.create_tcp(1, ADDRESS, by_hand.tlv(5, b"")),
        by_hand.mapping(1, by_hand.mapping_entry(1, "a", tlvs=by_hand.tlv(10, b""))),
    ],
)
def test_an_unknown_field_below_128_asks_for_a_later_version(data: bytes) -> None:
    assert refusal(data).code == Code.VERSION


@pytest.mark.parametrize(
    "data",
    [
        by_hand.create_tcp(1, ADDRESS, by_hand.tlv(128, b"x")),
        by_hand.mapping(1, by_hand.mapping_entry(1, "a", tlvs=by_hand.tlv(255, b"x"))),
    ],
)
def test_an_unknown_field_from_128_on_is_ignored(data: bytes) -> None:
    assert isinstance(only(data), ProtCreate | ProtMapping)


BAD_HEADERS = {
    "unknown kind 0x0C": by_hand.header(0x0C, 0),
    "unknown kind 0x7F": by_hand.header(0x7F, 100, 0, 1),
    "DATA for the link": by_hand.header(0, 1),
    "DATA that is empty": by_hand.header(0, 0, 0, 1),
    "DATA above the limit": by_hand.header(0, MAX_FRAME_BYTES + 1, 0, 1),
    "CREATE for the link": by_hand.header(1, 8),
    "CREATE above the limit": by_hand.header(1, 1_025, 0, 1),
    "CLOSE for the link": by_hand.header(2, 0),
    "CLOSE above the limit": by_hand.header(2, 1_025, 0, 1),
    "MAPPING with a number": by_hand.header(3, 3, 0, 1),
    "MAPPING above the limit": by_hand.header(3, 65_529),
    "HELLO with a number": by_hand.header(5, 38, 0, 1),
    "HELLO above the limit": by_hand.header(5, 4_097),
    "AUTH with a number": by_hand.header(6, 38, 0, 1),
    "AUTH above the limit": by_hand.header(6, 1_025),
    "PING with a number": by_hand.header(7, 8, 0, 1),
    "PING of 7 bytes": by_hand.header(7, 7),
    "PING of 9 bytes": by_hand.header(7, 9),
    "WINDOW for the link": by_hand.header(8, 8),
    "WINDOW of 7 bytes": by_hand.header(8, 7, 0, 1),
    "GO_AWAY with a number": by_hand.header(9, 5, 0, 1),
    "GO_AWAY above the limit": by_hand.header(9, 1_025),
    "DATAGRAM for the link": by_hand.header(10, 9),
    "DATAGRAM above the limit": by_hand.header(10, 65_535 + 263, 0, 1),
    "RECEIVED with a number": by_hand.header(11, 8, 0, 1),
    "RECEIVED of 0 bytes": by_hand.header(11, 0),
    "an extension above the limit": by_hand.header(0xFF, MAX_FRAME_BYTES + 1),
    "all bits set": b"\xff" * 8,
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_an_illegal_header_is_refused_before_its_payload(name: str) -> None:
    header = BAD_HEADERS[name]
    assert refusal(header).code == Code.PROTOCOL
    with pytest.raises(RemoteSessionError):
        decode_one(header)
    frames, error, _ = one_by_one([bytes((byte,)) for byte in header])
    assert frames == []
    assert error is not None


def test_a_login_in_clear_text_ends_the_session_unread() -> None:
    error = refusal(by_hand.header(by_hand.TOKEN, 30) + b"secret")
    assert error.code == Code.AUTH
    assert "secret" not in error.what


def test_a_smaller_max_frame_bounds_data_and_extensions() -> None:
    for kind in (by_hand.DATA, 0x80, 0xC0):
        assert refusal(by_hand.header(kind, 16_377, 0, 1), 16_376).code == Code.PROTOCOL
        assert decode(by_hand.frame(kind, bytes(16_376), 0, 1), 16_376)
    whole = by_hand.data(1, bytes(16_377))
    assert refusal(whole, 16_376).code == Code.PROTOCOL
    assert decode(by_hand.mapping(1, *[by_hand.mapping_entry(1, "a")] * 5), 16)


# Splits ----------------------------------------------------------------------------


def one_by_one(pieces: Sequence[bytes]) -> tuple[list[ProtFrame], str | None, int]:
    decoder = FrameDecoder()
    found: list[ProtFrame] = []
    try:
        for piece in pieces:
            for frame in decoder.feed(piece):
                found.append(frame)  # noqa: PERF402 - kept although an error follows
    except RemoteSessionError as error:
        return found, f"{error.code.name} {error.what}", decoder.session_bytes
    return found, None, decoder.session_bytes


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


near_frames = st.lists(
    any_frame.map(encode)
    | st.sampled_from(list(MALFORMED.values()))
    | st.sampled_from(list(BAD_HEADERS.values()))
    | st.binary(max_size=20),
    max_size=5,
).map(b"".join)
places = st.lists(st.integers(0, 1 << 16), max_size=8)


@given(near_frames, places)
def test_any_split_gives_the_same_frames_and_the_same_error(
    data: bytes, places: list[int]
) -> None:
    assert one_by_one(cut(data, places)) == one_by_one([data])


def test_every_byte_alone_gives_the_same_frames() -> None:
    data = b"".join(raw for _, raw in BY_HAND)
    frames = [frame for frame, _ in BY_HAND]
    assert one_by_one([data[at : at + 1] for at in range(len(data))])[0] == frames
    for at in range(len(data)):
        assert one_by_one([data[:at], data[at:]])[0] == frames


@given(st.binary(max_size=200))
@example(b"\xff" * 64)
@example(bytes(64))
def test_hostile_bytes_raise_only_the_remote_session_error(data: bytes) -> None:
    one_by_one([data])
    one_by_one([data[at : at + 1] for at in range(len(data))])


@given(
    st.sampled_from([*range(12), 0x80, 0xFF]),
    st.integers(0, 255),
    st.sampled_from([0, 1, MAX_SOCK_MAP]),
    st.binary(max_size=80),
)
def test_any_payload_behind_a_known_kind_raises_only_the_remote_session_error(
    kind: int, flag: int, sock_map: int, payload: bytes
) -> None:
    one_by_one([by_hand.frame(kind, payload, flag, sock_map)])


def test_the_largest_offset_is_legal() -> None:
    assert only(by_hand.window(1, MAX_OFFSET)) == ProtWindow(SockMap(1), MAX_OFFSET)
    assert only(by_hand.received(MAX_OFFSET)) == ProtReceived(MAX_OFFSET)


def test_no_more_than_one_incomplete_frame_is_held() -> None:
    decoder = FrameDecoder()
    frame = by_hand.data(1, bytes(MAX_FRAME_BYTES))
    stream = frame * 3
    for at in range(0, len(stream), 1_000):
        list(decoder.feed(stream[at : at + 1_000]))
        assert decoder.held_bytes < len(frame)
    assert decoder.held_bytes == 0
    assert decoder.session_bytes == len(stream)


def test_nothing_is_held_for_an_announced_length() -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(by_hand.header(by_hand.DATA, 65_528, 0, 1))) == []
    assert decoder.held_bytes == HEADER_BYTES


def test_admit_is_asked_about_a_header_whose_payload_is_on_its_way() -> None:
    asked: list[tuple[int, int, int, int]] = []

    def admit(*header: int) -> None:
        asked.append(header)  # type: ignore[arg-type]
        raise RemoteSessionError(Code.FLOW, "more than was granted")

    whole = by_hand.data(9, b"abc", fin=True)
    for at in range(HEADER_BYTES, len(whole)):
        with pytest.raises(RemoteSessionError):
            list(FrameDecoder(admit=admit).feed(whole[:at]))
    assert set(asked) == {(by_hand.DATA, by_hand.FIN, 9, 3)}
    assert list(FrameDecoder(admit=admit).feed(whole)) == [
        ProtData(SockMap(9), b"abc", True)
    ]


def test_decode_one_waits_for_the_whole_frame() -> None:
    data = by_hand.ping(b"12345678")
    for at in range(len(data)):
        assert decode_one(data[:at]) is None
    assert decode_one(data) == (ProtPing(b"12345678"), len(data))


# Pieces ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "a b", "a\n", "ü.test", "x" * 256, "a/b", "a:b"])
def test_a_host_that_is_none_is_not_sent(host: str) -> None:
    assert not is_host_name(host)
    with pytest.raises(LocalStreamError) as caught:
        encode_address(Address(host, 80))
    assert caught.value.code == Code.ADDRESS_UNSUPPORTED


def test_an_address_has_the_forms_of_rfc_1928() -> None:
    assert encode_address(Address("127.0.0.1", 80)) == ADDRESS
    assert encode_address(Address("::1", 1)) == b"\x04" + bytes(15) + b"\1\0\1"
    assert encode_address(Address("a.test", 2)) == by_hand.host("a.test", 2)


def test_kinds_of_names_have_their_numbers_on_the_wire() -> None:
    kinds = ("TCP", "HTTP", "HTTPS", "UDP", "SOCKS", "EXIT")
    assert [kind.name for kind in MappingType] == list(kinds)
    for number, kind in enumerate(kinds, 1):
        entry = MappingEntry(MappingType[kind], "name", port=80)
        by_number = by_hand.mapping_entry(number, "name", port=80)
        asked = encode(ProtMapping(MappingOp.ADD, [entry]))
        assert asked == by_hand.mapping(1, by_number)


def test_what_is_not_said_is_the_first_port_and_no_port_on_the_wire() -> None:
    udp, name = UdpTarget("dns"), NameTarget("web")
    assert encode(ProtCreate(SockMap(1), udp)) == by_hand.create_udp(1, "dns", 0)
    assert encode(ProtCreate(SockMap(1), name)) == by_hand.create_name(1, "web", 0)
    refused = by_hand.mapping_answers(by_hand.mapping_answer(Code.TAKEN, "", 0, ""))
    assert encode(ProtMappingAnswer([MappingAnswer(Code.TAKEN)])) == refused


def test_a_long_text_is_cut_between_characters() -> None:
    assert encode_text("ü" * 200) == b"\xfe" + "ü".encode() * 127
    assert encode_text("x" * 300) == b"\xff" + b"x" * 255


def test_a_text_that_utf_8_cannot_say_is_sent_with_question_marks() -> None:
    assert encode_text("a\udcffb") == b"\x03a?b"


def test_known_fields_pass() -> None:
    check_tlvs({1: b"", 200: b""}, (1,))
    with pytest.raises(RemoteSessionError):
        check_tlvs({2: b""}, (1,))
