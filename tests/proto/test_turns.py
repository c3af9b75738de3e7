"""What comes in one read is taken in turns, each of a bounded work."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from support import frames
from support.pair import CorePair

from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.events import DataReceived, StreamFinished, StreamOffered
from tunnel.proto.frames import HEADER_BYTES
from tunnel.proto.input import CREATE_WORK, TURN_WORK

if TYPE_CHECKING:
    from tunnel.proto.mux import MuxCore

HERE = frames.ipv4(127, 0, 0, 1, 80)
SMALL = HEADER_BYTES + 1


def turns(core: MuxCore, data: bytes, now: float) -> list[int]:
    """Take all of ``data``; say how many bytes of session frames each turn took."""
    before = [core.received]
    core.receive_data(data, now)
    before.append(core.received)
    while core.has_input():
        core.receive_more(now)
        before.append(core.received)
    return [after - at for at, after in pairwise(before)]


def test_small_frames_are_taken_in_turns_and_none_is_lost() -> None:
    pair = CorePair()
    _ours, theirs = pair.opened()
    count = 10 * TURN_WORK + 7
    data = b"".join(frames.data(1, bytes((at % 251,))) for at in range(count))
    pair.inject(pair.server, data + frames.data(1, fin=True))
    brought = pair.server.heard_of(DataReceived)
    assert b"".join(event.payload for event in brought) == bytes(
        at % 251 for at in range(count)
    )
    assert max(event.size for event in brought) == TURN_WORK
    assert pair.server.heard[-1] == StreamFinished(theirs)


def test_a_turn_takes_as_many_small_frames_whatever_came() -> None:
    pair = CorePair()
    pair.opened()
    data = frames.data(1, b"x") * (3 * TURN_WORK)
    assert turns(pair.server.core, data, pair.now) == [
        SMALL * TURN_WORK,
        SMALL * TURN_WORK,
        SMALL * TURN_WORK,
        0,
    ]


def test_what_64_busy_connections_say_at_once_is_one_turn() -> None:
    pair = CorePair()
    data = b""
    for place in range(64):
        ours, _theirs = pair.opened()
        assert ours.sock_map == 2 * place + 1
        data += frames.data(2 * place + 1, bytes(64))
    assert len(turns(pair.server.core, data, pair.now)) == 1


def test_the_largest_frames_of_one_read_are_one_turn() -> None:
    pair = CorePair()
    pair.opened()
    data = frames.data(1, bytes(65_528)) * 4
    assert len(turns(pair.server.core, data, pair.now)) == 1


def test_few_connections_are_opened_in_a_turn() -> None:
    pair = CorePair()
    data = b"".join(frames.create_tcp(2 * at + 1, HERE) for at in range(50))
    core = pair.server.core
    offers = [core.receive_data(data, pair.now)]
    while core.has_input():
        offers.append(core.receive_more(pair.now))
    assert sum(map(len, offers)) == 50
    assert max(map(len, offers)) == -(-TURN_WORK // CREATE_WORK)
    assert all(isinstance(event, StreamOffered) for turn in offers for event in turn)


def test_a_frame_that_is_illegal_ends_the_session_in_its_turn() -> None:
    pair = CorePair()
    pair.opened()
    core = pair.server.core
    data = frames.data(1, b"x") * TURN_WORK + frames.data(99, b"x")
    assert len(core.receive_data(data, pair.now)) == 1
    with pytest.raises(RemoteSessionError) as caught:
        core.receive_more(pair.now)
    assert caught.value.code is Code.PROTOCOL
    assert not core.has_input()


def test_a_resume_states_only_what_was_taken_and_the_rest_comes_again() -> None:
    pair = CorePair(replay_limit=1 << 20)
    pair.opened()
    core, before = pair.server.core, pair.server.core.received
    core.receive_data(frames.data(1, b"x") * (2 * TURN_WORK), pair.now)
    assert core.has_input()
    assert core.received == before + SMALL * TURN_WORK
    core.link_lost()
    assert not core.has_input()
    core.resume(core.replay.position if core.replay else 0, pair.now)
    [event] = core.receive_data(frames.data(1, b"y") * 3, pair.now)
    assert isinstance(event, DataReceived)
    assert event.payload == b"yyy"
    assert core.received == before + SMALL * (TURN_WORK + 3)


@pytest.mark.parametrize("split", [1, 7, 8, 9, 1_000, 100_000])
def test_turns_are_the_same_however_the_bytes_are_split(split: int) -> None:
    pair = CorePair()
    pair.opened()
    data = frames.data(1, b"x") * 1_000
    for at in range(0, len(data), split):
        pair.inject(pair.server, data[at : at + split])
    assert sum(event.size for event in pair.server.heard_of(DataReceived)) == 1_000
