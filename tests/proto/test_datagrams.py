"""UDP associations in the core: what goes when, what is lost, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pair import TARGET, CorePair, End

from tunnel.addresses import Address
from tunnel.errors import Code, LocalStreamError, RemoteSessionError
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.datagrams import (
    ASSOCIATION_BYTES,
    DATAGRAM_TURN_BYTES,
    OBJECT_BYTES,
    SESSION_BYTES,
    DatagramQueue,
    DatagramRoom,
    Outbox,
)
from tunnel.proto.events import DatagramReceived, StreamClosed, StreamOffered
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    ProtCreate,
    ProtData,
    ProtDatagram,
    ProtFrame,
    ProtWindow,
    SockMap,
    Terms,
    UdpTarget,
)
from tunnel.proto.payloads import encode
from tunnel.proto.pools import DATAGRAM_LIMIT_BYTES

if TYPE_CHECKING:
    from tunnel.proto.conn import VirtualConn

UDP = Terms(capabilities=CAN_MAP | CAN_UDP)
TO = Address("192.0.2.53", 53)
ANYWHERE = UdpTarget()


def udp_pair(replay_limit: int = 0, terms: Terms = UDP) -> CorePair:
    return CorePair(terms, terms, replay_limit=replay_limit)


def offered(pair: CorePair) -> tuple[VirtualConn, VirtualConn]:
    """Open an association from the client; the server has not answered."""
    ours = pair.client.core.open(ANYWHERE, pair.now)
    pair.settle()
    (event,) = pair.server.heard_of(StreamOffered)
    pair.server.hear()
    return ours, event.conn


def associated(pair: CorePair) -> tuple[VirtualConn, VirtualConn]:
    ours, theirs = offered(pair)
    pair.server.core.accept(theirs)
    pair.settle()
    pair.client.hear()
    return ours, theirs


def heard(end: End) -> list[bytes]:
    return [
        event.payload for event in end.hear() if isinstance(event, DatagramReceived)
    ]


def written(end: End) -> list[ProtFrame]:
    data = b"".join(end.core.data_to_send(1_000_000, 0.0))
    return list(FrameDecoder().feed(data))


def dropped(conn: VirtualConn) -> int:
    assert conn.datagrams is not None
    return conn.datagrams.dropped


# Both ways ---------------------------------------------------------------------------


def test_datagrams_pass_both_ways_with_their_addresses() -> None:
    pair = udp_pair()
    ours, theirs = associated(pair)
    pair.client.core.send_datagram(ours, TO, b"query")
    pair.server.core.send_datagram(theirs, TO, b"")
    pair.settle()
    assert pair.server.hear() == [DatagramReceived(theirs, TO, b"query")]
    assert pair.client.hear() == [DatagramReceived(ours, TO, b"")]


def test_the_largest_datagram_passes() -> None:
    pair = udp_pair()
    ours, _ = associated(pair)
    pair.client.core.send_datagram(ours, Address("n" * 255, 53), bytes(65_535))
    pair.settle()
    assert heard(pair.server) == [bytes(65_535)]


def test_a_datagram_larger_than_the_peer_takes_is_dropped_by_its_sender() -> None:
    pair = CorePair(UDP, Terms(capabilities=3, max_datagram=100))
    ours, _ = associated(pair)
    pair.client.core.send_datagram(ours, TO, bytes(101))
    pair.client.core.send_datagram(ours, TO, bytes(100))
    pair.settle()
    assert heard(pair.server) == [bytes(100)]
    assert dropped(ours) == 1


def test_a_datagram_larger_than_we_take_is_dropped_by_us() -> None:
    pair = CorePair(UDP, Terms(capabilities=3, max_datagram=100))
    ours, _ = associated(pair)
    pair.inject(pair.server, encode(ProtDatagram(ours.sock_map, TO, bytes(101))))
    assert heard(pair.server) == []


def test_a_host_that_cannot_be_written_is_the_senders_fault() -> None:
    pair = udp_pair()
    ours, _ = associated(pair)
    with pytest.raises(LocalStreamError) as caught:
        pair.client.core.send_datagram(ours, Address("a b", 1), b"x")
    assert caught.value.code is Code.ADDRESS_UNSUPPORTED


# Opening -----------------------------------------------------------------------------


def test_what_is_sent_before_the_answer_waits_for_it() -> None:
    pair = udp_pair()
    ours, theirs = offered(pair)
    pair.client.core.send_datagram(ours, TO, b"early")
    assert not pair.client.core.has_output()
    pair.server.core.accept(theirs)
    pair.settle()
    assert heard(pair.server) == [b"early"]


def test_the_exits_answer_goes_before_its_first_datagram() -> None:
    pair = udp_pair()
    ours, theirs = offered(pair)
    pair.server.core.accept(theirs)
    pair.server.core.send_datagram(theirs, TO, b"at once")
    pair.settle()
    assert heard(pair.client) == [b"at once"]
    assert ours.state.name == "OPEN"


def test_a_peer_without_udp_is_not_asked() -> None:
    pair = CorePair(UDP, Terms())
    with pytest.raises(LocalStreamError) as caught:
        pair.client.core.open(ANYWHERE, pair.now)
    assert caught.value.code is Code.UNSUPPORTED
    assert pair.client.core.conns == 0


def test_who_offers_no_udp_refuses_it() -> None:
    pair = CorePair(UDP, UDP)
    pair.server.core._table._can_udp = False
    ours = pair.client.core.open(ANYWHERE, pair.now)
    pair.settle()
    assert pair.client.hear() == [StreamClosed(ours, Code.UNSUPPORTED, "")]
    assert pair.server.core.conns == pair.client.core.conns == 0


# Never in line -----------------------------------------------------------------------


def test_datagrams_go_before_queued_data() -> None:
    pair = udp_pair()
    bulk, _ = pair.opened()
    ours, _ = associated(pair)
    pair.client.core.send_data(bulk, bytes(100_000))
    pair.client.core.send_datagram(ours, TO, b"quick")
    frames = written(pair.client)
    assert isinstance(frames[0], ProtDatagram)
    assert isinstance(frames[1], ProtData)


def test_control_in_every_turn_does_not_keep_datagrams_for_ever() -> None:
    pair = udp_pair()
    ours, _ = associated(pair)
    pair.client.core.open(TARGET, pair.now)
    pair.client.core.send_datagram(ours, TO, b"behind it")
    assert [type(frame) for frame in written(pair.client)] == [ProtCreate, ProtDatagram]


def test_a_flood_of_datagrams_leaves_data_its_turn() -> None:
    pair = udp_pair()
    bulk, _ = pair.opened()
    ours, _ = associated(pair)
    pair.client.core.send_data(bulk, bytes(100_000))
    for _ in range(100):
        pair.client.core.send_datagram(ours, TO, bytes(2_000))
    frames = written(pair.client)
    first = [frame for frame in frames if isinstance(frame, ProtDatagram)]
    assert sum(len(frame.payload) for frame in first) <= DATAGRAM_TURN_BYTES + 2_000
    assert sum(len(f.payload) for f in frames if isinstance(f, ProtData)) == 100_000


def test_associations_take_turns() -> None:
    pair = udp_pair()
    loud, quiet = (associated(pair)[0] for _ in range(2))
    for _ in range(20):
        pair.client.core.send_datagram(loud, TO, bytes(8_000))
    pair.client.core.send_datagram(quiet, TO, b"one word")
    numbers = [frame.sock_map for frame in written(pair.client)[:2]]  # type: ignore[union-attr]
    assert numbers == [loud.sock_map, quiet.sock_map]


def test_the_oldest_give_way_to_newer_ones_and_are_counted() -> None:
    pair = udp_pair()
    ours, _ = associated(pair)
    for number in range(400):
        pair.client.core.send_datagram(ours, TO, number.to_bytes(2, "big") * 500)
    pair.settle()
    found = [int.from_bytes(payload[:2], "big") for payload in heard(pair.server)]
    assert found == list(range(400 - len(found), 400))
    assert dropped(ours) == 400 - len(found)
    assert ASSOCIATION_BYTES // 1_200 < len(found) < ASSOCIATION_BYTES // 1_000


# Ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.NORMAL, Code.IDLE])
def test_a_close_ends_it_and_drops_what_waits(code: Code) -> None:
    pair = udp_pair()
    ours, theirs = associated(pair)
    pair.client.core.send_datagram(ours, TO, b"too late")
    pair.client.core.close(ours, code)
    pair.client.core.send_datagram(ours, TO, b"much too late")
    pair.server.core.send_datagram(theirs, TO, b"crosses it")
    pair.settle()
    assert pair.server.hear() == [StreamClosed(theirs, code, "")]
    assert pair.client.hear() == []
    assert pair.server.core.conns == pair.client.core.conns == 0
    assert dropped(ours) == 2


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (lambda n: ProtData(n, b"x"), Code.FLOW),
        (lambda n: ProtData(n, b"", fin=True), Code.PROTOCOL),
    ],
    ids=["bytes", "fin"],
)
def test_data_on_an_association_is_the_peers_fault(frame: object, code: Code) -> None:
    pair = udp_pair()
    ours, _ = associated(pair)
    with pytest.raises(RemoteSessionError) as caught:
        pair.inject(pair.server, encode(frame(ours.sock_map)))  # type: ignore[operator]
    assert caught.value.code is code


def test_a_window_on_an_association_is_ignored() -> None:
    pair = udp_pair()
    ours, _ = associated(pair)
    pair.inject(pair.server, encode(ProtWindow(ours.sock_map, 1_000)))
    assert pair.server.hear() == []


@pytest.mark.parametrize("state", ["not open", "not accepted", "not udp"])
@pytest.mark.parametrize("size", [14, 1_000], ids=["its header", "all of it"])
def test_a_datagram_out_of_place_is_the_peers_fault(state: str, size: int) -> None:
    pair = udp_pair()
    number = 1
    match state:
        case "not accepted":
            offered(pair)
        case "not udp":
            pair.opened()
        case _:
            number = 77
    data = encode(ProtDatagram(SockMap(number), TO, bytes(100)))[:size]
    with pytest.raises(RemoteSessionError) as caught:
        pair.inject(pair.server, data)
    assert caught.value.code is Code.PROTOCOL


# Links -------------------------------------------------------------------------------


def test_nothing_is_kept_for_another_link() -> None:
    pair = udp_pair(replay_limit=1_000_000)
    ours, _ = associated(pair)
    pair.client.core.send_datagram(ours, TO, b"queued")
    pair.client.core.link_lost()
    pair.client.core.send_datagram(ours, TO, b"no link")
    pair.cut()
    pair.resume()
    pair.client.core.send_datagram(ours, TO, b"again")
    pair.settle()
    assert heard(pair.server) == [b"again"]
    assert dropped(ours) == 2


def test_what_waited_for_another_link_is_not_sent_on_this_one() -> None:
    pair = udp_pair(replay_limit=1_000_000)
    ours, _ = associated(pair)
    pair.client.core.send_datagram(ours, TO, b"too late")
    pair.cut()
    pair.resume()
    pair.settle()
    assert heard(pair.server) == []
    assert dropped(ours) == 1


def test_a_session_that_ends_drops_datagrams_and_counts_them() -> None:
    pair = udp_pair()
    ours, _ = associated(pair)
    pair.client.core.send_datagram(ours, TO, b"too late")
    pair.client.core.end()
    assert not pair.client.core.has_output()
    assert dropped(ours) == 1


def test_a_core_without_a_link_has_no_datagrams_to_send() -> None:
    pair = udp_pair(replay_limit=1_000_000)
    ours, _ = associated(pair)
    pair.client.core.send_datagram(ours, TO, b"queued")
    assert pair.client.core.has_output()
    pair.client.core.link_lost()
    assert not pair.client.core.has_output()


def test_datagrams_have_no_place_in_the_session() -> None:
    pair = udp_pair(replay_limit=1_000_000)
    ours, _ = associated(pair)
    before = pair.server.core.received
    pair.client.core.send_datagram(ours, TO, b"uncounted")
    pair.settle()
    assert pair.server.core.received == before


def test_on_a_new_link_the_answer_is_repeated_before_any_datagram() -> None:
    pair = udp_pair(replay_limit=1_000_000)
    _, theirs = offered(pair)
    pair.server.core.accept(theirs)
    pair.flush(pair.server)  # lost with the link
    pair.cut()
    pair.resume()
    pair.server.core.send_datagram(theirs, TO, b"behind it")
    pair.settle()
    assert heard(pair.client) == [b"behind it"]


def test_an_answer_that_waits_for_a_full_replay_holds_its_datagrams() -> None:
    pair = udp_pair(replay_limit=1_000)
    ours, theirs = offered(pair)
    bulk = pair.server.core
    stream, _ = pair.opened(pair.server)
    bulk.send_data(stream, bytes(2_000))
    pair.flush(pair.server)
    pair.server.core.accept(theirs)
    pair.server.core.send_datagram(theirs, TO, b"waits")
    assert not pair.server.core.has_output()
    pair.deliver(pair.server)
    pair.settle()
    pair.wait(0.2)
    pair.settle()
    assert heard(pair.client) == [b"waits"]
    assert ours.state.name == "OPEN"


# The queue ---------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(0, 700), max_size=60), room=st.integers(0, 2_000))
def test_a_queue_keeps_its_bounds_and_loses_only_the_oldest(
    sizes: list[int], room: int
) -> None:
    shared = DatagramRoom(room)
    queue: DatagramQueue[int] = DatagramQueue(shared, limit_bytes=1_000)
    for number, size in enumerate(sizes):
        queue.push(number, size)
        assert queue.held_bytes <= 1_000
        assert queue.held_bytes == shared.held_bytes <= room
    kept = [queue.pop() for _ in range(len(queue))]
    assert len(kept) + queue.dropped == len(sizes)
    assert kept == sorted(kept)
    assert shared.held_bytes == 0


def test_a_full_session_loses_the_newcomer_of_an_empty_association() -> None:
    room = DatagramRoom(1_000 + OBJECT_BYTES)
    first: DatagramQueue[str] = DatagramQueue(room)
    second: DatagramQueue[str] = DatagramQueue(room)
    first.push("first", 1_000)
    second.push("second", 1)
    assert (len(first), first.dropped, len(second), second.dropped) == (1, 0, 0, 1)
    first.clear()
    second.push("third", 1)
    assert second.pop() == "third"
    assert first.dropped == 1


def test_nobody_who_has_ended_or_has_nothing_left_keeps_a_turn() -> None:
    outbox = Outbox()
    ended, sent, lost = (DatagramQueue[bytes](outbox.room) for _ in range(3))
    for queue in (ended, sent, lost):
        queue.push(b"datagram", 8)
        outbox.enlist(queue)
    outbox.forget(ended)
    assert list(outbox.waiting) == [sent, lost]
    assert outbox.take(budget=1) == [b"datagram"]
    assert list(outbox.waiting) == [lost]
    outbox.clear()
    assert not outbox.waiting
    assert (ended.dropped, sent.dropped, lost.dropped) == (1, 0, 1)


@pytest.mark.parametrize("how", ["sent", "closed", "closed by the peer", "cut"])
def test_the_room_of_a_session_is_not_used_up_by_using_it(how: str) -> None:
    pair = udp_pair(replay_limit=1_000_000)
    # Within the share of a session that is alone: a fifth of the process's room.
    at_once = DATAGRAM_LIMIT_BYTES // 5 // ASSOCIATION_BYTES
    for _ in range(3):
        conns = [associated(pair) for _ in range(at_once)]
        for ours, theirs in conns:
            for _ in range(4):
                pair.client.core.send_datagram(ours, TO, bytes(60_000))
            assert dropped(ours) == 0
            if how == "closed":
                pair.client.core.close(ours)
            elif how == "closed by the peer":
                pair.server.core.close(theirs)
                pair.flush(pair.server)
                pair.deliver(pair.server)
                assert dropped(ours) == 4
        if how == "cut":
            for end in pair.ends:
                end.core.link_lost()
            pair.cut()
            pair.resume()
        pair.settle()
        for ours, theirs in conns:
            if how != "closed by the peer":  # else it is over already
                pair.client.core.close(ours)
            pair.settle()
            pair.server.core.released(theirs)
        pair.settle()
        assert pair.client.core.conns == pair.server.core.conns == 0


def test_a_session_holds_no_more_than_its_bound() -> None:
    pair = udp_pair()
    ours = [associated(pair)[0] for _ in range(SESSION_BYTES // ASSOCIATION_BYTES + 4)]
    for conn in ours:
        for _ in range(5):
            pair.client.core.send_datagram(conn, TO, bytes(60_000))
    held = sum(conn.datagrams.held_bytes for conn in ours if conn.datagrams)
    assert held <= SESSION_BYTES
