"""What the sessions of a process hold together is bounded, and all given back."""

from __future__ import annotations

import pytest
from support.pair import TARGET, CorePair

from tunnel.addresses import Address
from tunnel.errors import Code, RemoteSessionError
from tunnel.proto import frames, output, pools
from tunnel.proto import resend as replay_module
from tunnel.proto.datagrams import DatagramQueue, DatagramRoom
from tunnel.proto.events import CreditGranted, DataReceived
from tunnel.proto.frames import CAN_MAP, CAN_UDP, ProtClose, ProtCreate
from tunnel.proto.mux import MuxCore
from tunnel.proto.output import STREAM_QUEUE_BYTES
from tunnel.proto.payloads import encode
from tunnel.proto.pools import LEAST_BYTES, SHARE, Pools, Room
from tunnel.proto.resend import ResendBuffer
from tunnel.proto.scheduler import SendQueue, SendScheduler

LIMIT = 4_000_000
UDP = frames.Terms(capabilities=CAN_MAP | CAN_UDP)


def core_of(shared: Pools, *, replay_limit: int = 0) -> MuxCore:
    terms = frames.Terms()
    return MuxCore(
        client=False,
        ours=terms,
        theirs=terms,
        now=0.0,
        pools=shared,
        replay_limit=replay_limit,
    )


def fill(core: MuxCore, count: int) -> int:
    """Open so many and send what each may; give how many bytes that were."""
    sent = 0
    for _ in range(count):
        conn = core.open(TARGET, 0.0)
        while room := core.send_room(conn):
            core.send_data(conn, bytes(min(room, 65_536)))
            sent += min(room, 65_536)
    return sent


def test_a_session_may_have_a_quarter_of_what_is_free_and_always_a_little() -> None:
    room = Room(1_000_000)
    assert room.allows(250_000)
    assert not room.allows(250_001)
    room.free_bytes = -1
    assert room.allows(LEAST_BYTES)
    assert not room.allows(LEAST_BYTES + 1)


def test_one_session_that_stalls_holds_a_fifth_and_others_have_room() -> None:
    shared = Pools(unsent_bytes=LIMIT)
    stalled, lively = core_of(shared), core_of(shared)
    sent = fill(stalled, 100)
    assert sent > LIMIT / (SHARE + 1) - STREAM_QUEUE_BYTES
    assert sent < LIMIT / (SHARE + 1) + STREAM_QUEUE_BYTES
    assert shared.unsent.taken_bytes == sent
    assert fill(lively, 2) == 2 * STREAM_QUEUE_BYTES


def test_however_many_sessions_stall_the_bound_holds_and_each_may_move() -> None:
    shared = Pools(unsent_bytes=LIMIT)
    sent = [fill(core_of(shared), 8) for _ in range(100)]
    assert min(sent) >= LEAST_BYTES
    assert shared.unsent.taken_bytes == sum(sent)
    assert shared.unsent.taken_bytes < LIMIT + 100 * 2 * LEAST_BYTES


def test_who_was_refused_room_is_woken_and_every_byte_arrives() -> None:
    pair = CorePair()
    pair.client.pools.unsent.limit_bytes = pair.client.pools.unsent.free_bytes = LIMIT
    conns = [pair.opened()[0] for _ in range(60)]
    core = pair.client.core
    left = dict.fromkeys(conns, 200_000)

    def send(conn: object) -> None:
        for one in conns:
            if one is conn:
                while left[one] and (room := core.send_room(one)):
                    size = min(room, left[one], 65_536)
                    core.send_data(one, bytes(size))
                    left[one] -= size

    for conn in conns:
        send(conn)
    assert sum(left.values()) > 0
    assert core._output._paused
    while core.has_output():
        pair.flush(pair.client)
        pair.deliver(pair.client)
        for event in pair.server.hear():
            if isinstance(event, DataReceived):
                pair.server.core.consumed(event.conn, event.size)
        for event in pair.client.hear():
            if isinstance(event, CreditGranted):
                send(event.conn)
        assert core._output.lanes.size <= LIMIT // (SHARE + 1) + STREAM_QUEUE_BYTES
    assert sum(left.values()) == 0
    assert not core._output._paused
    assert pair.client.pools.unsent.taken_bytes == 0


def nothing_taken(shared: Pools) -> bool:
    rooms = shared.unsent, shared.kept, shared.control, shared.datagrams_out
    return not any(room.taken_bytes for room in rooms)


@pytest.mark.parametrize("way", ["close", "refused", "end", "go_away", "evict", "lost"])
def test_what_a_session_took_is_given_back_however_it_ends(way: str) -> None:
    pair = CorePair(UDP, UDP, replay_limit=1 << 20)
    end, core = pair.client, pair.client.core
    ours, _theirs = pair.opened()
    other = core.open(TARGET, pair.now)
    early = core.open(frames.UdpTarget(), pair.now)
    core.send_datagram(early, Address("127.0.0.1", 1), b"early")
    pair.flush(end)
    end.wire.clear()
    for conn in (ours, other):
        core.send_data(conn, bytes(50_000))
    assert end.pools.unsent.taken_bytes == 100_000
    assert end.pools.kept.taken_bytes > 0
    assert end.pools.datagrams_out.taken_bytes > 0
    match way:
        case "close":
            core.close(ours, Code.IDLE)
            assert end.pools.unsent.taken_bytes == 50_000
            assert end.pools.control.taken_bytes > 0
        case "refused":
            pair.inject(end, encode(ProtClose(other.sock_map, Code.REFUSED)))
            assert end.pools.unsent.taken_bytes == 50_000
        case "evict":
            ours.evict()
            assert end.pools.unsent.taken_bytes == 50_000
        case "go_away":
            core.go_away(Code.CALM)
            assert end.pools.unsent.taken_bytes == 0
        case "lost":
            core.link_lost()
        case _:
            assert way == "end"
    core.end()
    assert nothing_taken(end.pools)
    core.end()
    assert nothing_taken(end.pools)


def test_what_the_peer_has_is_given_back() -> None:
    shared = Room(1_000)
    replay = ResendBuffer(500, shared)
    replay.record(encode(ProtClose(frames.SockMap(1))) * 10)
    assert shared.taken_bytes == replay.unconfirmed == 80
    assert replay.confirm(24)
    assert shared.taken_bytes == 56
    replay.clear()
    assert (shared.taken_bytes, replay.unconfirmed, replay.rest()) == (0, 0, [])


def test_a_session_keeps_no_more_than_its_share_and_goes_on_when_it_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_module, "LEAST_KEPT_BYTES", LEAST_BYTES)
    shared = Pools(kept_bytes=LIMIT)
    core = core_of(shared, replay_limit=16 << 20)
    said = b""
    for _ in range(20):
        fill(core, 1)
        while core.has_output():
            said += b"".join(core.data_to_send(65_536, 0.0))
    assert core.replay is not None
    assert core.replay.full()
    assert len(said) == shared.kept.taken_bytes
    assert abs(len(said) - LIMIT // (SHARE + 1)) < 200_000
    assert core.replay.confirm(len(said))
    assert core.has_output()


def test_control_of_all_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CONTROL_LIMIT_BYTES", 400_000)
    shared = Pools()
    burst = (
        encode(ProtCreate(frames.SockMap(1), TARGET))
        + encode(ProtClose(frames.SockMap(1)))
    ) * 1_000
    calm = 0
    for _ in range(4):
        core = core_of(shared)
        try:
            for _ in range(40):  # far more than all may have
                core.receive_data(burst, 0.0)
                while core.has_input():
                    core.receive_more(0.0)
        except RemoteSessionError as error:
            calm += error.code is Code.CALM
    assert calm > 0
    assert shared.control.taken_bytes < 400_000 + 4 * 2 * LEAST_BYTES
    assert output.CONTROL_QUEUE_BYTES > 1_000_000


def test_datagrams_of_all_sessions_are_bounded() -> None:
    process = Room(1_000_000)
    queues: list[DatagramQueue[int]] = [
        DatagramQueue(DatagramRoom(process=process)) for _ in range(20)
    ]
    for queue in queues:
        for number in range(300):
            queue.push(number, 1_000)
    assert process.taken_bytes < 1_000_000 + 20 * LEAST_BYTES
    assert all(len(queue) >= 50 for queue in queues)
    for queue in queues:
        queue.clear()
    assert process.taken_bytes == 0


def test_lanes_count_what_they_take_give_and_drop() -> None:
    room = Room(1_000)
    lanes, first, second = SendScheduler(16_376, room), SendQueue(1), SendQueue(2)
    for lane in (first, second):
        lanes.push(lane, bytes(300))
    assert (lanes.size, room.taken_bytes) == (600, 600)
    lanes.purge(first)
    assert (lanes.size, room.taken_bytes) == (300, 300)
    lanes.push(first, bytes(100))
    lanes.end(first)
    lanes.take(1_000, [], [])
    assert (lanes.size, room.taken_bytes) == (0, 0)
    lanes.push(second, bytes(100))
    lanes.clear()
    assert (lanes.size, room.taken_bytes, second.listed) == (0, 0, False)
