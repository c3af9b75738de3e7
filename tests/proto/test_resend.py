from __future__ import annotations

import sys
from itertools import accumulate
from typing import SupportsIndex, overload

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import frames as raw

from tunnel.proto.frames import HEADER_BYTES
from tunnel.proto.payloads import data_header
from tunnel.proto.pools import Room
from tunnel.proto.resend import (
    LEAST_KEPT_BYTES,
    REPLAY_LIMIT_BYTES,
    STATE_AFTER_S,
    STATE_EVERY_BYTES,
    STATE_MOST_BYTES,
    STATE_PAUSE_S,
    AckTracker,
    ResendBuffer,
    acks_for,
)

PAYLOADS = st.one_of(
    st.integers(0, 40), st.integers(16_370, 16_390), st.just(65_528)
).map(lambda size: (bytes(range(size % 251, size % 251 + 3)) * (size // 3 + 1))[:size])
FRAMES = st.builds(raw.data, st.integers(1, 9), PAYLOADS)
CHUNKS = st.lists(st.lists(FRAMES, min_size=1, max_size=5), max_size=8)


def recorded(
    chunks: list[list[bytes]], limit: int = REPLAY_LIMIT_BYTES
) -> ResendBuffer:
    replay = ResendBuffer(limit)
    for chunk in chunks:
        replay.record(b"".join(chunk))
    return replay


def borders(chunks: list[list[bytes]]) -> list[int]:
    """Give every place at which a frame begins or the last one ends."""
    sizes = [len(frame) for chunk in chunks for frame in chunk]
    return list(accumulate(sizes, initial=0))


# What is kept ------------------------------------------------------------------------


@given(CHUNKS, st.data())
def test_the_rest_is_what_follows_the_count_however_it_was_cut(
    chunks: list[list[bytes]], data: st.DataObject
) -> None:
    replay, whole = recorded(chunks), b"".join(map(b"".join, chunks))
    assert replay.position == replay.unconfirmed == len(whole)
    counts = data.draw(st.lists(st.sampled_from(borders(chunks))))
    for count in sorted(counts):
        assert replay.confirm(count)
        assert replay.confirmed == count
        assert replay.unconfirmed == len(whole) - count
        assert b"".join(replay.rest()) == whole[count:]
        assert all(replay.rest())


@given(CHUNKS, st.data())
def test_what_is_recorded_after_a_confirmation_follows_what_was_there(
    chunks: list[list[bytes]], data: st.DataObject
) -> None:
    replay, whole = recorded(chunks), b"".join(map(b"".join, chunks))
    count = data.draw(st.sampled_from(borders(chunks)))
    replay.confirm(count)
    replay.record(raw.ping())
    whole += raw.ping()
    assert b"".join(replay.rest()) == whole[count:]
    assert replay.confirm(len(whole))
    assert replay.rest() == []


@given(CHUNKS, st.data())
def test_exactly_the_borders_of_what_is_unconfirmed_are_allowed(
    chunks: list[list[bytes]], data: st.DataObject
) -> None:
    replay, places = recorded(chunks), borders(chunks)
    confirmed = data.draw(st.sampled_from(places))
    replay.confirm(confirmed)
    near = {place + step for place in places for step in (-9, -8, -1, 0, 1, 7, 8)}
    for count in near:
        allowed = count in places and count >= confirmed
        assert replay.allows(count) == allowed


@given(CHUNKS, st.data())
def test_a_wrong_count_is_refused_and_changes_nothing(
    chunks: list[list[bytes]], data: st.DataObject
) -> None:
    replay, places = recorded(chunks), borders(chunks)
    confirmed = data.draw(st.sampled_from(places))
    replay.confirm(confirmed)
    rest = replay.rest()
    wrong = data.draw(
        st.one_of(
            st.integers(-1, places[-1] + 9).filter(
                lambda count: count not in places or count < confirmed
            ),
            st.just(places[-1] + 1),
            st.just(1 << 62),
        )
    )
    assert not replay.confirm(wrong)
    assert (replay.confirmed, replay.position) == (confirmed, places[-1])
    assert replay.rest() == rest


@given(CHUNKS)
def test_the_rest_is_made_of_whole_frames(chunks: list[list[bytes]]) -> None:
    replay, places = recorded(chunks), borders(chunks)
    cuts = accumulate(map(len, replay.rest()), initial=0)
    assert set(cuts) <= set(places)


def test_it_is_full_at_its_limit_and_not_when_a_byte_less_waits() -> None:
    replay = ResendBuffer(100)
    replay.record(raw.data(1, bytes(91)))
    assert replay.unconfirmed == 99
    assert not replay.full()
    replay.record(raw.data(1, bytes(1)))
    assert replay.full()
    assert replay.confirm(99)
    assert not replay.full()


# Memory ------------------------------------------------------------------------------


def test_a_large_chunk_is_kept_and_given_by_reference() -> None:
    replay, chunk = ResendBuffer(), raw.data(1, bytes(60_000))
    replay.record(chunk)
    [kept] = replay.rest()
    assert kept is chunk


def test_small_chunks_are_joined() -> None:
    replay, frame = ResendBuffer(), raw.data(1, b"12")
    for _ in range(10_000):
        replay.record(frame)
    held = sum(map(sys.getsizeof, replay._chunks)) + sys.getsizeof(replay._chunks)
    assert held < 1.3 * replay.unconfirmed


def test_what_is_confirmed_is_forgotten_but_for_one_small_chunk() -> None:
    replay, frame = ResendBuffer(), raw.data(1, bytes(100))
    for _ in range(10_000):
        replay.record(frame)
        replay.confirm(max(0, replay.position - len(frame)))
    assert sum(map(len, replay._chunks)) <= 16_384 + len(frame)
    assert replay.confirm(replay.position)
    assert not replay._chunks


def test_the_rest_does_not_change_when_more_is_recorded() -> None:
    replay, frame = ResendBuffer(), raw.data(1, b"12")
    replay.record(frame)
    rest = replay.rest()
    replay.record(frame)
    assert rest == [frame]
    assert b"".join(replay.rest()) == 2 * frame


def test_a_chunk_that_is_confirmed_frame_by_frame_is_walked_over_once() -> None:
    class Counted(bytes):
        walked = 0

        @overload
        def __getitem__(self, key: SupportsIndex, /) -> int: ...

        @overload
        def __getitem__(self, key: slice, /) -> bytes: ...

        def __getitem__(self, key: SupportsIndex | slice, /) -> int | bytes:
            Counted.walked += 1
            return super().__getitem__(key)

    replay, frame = ResendBuffer(), raw.data(1, b"12")
    replay.record(Counted(frame * 5_000))
    for place in range(5_000):
        assert replay.confirm(place * len(frame))
    assert Counted.walked <= 5_000


# Receipts ----------------------------------------------------------------------------


def due(receipts: AckTracker) -> bool:
    """Look afresh: what an attribute was says nothing of what it is after a call."""
    return receipts.due


@pytest.mark.parametrize(
    ("limit", "every", "most"),
    [
        (REPLAY_LIMIT_BYTES, STATE_EVERY_BYTES, STATE_MOST_BYTES),
        (80_000, 10_000, 40_000),
        (8, 1, 4),
        (1, 1, 1),
    ],
)
def test_a_receipt_is_due_after_an_eighth_of_the_limit_and_not_too_often(
    limit: int, every: int, most: int
) -> None:
    receipts = acks_for(limit)
    receipts.took(every - 1, 0.0)
    assert not due(receipts)
    receipts.took(every, 0.0)
    assert due(receipts)
    assert receipts.state(0.0) == every
    receipts.took(every + most - 1, 0.9 * STATE_PAUSE_S)
    assert not due(receipts)
    assert receipts.worth() is (most > every)
    receipts.took(every + most, 0.9 * STATE_PAUSE_S)
    assert due(receipts)
    assert receipts.state(1.0) == every + most
    receipts.took(2 * every + most - 1, 1.0 + 1.1 * STATE_PAUSE_S)
    assert not due(receipts)
    receipts.took(2 * every + most, 1.0 + 1.1 * STATE_PAUSE_S)
    assert due(receipts)


def test_a_receipt_is_due_a_while_after_the_first_byte_that_is_not_stated() -> None:
    receipts = acks_for(REPLAY_LIMIT_BYTES)
    receipts.took(0, 1.0)
    due_at = [receipts.due_at]
    receipts.took(HEADER_BYTES, 2.0)
    receipts.took(2 * HEADER_BYTES, 2.05)
    due_at.append(receipts.due_at)
    assert due_at == [None, 2.0 + STATE_AFTER_S]
    receipts.on_time(2.0 + STATE_AFTER_S - 0.001)
    assert not due(receipts)
    receipts.on_time(2.0 + STATE_AFTER_S)
    assert due(receipts)


def test_what_is_due_already_asks_for_no_time() -> None:
    receipts = acks_for(REPLAY_LIMIT_BYTES)
    receipts.took(8, 0.0)
    receipts.on_time(1.0)
    receipts.took(16, 1.0)
    assert due(receipts)
    assert receipts.due_at is None


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 0.2), st.booleans())))
def test_no_byte_waits_longer_than_its_time_and_none_is_stated_twice(
    steps: list[tuple[int, float, bool]],
) -> None:
    receipts, count, now, stated = AckTracker(100, 250), 0, 0.0, 0
    stated_at = -1.0
    oldest: float | None = None
    for size, seconds, writes in steps:
        now += seconds
        receipts.on_time(now)
        if oldest is not None and now - oldest > STATE_AFTER_S:
            assert due(receipts)
        count += size
        receipts.took(count, now)
        if size and oldest is None:
            oldest = now
        patient = now - stated_at < STATE_PAUSE_S
        assert due(receipts) or count - stated < (250 if patient else 100)
        if due(receipts) and writes:
            assert count > stated
            receipts.state(now)
            stated, stated_at, oldest = count, now, None
            assert not due(receipts)
            assert receipts.due_at is None


def test_who_moves_keeps_enough_although_others_have_taken_all() -> None:
    room = Room(1_000)
    room.free_bytes = 0
    replay = ResendBuffer(limit_bytes=16 << 20, room=room)
    frame = data_header(1, 65_528) + bytes(65_528)
    while not replay.full():
        replay.record(frame)
    assert LEAST_KEPT_BYTES < replay.unconfirmed <= LEAST_KEPT_BYTES + len(frame)
    replay.confirm(replay.position)
    assert room.free_bytes == 0
    assert not replay.full()
