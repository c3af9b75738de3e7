"""Whatever a stream begins with: what goes on has one meaning, and it is that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.front.http.h2.messages import (
    MalformedError,
    read_answer,
    read_request,
    trailer_lines,
)
from tunnel.front.http.heads import HeadError
from tunnel.front.http.heads import read_answer as read_answer_1
from tunnel.front.http.heads import read_request as read_request_1

ODD = st.sampled_from(
    [b"", b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"/", b"@", b",", b"\x80",
     b"transfer-encoding", b"content-length", b"chunked", b"a.test", b"GET", b"http",
     b"HTTP/1.1", b"0", b"5", b"te", b"trailers", b"host", b"cookie", b"Connection"]
)  # fmt: skip
WORD = st.lists(ODD | st.binary(max_size=3), max_size=3).map(b"".join)
PSEUDO = st.sampled_from(
    [(b":method", b"GET"), (b":method", b"POST"), (b":scheme", b"http"),
     (b":path", b"/x?y"), (b":authority", b"a.test")]
)  # fmt: skip
FIELD = st.tuples(
    WORD | st.sampled_from([b"x-a", b"content-length", b"te", b"host", b":path"]), WORD
)
GOOD = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"),
        (b":authority", b"a.test")]  # fmt: skip
FIELDS = st.tuples(
    st.permutations(GOOD), st.lists(PSEUDO, max_size=1), st.lists(FIELD, max_size=4)
).map(lambda parts: [*parts[0], *parts[1], *parts[2]])


@given(fields=FIELDS, ended=st.booleans())
def test_a_request_says_in_http_1_what_it_said(
    fields: list[tuple[bytes, bytes]], ended: bool
) -> None:
    try:
        request = read_request(fields, ended=ended)
    except MalformedError:
        return
    try:
        head = read_request_1(request.head, 100)
    except HeadError:
        return  # refused by the second reader: reaches nobody either
    pseudo = dict(fields)
    assert head.method == pseudo[b":method"]
    assert head.target == pseudo[b":path"]
    assert request.head.count(b"\r\n\r\n") == 1
    said = [(name, value) for name, value in fields if name[:1] != b":"]
    ours = (b"host", b"te", b"connection", b"transfer-encoding", b"content-length")
    wanted = [(name, value) for name, value in said if name not in ours]
    found = [
        (field.line.partition(b": ")[0], field.value)
        for field in head.fields
        if field.name not in ours
    ]
    assert found == wanted
    if ended:
        assert head.body.size == 0
    else:
        sizes = [int(value) for name, value in said if name == b"content-length"]
        assert sizes == ([] if head.body.chunked else [head.body.size])


@given(fields=st.lists(FIELD, max_size=4), ended=st.booleans())
def test_an_answer_says_in_http_1_what_it_said(
    fields: list[tuple[bytes, bytes]], ended: bool
) -> None:
    try:
        raw, status, _ = read_answer(
            [(b":status", b"200"), *fields], ended=ended, method=b"GET"
        )
    except MalformedError:
        return
    try:
        head = read_answer_1(raw, b"GET", 100)
    except HeadError:
        return
    assert head.status == status == 200
    assert not head.broken
    assert not head.body.ends_with_connection
    assert len(head.fields) <= len(fields) + 1


@given(fields=st.lists(FIELD, max_size=4))
def test_trailers_end_where_they_say(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        raw = trailer_lines(fields)
    except MalformedError:
        return
    assert raw.count(b"\r\n") == len(fields) + 2
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "ended", "fields", "framed"),
    [
        (b"GET", True, [], b""),
        (b"POST", True, [], b"Content-Length: 0"),
        (b"GET", False, [], b"Transfer-Encoding: chunked"),
        (b"PUT", False, [(b"content-length", b"5")], b"content-length: 5"),
    ],
)
def test_the_length_of_a_request_is_said_once(
    method: bytes, ended: bool, fields: list[tuple[bytes, bytes]], framed: bytes
) -> None:
    pseudo = [(b":method", method), (b":scheme", b"https"), (b":path", b"/"),
              (b":authority", b"a.test")]  # fmt: skip
    head = read_request([*pseudo, *fields], ended=ended).head
    lines = [b"%b /%b" % (method, b" HTTP/1.1"), b"Host: a.test", framed]
    assert head == b"\r\n".join([line for line in lines if line] + [b"", b""])
