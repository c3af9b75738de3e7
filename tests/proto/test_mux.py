from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pair import TARGET, CorePair, End

from tunnel.addresses import Address
from tunnel.errors import Code, LocalLinkError, LocalStreamError, RemoteSessionError
from tunnel.proto import input as incoming
from tunnel.proto import limits, mappings, output
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.events import (
    CreditGranted,
    DataReceived,
    LinkClosing,
    MappingAnswered,
    MappingAsked,
    PeerDraining,
    PingAnswered,
    StreamClosed,
    StreamFinished,
    StreamOffered,
    StreamOpened,
)
from tunnel.proto.frames import (
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
    NameTarget,
    ProtAccept,
    ProtAuth,
    ProtClose,
    ProtCreate,
    ProtData,
    ProtDatagram,
    ProtExtension,
    ProtFrame,
    ProtGoAway,
    ProtHello,
    ProtMapping,
    ProtMappingAnswer,
    ProtPing,
    ProtReceived,
    ProtWindow,
    SockMap,
    TcpTarget,
    Terms,
)
from tunnel.proto.liveness import HURRY_S
from tunnel.proto.mux import MuxCore
from tunnel.proto.payloads import data_header, encode
from tunnel.proto.pools import HeldPool, Pools
from tunnel.proto.state import StreamState

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event

BOUND = Address("192.0.2.7", 4_711)
ONE, TWO, THREE = SockMap(1), SockMap(2), SockMap(3)
ENTRY = MappingEntry(MappingType.TCP, "web", port=8_080)


def frames(data: bytes) -> list[ProtFrame]:
    return list(FrameDecoder().feed(data))


def inject(pair: CorePair, end: End, *sent: ProtFrame) -> None:
    pair.inject(end, b"".join(map(encode, sent)))


def refused_with(pair: CorePair, end: End, *sent: ProtFrame) -> Code:
    with pytest.raises(RemoteSessionError) as caught:
        inject(pair, end, *sent)
    return caught.value.code


def small(window: int) -> Terms:
    return Terms(initial_window=window)


# Opening -----------------------------------------------------------------------------


def test_an_offer_carries_target_and_visitor_and_its_answer_the_bound_address() -> None:
    pair = CorePair()
    visitor = Address("198.51.100.1", 5)
    ours = pair.server.core.open(TARGET, pair.now, visitor)
    pair.settle()
    [offer] = pair.client.heard_of(StreamOffered)
    assert offer == StreamOffered(
        offer.conn, ProtCreate(ours.sock_map, TARGET, visitor)
    )
    pair.client.core.accept(offer.conn, BOUND)
    pair.settle()
    assert pair.server.hear() == [StreamOpened(ours, BOUND)]


def test_the_client_opens_odd_numbers_and_the_server_even_ones() -> None:
    pair = CorePair()
    numbers = [pair.client.core.open(TARGET, pair.now).sock_map for _ in range(3)]
    numbers += [pair.server.core.open(TARGET, pair.now).sock_map for _ in range(3)]
    assert numbers == [1, 3, 5, 2, 4, 6]


def test_data_may_follow_create_before_its_answer() -> None:
    pair = CorePair()
    ours = pair.client.core.open(TARGET, pair.now)
    pair.client.core.send_data(ours, b"early")
    pair.client.core.finish(ours)
    pair.settle()
    offer, arrived, finished = pair.server.hear()
    assert isinstance(offer, StreamOffered)
    assert arrived == DataReceived(offer.conn, [b"early"])
    assert finished == StreamFinished(offer.conn)
    pair.server.core.accept(offer.conn)
    assert offer.conn.state is StreamState.REMOTE_FINISHED


def opened_by(event: Event) -> VirtualConn:
    assert isinstance(event, StreamOffered)
    return event.conn


def test_what_one_read_brought_is_one_event_for_each_connection() -> None:
    pair = CorePair()
    ours = [pair.client.core.open(TARGET, pair.now) for _ in range(2)]
    pair.settle()
    first, second = (opened_by(event) for event in pair.server.hear())
    sent = [ProtData(ONE, b"a"), ProtData(THREE, b"b"), ProtData(ONE, b"c", fin=True)]
    wire = b"".join(map(encode, sent))
    events = pair.server.core.receive_data(wire, pair.now)
    assert [conn.sock_map for conn in ours] == [ONE, THREE]
    assert events == [
        DataReceived(first, [b"a", b"c"]),
        DataReceived(second, [b"b"]),
        StreamFinished(first),
    ]
    assert isinstance(events[0], DataReceived)
    assert events[0].payload == b"ac"
    assert first.held_bytes == 2


def test_nothing_may_be_sent_before_the_own_answer() -> None:
    pair = CorePair()
    _, theirs = pair.offered()
    for act in (pair.server.core.finish, lambda c: pair.server.core.send_data(c, b"x")):
        with pytest.raises(LocalStreamError, match="OFFERED"):
            act(theirs)


def test_a_refused_create_frees_its_sock_map() -> None:
    pair = CorePair(top=2)
    ours, theirs = pair.offered()
    pair.server.core.close(theirs, Code.REFUSED, "nobody listens")
    pair.server.core.released(theirs)
    pair.settle()
    assert pair.client.hear() == [StreamClosed(ours, Code.REFUSED, "nobody listens")]
    assert pair.client.core.conns == pair.server.core.conns == 0
    assert pair.client.core.open(TARGET, pair.now).sock_map == 1


def test_early_data_of_a_refused_create_is_nobodys_fault() -> None:
    pair = CorePair()
    ours = pair.client.core.open(TARGET, pair.now)
    pair.flush(pair.client)
    pair.deliver(pair.client)
    [offer] = pair.server.hear()
    assert isinstance(offer, StreamOffered)
    pair.server.core.close(offer.conn, Code.REFUSED)
    pair.client.core.send_data(ours, bytes(100_000))
    pair.client.core.finish(ours)
    pair.cross()
    pair.settle()
    assert pair.server.hear() == []
    assert pair.server.core.conns == pair.client.core.conns == 0


def test_an_answer_that_crosses_our_close_is_ignored() -> None:
    pair = CorePair()
    ours, theirs = pair.offered()
    pair.client.core.close(ours, Code.TIMEOUT)
    pair.server.core.accept(theirs)
    pair.cross()
    pair.settle()
    assert pair.client.hear() == []
    assert pair.server.hear() == [StreamClosed(theirs, Code.TIMEOUT, "")]
    assert pair.client.core.conns == pair.server.core.conns == 0


def test_an_offer_is_answered_once() -> None:
    pair = CorePair()
    _, theirs = pair.opened()
    with pytest.raises(LocalStreamError):
        pair.server.core.accept(theirs)


def test_an_offer_that_was_withdrawn_cannot_be_accepted() -> None:
    pair = CorePair()
    ours, theirs = pair.offered()
    pair.client.core.close(ours, Code.TIMEOUT)
    pair.settle()
    with pytest.raises(LocalStreamError, match="IDLE"):
        pair.server.core.accept(theirs)
    assert not pair.server.core.has_output()


def test_a_host_that_cannot_be_written_opens_nothing() -> None:
    pair = CorePair()
    with pytest.raises(LocalStreamError) as caught:
        pair.client.core.open(TcpTarget(Address("no host", 1)), pair.now)
    assert caught.value.code is Code.ADDRESS_UNSUPPORTED
    assert pair.client.core.conns == 0
    assert not pair.client.core.has_output()


# Numbers -----------------------------------------------------------------------------


def test_numbers_wrap_and_skip_what_is_in_use() -> None:
    pair = CorePair(top=9)
    core = pair.client.core
    opened = {number: pair.opened()[0] for number in (1, 3, 5, 7, 9)}
    assert [conn.sock_map for conn in opened.values()] == [1, 3, 5, 7, 9]
    for number in (3, 7):
        core.close(opened[number])
    pair.settle()
    assert [pair.opened()[0].sock_map for _ in range(2)] == [3, 7]
    with pytest.raises(LocalStreamError) as caught:
        core.open(TARGET, pair.now)
    assert caught.value.code is Code.RESOURCE


def test_numbers_wrap_on_the_servers_side_too() -> None:
    pair = CorePair(top=5)
    for number in (2, 4, 2, 4):
        ours, _ = pair.opened(pair.server)
        assert ours.sock_map == number
        pair.server.core.close(ours)
        pair.settle()


def test_a_number_is_not_free_before_the_peers_close_came() -> None:
    pair = CorePair(top=2)
    ours, _ = pair.opened()
    pair.client.core.close(ours)
    pair.flush(pair.client)
    with pytest.raises(LocalStreamError):
        pair.client.core.open(TARGET, pair.now)
    pair.settle()
    assert pair.client.core.open(TARGET, pair.now).sock_map == 1


def test_a_handle_stays_with_its_own_life_when_the_number_is_used_again() -> None:
    pair = CorePair(top=2)
    old, _ = pair.opened()
    pair.client.core.close(old)
    pair.settle()
    new, _ = pair.opened()
    assert new.sock_map == old.sock_map
    pair.client.core.close(old, Code.RESET)
    pair.client.core.consumed(old, 1)
    with pytest.raises(LocalStreamError):
        pair.client.core.send_data(old, b"x")
    assert new.state is StreamState.OPEN
    assert not pair.client.core.has_output()


@pytest.mark.parametrize("number", [2, 1])
def test_create_on_a_number_that_is_not_the_peers_or_not_free_is_its_fault(
    number: int,
) -> None:
    pair = CorePair()
    pair.opened()
    create = ProtCreate(SockMap(number), TARGET)
    assert refused_with(pair, pair.server, create) is Code.PROTOCOL


def test_the_client_takes_no_odd_create() -> None:
    pair = CorePair()
    assert refused_with(pair, pair.client, ProtCreate(ONE, TARGET)) is Code.PROTOCOL


def test_create_on_a_number_that_we_are_still_closing_is_the_peers_fault() -> None:
    pair = CorePair()
    _, theirs = pair.opened()
    pair.server.core.close(theirs)
    assert refused_with(pair, pair.server, ProtCreate(ONE, TARGET)) is Code.PROTOCOL


@pytest.mark.parametrize(
    "frame",
    [
        ProtData(THREE, b"x"),
        ProtData(THREE, b"", fin=True),
        ProtClose(THREE),
        ProtWindow(THREE, 1 << 20),
        ProtAccept(THREE),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_frame_for_an_unknown_number_is_the_peers_fault(frame: ProtFrame) -> None:
    pair = CorePair()
    pair.opened()
    assert refused_with(pair, pair.server, frame) is Code.PROTOCOL


def test_data_after_the_peers_own_close_is_its_fault() -> None:
    pair = CorePair()
    pair.opened()
    sent = ProtClose(ONE), ProtData(ONE, b"x")
    assert refused_with(pair, pair.server, *sent) is Code.PROTOCOL


# Bytes and their end -----------------------------------------------------------------


def test_bytes_go_both_ways() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, b"question")
    pair.server.core.send_data(theirs, b"answer")
    pair.settle()
    assert pair.server.hear() == [DataReceived(theirs, [b"question"])]
    assert pair.client.hear() == [DataReceived(ours, [b"answer"])]


@pytest.mark.parametrize("first", [0, 1])
def test_each_direction_ends_alone_in_either_order(first: int) -> None:
    pair = CorePair()
    conns = pair.opened()
    pair.ends[first].core.finish(conns[first])
    pair.settle()
    assert pair.ends[1 - first].hear() == [StreamFinished(conns[1 - first])]
    pair.ends[1 - first].core.send_data(conns[1 - first], b"still here")
    pair.ends[1 - first].core.finish(conns[1 - first])
    pair.settle()
    assert pair.ends[first].hear() == [
        DataReceived(conns[first], [b"still here"]),
        StreamFinished(conns[first]),
    ]
    assert {conn.state for conn in conns} == {StreamState.FINISHED}
    pair.client.core.close(conns[0])
    pair.server.core.close(conns[1])
    pair.settle()
    assert pair.client.core.conns == pair.server.core.conns == 0


@pytest.mark.parametrize("late", [ProtData(ONE, b"x"), ProtData(ONE, b"", fin=True)])
def test_data_after_finish_is_the_peers_fault(late: ProtData) -> None:
    pair = CorePair()
    pair.opened()
    inject(pair, pair.server, ProtData(ONE, b"", fin=True))
    assert refused_with(pair, pair.server, late) is Code.PROTOCOL


def test_data_after_our_own_finish_is_our_fault_and_changes_nothing() -> None:
    pair = CorePair()
    ours, _ = pair.opened()
    pair.client.core.finish(ours)
    with pytest.raises(LocalStreamError):
        pair.client.core.send_data(ours, b"x")
    with pytest.raises(LocalStreamError):
        pair.client.core.finish(ours)
    assert frames(pair.flush(pair.client)) == [ProtData(ONE, b"", fin=True)]


def test_data_before_the_peers_answer_is_its_fault() -> None:
    pair = CorePair()
    pair.client.core.open(TARGET, pair.now)
    assert refused_with(pair, pair.client, ProtData(ONE, b"x")) is Code.PROTOCOL


def test_an_answer_to_our_own_offer_is_the_peers_fault() -> None:
    pair = CorePair()
    pair.offered()
    assert refused_with(pair, pair.server, ProtAccept(ONE)) is Code.PROTOCOL


# CLOSE -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.NORMAL, Code.RESET])
def test_a_clean_close_and_a_reset_stay_behind_the_data(code: Code) -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(100_000))
    pair.client.core.close(ours, code)
    pair.settle()
    *pieces, end = pair.server.hear()
    assert all(isinstance(piece, DataReceived) for piece in pieces)
    assert theirs.recv.received == 100_000
    assert end == StreamClosed(theirs, code, "")


def test_any_other_close_overtakes_and_drops_the_data() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(100_000))
    pair.client.core.finish(ours)
    pair.client.core.close(ours, Code.GENERAL, "lost interest")
    pair.settle()
    assert pair.server.hear() == [StreamClosed(theirs, Code.GENERAL, "lost interest")]


def test_the_answer_to_a_close_is_clean_at_once_and_without_what_is_queued() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.server.core.send_data(theirs, b"never sent")
    pair.client.core.close(ours, Code.GENERAL)
    pair.flush(pair.client)
    pair.deliver(pair.client)
    assert frames(pair.flush(pair.server)) == [ProtClose(ONE)]
    with pytest.raises(LocalStreamError):
        pair.server.core.send_data(theirs, b"x")


def test_a_close_that_waits_behind_data_gives_way_to_the_answer() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.server.core.send_data(theirs, bytes(100_000))
    pair.server.core.close(theirs, Code.RESET)
    pair.client.core.close(ours, Code.GENERAL)
    pair.flush(pair.client)
    pair.deliver(pair.client)
    assert frames(pair.flush(pair.server)) == [ProtClose(ONE)]
    pair.settle()
    assert pair.server.core.conns == pair.client.core.conns == 0


def test_two_closes_that_cross_answer_one_another() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.client.core.close(ours, Code.RESET)
    pair.server.core.close(theirs, Code.IDLE)
    pair.cross()
    assert not pair.client.core.has_output()
    assert not pair.server.core.has_output()
    assert pair.client.core.conns == pair.server.core.conns == 0
    assert pair.client.hear() == pair.server.hear() == []


def test_what_arrives_after_our_close_is_dropped_within_its_credit() -> None:
    pair = CorePair(server=small(100))
    _, theirs = pair.opened()
    pair.server.core.close(theirs)
    inject(pair, pair.server, ProtData(ONE, bytes(100)), ProtWindow(ONE, 1 << 30))
    assert pair.server.hear() == []
    assert pair.server.pool.held_bytes == 0
    assert refused_with(pair, pair.server, ProtData(ONE, b"x")) is Code.FLOW


def test_closing_again_is_harmless() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    for _ in range(2):
        pair.client.core.close(ours)
    assert frames(pair.flush(pair.client)) == [ProtClose(ONE)]
    pair.settle()
    pair.client.core.close(ours)
    pair.server.core.close(theirs)
    assert not pair.client.core.has_output()
    assert not pair.server.core.has_output()


# Credit ------------------------------------------------------------------------------


def test_credit_binds_the_sender_to_the_receivers_first_window() -> None:
    pair = CorePair(client=small(30), server=small(70))
    ours, theirs = pair.opened()
    assert pair.client.core.send_room(ours) == 70
    assert pair.server.core.send_room(theirs) == 30


def test_a_small_room_is_given_only_when_nothing_is_queued() -> None:
    pair = CorePair(server=small(100))
    ours, _theirs = pair.opened()
    core = pair.client.core
    assert core.send_room(ours, 101) == 100
    core.send_data(ours, bytes(60))
    assert core.send_room(ours, 41) == 0
    assert core.send_room(ours, 40) == 40
    core.send_room(ours, 41)
    pair.flush(pair.client)
    assert pair.client.heard_of(CreditGranted), "it would wait for ever"
    assert core.send_room(ours, 41) == 40


def test_taking_bytes_grants_as_many_and_arrival_grants_none() -> None:
    pair = CorePair(server=small(1_000))
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(1_000))
    pair.settle()
    assert pair.client.core.send_room(ours) == 0
    assert not pair.server.core.consumed(theirs, 499)
    assert not pair.server.core.has_output()
    assert pair.server.core.consumed(theirs, 1)
    assert frames(pair.flush(pair.server)) == [ProtWindow(ONE, 1_500)]
    pair.settle()
    assert pair.client.hear() == [CreditGranted(ours)]
    assert pair.client.core.send_room(ours) == 500


def test_grants_that_were_not_sent_yet_become_one() -> None:
    pair = CorePair(server=small(1_000))
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(1_000))
    pair.settle()
    for _ in range(10):
        pair.server.core.consumed(theirs, 100)
    assert frames(pair.flush(pair.server)) == [ProtWindow(ONE, 2_000)]


def test_a_stream_that_the_peer_has_finished_gets_no_grants() -> None:
    pair = CorePair(server=small(1_000))
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(1_000))
    pair.client.core.finish(ours)
    pair.settle()
    assert not pair.server.core.consumed(theirs, 1_000)
    assert not pair.server.core.has_output()


def test_a_byte_above_the_grant_ends_the_session_and_delivers_nothing() -> None:
    pair = CorePair(server=small(1_000))
    pair.opened()
    sent = ProtData(ONE, bytes(999)), ProtData(ONE, bytes(2))
    assert refused_with(pair, pair.server, *sent) is Code.FLOW


def test_too_much_is_refused_by_its_header_before_the_payload_came() -> None:
    pair = CorePair(server=small(1_000))
    pair.opened()
    with pytest.raises(RemoteSessionError) as caught:
        pair.inject(pair.server, data_header(1, 1_001))
    assert caught.value.code is Code.FLOW


def test_an_empty_last_frame_needs_no_credit() -> None:
    pair = CorePair(server=small(10))
    ours, _ = pair.opened()
    pair.client.core.send_data(ours, bytes(10))
    pair.settle()
    pair.client.core.finish(ours)
    pair.settle()
    assert pair.server.heard_of(StreamFinished)


def test_a_sender_holds_two_chunks_whatever_was_granted() -> None:
    pair = CorePair(server=small(10_000_000))
    ours, _ = pair.opened()
    room = pair.client.core.send_room(ours)
    assert room == output.STREAM_QUEUE_BYTES
    pair.client.core.send_data(ours, bytes(room))
    assert pair.client.core.send_room(ours) == 0


def test_a_starved_sender_is_woken_once_when_its_queue_has_room() -> None:
    pair = CorePair(server=small(10_000_000))
    ours, _ = pair.opened()
    pair.client.core.send_data(ours, bytes(output.STREAM_QUEUE_BYTES))
    assert pair.client.core.send_room(ours) == 0
    while ours.lane.size:
        pair.flush(pair.client)
    assert pair.client.hear() == [CreditGranted(ours)]
    assert pair.client.core.send_room(ours) > 0


def test_a_sender_that_did_not_ask_hears_of_no_credit() -> None:
    pair = CorePair()
    pair.opened()
    inject(pair, pair.client, ProtWindow(ONE, 1 << 30))
    assert pair.client.hear() == []


def test_a_grant_wakes_nobody_while_the_queue_is_full() -> None:
    pair = CorePair(server=small(10_000_000))
    ours, _ = pair.opened()
    pair.client.core.send_data(ours, bytes(output.STREAM_QUEUE_BYTES))
    assert pair.client.core.send_room(ours) == 0
    inject(pair, pair.client, ProtWindow(ONE, 20_000_000))
    assert pair.client.hear() == []
    pair.settle()
    assert pair.client.hear() == [CreditGranted(ours)]


def test_an_old_or_equal_grant_changes_nothing() -> None:
    pair = CorePair()
    ours, _ = pair.opened()
    before = ours.send.limit
    inject(pair, pair.client, ProtWindow(ONE, 5), ProtWindow(ONE, before))
    assert ours.send.limit == before


def test_a_grant_may_come_before_the_answer() -> None:
    pair = CorePair(server=small(10))
    ours, _ = pair.offered()
    pair.client.core.send_data(ours, bytes(10))
    assert pair.client.core.send_room(ours) == 0
    inject(pair, pair.client, ProtWindow(ONE, 15))
    assert pair.client.hear() == [CreditGranted(ours)]


# Order of output ---------------------------------------------------------------------


def test_control_overtakes_data_and_data_takes_turns() -> None:
    pair = CorePair()
    one, _ = pair.opened()
    other, _ = pair.opened()
    pair.client.core.send_data(one, bytes(40_000))
    pair.client.core.send_data(other, bytes(40_000))
    pair.client.core.ping(pair.now)
    first, *rest = frames(pair.flush(pair.client, 50_000))
    assert isinstance(first, ProtPing)
    assert [frame.sock_map for frame in rest] == [1, 3, 1, 3]  # type: ignore[union-attr]


def test_no_frame_is_longer_than_the_peer_takes() -> None:
    pair = CorePair(server=Terms(max_frame=16_376))
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(100_000))
    sent = frames(pair.flush(pair.client))
    assert (
        max(len(frame.payload) for frame in sent if type(frame) is ProtData) == 16_376
    )
    pair.settle()
    assert theirs.recv.received == 100_000


# PING, MAPPING, GO_AWAY and what is skipped ------------------------------------------


def test_a_ping_is_answered_and_measures_the_round_trip() -> None:
    pair = CorePair()
    pair.client.core.ping(pair.now)
    pair.cross()
    pair.now += 0.25
    pair.settle()
    assert pair.client.hear() == [PingAnswered()]
    assert pair.client.core.liveness.rtt_s == 0.25


def test_many_pings_before_the_next_write_cost_one_answer() -> None:
    pair = CorePair()
    opaque = [number.to_bytes(8, "big") for number in range(100)]
    inject(pair, pair.server, *map(ProtPing, opaque))
    assert frames(pair.flush(pair.server)) == [ProtPing(opaque[-1], ack=True)]


@pytest.mark.parametrize(
    "nothing",
    [
        ProtPing(bytes(8)),
        ProtPing(bytes(8), ack=True),
        ProtWindow(ONE, 1),
        ProtExtension(0x80, ONE, 3),
        ProtReceived(0),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_flood_of_nothing_ends_the_session_and_its_sane_rate_does_not(
    nothing: ProtFrame,
) -> None:
    pair = CorePair(replay_limit=1 << 20)
    pair.opened()
    for _ in range(100):
        pair.now += 1.0
        inject(pair, pair.server, *[nothing] * 100)
    burst = [nothing] * (int(incoming.NUISANCE_BURST) + 1)
    assert refused_with(pair, pair.server, *burst) is Code.CALM


def test_received_without_resumption_is_the_peers_fault() -> None:
    pair = CorePair()
    for end in pair.ends:
        assert refused_with(pair, end, ProtReceived(0)) is Code.PROTOCOL


@pytest.mark.parametrize("kind", [0x80, 0xBF, 0xC0, 0xFF])
@pytest.mark.parametrize("number", [0, 1, 12_345])
def test_an_unknown_extension_is_skipped(kind: int, number: int) -> None:
    pair = CorePair()
    _, theirs = pair.opened()
    extension = ProtExtension(kind, SockMap(number), 4_000)
    inject(pair, pair.server, extension, ProtData(ONE, b"after"))
    assert pair.server.hear() == [DataReceived(theirs, [b"after"])]


def test_mappings_are_asked_and_answered_in_order() -> None:
    pair = CorePair()
    for op in (MappingOp.ADD, MappingOp.REMOVE):
        pair.client.core.ask_mapping(op, [ENTRY])
    pair.settle()
    assert pair.server.hear() == [
        MappingAsked(ProtMapping(MappingOp.ADD, [ENTRY])),
        MappingAsked(ProtMapping(MappingOp.REMOVE, [ENTRY])),
    ]
    answers = [[MappingAnswer(Code.NORMAL, "", 8_080)], [MappingAnswer(Code.TAKEN)]]
    for answer in answers:
        pair.server.core.answer_mapping(answer)
    pair.settle()
    assert pair.client.hear() == [MappingAnswered(answer) for answer in answers]


def test_a_mapping_out_of_place_is_the_peers_fault() -> None:
    pair = CorePair()
    question, answer = ProtMapping(MappingOp.ADD, [ENTRY]), ProtMappingAnswer([])
    for end, frame in (
        (pair.client, question),
        (pair.client, answer),  # nobody asked
        (pair.server, answer),
    ):
        assert refused_with(pair, end, frame) is Code.PROTOCOL


def test_a_mapping_out_of_place_is_refused_by_its_header() -> None:
    pair = CorePair()
    with pytest.raises(RemoteSessionError):
        pair.inject(pair.client, encode(ProtMapping(MappingOp.ADD, [ENTRY]))[:8])


def test_more_answers_than_questions_are_the_peers_fault() -> None:
    pair = CorePair()
    pair.client.core.ask_mapping(MappingOp.ADD, [ENTRY])
    sent = ProtMappingAnswer([]), ProtMappingAnswer([])
    assert refused_with(pair, pair.client, *sent) is Code.PROTOCOL


def test_too_many_unanswered_mappings_end_the_session() -> None:
    pair = CorePair()
    questions = [ProtMapping(MappingOp.ADD, [])] * mappings.MAX_UNANSWERED_MAPPINGS
    inject(pair, pair.server, *questions)
    one_more = ProtMapping(MappingOp.ADD, [])
    assert refused_with(pair, pair.server, one_more) is Code.CALM


def test_draining_refuses_what_is_new_and_lets_go_on_what_runs() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    late = pair.client.core.open(TARGET, pair.now)
    pair.client.core.send_data(late, b"early")
    pair.server.core.drain()
    pair.server.core.drain()
    pair.cross()
    pair.settle()
    assert pair.server.hear() == []
    assert pair.client.hear() == [PeerDraining(), StreamClosed(late, Code.DRAINING, "")]
    for end in pair.ends:
        with pytest.raises(LocalStreamError) as caught:
            end.core.open(TARGET, pair.now)
        assert caught.value.code is Code.DRAINING
    pair.client.core.send_data(ours, b"goes on")
    pair.settle()
    assert pair.server.hear() == [DataReceived(theirs, [b"goes on"])]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "drain", "up", "down"]), st.integers(1, 200)
        ),
        max_size=40,
    )
)
def test_an_open_that_crosses_a_drain_is_served_once_or_refused_to_be_asked_again(
    steps: list[tuple[str, int]],
) -> None:
    pair = CorePair()
    asked: list[VirtualConn] = []
    offered: list[VirtualConn] = []

    def hear() -> None:
        for event in pair.server.hear():
            assert isinstance(event, StreamOffered)
            offered.append(event.conn)
            pair.server.core.accept(event.conn)

    for what, size in steps:
        if what == "open":
            with contextlib.suppress(LocalStreamError):  # it has heard of the drain
                asked.append(pair.client.core.open(TARGET, pair.now))
        elif what == "drain":
            pair.server.core.drain()
        else:
            end = pair.client if what == "up" else pair.server
            pair.flush(end)
            pair.deliver(end, size)
            hear()
    pair.settle()
    hear()
    pair.settle()
    heard = pair.client.hear()
    opened = [event.conn for event in heard if isinstance(event, StreamOpened)]
    refused = [event for event in heard if isinstance(event, StreamClosed)]
    assert [event.code for event in refused] == [Code.DRAINING] * len(refused)
    assert len(opened) == len(offered), "nobody is told of what was not served"
    assert sorted(map(id, opened + [event.conn for event in refused])) == sorted(
        map(id, asked)
    )


def test_go_away_is_the_last_frame_and_drops_what_was_queued() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(1_000))
    pair.client.core.open(TARGET, pair.now)
    pair.client.core.consumed(ours, 200_000)
    pair.client.core.go_away(Code.REVOKED, "gone", 7)
    said = ProtGoAway(Code.REVOKED, 7, "gone")
    assert frames(pair.flush(pair.client)) == [said]
    assert not pair.client.core.has_output()
    pair.deliver(pair.client)
    assert pair.server.hear() == [LinkClosing(said)]
    assert theirs.state is StreamState.OPEN


@pytest.mark.parametrize(
    "frame",
    [
        ProtHello(ack=False, min_version=1, max_version=1, nonce=bytes(32)),
        ProtAuth("name", 1),
        ProtDatagram(ONE, BOUND, b"x"),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_frame_of_another_phase_is_the_peers_fault(frame: ProtFrame) -> None:
    pair = CorePair()
    pair.opened()
    assert refused_with(pair, pair.server, frame) is Code.PROTOCOL


# Bounds ------------------------------------------------------------------------------


def test_the_opener_keeps_to_the_peers_max_streams() -> None:
    pair = CorePair(server=Terms(max_streams=2))
    ours = [pair.opened()[0] for _ in range(2)]
    with pytest.raises(LocalStreamError) as caught:
        pair.client.core.open(TARGET, pair.now)
    assert caught.value.code is Code.RESOURCE
    pair.client.core.close(ours[0])
    pair.settle()
    pair.client.core.open(TARGET, pair.now)


def test_offers_above_max_streams_are_refused_until_a_task_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "OPENS_TOLERANCE", 1)
    pair = CorePair(server=Terms(max_streams=1))
    inject(pair, pair.server, ProtCreate(ONE, TARGET), ProtCreate(THREE, TARGET))
    first, _ = pair.server.heard_of(StreamOffered)
    inject(pair, pair.server, ProtCreate(SockMap(5), TARGET))
    [refusal] = frames(pair.flush(pair.server))
    assert isinstance(refusal, ProtClose)
    assert (refusal.sock_map, refusal.code) == (5, Code.RESOURCE)
    # The sender's CLOSE alone frees no place: the task and its descriptor still live.
    inject(pair, pair.server, ProtClose(ONE), ProtCreate(SockMap(7), TARGET))
    assert pair.server.core.offered == 2
    assert len(pair.server.heard_of(StreamOffered)) == 2
    for _ in range(2):
        pair.server.core.released(first.conn)
    assert pair.server.core.offered == 1
    inject(pair, pair.server, ProtCreate(SockMap(9), TARGET))
    assert len(pair.server.heard_of(StreamOffered)) == 3


def test_an_opener_delays_itself_to_the_peers_rate() -> None:
    pair = CorePair(server=Terms(opens_per_s=2))
    core = pair.client.core
    for _ in range(2):
        core.open(TARGET, pair.now)
    with pytest.raises(LocalStreamError):
        core.open(TARGET, pair.now)
    core.open(TARGET, pair.now + 0.5)


def test_faster_opens_are_refused_and_far_faster_ones_end_the_session() -> None:
    pair = CorePair(server=Terms(opens_per_s=3))
    creates = [ProtCreate(SockMap(2 * place + 1), TARGET) for place in range(31)]
    inject(pair, pair.server, *creates[:30])
    assert len(pair.server.heard_of(StreamOffered)) == 3
    closes = [f for f in frames(pair.flush(pair.server)) if isinstance(f, ProtClose)]
    assert [close.code for close in closes] == [Code.RESOURCE] * 27
    assert refused_with(pair, pair.server, creates[30]) is Code.CALM


def test_unanswered_opens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UNANSWERED_OPENS", 3)
    pair = CorePair()
    core = pair.client.core
    ours = [core.open(TARGET, pair.now) for _ in range(3)]
    with pytest.raises(LocalStreamError):
        core.open(TARGET, pair.now)
    pair.settle()
    accepted, refused, _ = pair.server.heard_of(StreamOffered)
    pair.server.core.accept(accepted.conn)
    pair.server.core.close(refused.conn, Code.REFUSED)
    core.close(ours[2], Code.TIMEOUT)
    pair.settle()
    for _ in range(3):
        core.open(TARGET, pair.now)
    with pytest.raises(LocalStreamError):
        core.open(TARGET, pair.now)


def test_unanswered_opens_of_one_busy_target_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_UNANSWERED_OF_ONE", 3)
    pair = CorePair()
    core, busy, other = pair.client.core, NameTarget("busy"), NameTarget("other")
    ours = [core.open(busy, pair.now) for _ in range(3)]
    with pytest.raises(LocalStreamError):
        core.open(busy, pair.now)
    core.open(other, pair.now)
    pair.settle()
    accepted, refused, *_ = pair.server.heard_of(StreamOffered)
    pair.server.core.accept(accepted.conn)
    pair.server.core.close(refused.conn, Code.REFUSED)
    core.close(ours[2], Code.TIMEOUT)
    pair.settle()
    for _ in range(3):
        core.open(busy, pair.now)
    with pytest.raises(LocalStreamError):
        core.open(busy, pair.now)
    core.expire(pair.now + limits.OPEN_DEADLINE_S)
    core.open(busy, pair.now)


def test_a_peer_that_answers_no_close_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "OPENS_TOLERANCE", 0)
    monkeypatch.setattr(limits, "MAX_UNANSWERED_CLOSES", 3)
    pair = CorePair(server=Terms(max_streams=1))
    creates = [ProtCreate(SockMap(2 * place + 1), TARGET) for place in range(5)]
    inject(pair, pair.server, *creates[:4])
    assert refused_with(pair, pair.server, creates[4]) is Code.CALM


def test_a_peer_that_asks_and_reads_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "CONTROL_QUEUE_BYTES", 1_000)
    pair = CorePair()
    pieces: list[ProtFrame] = [ProtCreate(ONE, TARGET), ProtClose(ONE)]
    burst = pieces * 100
    inject(pair, pair.server, *burst)
    pair.flush(pair.server)
    inject(pair, pair.server, *burst)
    assert refused_with(pair, pair.server, *burst) is Code.CALM


def test_grants_and_data_do_not_count_as_control() -> None:
    pair = CorePair(server=small(100))
    ours, theirs = pair.opened()
    for _ in range(1_000):
        pair.client.core.send_data(ours, bytes(100))
        pair.settle()
        pair.server.core.consumed(theirs, 100)
        pair.settle()
    assert pair.server.core._output.control.size == 0


def test_the_reader_that_stalls_longest_is_reset_when_memory_is_short() -> None:
    pair = CorePair(pool_bytes=100_000)
    stalled, stalled_there = pair.opened()
    lively, lively_there = pair.opened()
    for conn in (stalled, lively):
        pair.client.core.send_data(conn, bytes(50_000))
    pair.settle()
    pair.server.hear()
    pair.server.core.consumed(stalled_there, 1)
    pair.server.core.consumed(lively_there, 1)
    pair.client.core.send_data(lively, bytes(50_000))
    pair.settle()
    [end] = pair.server.heard_of(StreamClosed)
    assert (end.conn, end.code, end.local) == (stalled_there, Code.RESOURCE, True)
    [end] = pair.client.heard_of(StreamClosed)
    assert (end.conn, end.code, end.local) == (stalled, Code.RESOURCE, False)
    assert pair.server.pool.held_bytes == lively_there.held_bytes == 99_999
    assert lively_there.state is StreamState.OPEN


def test_a_pool_is_shared_and_tells_the_session_that_lost_a_reader() -> None:
    pool: HeldPool = HeldPool(100)
    told: list[int] = []
    cores = [
        MuxCore(
            client=False,
            ours=Terms(),
            theirs=Terms(),
            now=0.0,
            pools=Pools(pool),
            notify=lambda place=place: told.append(place),  # type: ignore[misc]
        )
        for place in range(2)
    ]
    data = encode(ProtCreate(ONE, TARGET)) + encode(ProtData(ONE, bytes(60)))
    offer, _ = cores[0].receive_data(data, 0.0)
    assert isinstance(offer, StreamOffered)
    cores[1].receive_data(data, 0.0)
    assert told == [0]
    [notice] = cores[0].take_notices()
    assert isinstance(notice, StreamClosed)
    assert notice.conn is offer.conn
    assert cores[0].take_notices() == cores[1].take_notices() == []
    assert pool.held_bytes == 60


def test_a_reader_that_is_given_up_gets_nothing_of_the_next_read() -> None:
    pair = CorePair(pool_bytes=100)
    _, theirs = pair.opened()
    sent = [ProtData(ONE, bytes(60)), ProtData(ONE, bytes(60)), ProtData(ONE, b"x")]
    inject(pair, pair.server, *sent)
    inject(pair, pair.server, ProtData(ONE, b"more"), ProtData(ONE, b"", fin=True))
    assert len(pair.server.heard_of(DataReceived)) == 1
    assert not pair.server.heard_of(StreamFinished)
    assert [end.code for end in pair.server.heard_of(StreamClosed)] == [Code.RESOURCE]
    assert pair.server.pool.held_bytes == 0
    assert theirs.state is StreamState.CLOSING


@pytest.mark.parametrize("how", ["consumed", "close", "released"])
def test_the_pool_is_empty_whatever_way_a_reader_ends(how: str) -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(5_000))
    pair.client.core.close(ours)
    pair.settle()
    assert pair.server.pool.held_bytes == 5_000
    match how:
        case "consumed":
            pair.server.core.consumed(theirs, 5_000)
        case "close":
            pair.server.core.close(theirs)
        case _:
            pair.server.core.released(theirs)
    assert pair.server.pool.held_bytes == 0
    assert not pair.server.core.has_output()


# What is used is not used up ----------------------------------------------------------

FREQUENT = Terms(
    initial_window=4_096, max_streams=3, opens_per_s=100_000, idle_ping_s=3_600
)
"""Few places, so that one that is not given back is missed; no PING in between."""


def say(pair: CorePair, end: End, conn: VirtualConn, other: VirtualConn) -> None:
    """Let ``end`` send until the other's window has grown; all of it is read."""
    listener = pair.other(end)
    before = listener.pool.grown_bytes
    while listener.pool.grown_bytes == before:
        size = end.core.send_room(conn)
        end.core.send_data(conn, bytes(size))
        pair.settle()
        assert other.held_bytes == size
        listener.core.consumed(other, size)
        pair.settle()


def end_one(pair: CorePair, opener: End, how: str) -> None:
    """Open one virtual TCP connection from ``opener`` and end it."""
    accepter = pair.other(opener)
    if how in ("refused", "withdrawn", "expired"):
        ours, theirs = pair.offered(opener)
        opener.core.send_data(ours, bytes(4_096))
        pair.settle()
        if how == "refused":
            accepter.core.close(theirs, Code.REFUSED)
        elif how == "withdrawn":
            opener.core.close(ours, Code.RESET)
        else:
            pair.wait(2.0)
        pair.settle()
        accepter.core.close(theirs)
        accepter.core.released(theirs)
        return
    ours, theirs = pair.opened(opener)
    say(pair, opener, ours, theirs)
    say(pair, accepter, theirs, ours)
    opener.core.send_data(ours, bytes(opener.core.send_room(ours)))
    match how:
        case "finished":
            opener.core.finish(ours)
            accepter.core.finish(theirs)
        case "closed with the last bytes unread":
            pair.settle()
            opener.core.close(ours)
        case "closed by the accepter":
            accepter.core.close(theirs)
        case "closed by both at once":
            opener.core.close(ours)
            accepter.core.close(theirs, Code.GENERAL)
        case "closed when a grant was due":
            pair.settle()
            assert accepter.core.consumed(theirs, theirs.held_bytes)
            accepter.core.close(theirs)
        case "closed by the peer when a grant was due":
            pair.settle()
            opener.core.close(ours)
            pair.flush(opener)
            assert accepter.core.consumed(theirs, theirs.held_bytes)
            pair.deliver(opener)
        case "given up for memory":
            pair.settle()
            theirs.evict()
        case _:
            raise AssertionError(how)
    pair.settle()
    accepter.core.released(theirs)
    pair.settle()
    opener.core.close(ours)
    accepter.core.close(theirs)
    pair.settle()


def assert_as_new(pair: CorePair) -> None:
    for end in pair.ends:
        assert end.core.conns == 0
        assert end.core.offered == 0
        assert end.pool.held_bytes == 0
        assert end.pool.grown_bytes == 0
        assert not end.core.has_output()
        # Nothing else has a time: no open, no grown window, nothing to confirm.
        assert end.core.next_wakeup() == end.core.liveness.next_wakeup()
    assert pair.client.core.data_sent == pair.server.core.data_received
    assert pair.server.core.data_sent == pair.client.core.data_received


WAYS_TO_END = (
    "refused",
    "withdrawn",
    "expired",
    "finished",
    "closed with the last bytes unread",
    "closed by the accepter",
    "closed by both at once",
    "closed when a grant was due",
    "closed by the peer when a grant was due",
    "given up for memory",
)


@pytest.mark.parametrize("how", WAYS_TO_END)
@pytest.mark.parametrize("replay_limit", [0, 1 << 20])
def test_however_a_connection_ends_it_leaves_nothing_behind(
    how: str, replay_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OPENS_TOLERANCE", 0)
    pair = CorePair(
        FREQUENT, FREQUENT, replay_limit=replay_limit, top=41, open_deadline_s=1.0
    )
    for _ in range(FREQUENT.max_streams + 1):
        for opener in pair.ends:
            end_one(pair, opener, how)
            pair.wait(0.2)  # what was received is stated
            pair.settle()
            assert_as_new(pair)
    for opener in pair.ends:  # and all places are there again
        for _ in range(FREQUENT.max_streams):
            pair.opened(opener)


def test_a_session_that_ends_with_everything_alive_leaves_nothing_behind() -> None:
    pair = CorePair(FREQUENT, FREQUENT, replay_limit=1 << 20, open_deadline_s=1.0)
    offered, _ = pair.offered()
    for opener in pair.ends:
        ours, theirs = pair.opened(opener)
        say(pair, opener, ours, theirs)
        say(pair, pair.other(opener), theirs, ours)
        opener.core.send_data(ours, bytes(4_096))
    pair.settle()
    for end in pair.ends:
        end.core.ask_mapping(MappingOp.ADD, [ENTRY])
        early = end.core.open(TARGET, pair.now)
        end.core.send_data(early, bytes(100))
    pair.cut()
    for end in pair.ends:
        assert end.pool.held_bytes > 0
        assert end.pool.grown_bytes > 0
        lived = end.core.end()
        assert offered in lived or end is pair.server
        assert end.core.conns == 0
        assert end.pool.held_bytes == 0
        assert end.pool.grown_bytes == 0
        assert end.core.expire(pair.now) is None
        assert not end.core.has_output()
        for conn in lived:
            assert conn.lane.idle()
            end.core.close(conn)
            end.core.released(conn)
        assert end.core.offered == 0
        assert not end.core.has_output()


@pytest.mark.parametrize("how", ["end", "go_away"])
def test_a_session_that_ends_does_not_repeat_what_was_lost(how: str) -> None:
    pair = CorePair(replay_limit=1 << 20)
    ours, _ = pair.opened()
    pair.client.core.send_data(ours, bytes(5_000))
    pair.flush(pair.client)
    pair.cut()
    assert pair.resume()[0] > 5_000
    if how == "end":
        pair.client.core.end()
        assert not pair.client.core.has_output()
    else:
        pair.client.core.go_away(Code.INTERNAL, "over")
        assert frames(pair.flush(pair.client)) == [ProtGoAway(Code.INTERNAL, 0, "over")]
        assert not pair.client.core.has_output()


def test_questions_for_names_are_not_used_up_by_asking() -> None:
    pair = CorePair()
    for _ in range(2 * mappings.MAX_UNANSWERED_MAPPINGS):
        pair.client.core.ask_mapping(MappingOp.ADD, [ENTRY])
        pair.settle()
        pair.server.core.answer_mapping([MappingAnswer(Code.NORMAL)])
        pair.settle()
    assert (
        len(pair.server.heard_of(MappingAsked)) == 2 * mappings.MAX_UNANSWERED_MAPPINGS
    )
    assert (
        len(pair.client.heard_of(MappingAnswered))
        == 2 * mappings.MAX_UNANSWERED_MAPPINGS
    )
    late = ProtMappingAnswer([MappingAnswer(Code.NORMAL)])
    assert refused_with(pair, pair.client, late) is Code.PROTOCOL


def test_a_link_is_given_up_sooner_by_a_machine_that_slept() -> None:
    pair = CorePair()
    core = pair.client.core
    core.ping(pair.now, slept=True)
    assert frames(pair.flush(pair.client)) == [ProtPing(bytes(8))]
    assert core.next_wakeup() == pair.now + HURRY_S
    with pytest.raises(LocalLinkError) as caught:
        core.on_time(pair.now + HURRY_S)
    assert caught.value.code is Code.SILENT


# Time, links and the end -------------------------------------------------------------


def test_a_silent_link_is_asked_and_then_given_up() -> None:
    pair = CorePair(client=Terms(idle_ping_s=4))
    core = pair.client.core
    assert core.next_wakeup() == pair.now + 4.0
    core.on_time(pair.now + 3.9)
    assert not core.has_output()
    core.on_time(pair.now + 4.0)
    assert frames(pair.flush(pair.client)) == [ProtPing(bytes(8))]
    with pytest.raises(LocalLinkError) as caught:
        core.on_time(pair.now + 12.0)
    assert caught.value.code is Code.SILENT


def test_the_smaller_idle_time_holds_for_both() -> None:
    pair = CorePair(client=Terms(idle_ping_s=4), server=Terms(idle_ping_s=9))
    assert pair.client.core.next_wakeup() == pair.server.core.next_wakeup()


def test_the_end_gives_back_what_lived_and_forgets_all() -> None:
    pair = CorePair()
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, bytes(5_000))
    pair.settle()
    second = pair.client.core.open(TARGET, pair.now)
    assert set(pair.client.core.end()) == {ours, second}
    assert pair.server.core.end() == [theirs]
    for end, conns in ((pair.client, (ours, second)), (pair.server, (theirs,))):
        assert end.core.conns == 0
        assert not end.core.has_output()
        for conn in conns:
            end.core.close(conn)
            end.core.released(conn)
        assert end.core.offered == 0
        assert end.pool.held_bytes == 0
        assert not end.core.has_output()


def test_an_open_expires_by_itself() -> None:
    pair = CorePair()
    ours, theirs = pair.offered()
    answered, _ = pair.opened()
    assert pair.client.core.next_wakeup() == pair.now + 10.0  # the PING's
    pair.wait(11.9)
    pair.settle()
    assert pair.client.core.next_wakeup() == pytest.approx(pair.now + 0.1)
    assert not pair.client.heard_of(StreamClosed)
    pair.wait(0.2)
    [end] = pair.client.heard_of(StreamClosed)
    assert (end.conn, end.code, end.local) == (ours, Code.TIMEOUT, True)
    pair.settle()
    assert pair.server.hear()[-1] == StreamClosed(theirs, Code.RESET, "")
    assert answered.state is StreamState.OPEN
    assert not pair.client.core._own_opens.unanswered
    assert pair.client.core.expire(pair.now) is None


def test_opens_expire_in_their_order_and_only_unanswered_ones() -> None:
    told: list[None] = []
    core = MuxCore(
        client=True,
        ours=Terms(),
        theirs=Terms(),
        now=0.0,
        notify=lambda: told.append(None),
        open_deadline_s=3.0,
    )
    conns = [core.open(TARGET, now) for now in (0.0, 1.0, 2.0, 2.5)]
    core.receive_data(encode(ProtAccept(ONE)) + encode(ProtClose(THREE)), 2.6)
    core.close(conns[2])
    assert core.expire(5.4) == 5.5
    assert not told
    assert core.expire(5.5) is None
    [end] = core.take_notices()
    assert isinstance(end, StreamClosed)
    assert (end.conn, end.code) == (conns[3], Code.TIMEOUT)
    assert len(told) == 1


def test_a_connection_shows_its_number_its_state_and_its_bytes() -> None:
    pair = CorePair(server=small(100))
    ours, _ = pair.opened()
    pair.client.core.send_data(ours, b"x" * 30)
    assert repr(ours) == "<VirtualConn sock_map=1 OPEN unsent=30 credit=70 held=0>"


# Hostile bytes -----------------------------------------------------------------------

NUMBERS = st.sampled_from((0, 1, 2, 3, 4, 0xFFFFFF))
KINDS = st.one_of(st.integers(0, 12), st.sampled_from((0x7F, 0x80, 0xC0, 0xFF)))
_VALID: list[ProtFrame] = [
    ProtCreate(THREE, TARGET),
    ProtCreate(SockMap(4), TARGET),
    ProtAccept(TWO),
    ProtAccept(ONE),
    ProtData(ONE, b"payload"),
    ProtData(TWO, b"payload"),
    ProtData(ONE, b"", fin=True),
    ProtClose(ONE),
    ProtClose(TWO, Code.RESET),
    ProtClose(THREE),
    ProtWindow(ONE, 400_000),
    ProtWindow(TWO, 1),
    ProtMapping(MappingOp.ADD, [ENTRY]),
    ProtMappingAnswer([MappingAnswer(Code.NORMAL)]),
    ProtPing(bytes(8)),
    ProtGoAway(Code.DRAINING),
    ProtGoAway(Code.NORMAL),
]
VALID = st.sampled_from(_VALID).map(encode)


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """A frame whose header looks like one, around any payload."""
    payload = draw(st.binary(max_size=40))
    length = draw(st.one_of(st.just(len(payload)), st.integers(0, 0xFFFFFF)))
    flag = draw(st.sampled_from((0x00, 0x01, 0x10, 0x11, 0xEE)))
    head = length.to_bytes(3, "big") + bytes((draw(KINDS), flag))
    return head + draw(NUMBERS).to_bytes(3, "big") + payload


@given(
    st.booleans(),
    st.lists(st.one_of(VALID, VALID, framed(), st.binary(max_size=30)), max_size=12),
    st.integers(1, 50),
    st.integers(0, 3),
)
def test_hostile_bytes_raise_nothing_but_the_peers_session_error(
    to_client: bool, pieces: list[bytes], cut: int, action: int
) -> None:
    pair = CorePair()
    end = pair.client if to_client else pair.server
    first, second = pair.opened(), pair.opened(pair.server)
    conns = [first[0], second[1]] if to_client else [first[1], second[0]]
    data = b"".join(pieces)
    with contextlib.suppress(RemoteSessionError):
        for place, at in enumerate(range(0, len(data), cut)):
            pair.inject(end, data[at : at + cut])
            assert end.core._input._decoder.held_bytes <= at + cut
            if place == action:
                end.core.close(conns[place % 2])
            pair.flush(end)
    for conn in end.core.end():
        end.core.released(conn)
    for event in end.heard_of(StreamOffered):
        end.core.released(event.conn)
    assert end.core.conns == 0
    assert end.core.offered - sum(conn.offered for conn in conns) == 0
    for conn in conns:
        end.core.released(conn)
    assert end.pool.held_bytes == 0


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_the_meaning_of_bytes_does_not_depend_on_how_they_are_split(
    cuts: list[int],
) -> None:
    sent: list[ProtFrame] = [
        ProtCreate(ONE, TARGET),
        ProtData(ONE, bytes(200)),
        ProtPing(bytes(8)),
        ProtData(ONE, b"end", fin=True),
        ProtClose(ONE, Code.RESET, "reset by peer"),
        ProtCreate(ONE, TARGET),
    ]
    data = b"".join(map(encode, sent))
    pair = CorePair()
    for cut in cuts:
        pair.inject(pair.server, data[:cut])
        data = data[cut:]
    pair.inject(pair.server, data)
    heard = pair.server.hear()
    pieces = [event.payload for event in heard if type(event) is DataReceived]
    assert b"".join(pieces) == bytes(200) + b"end"
    # Only how many pieces there are may differ.
    assert [*dict.fromkeys(map(type, heard[:-1])), type(heard[-1])] == [
        StreamOffered,
        DataReceived,
        StreamFinished,
        StreamClosed,
        StreamOffered,
    ]


def test_a_starved_sender_is_woken_when_half_of_its_queue_is_free() -> None:
    pair = CorePair(server=small(10_000_000))
    ours, _ = pair.opened()
    core = pair.client.core
    core.send_data(ours, bytes(output.STREAM_QUEUE_BYTES - 1_000))
    assert core.send_room(ours, least=10_000) == 0
    core.data_to_send(output.STREAM_QUEUE_BYTES // 2, pair.now)
    assert (
        output.STREAM_QUEUE_BYTES // 3
        < ours.lane.size
        <= output.STREAM_QUEUE_BYTES // 2
    )
    assert core.take_notices() == [CreditGranted(ours)]
