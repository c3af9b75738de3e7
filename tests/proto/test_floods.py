"""What a peer can say without end ends in CALM, or costs a bounded turn."""

from __future__ import annotations

import pytest
from support import frames
from support.pair import CorePair, End

from tunnel.addresses import Address
from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.codec import decode_one
from tunnel.proto.events import PeerDraining
from tunnel.proto.fields import MAX_FIELDS
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    ProtWindow,
    TcpTarget,
    Terms,
    UdpTarget,
)
from tunnel.proto.input import NUISANCE_BURST
from tunnel.proto.output import CONTROL_TURN_BYTES, WINDOWS_A_TURN
from tunnel.proto.scheduler import FRAME_COST_BYTES

HERE = frames.ipv4(127, 0, 0, 1, 80)
MORE = int(NUISANCE_BURST) + 1
UDP = Terms(capabilities=CAN_MAP | CAN_UDP, max_datagram=1_000)


def ends_with(pair: CorePair, end: End, data: bytes) -> Code:
    with pytest.raises(RemoteSessionError) as caught:
        pair.inject(end, data)
    return caught.value.code


@pytest.mark.parametrize("client", [False, True])
def test_a_drain_is_told_once_and_repeated_it_ends_in_calm(client: bool) -> None:
    pair = CorePair()
    end = pair.client if client else pair.server
    pair.inject(end, frames.go_away(int(Code.DRAINING)) * MORE)
    assert end.heard == [PeerDraining()]
    assert ends_with(pair, end, frames.go_away(int(Code.DRAINING))) is Code.CALM


def associated(pair: CorePair) -> int:
    conn = pair.client.core.open(UdpTarget(), pair.now)
    pair.settle()
    [offer] = pair.server.hear()
    pair.server.core.accept(offer.conn)  # type: ignore[union-attr]
    pair.settle()
    return conn.sock_map


def test_grants_on_an_association_grant_nothing_and_end_in_calm() -> None:
    pair = CorePair(UDP, UDP)
    number = associated(pair)
    data = b"".join(frames.window(number, at) for at in range(1, MORE + 1))
    assert ends_with(pair, pair.server, data) is Code.CALM


def test_datagrams_that_are_too_large_end_in_calm() -> None:
    pair = CorePair(UDP, UDP)
    number = associated(pair)
    data = frames.datagram(number, HERE, bytes(1_001)) * MORE
    assert ends_with(pair, pair.server, data) is Code.CALM
    assert not pair.server.heard


def test_too_many_names_are_calm_before_one_of_them_is_read() -> None:
    pair = CorePair()
    nonsense = frames.u8(1) + frames.u16(1_001) + b"\xff"
    data = frames.frame(frames.MAPPING, nonsense)
    assert ends_with(pair, pair.server, data) is Code.CALM


def test_a_list_of_many_fields_is_calm() -> None:
    few = b"".join(frames.tlv(128 + at, b"") for at in range(MAX_FIELDS))
    assert decode_one(frames.create_tcp(1, HERE, few)) is not None
    with pytest.raises(RemoteSessionError) as caught:
        decode_one(frames.create_tcp(1, HERE, few + frames.tlv(255, b"")))
    assert caught.value.code is Code.CALM


def test_much_control_goes_in_turns_and_no_data_overtakes_it() -> None:
    pair = CorePair()
    ours, _theirs = pair.opened()
    pair.client.core.send_data(ours, b"data")
    for number in range(3_000):  # of one target, a quarter of these may wait
        target = TcpTarget(Address("target.test", 1 + number % 4))
        pair.client.core.open(target, pair.now)
    turns = []
    while pair.client.core.has_output():
        turns.append(b"".join(pair.client.core.data_to_send(1 << 20, pair.now)))
    assert len(turns) > 2
    assert max(map(len, turns)) <= CONTROL_TURN_BYTES + 1_024
    assert turns[-1].endswith(b"data")
    assert not any(b"data" in turn for turn in turns[:-1])
    assert pair.client.core._output.control.size == 0
    pair.inject(pair.server, b"".join(turns))
    assert len(pair.server.heard) == 3_001


def test_many_grants_go_in_turns() -> None:
    small = Terms(initial_window=16_384)
    pair = CorePair(small, small)
    conns = [pair.opened() for _ in range(2 * WINDOWS_A_TURN + 1)]
    for ours, _theirs in conns:
        pair.client.core.send_data(ours, bytes(10_000))
    pair.settle()
    for _ours, theirs in conns:
        pair.server.core.consumed(theirs, 10_000)
    turns = []
    while pair.server.core.has_output():
        data = b"".join(pair.server.core.data_to_send(1 << 20, pair.now))
        count = 0
        while data and (found := decode_one(data)):
            count += isinstance(found[0], ProtWindow)
            data = data[found[1] :]
        turns.append(count)
    assert turns == [WINDOWS_A_TURN, WINDOWS_A_TURN, 1]


def test_a_turn_of_small_frames_is_bounded_too() -> None:
    pair = CorePair()
    conns = [pair.opened()[0] for _ in range(400)]
    for conn in conns:
        pair.client.core.send_data(conn, b"x")
    turn = b"".join(pair.client.core.data_to_send(16_384, pair.now))
    assert len(turn) // 9 == -(-16_384 // (9 + FRAME_COST_BYTES))
