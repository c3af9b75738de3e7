"""Each cause of CALM that a session knows, with the reason that the peer hears."""

from __future__ import annotations

import pytest
from support import frames
from support.pair import CorePair, End

from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.calm import Calm
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.events import MappingAsked, StreamOffered
from tunnel.proto.fields import MAX_FIELDS
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    MAX_MAPPING_COUNT,
    MAX_MAPPING_ENTRIES,
    Terms,
    UdpTarget,
)
from tunnel.proto.input import NUISANCE_BURST
from tunnel.proto.limits import MAX_UNANSWERED_CLOSES, OPENS_TOLERANCE
from tunnel.proto.mappings import MAX_UNANSWERED_MAPPINGS
from tunnel.proto.mux import MuxCore

HERE = frames.ipv4(127, 0, 0, 1, 80)
BOTH = Terms(capabilities=CAN_MAP | CAN_UDP, max_datagram=1_000)
ENOUGH = int(NUISANCE_BURST)


def too_much(pair: CorePair, end: End, data: bytes) -> str:
    with pytest.raises(RemoteSessionError) as caught:
        pair.inject(end, data)
    assert caught.value.code is Code.CALM
    return caught.value.what


def entries(count: int) -> bytes:
    return frames.mapping(1, *(frames.mapping_entry(1, str(at)) for at in range(count)))


@pytest.mark.parametrize(
    ("cause", "data"),
    [
        (Calm.PING, frames.ping()),
        (Calm.PING, frames.ping(ack=True)),
        (Calm.WINDOW, frames.window(1, 1)),
        (Calm.EXTENSION, frames.frame(0x80)),
        (Calm.EXTENSION, frames.frame(0xFF)),
        (Calm.DRAINING, frames.go_away(int(Code.DRAINING))),
        (Calm.RECEIVED, frames.received(0)),
    ],
)
def test_frames_without_effect_are_calm_and_the_last_is_named(
    cause: Calm, data: bytes
) -> None:
    pair = CorePair(replay_limit=1 << 20)
    pair.opened()
    pair.inject(pair.server, frames.go_away(int(Code.DRAINING)))
    pair.inject(pair.server, data * (ENOUGH - 10))
    assert too_much(pair, pair.server, data * 11) == cause.value


def test_large_datagrams_are_calm() -> None:
    pair = CorePair(BOTH, BOTH)
    conn = pair.client.core.open(UdpTarget(), pair.now)
    pair.settle()
    [offer] = pair.server.hear()
    assert isinstance(offer, StreamOffered)
    pair.server.core.accept(offer.conn)
    pair.settle()
    data = frames.datagram(conn.sock_map, HERE, bytes(1_001))
    pair.inject(pair.server, data * ENOUGH)
    assert too_much(pair, pair.server, data) == Calm.DATAGRAM.value


def test_many_fields_are_calm() -> None:
    fields = b"".join(frames.tlv(128 + at, b"") for at in range(MAX_FIELDS + 1))
    data = frames.create_tcp(1, HERE, fields)
    pair = CorePair()
    assert too_much(pair, pair.server, data) == Calm.FIELDS.value


def test_of_many_names_a_hundred_are_looked_at_and_a_thousand_are_answered() -> None:
    pair = CorePair()
    pair.inject(pair.server, entries(MAX_MAPPING_ENTRIES))
    pair.inject(pair.server, entries(MAX_MAPPING_ENTRIES + 1))
    pair.inject(pair.server, entries(MAX_MAPPING_COUNT))
    asked = [one.mapping for one in pair.server.hear() if isinstance(one, MappingAsked)]
    assert [(len(one.entries), one.too_many) for one in asked] == [
        (100, 0),
        (100, 1),
        (100, 900),
    ]
    data = entries(MAX_MAPPING_COUNT + 1)
    assert too_much(pair, pair.server, data) == Calm.NAMES.value


def test_an_entry_that_is_not_kept_has_to_be_well_formed_all_the_same() -> None:
    good = [frames.mapping_entry(1, str(at)) for at in range(MAX_MAPPING_ENTRIES)]
    data = frames.mapping(1, *good, frames.mapping_entry(1, "x", "no host"))
    with pytest.raises(RemoteSessionError) as caught:
        list(FrameDecoder().feed(data))
    assert caught.value.code is Code.PROTOCOL


def test_many_questions_are_calm() -> None:
    pair = CorePair()
    pair.inject(pair.server, entries(1) * MAX_UNANSWERED_MAPPINGS)
    assert too_much(pair, pair.server, entries(1)) == Calm.MAPPINGS.value


def test_ten_times_as_many_opens_as_announced_are_calm() -> None:
    pair = CorePair(server=Terms(opens_per_s=10))
    data = b"".join(
        frames.create_tcp(2 * at + 1, HERE) + frames.close(2 * at + 1)
        for at in range(101)
    )
    assert too_much(pair, pair.server, data) == Calm.OPENS.value


def test_a_peer_that_answers_no_close_has_a_bound_that_is_written_down() -> None:
    most = Terms().max_streams + OPENS_TOLERANCE + MAX_UNANSWERED_CLOSES
    assert most == 20_736
    core = MuxCore(client=False, ours=Terms(), theirs=Terms(), now=0.0)
    data = b"".join(frames.create_tcp(2 * at + 1, HERE) for at in range(most))
    core.receive_data(data, 0.0)
    while core.has_input():
        core.receive_more(0.0)
    assert core.conns == most
    with pytest.raises(RemoteSessionError) as caught:
        core.receive_data(frames.create_tcp(2 * most + 1, HERE), 0.0)
    assert caught.value.what == Calm.NUMBERS.value


def test_udp_is_only_for_who_said_so_whichever_side_opens() -> None:
    for client, server in ((Terms(), BOTH), (BOTH, Terms())):
        pair = CorePair(client, server)
        pair.inject(pair.server, frames.create_udp(1))
        pair.inject(pair.client, frames.create_udp(2))
        assert pair.server.heard == pair.client.heard == []
        for end, number in ((pair.server, 1), (pair.client, 2)):
            refusal = frames.close(number, int(Code.UNSUPPORTED))
            assert refusal in pair.flush(end)


def test_bytes_on_an_association_are_flow_with_a_fin_too() -> None:
    for fin, payload, code in (
        (False, b"x", Code.FLOW),
        (True, b"x", Code.FLOW),
        (True, b"", Code.PROTOCOL),
    ):
        pair = CorePair(BOTH, BOTH)
        pair.inject(pair.server, frames.create_udp(1))
        with pytest.raises(RemoteSessionError) as caught:
            pair.inject(pair.server, frames.data(1, payload, fin=fin))
        assert caught.value.code is code
