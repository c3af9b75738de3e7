"""A session that goes on over another link: what is repeated, what is not, and when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from support import frames as raw
from support.pair import TARGET, CorePair, End

from tunnel.addresses import Address
from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.codec import FrameDecoder
from tunnel.proto.events import (
    CreditGranted,
    DataReceived,
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
    ProtClose,
    ProtCreate,
    ProtData,
    ProtFrame,
    ProtGoAway,
    ProtPing,
    ProtReceived,
    ProtWindow,
    TcpTarget,
    Terms,
)
from tunnel.proto.resend import (
    REPLAY_LIMIT_BYTES,
    STATE_AFTER_S,
    STATE_EVERY_BYTES,
    STATE_PAUSE_S,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event

MIB = 1 << 20
DATA_HEADER = len(raw.header(raw.DATA, 0))


def resumable(limit: int = REPLAY_LIMIT_BYTES, window: int = 4 * MIB) -> CorePair:
    terms = Terms(initial_window=window)
    return CorePair(terms, terms, replay_limit=limit)


def confirmed(pair: CorePair) -> CorePair:
    """Let both know that the other has everything."""
    for _ in range(2):
        pair.wait(STATE_AFTER_S)
        pair.settle()
    assert all(end.core.flushed() for end in pair.ends)
    return pair


def frames(data: bytes) -> list[ProtFrame]:
    return list(FrameDecoder().feed(data))


def written(pair: CorePair, end: End) -> list[ProtFrame]:
    """Let ``end`` write all that it may now."""
    data = b""
    while end.core.has_output():
        data += pair.flush(end)
    return frames(data)


# What is repeated --------------------------------------------------------------------


def test_both_send_again_what_was_lost_and_then_what_is_new() -> None:
    pair = resumable()
    ours, theirs = pair.opened()
    confirmed(pair)
    pair.client.core.send_data(ours, b"question")
    pair.server.core.send_data(theirs, b"answer")
    for end in pair.ends:
        pair.flush(end)
    pair.client.core.send_data(ours, b", and more")
    pair.cut()
    assert pair.resume() == [DATA_HEADER + 8, DATA_HEADER + 6]
    pair.settle()
    assert pair.server.hear() == [
        DataReceived(theirs, [b"question", b", and more"]),
    ]
    assert pair.client.hear() == [DataReceived(ours, [b"answer"])]


def test_what_arrived_but_was_not_stated_is_not_sent_again() -> None:
    pair = resumable()
    ours, theirs = pair.opened()
    confirmed(pair)
    pair.client.core.send_data(ours, b"arrives")
    pair.settle()
    pair.client.core.send_data(ours, b"lost")
    pair.flush(pair.client)
    pair.cut()
    assert pair.resume() == [DATA_HEADER + 4, 0]
    pair.settle()
    assert pair.server.hear() == [
        DataReceived(theirs, [b"arrives"]),
        DataReceived(theirs, [b"lost"]),
    ]


def test_a_frame_that_was_cut_is_dropped_and_repeated_whole() -> None:
    pair = resumable()
    ours, theirs = pair.opened()
    confirmed(pair)
    pair.client.core.send_data(ours, b"all or nothing")
    size = len(pair.flush(pair.client))
    pair.deliver(pair.client, size - 1)
    before = pair.server.core.received
    pair.cut()
    assert pair.resume() == [size, 0]
    assert pair.server.core.received == before
    pair.settle()
    assert pair.server.hear() == [DataReceived(theirs, [b"all or nothing"])]


def test_a_repetition_that_is_lost_is_repeated_from_where_it_came_to() -> None:
    pair = resumable()
    ours, theirs = pair.opened()
    confirmed(pair)
    for piece in (b"one", b"two", b"three"):
        pair.client.core.send_data(ours, piece)
        pair.flush(pair.client)
    pair.cut()
    pair.resume()
    pair.client.core.send_data(ours, b"four")
    pair.flush(pair.client)
    pair.deliver(pair.client, DATA_HEADER + 3)
    pair.cut()
    assert pair.resume()[0] == 2 * DATA_HEADER + len(b"twothree")
    pair.settle()
    heard = pair.server.heard_of(DataReceived)
    assert b"".join(piece.payload for piece in heard) == b"onetwothreefour"
    assert all(piece.conn is theirs for piece in heard)


def test_what_was_left_of_a_repetition_is_not_sent_besides_the_next_one() -> None:
    pair = resumable()
    ours, _ = pair.opened()
    confirmed(pair)
    pieces = [bytes([number]) * 60_000 for number in range(3)]
    for piece in pieces:
        pair.client.core.send_data(ours, piece)
        pair.flush(pair.client)
    pair.cut()
    assert pair.resume()[0] == 3 * (DATA_HEADER + 60_000)
    pair.flush(pair.client)
    pair.deliver(pair.client)
    pair.cut()
    assert pair.resume()[0] == 2 * (DATA_HEADER + 60_000)
    pair.settle()
    heard = b"".join(piece.payload for piece in pair.server.heard_of(DataReceived))
    assert heard == b"".join(pieces)


def test_every_kind_of_session_frame_is_repeated() -> None:
    pair = resumable(window=100)
    ours, theirs = pair.opened()
    kept, _ = pair.opened()
    pair.client.core.send_data(ours, bytes(100))
    pair.settle()
    confirmed(pair)
    pair.client.hear()
    entry = MappingEntry(MappingType.TCP, "web", port=8_080)
    pair.client.core.ask_mapping(MappingOp.ADD, [entry])
    pair.client.core.open(TARGET, pair.now)
    pair.client.core.finish(ours)
    pair.client.core.close(kept, Code.GENERAL, "enough")
    pair.server.core.consumed(theirs, 100)
    for end in pair.ends:
        pair.flush(end)
    pair.cut()
    pair.resume()
    pair.settle()
    kinds = {type(event) for event in pair.server.hear()}
    wanted = {MappingAsked, StreamOffered, StreamFinished, StreamClosed}
    assert wanted <= kinds
    assert ours.send.limit == 200


def test_pings_answers_and_statements_are_not_repeated() -> None:
    pair = resumable()
    ours, _ = pair.opened()
    pair.inject(pair.server, raw.ping(b"question"))
    pair.server.core.ping(pair.now)
    pair.server.core.on_time(pair.now + STATE_AFTER_S)
    kinds = {type(frame) for frame in written(pair, pair.server)}
    assert kinds == {ProtPing, ProtReceived}
    pair.server.core.ping(pair.now)
    pair.inject(pair.server, raw.ping(b"too late") + raw.data(1, b"part")[:-1])
    pair.cut()
    assert pair.resume()[1] == 0
    assert not pair.server.core.has_output()
    assert pair.server.core.next_wakeup() == pair.now + 10.0
    assert pair.server.core.liveness.rtt_s is None
    pair.client.core.send_data(ours, b"whole")
    pair.settle()
    assert [piece.payload for piece in pair.server.heard_of(DataReceived)] == [b"whole"]


def test_what_auth_stated_is_not_stated_again() -> None:
    pair = resumable()
    pair.opened()
    pair.cut()
    pair.resume()
    pair.wait(STATE_AFTER_S)
    assert not any(end.core.has_output() for end in pair.ends)
    assert all(end.core.flushed() for end in pair.ends)


def test_draining_is_said_again_on_each_link() -> None:
    pair = resumable()
    pair.server.core.drain()
    pair.flush(pair.server)
    pair.cut()
    pair.resume()
    assert written(pair, pair.server) == [ProtGoAway(Code.DRAINING)]
    pair.settle()
    assert pair.client.hear() == [PeerDraining()]


def test_link_frames_go_between_what_is_repeated() -> None:
    pair = resumable()
    ours, _ = pair.opened()
    confirmed(pair)
    for _ in range(3):
        pair.client.core.send_data(ours, bytes(60_000))
        pair.flush(pair.client)
    pair.cut()
    pair.resume()
    pair.flush(pair.client)
    pair.client.core.ping(pair.now)
    pair.client.core.finish(ours)
    first, second, third = (frames(pair.flush(pair.client)) for _ in range(3))
    assert [type(frame) for frame in first] == [ProtPing, ProtData]
    assert [type(frame) for frame in second] == [ProtData]
    assert third == [ProtData(ours.sock_map, b"", fin=True)]


def test_a_close_does_not_overtake_what_has_its_place() -> None:
    pair = resumable()
    ours, theirs = pair.opened()
    confirmed(pair)
    pair.client.core.send_data(ours, b"has its place")
    pair.flush(pair.client)
    pair.client.core.send_data(ours, b"has none")
    pair.cut()
    pair.client.core.close(ours, Code.GENERAL, "enough")
    pair.resume()
    pair.settle()
    assert pair.server.hear() == [
        DataReceived(theirs, [b"has its place"]),
        StreamClosed(theirs, Code.GENERAL, "enough"),
    ]


@pytest.mark.parametrize("kind", [0xC0, 0xFF])
def test_an_extension_of_the_session_counts_and_one_of_the_link_does_not(
    kind: int,
) -> None:
    pair = resumable()
    _, theirs = pair.opened()
    before = pair.server.core.received
    pair.inject(pair.server, raw.frame(0x80, b"of the link"))
    assert pair.server.core.received == before
    extension = raw.frame(kind, b"of the session", sock_map=7)
    pair.inject(pair.server, extension)
    pair.inject(pair.server, extension[:-1])
    assert pair.server.core.received == before + len(extension)
    pair.server.core.resume(pair.client.core.received, pair.now)
    pair.inject(pair.server, extension + raw.data(1, b"behind"))
    assert pair.server.core.received == before + 2 * len(extension) + DATA_HEADER + 6
    assert pair.server.hear() == [DataReceived(theirs, [b"behind"])]


# Counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-1, 1, DATA_HEADER + 6, DATA_HEADER + 7])
def test_a_wrong_count_ends_the_session_in_a_resume_and_in_received(step: int) -> None:
    pair = resumable()
    ours, _ = pair.opened()
    confirmed(pair)
    core = pair.client.core
    has = pair.server.core.received
    core.send_data(ours, b"12345")
    pair.flush(pair.client)
    assert core.can_resume(has)
    assert core.can_resume(has + DATA_HEADER + 5)
    assert not core.can_resume(has + step)
    with pytest.raises(RemoteSessionError) as caught:
        core.resume(has + step, pair.now)
    assert caught.value.code is Code.PROTOCOL
    with pytest.raises(RemoteSessionError) as caught:
        pair.inject(pair.client, raw.received(has + step))
    assert caught.value.code is Code.PROTOCOL


def test_a_session_that_keeps_nothing_cannot_be_resumed() -> None:
    core = CorePair().client.core
    assert not core.can_resume(0)
    with pytest.raises(RemoteSessionError):
        core.resume(0, 0.0)


def test_received_counts_what_was_thrown_away() -> None:
    pair = resumable()
    ours, theirs = pair.opened()
    pair.client.core.send_data(ours, b"nobody wants it")
    pair.flush(pair.client)
    pair.server.core.close(theirs)
    before = pair.server.core.received
    pair.deliver(pair.client)
    assert pair.server.core.received == before + DATA_HEADER + 15


# When RECEIVED is due ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "every"), [(REPLAY_LIMIT_BYTES, MIB), (800_000, 100_000)]
)
def test_received_is_due_after_an_eighth_of_the_limit_and_at_most_a_mebibyte(
    limit: int, every: int
) -> None:
    pair = resumable(limit)
    pair.opened()
    confirmed(pair)
    has = pair.server.core.received
    piece = raw.data(1, bytes(10_000 - DATA_HEADER))
    for _ in range(every // len(piece) - 1):
        pair.inject(pair.server, piece)
    assert not pair.server.core.has_output()
    pair.inject(pair.server, 2 * piece)
    assert pair.server.core.has_output()
    count = has + (every // len(piece) + 1) * len(piece)
    assert written(pair, pair.server) == [ProtReceived(count)]


def test_received_is_due_a_while_after_the_first_byte_and_wakes_the_clock() -> None:
    pair = resumable()
    pair.opened()
    confirmed(pair)
    core = pair.server.core
    pair.inject(pair.server, raw.data(1, b"x"))
    assert core.next_wakeup() == pair.now + STATE_AFTER_S
    pair.wait(STATE_AFTER_S / 2)
    pair.inject(pair.server, raw.data(1, b"x"))
    assert not core.has_output()
    pair.wait(STATE_AFTER_S * 0.6)
    # Nobody may have written it yet: the clock has nothing more to do about it.
    assert core.next_wakeup() > pair.now
    assert written(pair, pair.server) == [ProtReceived(core.received)]
    pair.wait(STATE_AFTER_S)
    assert not core.has_output()


def test_received_goes_with_a_window_and_for_itself_not_too_often() -> None:
    pair = resumable()
    ours, theirs = pair.opened()
    confirmed(pair)
    client, server = pair.client.core, pair.server.core

    def carry(size: int) -> None:
        while size:
            piece = min(size, client.send_room(ours))
            client.send_data(ours, bytes(piece))
            size -= piece
            while client.has_output():
                pair.flush(pair.client)
                pair.deliver(pair.client)

    pair.wait(STATE_PAUSE_S)
    carry(STATE_EVERY_BYTES)
    assert written(pair, pair.server) == [ProtReceived(server.received)]
    carry(STATE_EVERY_BYTES + 1)
    assert not server.has_output()
    assert server.consumed(theirs, 2 * MIB)
    said = [type(frame) for frame in frames(pair.flush(pair.server))]
    assert said == [ProtReceived, ProtWindow]
    assert client.replay is not None
    assert server.received == client.replay.position
    pair.settle()
    assert client.flushed()


# A full replay -----------------------------------------------------------------------


def test_a_full_replay_holds_back_session_frames_and_nothing_else() -> None:
    pair = resumable(50_000)
    ours, theirs = pair.opened()
    pair.server.core.send_data(theirs, b"x")
    pair.settle()
    confirmed(pair)
    core = pair.client.core
    core.send_data(ours, bytes(50_000))
    assert len(written(pair, pair.client)) == 1
    assert not core.flushed()
    core.send_data(ours, b"waits")
    core.open(TARGET, pair.now)
    core.consumed(ours, 4 * MIB)
    assert not core.has_output()
    assert core.data_to_send(1 << 20, pair.now) == []
    core.ping(pair.now)
    pair.server.core.ping(pair.now)
    pair.server.core.send_data(theirs, bytes(10_000))
    pair.flush(pair.server)
    pair.deliver(pair.server)
    kinds = [type(frame) for frame in written(pair, pair.client)]
    assert kinds == [ProtPing, ProtReceived, ProtPing]
    pair.settle()
    assert [type(event) for event in pair.server.hear()] == [
        *(DataReceived, PingAnswered),
        *(StreamOffered, DataReceived),
    ]


def test_two_full_replays_do_not_wait_for_each_other() -> None:
    pair = resumable(1_000)
    conns = pair.opened()
    confirmed(pair)
    for end, conn in zip(pair.ends, conns, strict=True):
        end.core.send_data(conn, bytes(100_000))
        pair.flush(end, 1)
        end.core.finish(conn)
    for _ in range(10):
        pair.settle()
        pair.wait(STATE_AFTER_S)
    for end in pair.ends:
        got = sum(len(piece.payload) for piece in end.heard_of(DataReceived))
        assert got == 100_000
        assert end.heard_of(StreamFinished)
        assert end.core.flushed()


def test_a_full_replay_is_full_on_the_next_link_too() -> None:
    pair = resumable(1_000)
    ours, theirs = pair.opened()
    confirmed(pair)
    pair.client.core.send_data(ours, bytes(5_000))
    pair.flush(pair.client, 5_000)
    pair.client.core.finish(ours)
    pair.cut()
    pair.resume()
    assert len(written(pair, pair.client)) == 1
    pair.settle()
    assert pair.server.hear()[-1] == StreamFinished(theirs)


def test_flushed_is_when_the_peer_has_said_that_it_has_all() -> None:
    pair = confirmed(resumable())
    core = pair.client.core
    ours = core.open(TARGET, pair.now)
    assert not core.flushed()
    pair.flush(pair.client)
    assert not core.has_output()
    assert not core.flushed()
    pair.settle()
    pair.wait(STATE_AFTER_S)
    assert not core.flushed()
    pair.settle()
    assert core.flushed()
    core.close(ours)
    assert not core.flushed()


def test_without_resumption_flushed_is_when_nothing_waits() -> None:
    pair = CorePair()
    pair.client.core.open(TARGET, pair.now)
    assert not pair.client.core.flushed()
    pair.flush(pair.client)
    assert pair.client.core.flushed()


def test_opens_expire_while_there_is_no_link() -> None:
    pair = resumable()
    ours = pair.client.core.open(TARGET, pair.now)
    pair.flush(pair.client)
    pair.cut()
    pair.now += 13.0
    assert pair.client.core.expire(pair.now) is None
    pair.notice(pair.client)
    [end] = pair.client.hear()
    assert isinstance(end, StreamClosed)
    assert (end.conn, end.code, end.local) == (ours, Code.TIMEOUT, True)
    pair.resume()
    sent = written(pair, pair.client)
    assert [type(frame) for frame in sent] == [ProtCreate, ProtClose]


# Cut at every byte -------------------------------------------------------------------


@dataclass
class Seen:
    """What one side was told of one virtual TCP connection, however it came."""

    told: list[tuple[str, object]] = field(default_factory=list)

    def add(self, name: str, value: object = None) -> None:
        if name == "data" and self.told and self.told[-1][0] == "data":
            value = self.told.pop()[1] + value  # type: ignore[operator]
        self.told.append((name, value))


@dataclass
class App:
    """The program on one side: reads at once, writes as it may, keeps a transcript."""

    end: End
    told: list[object] = field(default_factory=list)
    seen: list[tuple[str, Seen]] = field(default_factory=list)
    by_conn: dict[VirtualConn, Seen] = field(default_factory=dict)
    by_name: dict[str, VirtualConn] = field(default_factory=dict)
    unsent: dict[VirtualConn, deque[bytes | None]] = field(default_factory=dict)

    def enter(self, name: str, conn: VirtualConn) -> None:
        self.by_name[name] = conn
        self.by_conn[conn] = Seen()
        self.seen.append((name, self.by_conn[conn]))
        self.unsent[conn] = deque()

    def open(self, name: str, now: float, early: bytes = b"") -> None:
        conn = self.end.core.open(TcpTarget(Address(name, 80)), now)
        self.enter(name, conn)
        if early:
            self.write(name, early)

    def write(self, name: str, *pieces: bytes | None) -> None:
        """Write as soon as it may be; None finishes."""
        self.unsent[self.by_name[name]].extend(pieces)
        self._pump(self.by_name[name])

    def close(self, name: str, code: Code = Code.NORMAL, reason: str = "") -> None:
        conn = self.by_name[name]
        self.end.core.close(conn, code, reason)
        self.end.core.released(conn)
        self.unsent[conn].clear()

    def _pump(self, conn: VirtualConn) -> None:
        waiting = self.unsent[conn]
        while waiting:
            piece = waiting.popleft()
            if piece is None:
                self.end.core.finish(conn)
                continue
            room = self.end.core.send_room(conn)
            if room:
                self.end.core.send_data(conn, piece[:room])
            if piece[room:]:
                waiting.appendleft(piece[room:])
                if not room:
                    return

    def hear(self) -> None:
        for event in self.end.hear():
            match event:
                case StreamOffered(conn, create):
                    assert isinstance(create.target, TcpTarget)
                    self.enter(create.target.address.host, conn)
                case CreditGranted(conn):
                    self._pump(conn)
                case MappingAsked() | MappingAnswered():
                    self.told.append(event)
                case PingAnswered():
                    pass
                case _:
                    self._hear_of(event)

    def _hear_of(self, event: Event) -> None:
        match event:
            case StreamOpened(conn):
                self.by_conn[conn].add("opened")
            case DataReceived(conn, pieces):
                payload = b"".join(pieces)
                self.by_conn[conn].add("data", payload)
                self.end.core.consumed(conn, len(payload))
            case StreamFinished(conn):
                self.by_conn[conn].add("finished")
            case StreamClosed(conn, code, reason):
                self.by_conn[conn].add("closed", (code, reason))
                self.unsent[conn].clear()
                self.end.core.released(conn)
            case _:
                raise AssertionError(event)


def text(start: int, size: int) -> bytes:
    return bytes(33 + (start + 7 * at) % 90 for at in range(size))


class Talk:
    """A conversation with a bit of everything, over a wire that is cut where told.

    Args:
        cuts: byte counts, for each side, of what arrived from it when the wire is cut.
        replay_limit: what each side keeps; a small one is full again and again.
    """

    def __init__(
        self,
        cuts: tuple[Iterator[int], Iterator[int]],
        replay_limit: int,
    ) -> None:
        terms = Terms(initial_window=20)
        self.pair = CorePair(terms, terms, top=4, replay_limit=replay_limit)
        self.client, self.server = self.apps = tuple(map(App, self.pair.ends))
        self.arrived = [0, 0]
        self.cut_count = 0
        self._cuts = cuts
        self._next_cut = [next(one, None) for one in cuts]

    def run(self) -> Talk:
        for step in self._steps():
            step()
            self._carry_all()
            self.pair.wait(STATE_AFTER_S / 2)
        for _ in range(4):
            self.pair.wait(STATE_AFTER_S)
            self._carry_all()
        for app in self.apps:
            core = app.end.core
            assert core.flushed()
            assert core.conns == core.offered == app.end.pool.held_bytes == 0
        return self

    def transcript(self) -> list[object]:
        return [
            (app.told, [(name, seen.told) for name, seen in app.seen])
            for app in self.apps
        ]

    def _carry_all(self) -> None:
        """Carry until nothing moves; what a full replay holds back waits for time."""
        for _ in range(1_000):
            moving = any(end.wire or end.core.has_output() for end in self.pair.ends)
            if not moving and not any(map(_holds_back, self.pair.ends)):
                return
            if not moving:
                self.pair.wait(STATE_AFTER_S)
            for end in self.pair.ends:
                self.pair.flush(end, 30)
            for side in (0, 1):
                self._carry(side)
            for app in self.apps:
                app.hear()
        raise AssertionError("it goes on for ever")

    def _carry(self, side: int) -> None:
        """Carry what is on its way from ``side``, up to where the wire is cut."""
        end, at = self.pair.ends[side], self._next_cut[side]
        if at is None or at > self.arrived[side] + len(end.wire):
            self.arrived[side] += len(self.pair.deliver(end))
            return
        self.pair.deliver(end, at - self.arrived[side])
        self.arrived[side] = at
        self._next_cut[side] = next(self._cuts[side], None)
        self.cut_count += 1
        self.pair.cut()
        self.pair.resume()

    def _steps(self) -> list[Callable[[], None]]:
        c, s = self.client, self.server
        entry = MappingEntry(MappingType.TCP, "w", port=80)
        granted = MappingAnswer(Code.NORMAL, "", 80)
        return [
            lambda: c.open("echo", self.pair.now, text(1, 15)),
            lambda: s.open("refused", self.pair.now),
            lambda: s.end.core.accept(s.by_name["echo"]),
            lambda: c.close("refused", Code.REFUSED, "no"),
            lambda: c.end.core.ask_mapping(MappingOp.ADD, [entry]),
            both(
                lambda: s.write("echo", text(5, 70)),
                lambda: c.write("echo", text(9, 50), None),
            ),
            lambda: s.end.core.answer_mapping([granted]),
            lambda: c.open("reset", self.pair.now, text(2, 9)),
            both(
                lambda: s.end.core.accept(s.by_name["reset"]),
                lambda: s.end.core.ping(0.0),
            ),
            both(
                lambda: s.write("reset", text(8, 18)),
                lambda: s.close("reset", Code.RESET),
            ),
            lambda: s.open("purged", self.pair.now),
            both(
                lambda: c.end.core.accept(c.by_name["purged"]),
                lambda: c.end.core.ping(0.0),
            ),
            lambda: s.write("purged", text(3, 30)),
            both(
                lambda: s.write("purged", b"never"),
                lambda: s.close("purged", Code.IDLE),
            ),
            lambda: s.write("echo", text(4, 30), None),
            lambda: c.close("echo"),
            lambda: s.open("again", self.pair.now, text(6, 19)),
            lambda: c.open("both", self.pair.now),
            lambda: c.end.core.accept(c.by_name["again"]),
            lambda: s.end.core.accept(s.by_name["both"]),
            both(
                lambda: c.write("again", text(7, 45), None),
                lambda: c.write("both", text(8, 41)),
            ),
            both(
                lambda: c.close("both", Code.GENERAL),
                lambda: s.close("both", Code.IDLE, "x"),
            ),
            lambda: s.close("again"),
        ]


def both(*steps: Callable[[], object]) -> Callable[[], None]:
    """Make several steps one."""

    def step() -> None:
        for part in steps:
            part()

    return step


def _holds_back(end: End) -> bool:
    core = end.core
    return bool(core.replay and core.replay.full())


NEVER: tuple[int, ...] = ()
LARGE, TINY = 100_000, 40


def talk(limit: int, client: object = NEVER, server: object = NEVER) -> Talk:
    return Talk((iter(client), iter(server)), limit).run()  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.deep), pytest.param(5, id="each-fifth")]
)
@pytest.mark.parametrize("limit", [LARGE, TINY])
@pytest.mark.parametrize("side", [0, 1])
def test_a_wire_that_is_cut_after_any_byte_changes_nothing(
    side: int, limit: int, step: int
) -> None:
    whole = talk(limit)
    assert min(whole.arrived) > 400
    for at in range(0, whole.arrived[side] + 1, step):
        cuts = [NEVER, NEVER]
        cuts[side] = (at,)
        cut = talk(limit, *cuts)
        assert cut.cut_count == 1
        assert cut.transcript() == whole.transcript(), f"cut after byte {at}"


@pytest.mark.parametrize("limit", [LARGE, TINY])
def test_a_wire_that_is_cut_again_and_again_changes_nothing(limit: int) -> None:
    whole = talk(limit)
    for every in range(40, 160):
        often = talk(limit, range(1, 1 << 16, every), range(7, 1 << 16, every + 3))
        assert often.cut_count > 8
        assert often.transcript() == whole.transcript(), f"cut every {every} bytes"


def test_the_conversation_has_a_bit_of_everything() -> None:
    whole = talk(LARGE)
    told = {name for app in whole.apps for _, seen in app.seen for name, _ in seen.told}
    assert told == {"opened", "data", "finished", "closed"}
    assert all(len(app.told) == 1 for app in whole.apps)
    ours = dict(whole.server.seen)["echo"].told
    assert ("data", text(1, 15) + text(9, 50)) in ours
    assert sum(conn.send.limit > 60 for conn in whole.server.by_conn) >= 1
