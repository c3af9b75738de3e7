"""Requests that are read beside a relay: what is told, and that nothing is harmed."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.watching import VISITOR, Seen, Watching

from tunnel.front.http.limits import HEAD_BYTES
from tunnel.front.http.overheard import MOST_ASKED, Overheard

GET: Final = b"GET /a?b=c HTTP/1.1\r\nHost: shop\r\n\r\n"
HEAD: Final = b"HEAD /a HTTP/1.1\r\nHost: shop\r\n\r\n"
POST: Final = b"POST /p HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\n"
CHUNKED: Final = b"PUT /c HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE: Final = (
    b"GET /w HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
)
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
OPEN: Final = b"HTTP/1.1 200 OK\r\n\r\n"
IN_CHUNKS: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HINTS: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
SWITCH: Final = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"

Said = tuple[bool, bytes]
"""Whether the visitor says it, and what."""


class Heard:
    """A connection that is overheard."""

    def __init__(self, *said: Said) -> None:
        self.watch = Watching()
        self.ear = Overheard(self.watch, VISITOR)
        self.ear.connected()
        for by_visitor, data in said:
            (self.ear.wrote if by_visitor else self.ear.read)(data)

    @property
    def all(self) -> list[Seen]:
        return self.watch.all


def visitor(*data: bytes) -> Said:
    return True, b"".join(data)


def target(*data: bytes) -> Said:
    return False, b"".join(data)


def facts(seen: Seen) -> tuple[object, ...]:
    heads = [(status, head.partition(b"\r\n")[0]) for status, head in seen.heads]
    return (seen.raw, seen.body, heads, seen.answer, seen.up, seen.down,
            seen.failures, seen.ends)  # fmt: skip


def test_requests_and_answers_are_told_as_they_came() -> None:
    heard = Heard(
        visitor(GET), target(HINTS, OK, b"ok"),
        visitor(POST, b"hello"),
        target(IN_CHUNKS, b"3\r\none\r\n0\r\nX-Sum: 1\r\n\r\n"),
        visitor(HEAD), target(OK),
        visitor(CHUNKED, b"2\r\nab\r\n0\r\nX: y\r\n\r\n"), target(OPEN, b"all"),
        target(),
    )  # fmt: skip
    heard.ear.closed()
    assert [(one.raw, one.body, one.answer) for one in heard.all] == [
        (GET, b"", b"ok"),
        (POST, b"hello", b"one"),
        (HEAD, b"", b""),
        (CHUNKED, b"ab", b"all"),
    ]
    assert [one.connects for one in heard.all] == [1, 0, 0, 0]
    assert [one.behind for one in heard.all] == [[], [b"X-Sum: 1"], [], []]
    assert all(one.ends == [True] and not one.failures for one in heard.all)
    assert [one.heads for one in heard.all[:1]] == [[(200, OK)]]


CONVERSATION: Final = (
    visitor(GET, POST, b"hello", CHUNKED), target(HINTS, OK, b"ok", OK),
    visitor(b"2\r\nab\r\n"), target(b"ko", IN_CHUNKS, b"1\r\nx\r\n"),
    visitor(b"0\r\n\r\n", UPGRADE), target(b"0\r\n\r\n", SWITCH, b"down"),
    visitor(b"up"), target(b"more"), visitor(b"GET / HTTP/1.1\r\n\r\n"), target(),
)  # fmt: skip


@given(st.lists(st.integers(1, 30), min_size=1))
def test_the_size_of_pieces_changes_nothing(sizes: list[int]) -> None:
    whole, pieces = Heard(*CONVERSATION), Heard()
    at = 0
    for by_visitor, data in CONVERSATION:
        if not data:
            pieces.ear.read(b"")
        while data:
            size = sizes[at % len(sizes)]
            at += 1
            piece = data[:size]
            if by_visitor:
                pieces.ear.wrote(memoryview(piece) if at % 2 else bytearray(piece))
            else:
                pieces.ear.read(piece)
            data = data[size:]
    for heard in (whole, pieces):
        heard.ear.closed()
    assert list(map(facts, pieces.all)) == list(map(facts, whole.all))
    tunnel = whole.all[-1]
    assert (tunnel.up, tunnel.down) == (b"upGET / HTTP/1.1\r\n\r\n", b"downmore")
    assert [one.ends for one in whole.all] == [[True]] * 4
    assert not any(one.failures for one in whole.all)


@pytest.mark.parametrize(
    ("said", "why", "whole"),
    [
        ((visitor(GET), target()), "has closed the connection without", True),
        ((visitor(GET), target(OK, b"o"), target()), "within its answer", True),
        ((visitor(GET), target(b"HTTP/1.1 2"), target()), "its answer's head", True),
        ((visitor(POST, b"he"),), "the visitor has left", False),
        ((visitor(GET), target(OK)), "the visitor has left", True),
        ((visitor(GET), target(b"SSH-2.0-x\r\n\r\n")), "not HTTP", True),
        ((visitor(GET), target(b"\0\0\6\4\0\0\0\0\0")), "HTTP/2 only", True),
        ((visitor(GET[:-2]),), "the visitor has left", False),
        ((visitor(b"SSH-2.0-x\r\n\r\n"),), "passes unread", False),
        ((visitor(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),), "passes unread", False),
        ((visitor(b"\x16\x03\x01"),), "passes unread", False),
        ((visitor(CHUNKED, b"nonsense\r\n"),), "passes unread", False),
        ((visitor(CHUNKED, b"1\r\na\r\n" * 20_000),), "too small", False),
        ((visitor(b"GET /" + b"a" * HEAD_BYTES),), f"than {HEAD_BYTES} bytes", False),
    ],
)
def test_what_did_not_end_well_is_told_once(
    said: tuple[Said, ...], why: str, whole: bool
) -> None:
    heard = Heard(*said)
    heard.ear.closed()
    one = heard.watch.one
    assert len(one.failures) == 1
    assert why in one.failures[0]
    assert one.ends == [whole]
    # Whatever comes behind it is not looked at.
    for _ in range(2):
        heard.ear.wrote(GET)
        heard.ear.read(OK)
    assert heard.watch.one is one


def test_a_broken_target_is_not_taken_for_a_visitor_that_left() -> None:
    heard = Heard(visitor(GET), target(OPEN, b"al"))
    heard.ear.broke()
    heard.ear.read(b"")
    heard.ear.closed()
    assert heard.watch.one.failures == ["the target broke off within its answer"]


def test_a_target_that_was_not_there_is_told_with_what_was_asked() -> None:
    heard = Heard(visitor(GET))
    heard.ear.unserved("it refused the connection")
    one = heard.watch.one
    assert (one.raw, one.failures, one.ends) == (
        GET, ["it refused the connection"], [True],
    )  # fmt: skip


def test_who_asks_too_much_at_once_is_heard_no_more() -> None:
    heard = Heard(visitor(GET * (MOST_ASKED + 1)))
    assert len(heard.all) == MOST_ASKED + 1
    assert all("wait for an answer" in one.failures[0] for one in heard.all)


def test_who_speaks_without_being_asked_ends_nothing_of_before() -> None:
    heard = Heard(visitor(GET), target(OK, b"ok", OK, b"ok"))
    assert heard.watch.one.ends == [True]
    assert not heard.watch.one.failures


def test_an_early_answer_ends_a_request_that_goes_on() -> None:
    heard = Heard(visitor(POST, b"he"), target(OK, b"ok"), visitor(b"llo", GET))
    first, second = heard.all
    assert (first.body, first.ends) == (b"he", [False])
    assert second.raw == GET


PARTS: Final = st.sampled_from(
    [GET, HEAD, POST, CHUNKED, UPGRADE, OK, OPEN, IN_CHUNKS, HINTS, SWITCH, b"hello",
     b"ok", b"3\r\none\r\n", b"0\r\n\r\n", b"\r\n", b"\n", b"x" * 100, b"\0"]
)  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), PARTS | st.binary(min_size=1))))
def test_whatever_passes_each_request_ends_once(said: list[Said]) -> None:
    heard = Heard(*said)
    heard.ear.closed()
    for one in heard.all:
        assert len(one.ends) == 1
        assert len(one.failures) <= 1
        assert len(one.heads) <= 1
    visitors = b"".join(data for by_visitor, data in said if by_visitor)
    assert len(heard.all) <= visitors.count(b"\r\n\r\n") + 1
