"""Heads are read strictly where they frame, and left alone elsewhere."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.front.http.heads import (
    CHUNKED,
    MAX_SIZE_DIGITS,
    NO_BODY,
    OPEN,
    Body,
    HeadError,
    end_of_answer,
    end_of_request,
    read_answer,
    read_field,
    read_request,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


def request(*lines: bytes, first: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: a", *lines, b"", b""))


def refused(raw: bytes, most: int = 10) -> int:
    with pytest.raises(HeadError) as caught:
        read_request(raw, most)
    assert caught.value.words.isprintable()
    return caught.value.status


def answer(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


def faulty(raw: bytes, method: bytes = b"GET", most: int = 10) -> str:
    with pytest.raises(HeadError) as caught:
        read_answer(raw, method, most)
    assert caught.value.status is HTTPStatus.BAD_GATEWAY
    return caught.value.words


# The end of a request's head ---------------------------------------------------------


def test_a_head_ends_where_it_ends_however_it_is_cut() -> None:
    whole = request(b"X: y", b"Content-Length: 3") + b"\r\n\r\nmore"
    end = whole.index(b"\r\n\r\n") + 4
    for first in range(end):
        for seen in range(first + 1):
            assert end_of_request(bytearray(whole[:first]), seen) == 0
        assert end_of_request(bytearray(whole[: end + 2]), first) == end


def test_it_is_found_byte_by_byte() -> None:
    whole = request(b"X: y")
    assert ends_byte_by_byte(whole) == [0] * (len(whole) - 1) + [len(whole)]


def ends_byte_by_byte(said: bytes) -> list[int]:
    waiting, found = bytearray(), []
    for byte in said:
        seen = len(waiting)
        waiting.append(byte)
        found.append(end_of_request(waiting, seen))
    return found


NEVER = [b"a\nb", b"\n", b"a\rb", b"\r\rb", b"\r\n b", b"\r\n\tb", b"\0", b"\x1b[m",
         b"\x7f", b"\x16\x03\x01", b"\x0b"]  # fmt: skip


@pytest.mark.parametrize("said", NEVER)
def test_what_cannot_become_a_request_is_refused_before_it_ends(said: bytes) -> None:
    """Even if one byte comes at a time, at the latest with the one behind it."""
    said = b"GET /" + said
    with pytest.raises(HeadError):
        end_of_request(bytearray(said), 0)
    with pytest.raises(HeadError):
        ends_byte_by_byte(said)


@pytest.mark.parametrize("said", [b"\xff", b"\xff" * 70_000, b"G\xc3\x89T /", b" GET /",
                                  b"{}", b"\t", b"GE(T / HTTP/1.1\r\n"])  # fmt: skip
def test_what_begins_with_no_method_is_refused_at_once(said: bytes) -> None:
    """It held its descriptor for 10 s, as a head that is slow may."""
    with pytest.raises(HeadError):
        end_of_request(bytearray(said), 0)


# Requests ----------------------------------------------------------------------------


def test_fields_go_on_as_they_were_written() -> None:
    lines = [b"X-Odd:a", b"x-ODD:  b \t", b"A_B: c", b"Empty:", b"High: \xff\xe9"]
    head = read_request(request(*lines), 10)
    assert [field.line for field in head.fields[1:]] == lines
    assert [field[:2] for field in head.fields[1:]] == [
        (b"x-odd", b"a"), (b"x-odd", b"b"), (b"a-b", b"c"), (b"empty", b""),
        (b"high", b"\xff\xe9"),
    ]  # fmt: skip


@pytest.mark.parametrize("method", [b"GET", b"PROPFIND", b"M-SEARCH", b"x", b"!#$%&'*"])
def test_any_token_is_a_method(method: bytes) -> None:
    raw = request(first=method + b" / HTTP/1.1")
    assert read_request(raw, 10).method == method


def test_bytes_above_7f_of_a_target_become_what_they_stand_for() -> None:
    raw = request(first=b"GET /\xc3\xa9?\xff HTTP/1.1")
    assert read_request(raw, 10).target == b"/%C3%A9?%FF"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n", 400),
        (request(first=b"GET /"), 400),
        (request(first=b"GET / HTTP/1.1 "), 400),
        (request(first=b"GET  HTTP/1.1"), 400),
        (request(first=b" / HTTP/1.1"), 400),
        (request(first=b"G@T / HTTP/1.1"), 400),
        (request(first=b"G\xe9T / HTTP/1.1"), 400),
        (request(first=b"GET /\t HTTP/1.1"), 400),
        (request(first=b"GET /\x7f HTTP/1.1"), 400),
        (request(first=b"GET / http/1.1"), 400),
        (request(first=b"GET / HTTP/11"), 400),
        (request(first=b"GET / HTTP/1.2"), 505),
        (request(first=b"GET / HTTP/2.0"), 505),
        (request(first=b"GET / HTTP/0.9"), 505),
        (request(b"X"), 400),
        (request(b": x"), 400),
        (request(b"X : y"), 400),
        (request(b"X\t: y"), 400),
        (request(b" X: y"), 400),
        (request(b"X\xe9: y"), 400),
        (request(b"X: \0"), 400),
        (request(b"X: \x0b"), 400),
        (request(b"X: \x7f"), 400),
        (request(b"Host: a"), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (request(b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400),
        (request(b"Content-Length: 1", b"Content-Length: 1"), 400),
        (request(b"Content-Length: 1, 1"), 400),
        (request(b"Content-Length: -1"), 400),
        (request(b"Content-Length: \xb2"), 400),
        (request(b"Content-Length: " + b"1" * (MAX_SIZE_DIGITS + 1)), 400),
        (request(b"Content-Length:"), 400),
        (request(b"Transfer-Encoding: gzip"), 501),
        (request(b"Transfer-Encoding: gzip, chunked"), 501),
        (request(b"Transfer-Encoding:"), 501),
        (request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 501),
        (request(b"Transfer-Encoding: chunked", first=b"GET / HTTP/1.0"), 400),
        (request(*[b"X: y"] * 10), 431),
    ],
)
def test_what_two_could_read_in_two_ways_is_refused(raw: bytes, status: int) -> None:
    assert refused(raw) == status


def test_as_many_fields_as_are_allowed_pass() -> None:
    assert len(read_request(request(*[b"X: y"] * 9), 10).fields) == 10


def test_http_1_0_needs_no_host() -> None:
    head = read_request(b"GET / HTTP/1.0\r\n\r\n", 10)
    assert head.http_1_0
    assert head.fields == []


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ((), NO_BODY),
        ((b"Content-Length: 0",), NO_BODY),
        ((b"CONTENT-LENGTH:\t7 ",), Body(7)),
        ((b"Content-Length: " + b"9" * MAX_SIZE_DIGITS,), Body(10**18 - 1)),
        ((b"transfer-encoding: CHUNKED",), CHUNKED),
        ((b"Content_Length: 7",), NO_BODY),
        ((b"Transfer_Encoding: chunked",), NO_BODY),
    ],
)
def test_the_length_of_a_request(lines: tuple[bytes, ...], body: Body) -> None:
    assert read_request(request(*lines), 10).body == body


def test_a_framing_field_with_an_underscore_says_nothing_to_anybody() -> None:
    lines = (b"Content_Length: 7", b"CONTENT_LENGTH: 8", b"Transfer_encoding: x")
    head = read_request(request(*lines), 10)
    assert {field.name for field in head.fields[1:]} == {b"keep-alive"}
    assert head.body == NO_BODY


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        ((b"Upgrade: WebSocket", b"Connection: keep-alive, upgrade"), b"WebSocket"),
        ((b"Upgrade: tcp", b"Connection: Upgrade"), b"tcp"),
        ((b"Upgrade: TLS/1.0", b"Connection: Upgrade"), b"TLS/1.0"),
        ((b"Upgrade: tcp",), b""),
        ((b"Connection: Upgrade",), b""),
        ((b"Upgrade: h2c", b"Connection: Upgrade"), b""),
        ((b"Upgrade: H2C", b"Connection: Upgrade"), b""),
        ((b"Upgrade: a, b", b"Connection: Upgrade"), b""),
        ((b"Upgrade: a", b"Upgrade: b", b"Connection: Upgrade"), b""),
    ],
)
def test_one_token_of_upgrade_is_taken(
    lines: tuple[bytes, ...], upgrade: bytes
) -> None:
    assert read_request(request(*lines), 10).upgrade == upgrade
    old = request(*lines, first=b"GET / HTTP/1.0")
    assert read_request(old, 10).upgrade == b""


@pytest.mark.parametrize(
    ("version", "said", "keeps"),
    [
        (b"1.1", b"X: y", True),
        (b"1.1", b"Connection: close", False),
        (b"1.1", b"Connection: x ,CLOSE", False),
        (b"1.0", b"X: y", False),
        (b"1.0", b"Connection: Keep-Alive", True),
    ],
)
def test_whether_another_message_may_follow(
    version: bytes, said: bytes, keeps: bool
) -> None:
    raw = request(said, first=b"GET / HTTP/" + version)
    assert read_request(raw, 10).keeps_connection is keeps
    raw = answer(said, b"Content-Length: 0", first=b"HTTP/" + version + b" 200")
    assert read_answer(raw, b"GET", 10).keeps_connection is keeps


# Answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_an_answer_s_lines_may_end_with_a_bare_line_feed(end: bytes) -> None:
    raw = answer(b"A: b", b"Content-Length: 2").replace(b"\r\n", end)
    waiting = bytearray()
    for at, byte in enumerate(raw):
        waiting.append(byte)
        size = end_of_answer(waiting, at)
        assert size == (len(raw) if at == len(raw) - 1 else 0)
    head = read_answer(raw, b"GET", 10)
    assert (head.status, head.body, len(head.fields)) == (200, Body(2), 2)


@pytest.mark.parametrize(
    ("first", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, b"OK"),
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.0 999 No \xe9", 999, b"No \xe9"),
        (b"HTTP/1.1 103 Early\x1b[31m Hints", 103, b"Early[31m Hints"),
    ],
)
def test_a_status_line_and_its_reason(first: bytes, status: int, reason: bytes) -> None:
    head = read_answer(answer(first=first), b"GET", 10)
    assert (head.status, head.reason) == (status, reason)


@pytest.mark.parametrize(
    "first",
    [b"HTTP/2 200 OK", b"HTTP/1.2 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK",
     b"HTTP/1.1 000 OK", b"HTTP/1.1 20x", b"HTTP/1.1  200", b"HTTP/1.1\t200",
     b"http/1.1 200 OK", b"ICY 200 OK", b" HTTP/1.1 200", b"HTTP/1.1 200OK"],
)  # fmt: skip
def test_what_is_no_status_line_is_no_answer(first: bytes) -> None:
    assert "not HTTP" in faulty(answer(first=first))


@pytest.mark.parametrize(
    "line", [b"no colon", b"X : y", b": y", b"X\0: y", b"X: \0", b"X: a\rb", b"X: \x7f"]
)
def test_one_broken_line_is_left_out_and_kept_for_the_log(line: bytes) -> None:
    head = read_answer(answer(b"A: b", line, b"Content-Length: 0"), b"GET", 10)
    assert [field.name for field in head.fields] == [b"a", b"content-length"]
    assert head.broken == [line]


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length : 5", b"Transfer-Encoding\t: chunked", b"Connection : close",
        b"Upgrade : x", b"Trailer : x", b" X: folded", b"\tX: folded",
        b"Content-Length: 5\0", b"content-length", b"CONTENT-LENGTH \t: 1",
    ],
)  # fmt: skip
def test_a_broken_line_that_frames_breaks_the_answer(line: bytes) -> None:
    assert "broken line" in faulty(answer(b"A: b", line))


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Content-Length: +5",),
        (b"Content-Length: 5, 5",),
        (b"Content-Length:",),
        (b"Transfer-Encoding: gzip",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"X: y",) * 11,
    ],
)
def test_an_answer_that_does_not_say_where_it_ends_is_none(
    lines: tuple[bytes, ...],
) -> None:
    faulty(answer(*lines))


def test_chunks_in_http_1_0_are_not_understood() -> None:
    faulty(answer(b"Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK"))


@pytest.mark.parametrize(
    ("method", "status", "lines", "body"),
    [
        (b"GET", b"200", (), OPEN),
        (b"GET", b"200", (b"Content-Length: 5",), Body(5)),
        (b"GET", b"200", (b"Content-Length: 5", b"Content-Length: 5"), Body(5)),
        (b"GET", b"200", (b"Transfer-Encoding: Chunked",), CHUNKED),
        (b"GET", b"200", (b"Transfer-Encoding: identity",), OPEN),
        (
            b"GET", b"200",
            (b"Transfer-Encoding: identity", b"Content-Length: 5"), Body(5),
        ),
        (b"HEAD", b"200", (b"Content-Length: 5",), NO_BODY),
        (b"HEAD", b"200", (b"Transfer-Encoding: chunked",), NO_BODY),
        (b"GET", b"204", (b"Content-Length: 5",), NO_BODY),
        (b"GET", b"304", (b"Content-Length: 5",), NO_BODY),
        (b"GET", b"103", (b"Content-Length: 5",), NO_BODY),
        (b"GET", b"101", (), NO_BODY),
    ],
)  # fmt: skip
def test_the_length_of_an_answer(
    method: bytes, status: bytes, lines: tuple[bytes, ...], body: Body
) -> None:
    raw = answer(*lines, first=b"HTTP/1.1 " + status)
    head = read_answer(raw, method, 10)
    assert head.body == body
    assert head.keeps_connection is (body != OPEN)


# Whatever comes ----------------------------------------------------------------------

PIECES = st.sampled_from(
    [b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", b"Host: a\r\n", b"\r\n", b"\n",
     b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\r", b" ", b"\t",
     b":", b"\0", b"\xff", b"Connection: close, upgrade\r\nUpgrade: x\r\n", b"X: y\r\n",
     b"\r\n\r\n"]
)  # fmt: skip
SAID = st.lists(st.one_of(PIECES, st.binary(max_size=5)), max_size=15).map(b"".join)


@given(SAID)
def test_any_request_is_read_or_refused_and_cuts_do_not_change_which(
    said: bytes,
) -> None:
    try:
        size = end_of_request(bytearray(said), 0)
        read = read_request(said[:size], 10) if size else None
    except HeadError:
        return
    if read is None:
        return
    assert ends_byte_by_byte(said[:size]) == [0] * (size - 1) + [size]
    again = [b"%b %b HTTP/1.%d" % (read.method, read.target, not read.http_1_0)]
    raw = b"\r\n".join((*again, *(field.line for field in read.fields), b"", b""))
    assert read_request(raw, 10) == read


@given(SAID, st.sampled_from([b"GET", b"HEAD"]))
def test_any_answer_is_read_or_refused(said: bytes, method: bytes) -> None:
    size = end_of_answer(bytearray(said), 0)
    try:
        head = read_answer(said[:size], method, 10) if size else None
    except HeadError:
        return
    if head is not None:
        assert not any(set(field.line) & set(b"\0\r\n") for field in head.fields)
        assert not set(head.reason) & set(b"\0\r\n")


@given(st.binary(max_size=20))
def test_a_trailer_is_a_field_or_none(line: bytes) -> None:
    field = read_field(line)
    if field is not None:
        assert field.line == line
        assert not set(line) & set(b"\0\r\n")
        assert b":" in line
