from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tunnel.proto.codec import FrameDecoder
from tunnel.proto.frames import MAX_FRAME_BYTES, ProtClose, ProtData, SockMap
from tunnel.proto.payloads import encode
from tunnel.proto.scheduler import (
    FRAME_COST_BYTES,
    SHARED_FRAME_BYTES,
    WORDS_BYTES,
    WORDS_SHARE,
    SendQueue,
    SendScheduler,
)

if TYPE_CHECKING:
    from tunnel.proto.frames import ProtFrame
    from tunnel.proto.scheduler import Buffer

NOISE = random.Random(7).randbytes(400_000)
ENDLESS = 1 << 40


def close_frame(number: int) -> bytes:
    return encode(ProtClose(SockMap(number)))


def take(lanes: SendScheduler, budget: int = ENDLESS) -> list[ProtFrame]:
    out: list[Buffer] = []
    lanes.take(budget, out, [])
    return list(FrameDecoder().feed(b"".join(out)))


def loaded(lanes: SendScheduler, number: int, size: int) -> SendQueue:
    lane = SendQueue(number)
    lanes.push(lane, NOISE[:size])
    return lane


def data(number: int, payload: bytes, *, fin: bool = False) -> ProtData:
    return ProtData(SockMap(number), payload, fin)


def test_no_lanes_give_nothing() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    assert not lanes.waiting
    assert take(lanes) == []


def test_small_pieces_share_a_frame() -> None:
    lanes, lane = SendScheduler(MAX_FRAME_BYTES), SendQueue(1)
    for piece in (b"a", b"", b"bc", b"def"):
        lanes.push(lane, piece)
    assert take(lanes) == [data(1, b"abcdef")]
    assert not lanes.waiting


def test_fin_and_close_have_a_turn_of_their_own_when_nothing_else_waits() -> None:
    lanes, finished, closed = SendScheduler(MAX_FRAME_BYTES), SendQueue(1), SendQueue(3)
    lanes.end(finished)
    lanes.end(closed, close_frame(3))
    assert list(lanes.waiting) == [finished, closed]
    assert take(lanes) == [data(1, b"", fin=True), ProtClose(SockMap(3))]
    assert finished.idle()
    assert closed.idle()
    assert not lanes.waiting


def test_fin_rides_on_the_last_bytes() -> None:
    lanes, lane = SendScheduler(MAX_FRAME_BYTES), SendQueue(1)
    lanes.push(lane, NOISE[:70_000])
    lanes.end(lane)
    assert take(lanes) == [
        data(1, NOISE[:MAX_FRAME_BYTES]),
        data(1, NOISE[MAX_FRAME_BYTES:70_000], fin=True),
    ]


def test_fin_alone_is_an_empty_frame() -> None:
    lanes, lane = SendScheduler(MAX_FRAME_BYTES), SendQueue(1)
    lanes.end(lane)
    assert take(lanes) == [data(1, b"", fin=True)]


def test_close_comes_after_the_bytes_and_fin() -> None:
    lanes, lane = SendScheduler(MAX_FRAME_BYTES), SendQueue(1)
    lanes.push(lane, b"bytes")
    lanes.end(lane)
    lanes.end(lane, close_frame(1))
    assert take(lanes) == [data(1, b"bytes", fin=True), ProtClose(SockMap(1))]
    assert lane.idle()


def test_close_waits_while_the_budget_leaves_bytes() -> None:
    lanes, lane = SendScheduler(MAX_FRAME_BYTES), SendQueue(1)
    lanes.push(lane, NOISE[:100_000])
    lanes.end(lane, close_frame(1))
    assert [type(frame) for frame in take(lanes, 1)] == [ProtData]
    assert [type(frame) for frame in take(lanes, 1)] == [ProtData, ProtClose]


def test_a_purged_lane_says_nothing_and_can_be_used_again() -> None:
    lanes, lane = SendScheduler(MAX_FRAME_BYTES), SendQueue(1)
    lanes.push(lane, b"gone")
    lanes.end(lane)
    lanes.end(lane, close_frame(1))
    lanes.purge(lane)
    assert lane.idle()
    assert take(lanes) == []
    lanes.push(lane, b"new")
    assert take(lanes) == [data(1, b"new")]


def test_a_lane_alone_fills_the_largest_frame() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    loaded(lanes, 1, 70_000)
    first, _ = take(lanes)
    assert isinstance(first, ProtData)
    assert len(first.payload) == MAX_FRAME_BYTES


def test_lanes_together_take_turns_of_one_tls_record() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    for number in (1, 3):
        loaded(lanes, number, 40_000)
    turns = [(f.sock_map, len(f.payload)) for f in take(lanes, 50_000)]  # type: ignore[union-attr]
    assert turns == [(1, SHARED_FRAME_BYTES), (3, SHARED_FRAME_BYTES)] * 2


def numbers(frames: list[ProtFrame]) -> list[int]:
    return [frame.sock_map for frame in frames if isinstance(frame, ProtData)]


def test_a_word_has_the_next_turn_first_however_much_waits() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    for number in (1, 3, 5, 7):
        loaded(lanes, number, 300_000)
    take(lanes, 262_144)
    loaded(lanes, 9, 64)
    first, *others = numbers(take(lanes, 262_144))
    assert first == 9
    assert set(others) == {1, 3, 5, 7}


def test_what_is_no_word_waits_for_its_turn() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    loaded(lanes, 1, 300_000)
    take(lanes, 16_384)
    loaded(lanes, 3, WORDS_BYTES - FRAME_COST_BYTES + 1)
    assert numbers(take(lanes, 50_000))[0] == 1


def test_the_second_word_of_a_lane_that_waits_does_not_move_it() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    loaded(lanes, 1, 300_000)
    lane = loaded(lanes, 3, 20_000)
    take(lanes, 1)
    lanes.push(lane, b"word")
    assert numbers(take(lanes, 1)) == [3]
    assert numbers(take(lanes, 1)) == [1]


@given(st.integers(16_384, 262_144), st.integers(1, 9_000))
def test_words_leave_the_others_three_quarters_of_a_turn(
    budget: int, size: int
) -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    bulk = loaded(lanes, 1, 400_000)
    take(lanes, budget)
    for number in range(3, 603, 2):
        loaded(lanes, number, size)
    ahead = list(lanes.waiting).index(bulk)
    most = min(budget // WORDS_SHARE, WORDS_BYTES)
    assert ahead == most // (size + FRAME_COST_BYTES)


def test_a_turn_that_gave_bytes_is_reported() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    served: list[SendQueue] = []
    one, other = loaded(lanes, 1, 20_000), loaded(lanes, 3, 10)
    lanes.take(32_768, [], served)
    assert served == [one, other, one]


def test_large_pieces_are_cut_without_a_copy() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    out: list[Buffer] = []
    piece = NOISE[:131_072]
    lanes.push(SendQueue(1), piece)
    lanes.take(ENDLESS, out, [])
    views = [part for part in out if isinstance(part, memoryview)]
    assert sum(map(len, views)) == len(piece)
    assert all(view.obj is piece for view in views)


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 90_000)), min_size=1, max_size=20
    ),
    st.lists(st.integers(1, 120_000), max_size=10),
    st.sampled_from((16_376, 20_000, MAX_FRAME_BYTES)),
)
def test_every_byte_goes_once_and_in_its_order(
    pushes: list[tuple[int, int]], budgets: list[int], max_frame: int
) -> None:
    lanes = SendScheduler(max_frame)
    made: dict[int, SendQueue] = {}
    pushed: dict[int, bytes] = defaultdict(bytes)
    frames: list[ProtFrame] = []
    for place, (number, size) in enumerate(pushes):
        piece = NOISE[place : place + size]
        lanes.push(made.setdefault(number, SendQueue(number)), piece)
        pushed[number] += piece
        if place < len(budgets):
            frames += take(lanes, budgets[place])
    for number, lane in made.items():
        lanes.end(lane)
        lanes.end(lane, close_frame(number))
    frames += take(lanes)
    got: dict[int, bytes] = defaultdict(bytes)
    ended: list[int] = []
    closed: list[int] = []
    for frame in frames:
        if isinstance(frame, ProtData):
            assert frame.sock_map not in ended
            assert len(frame.payload) <= max_frame
            got[frame.sock_map] += frame.payload
            if frame.fin:
                ended.append(frame.sock_map)
        else:
            assert isinstance(frame, ProtClose)
            assert frame.sock_map in ended
            closed.append(frame.sock_map)
    assert got == pushed
    assert sorted(ended) == sorted(closed) == sorted(made)
    assert not lanes.waiting


@given(
    st.lists(st.integers(1, 300_000), min_size=2, max_size=6),
    st.integers(1, 100_000),
)
def test_between_two_turns_of_a_lane_each_other_gets_one_frame_at_most(
    sizes: list[int], budget: int
) -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    left = {}
    for number, size in enumerate(sizes, 1):
        loaded(lanes, number, size)
        left[number] = size
    since: dict[int, dict[int, int]] = {number: defaultdict(int) for number in left}
    while lanes.waiting:
        for frame in take(lanes, budget):
            assert isinstance(frame, ProtData)
            number, size = int(frame.sock_map), len(frame.payload)
            waiting = [other for other in left if left[other] and other != number]
            if waiting:
                assert size <= max(SHARED_FRAME_BYTES, budget // 2)
            for other in waiting:
                since[other][number] += 1
                assert since[other][number] == 1
            since[number].clear()
            left[number] -= size
    assert not any(left.values())


@given(st.lists(st.integers(1, 60_000), min_size=1, max_size=8), st.integers(1, 90_000))
def test_a_take_passes_its_budget_by_less_than_a_frame(
    sizes: list[int], budget: int
) -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    for number, size in enumerate(sizes, 1):
        loaded(lanes, number, size)
    out: list[Buffer] = []
    lanes.take(budget, out, [])
    assert sum(map(len, out)) < budget + MAX_FRAME_BYTES + 8


def test_everybody_has_a_frame_in_a_turn_and_it_fills_whole_records() -> None:
    lanes = SendScheduler(MAX_FRAME_BYTES)
    for sock_map in range(1, 17, 2):
        loaded(lanes, sock_map, 200_000)
    out: list[Buffer] = []
    served: list[SendQueue] = []
    lanes.take(262_144, out, served)
    assert [lane.sock_map for lane in served] == list(range(1, 17, 2))
    assert sum(map(len, out)) == 262_144
    assert {200_000 - lane.size for lane in served} == {32_760}
