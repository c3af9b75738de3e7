from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.words import bare, escaped, meant, nearest, printable


@given(st.text())
def test_no_word_of_a_peer_can_move_a_cursor(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)
    assert all(a in (b, "?") for a, b in zip(printable(text), text, strict=True))


def test_marks_that_turn_the_direction_of_text_are_taken_out() -> None:
    for mark in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        assert printable(f"a{mark}b") == "a?b"


@given(st.text())
def test_any_text_is_shown_on_one_line_and_nothing_of_it_is_lost(text: str) -> None:
    shown = escaped(text)
    assert shown.isprintable()
    assert shown == text or json.loads(f'"{shown}"') == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("\ufeffa b\r\n", "a b"),
        ('"a b"\r\n', "a b"),
        ("\ufeff' a'", "a"),
        ('"', '"'),
        ('""', ""),
        ("\ufeff \n", ""),
        ("'a\"", "'a\""),
        ('"a":"b"', '"a":"b"'),
        ("\"'a'\"", "'a'"),
    ],
)
def test_what_files_and_shells_put_around_a_value_is_taken_off_once(
    text: str, meant: str
) -> None:
    assert bare(text) == meant


def test_what_was_meant_is_the_nearest_word_as_it_is_written_whole() -> None:
    forms = {"sessions": "sessions=10", "rate": "rate=5MB/s"}
    assert meant("sesions", forms) == "did you mean sessions=10?"
    assert meant("sesions", forms.keys()) == "did you mean sessions?"
    assert meant("xyzzy", forms) == ""
    assert meant("xyzzy", forms, "see --help") == "see --help"
    assert nearest("ratio", forms) == "rate"
    assert nearest("ratio", forms, 0.9) is None
