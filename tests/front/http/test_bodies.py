"""Where a body ends, however it comes."""

from __future__ import annotations

import time

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.front.http.bodies import (
    MAX_LINE_BYTES,
    MAX_LINES,
    MAX_TRAILER_BYTES,
    BodyError,
    BodyReader,
    framed,
    last_chunk,
)
from tunnel.front.http.heads import CHUNKED, NO_BODY, OPEN, Body

CHUNKS = b"5;x=y\r\nhello\r\n00A\r\n, you all!\r\n0;z\r\nX-Sum: 1\r\nA:b\r\n\r\n"


def read(body: Body, *parts: bytes) -> tuple[bytes, bytes, BodyReader]:
    """Feed parts to a reader; give the body, what is behind it, and the reader."""
    reader, out, behind = BodyReader(body), b"", b""
    for part in parts:
        rest = part
        while not reader.done:
            pieces, rest = reader.feed(rest)
            assert all(pieces)
            out += b"".join(pieces)
            if not rest:
                break
        behind += rest
    return out, behind, reader


# Sized and open ----------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(9))
def test_a_size_counts(cut: int) -> None:
    said = b"hello" + b"GET"
    out, behind, reader = read(Body(5), said[:cut], said[cut:])
    assert (out, behind, reader.done) == (b"hello", b"GET", True)
    reader.end()


def test_no_body_is_over_before_it_begins() -> None:
    assert BodyReader(NO_BODY).done


def test_an_open_body_goes_on_to_the_end_of_the_connection() -> None:
    out, behind, reader = read(OPEN, b"", b"a", b"bc")
    assert (out, behind, reader.done) == (b"abc", b"", False)
    reader.end()
    assert reader.done


@pytest.mark.parametrize(
    ("body", "said"),
    [(Body(5), b"hell"), (CHUNKED, b""), (CHUNKED, CHUNKS[:-1]), (CHUNKED, b"5\r\nhe")],
)
def test_an_end_that_comes_too_soon_is_an_error(body: Body, said: bytes) -> None:
    reader = read(body, said)[2]
    with pytest.raises(BodyError):
        reader.end()


# Chunks ------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(len(CHUNKS) + 4))
def test_chunks_may_be_cut_at_every_byte(cut: int) -> None:
    said = CHUNKS + b"GET"
    out, behind, reader = read(CHUNKED, said[:cut], said[cut:])
    assert (out, behind, reader.done) == (b"hello, you all!", b"GET", True)
    assert [field.line for field in reader.trailers] == [b"X-Sum: 1", b"A:b"]


def test_chunks_may_come_byte_by_byte() -> None:
    out, behind, reader = read(CHUNKED, *(bytes((byte,)) for byte in CHUNKS))
    assert (out, behind, reader.done) == (b"hello, you all!", b"", True)


BROKEN = {
    "no size": b"\r\n",
    "no number": b"x\r\n",
    "a sign": b"+5\r\n",
    "a minus": b"-1\r\n",
    "0x": b"0x5\r\n",
    "a space before": b" 5\r\n",
    "a space behind": b"5 \r\n",
    "an underscore": b"0_5\r\n",
    "another digit": "\u0665\r\n".encode(),
    "17 digits": b"0" * 16 + b"5\r\n",
    "a bare line feed": b"5\n",
    "a bare carriage return": b"5\rhello\r\n",
    "two carriage returns": b"5\r\r\n",
    "a line feed in an extension": b"5;a\nb\r\n",
    "a carriage return in an extension": b"5;a\rb\r\n",
    "a NUL in an extension": b"5;\0\r\n",
    "a long extension": b"5;" + b"x" * MAX_LINE_BYTES + b"\r\n",
    "a chunk that is too long": b"5\r\nhello!\r\n",
    "a chunk without its end": b"5\r\nhello0\r\n\r\n",
    "a chunk with a bare line feed": b"5\r\nhello\n0\r\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a trailer with NUL": b"0\r\nX: \0\r\n\r\n",
    "a trailer with a space before the colon": b"0\r\nX : y\r\n\r\n",
    "a trailer with a bare line feed": b"0\r\nX: y\nZ: a\r\n\r\n",
    "a bare line feed at the end": b"0\r\n\n",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cut", [False, True])
def test_what_is_no_chunk_is_an_error(name: str, cut: bool) -> None:
    said = BROKEN[name]
    parts = [bytes((byte,)) for byte in said] if cut else [said]
    with pytest.raises(BodyError) as caught:
        read(CHUNKED, *parts, b"\r\n")
    assert caught.value.status == 400
    assert caught.value.words.isprintable()


def test_a_line_that_does_not_end_is_refused_before_it_fills_memory() -> None:
    reader = BodyReader(CHUNKED)
    reader.feed(b"5;" + b"x" * (MAX_LINE_BYTES - 2))
    with pytest.raises(BodyError):
        reader.feed(b"x")


@pytest.mark.parametrize("lines", [1, 100])
def test_trailers_are_bounded_in_all(lines: int) -> None:
    size = MAX_TRAILER_BYTES // lines
    trailer = (b"X: " + b"y" * (size - 5) + b"\r\n") * lines
    whole = b"0\r\n" + trailer
    reader = BodyReader(CHUNKED)
    pieces, rest = reader.feed(whole)
    assert (pieces, rest, len(reader.trailers)) == ([], b"", lines)
    more = b"Z: " + b"y" * (MAX_TRAILER_BYTES - len(trailer)) + b"\r\n"
    with pytest.raises(BodyError):
        reader.feed(more)


def test_many_small_chunks_are_read_in_short_turns() -> None:
    said = b"1\r\nx\r\n" * 21_845 + b"0\r\n\r\nGET"
    reader, rest, turns, slowest, out = BodyReader(CHUNKED), said, 0, 0.0, 0
    while not reader.done:
        began = time.thread_time()
        pieces, rest = reader.feed(rest)
        slowest = max(slowest, time.thread_time() - began)
        out += len(b"".join(pieces))
        assert len(pieces) <= MAX_LINES
        turns += 1
    assert (out, rest) == (21_845, b"GET")
    assert turns > 2 * 21_845 / MAX_LINES
    assert slowest < 0.02  # a few hundred times less than all of it at once


# Framed anew -------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.data())
def test_what_is_framed_is_read_again_by_us_and_by_h11(
    pieces: list[bytes], data: st.DataObject
) -> None:
    wire = b"".join(framed(pieces, chunked=True)) + last_chunk([])
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=5).map(sorted))
    parts = [
        wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)
    ]  # fmt: skip
    out, behind, reader = read(CHUNKED, *parts)
    assert (out, behind, reader.done) == (b"".join(pieces), b"", True)
    talk = h11.Connection(h11.SERVER)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    talk.receive_data(head + wire)
    body, event = b"", talk.next_event()
    while not isinstance(event, h11.EndOfMessage):
        event = talk.next_event()
        body += event.data if isinstance(event, h11.Data) else b""
    assert body == b"".join(pieces)


CODING = st.sampled_from(
    [b"5\r\nhello\r\n", b"0\r\n", b"\r\n", b"1\r\nx\r\n", b"5", b";x=y", b"\n", b"\r",
     b"X: y\r\n", b"A\r\n", b"ffffffffffffffff\r\n", b"\0", b"0", b"hello"]
)  # fmt: skip


@given(st.lists(CODING, max_size=15).map(b"".join), st.data())
def test_cuts_change_neither_the_body_nor_the_refusal(
    said: bytes, data: st.DataObject
) -> None:
    def outcome(*parts: bytes) -> tuple[bytes, bytes, bool] | None:
        try:
            out, behind, reader = read(CHUNKED, *parts)
        except BodyError:
            return None
        return out, behind, reader.done

    whole = outcome(said)
    cut = data.draw(st.integers(0, len(said)))
    assert outcome(said[:cut], said[cut:]) == whole
    assert outcome(*(bytes((byte,)) for byte in said)) == whole
