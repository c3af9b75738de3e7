"""Heads that come again are read once, and none of them is kept for long or secret."""

from __future__ import annotations

import pytest

from tunnel.front.http import heads
from tunnel.front.http.heads import (
    HeadError,
    end_of_answer,
    read_answer,
    read_request,
)

MOST = 100


def answer(*lines: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", *lines, "", "")).encode()


def request(*lines: str) -> bytes:
    return "\r\n".join(("GET / HTTP/1.1", "Host: a", *lines, "", "")).encode()


@pytest.fixture(autouse=True)
def _nothing_was_read_before() -> None:
    heads._ANSWERS.clear()
    heads._FIELDS.clear()


def test_the_same_answer_to_another_method_is_another_one() -> None:
    raw = answer("Content-Length: 5")
    for _ in range(2):
        assert read_answer(raw, b"GET", MOST).body.size == 5
        assert read_answer(raw, b"HEAD", MOST).body.size == 0


def test_an_answer_with_too_many_fields_is_so_again_for_who_allows_fewer() -> None:
    raw = answer("Server: a", "Date: b")
    assert len(read_answer(raw, b"GET", 2).fields) == 2
    with pytest.raises(HeadError):
        read_answer(raw, b"GET", 1)


@pytest.mark.parametrize("line", ["Set-Cookie: key=1", "X-Api-Key: 1", "Location: /k"])
def test_what_may_be_a_secret_is_not_kept(line: str) -> None:
    raw = answer("Server: a", line)
    assert read_answer(raw, b"GET", MOST) == read_answer(raw, b"GET", MOST)
    read_request(request(line, "Cookie: k", "Authorization: Basic k"), MOST)
    assert not heads._ANSWERS
    assert set(heads._FIELDS) == {b"Server: a", b"Host: a"}


def test_what_is_kept_is_bounded() -> None:
    for number in range(3_000):
        read_answer(answer(f"Date: {number}"), b"GET", MOST)
        assert len(heads._ANSWERS) <= heads._MAX_ANSWERS
        assert len(heads._FIELDS) <= heads._MAX_FIELDS
    read_answer(answer(f"Date: {'x' * 2_000}"), b"GET", MOST)
    assert all(len(line) < 200 for line in heads._FIELDS)
    assert all(len(raw) < 200 for raw, _, _ in heads._ANSWERS)


def test_a_line_with_a_control_character_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(HeadError):
            read_request(request("Accept: a\x01"), MOST)
        broken = read_answer(answer("Server: a\x01"), b"GET", MOST).broken
        assert broken == [b"Server: a\x01"]


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody\n\n", 25),
        (b"HTTP/1.1 200 OK\nA: b\n\nbody\r\n\r\n", 22),
        (b"HTTP/1.1 200 OK\r\nA: b\n\r\n\n\n", 24),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n\nb\n\r\n", 24),
        (b"HTTP/1.1 200 OK\r\nA: b\n\n\r\n", 23),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", 0),
    ],
)
def test_an_answer_s_head_ends_at_its_first_empty_line(said: bytes, end: int) -> None:
    assert end_of_answer(bytearray(said), 0) == end
    for cut in range(len(said)):
        found = end_of_answer(bytearray(said[:cut]), 0)
        assert found == (end if 0 < end <= cut else 0)
        assert found or end_of_answer(bytearray(said), cut) == end
