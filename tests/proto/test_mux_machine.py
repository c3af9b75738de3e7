"""Two cores and a wire that cuts anywhere, against a model made of plain values.

Cuts: frames into pieces, and the wire itself, which loses what is on its way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.pair import TARGET, CorePair, End

from tunnel.errors import Code, LocalStreamError
from tunnel.proto.codec import decode_one
from tunnel.proto.events import (
    CreditGranted,
    DataReceived,
    PingAnswered,
    StreamClosed,
    StreamFinished,
    StreamOffered,
    StreamOpened,
)
from tunnel.proto.frames import (
    HEADER_BYTES,
    ProtAccept,
    ProtClose,
    ProtCreate,
    ProtData,
    ProtPing,
    ProtReceived,
    ProtWindow,
    Terms,
)
from tunnel.proto.liveness import Due
from tunnel.proto.resend import STATE_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event
    from tunnel.proto.frames import ProtFrame

PATTERN = bytes(i * i % 251 for i in range(1 << 16)) * 40

SIDES = st.sampled_from((0, 1))
PICKS = st.integers(0, 1 << 16)
SIXTEENTHS = st.integers(0, 16)
CODES = st.sampled_from((Code.NORMAL, Code.RESET, Code.GENERAL, Code.IDLE))
REFUSALS = st.sampled_from((Code.REFUSED, Code.NOT_ALLOWED, Code.TIMEOUT))
SIZES = st.sampled_from((1, 2, 7, 63, 500, 5_000, 40_000, 140_000))


@dataclass
class Half:
    """What one side has done with a virtual TCP connection, and seen of it."""

    conn: VirtualConn | None = None
    accepted: bool = False
    written: int = 0
    finished: bool = False
    closed: Code | None = None
    over: bool = False
    read: int = 0
    received: int = 0
    window: int = 0
    eof: bool = False
    starved: bool = False

    @property
    def alive(self) -> bool:
        return self.conn is not None and self.closed is None and not self.over

    @property
    def may_write(self) -> bool:
        return self.alive and self.accepted and not self.finished


@dataclass
class Stream:
    opener: int
    start: int
    halves: tuple[Half, Half] = field(default_factory=lambda: (Half(), Half()))

    def sent(self, side: int, at: int, size: int) -> bytes:
        at += self.start + 1_000 * side
        return PATTERN[at : at + size]


@dataclass
class Life:
    """One use of a number, as the wire shows it."""

    create_by: int
    accepted: bool = False
    finished: list[bool] = field(default_factory=lambda: [False, False])
    close_sent: list[bool] = field(default_factory=lambda: [False, False])
    close_arrived: list[bool] = field(default_factory=lambda: [False, False])
    bytes_sent: list[int] = field(default_factory=lambda: [0, 0])
    limit: list[int] = field(default_factory=lambda: [0, 0])
    """Up to where each side may send, by what has arrived at it."""


class Judge:
    """Reads the wire as a third party, and knows the rules but not the code."""

    def __init__(self, window: int, replay_limit: int) -> None:
        self.window = window
        self.replay_limit = replay_limit
        self.lives: dict[int, Life] = {}
        self.said = bytearray(), bytearray()
        """Every session frame that each side handed out, once."""
        self.place = [0, 0]
        """Where the next session frame of each side belongs."""
        self.taken = [0, 0]
        """Session bytes of each side that have arrived in whole frames."""
        self.stated = [0, 0]
        """Session bytes of each side that the other has said to have."""
        self._part = bytearray(), bytearray()

    def wrote(self, side: int, data: bytes) -> None:
        new = False
        for frame, raw in _split(data):
            if isinstance(frame, ProtPing):
                continue
            if isinstance(frame, ProtReceived):
                assert self.replay_limit
                assert frame.count == self.taken[1 - side]
                continue
            said, at = self.said[side], self.place[side]
            self.place[side] += len(raw)
            if at < len(said):
                assert said[at : at + len(raw)] == raw, "not what was said before"
                continue
            if self.replay_limit and not new:
                assert at - self.stated[side] < self.replay_limit, "no room to keep it"
            new = True
            said += raw
            self._check(side, frame)

    def delivered(self, side: int, data: bytes) -> None:
        """Take note of what came from ``side`` and is at the other side now."""
        part = self._part[side]
        part += data
        for frame, raw in _split(bytes(part)):
            del part[: len(raw)]
            if isinstance(frame, ProtReceived):
                self.stated[1 - side] = frame.count
            elif not isinstance(frame, ProtPing):
                self.taken[side] += len(raw)
            match frame:
                case ProtClose(number):
                    life = self.lives[number]
                    life.close_arrived[1 - side] = True
                case ProtWindow(number, limit) if number in self.lives:
                    life = self.lives[number]
                    life.limit[1 - side] = max(life.limit[1 - side], limit)

    def cut(self) -> None:
        """Expect another link: each side goes on where the other one stands."""
        for part in self._part:
            part.clear()
        self.place = self.taken.copy()
        self.stated = self.taken.copy()

    def _check(self, side: int, frame: ProtFrame) -> None:
        if isinstance(frame, ProtCreate):
            self._create(side, frame.sock_map)
            return
        assert isinstance(frame, ProtAccept | ProtClose | ProtData | ProtWindow)
        life = self.lives[frame.sock_map]
        assert not life.close_sent[side], f"{frame} after CLOSE"
        match frame:
            case ProtAccept():
                assert side != life.create_by
                assert not life.accepted
                life.accepted = True
            case ProtClose():
                life.close_sent[side] = True
            case ProtData(_, payload, fin):
                assert side == life.create_by or life.accepted
                assert not life.finished[side], "DATA after FIN"
                life.finished[side] = fin
                life.bytes_sent[side] += len(payload)
                assert life.bytes_sent[side] <= life.limit[side], "no credit"
            case ProtWindow():
                pass

    def _create(self, side: int, number: int) -> None:
        assert number % 2 == 1 - side
        if before := self.lives.get(number):
            # Only its owner frees a number: with both CLOSEs.
            assert before.close_sent[side]
            assert before.close_arrived[side]
        self.lives[number] = Life(side, limit=[self.window] * 2)


def _split(data: bytes) -> Iterator[tuple[ProtFrame, bytes]]:
    """Give each whole frame of ``data``, and its bytes."""
    while len(data) >= HEADER_BYTES and (found := decode_one(data)) is not None:
        frame, size = found
        yield frame, data[:size]
        data = data[size:]


class MuxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.replay_limit = 0
        self.linked = True
        self.streams: list[Stream] = []
        self.by_conn: dict[VirtualConn, tuple[Stream, int]] = {}

    @initialize(
        window=st.sampled_from((1, 90, 1_000, 150_000, 400_000)),
        top=st.sampled_from((2, 6, 21)),
        replay_limit=st.sampled_from((0, 1, 300, 20_000, 1 << 24)),
    )
    def begin(self, window: int, top: int, replay_limit: int) -> None:
        self.window, self.top, self.replay_limit = window, top, replay_limit
        # Few streams: for so many numbers it looks whether one is free.
        terms = Terms(initial_window=window, max_streams=64)
        self.pair = CorePair(
            terms,
            terms,
            top=top,
            replay_limit=replay_limit,
            # The model knows only ends that somebody asked for.
            open_deadline_s=math.inf,
        )
        self.judge = Judge(window, replay_limit)

    # What the users of the two cores do ----------------------------------------

    @rule(side=SIDES, early=st.one_of(st.none(), SIZES))
    def open(self, side: int, early: int | None) -> None:
        core = self.pair.ends[side].core
        try:
            conn = core.open(TARGET, self.pair.now)
        except LocalStreamError:
            assert core.conns >= self.top // 2, "a number was free"
            return
        stream = Stream(side, 37 * len(self.streams) % 1_000)
        self.streams.append(stream)
        half = stream.halves[side]
        half.conn, half.accepted = conn, True
        self.by_conn[conn] = stream, side
        if early:
            self._write(stream, side, early)

    @rule(pick=PICKS)
    def accept(self, pick: int) -> None:
        if choice := self._choose(pick, self._offers()):
            half = choice[0].halves[choice[1]]
            self.pair.ends[choice[1]].core.accept(_conn(half))
            half.accepted = True

    @rule(pick=PICKS, code=REFUSALS)
    def refuse(self, pick: int, code: Code) -> None:
        if choice := self._choose(pick, self._offers()):
            self._close(*choice, code)

    @rule(pick=PICKS, size=SIZES)
    def write(self, pick: int, size: int) -> None:
        if choice := self._choose(pick, self._halves(lambda half: half.may_write)):
            self._write(*choice, size)

    @rule(pick=PICKS, sizes=st.lists(SIZES, min_size=2, max_size=4))
    def write_and_wait(self, pick: int, sizes: list[int]) -> None:
        """Nobody reads meanwhile: whatever comes through had credit from before."""
        for size in sizes:
            self.write(pick, size)
            self.settle()

    @rule(pick=PICKS)
    def finish(self, pick: int) -> None:
        if choice := self._choose(pick, self._halves(lambda half: half.may_write)):
            self._finish(*choice)

    @rule(pick=PICKS, code=CODES)
    def close(self, pick: int, code: Code) -> None:
        if choice := self._choose(pick, self._halves(lambda half: half.alive)):
            self._close(*choice, code)

    @rule(pick=PICKS, size=SIZES)
    def consume(self, pick: int, size: int) -> None:
        if choice := self._choose(pick, self._halves(_has_unread)):
            self._consume(*choice, size)

    @rule(pick=PICKS)
    def misuse(self, pick: int) -> None:
        wrong = self._halves(lambda half: half.conn is not None and not half.may_write)
        if choice := self._choose(pick, wrong):
            core = self.pair.ends[choice[1]].core
            conn = _conn(choice[0].halves[choice[1]])
            with pytest.raises(LocalStreamError):
                core.send_data(conn, b"x")
            with pytest.raises(LocalStreamError):
                core.finish(conn)

    # What the wire and the clock do --------------------------------------------

    @rule(side=SIDES, budget=st.sampled_from((1, 100, 20_000, 262_144)))
    def flush(self, side: int, budget: int) -> None:
        if self.linked:
            self.judge.wrote(side, self.pair.flush(self.pair.ends[side], budget))
            self._hear(side)

    @rule(side=SIDES, size=st.one_of(st.integers(1, 40), st.just(300_000)))
    def deliver(self, side: int, size: int) -> None:
        self.judge.delivered(side, self.pair.deliver(self.pair.ends[side], size))
        self._hear(1 - side)

    @precondition(lambda self: self.replay_limit and self.linked)
    @rule(
        arriving=st.tuples(SIXTEENTHS, SIXTEENTHS),
        more=st.integers(0, 40),
        busy=st.booleans(),
        at_once=st.booleans(),
    )
    def drop_link(
        self, arriving: tuple[int, int], more: int, busy: bool, at_once: bool
    ) -> None:
        """Lose what is on its way, from any byte on."""
        for side in (0, 1) if busy else ():
            self.flush(side, 262_144)
        for side, part in enumerate(arriving):
            self.deliver(side, len(self.pair.ends[side].wire) * part // 16 + more)
        self.pair.cut()
        self.judge.cut()
        self.linked = False
        if at_once:
            self.resume()

    @precondition(lambda self: not self.linked)
    @rule()
    def resume(self) -> None:
        for end, taken in zip(self.pair.ends, reversed(self.judge.taken), strict=True):
            assert end.core.received == taken
        again = self.pair.resume()
        for side, size in enumerate(again):
            assert size == len(self.judge.said[side]) - self.judge.taken[side]
        self.linked = True

    @rule()
    def settle(self) -> None:
        if not self.linked:
            self.resume()
        for _ in range(1_000):
            if any(end.wire or end.core.has_output() for end in self.pair.ends):
                for side in (0, 1):
                    self.flush(side, 262_144)
                for side in (0, 1):
                    self.deliver(side, 1 << 30)
            elif any(map(_is_full, self.pair.ends)):
                self._pass(STATE_AFTER_S)
            else:
                return
        raise AssertionError("it goes on for ever")

    @rule(seconds=st.sampled_from((0.001, STATE_AFTER_S, 1.0, 11.0)))
    def tick(self, seconds: float) -> None:
        self.pair.now += seconds
        cores = [end.core for end in self.pair.ends]
        if not self.linked:
            for core in cores:
                core.expire(self.pair.now)
            return
        if any(core.liveness.due(self.pair.now) is Due.LOST for core in cores):
            self.settle()
        self._pass(0.0)

    def _pass(self, seconds: float) -> None:
        self.pair.now += seconds
        for end in self.pair.ends:
            end.core.on_time(self.pair.now)
            assert end.core.next_wakeup() > self.pair.now

    # What must hold ------------------------------------------------------------

    @invariant()
    def nobody_owes_more_than_it_has(self) -> None:
        for stream in self.streams:
            for side, half in enumerate(stream.halves):
                if half.alive:
                    assert _conn(half).send.room() >= 0
                if half.conn is not None:  # a fast reader's window grows
                    half.window = max(half.window, half.conn.recv.size)
                assert half.received <= half.read + max(self.window, half.window)
                assert half.received <= stream.halves[1 - side].written

    @invariant()
    def the_pool_holds_what_is_unread(self) -> None:
        for side in (0, 1) if self.streams else ():
            unread = sum(
                half.received - half.read
                for stream in self.streams
                if (half := stream.halves[side]).closed is None
            )
            assert self.pair.ends[side].pool.held_bytes == unread

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        self._read_all()
        for _ in range(len(self.streams)):
            self.accept(0)
        self._read_all()
        for stream in self.streams:
            for side, half in enumerate(stream.halves):
                assert not (half.may_write and half.starved)
                self._write_more_than_a_window(stream, side)
                if half.may_write:
                    self._finish(stream, side)
        self._read_all()
        for stream in self.streams:
            for side, half in enumerate(stream.halves):
                if half.alive:
                    assert half.eof
                    assert half.received == stream.halves[1 - side].written
                    assert half.read == half.received
                    self._close(stream, side, Code.NORMAL)
        self._read_all()
        self._expect_nothing_left()

    def _write_more_than_a_window(self, stream: Stream, side: int) -> None:
        half = stream.halves[side]
        goal = half.written + 2 * self.window + 1
        for _ in range(16):
            if half.may_write and half.written < goal:
                self._write(stream, side, goal - half.written)
                self._read_all()
        assert half.written >= goal or not half.may_write

    def _expect_nothing_left(self) -> None:
        for side, end in enumerate(self.pair.ends):
            for stream in self.streams:
                if stream.opener != side and (conn := stream.halves[side].conn):
                    end.core.released(conn)
            assert end.core.conns == 0
            assert end.core.offered == 0
            assert end.core._own_opens.open == 0
            assert not end.core._own_opens.unanswered
            assert end.pool.held_bytes == 0
            assert end.pool.grown_bytes == 0
            assert not end.core.has_output()
        self._pass(STATE_AFTER_S)
        self.settle()
        for side, end in enumerate(self.pair.ends):
            assert end.core.flushed()
            assert end.core.received == len(self.judge.said[1 - side])

    # Steps ---------------------------------------------------------------------

    def _read_all(self) -> None:
        """Carry and read until nothing moves any more."""
        self.settle()
        while unread := self._halves(_has_unread):
            for stream, side in unread:
                self._consume(stream, side, 1 << 30)
            self.settle()

    def _write(self, stream: Stream, side: int, size: int) -> None:
        half, core = stream.halves[side], self.pair.ends[side].core
        size = min(size, core.send_room(_conn(half)))
        if not size:
            half.starved = True
            return
        core.send_data(_conn(half), stream.sent(side, half.written, size))
        half.written += size

    def _finish(self, stream: Stream, side: int) -> None:
        half = stream.halves[side]
        self.pair.ends[side].core.finish(_conn(half))
        half.finished = True

    def _close(self, stream: Stream, side: int, code: Code) -> None:
        half = stream.halves[side]
        self.pair.ends[side].core.close(_conn(half), code)
        half.closed = code

    def _consume(self, stream: Stream, side: int, size: int) -> None:
        half = stream.halves[side]
        size = min(size, half.received - half.read)
        half.read += size
        self.pair.ends[side].core.consumed(_conn(half), size)

    def _offers(self) -> list[tuple[Stream, int]]:
        return self._halves(lambda half: half.alive and not half.accepted)

    def _halves(self, wanted: Callable[[Half], bool]) -> list[tuple[Stream, int]]:
        return [
            (stream, side)
            for stream in self.streams
            for side, half in enumerate(stream.halves)
            if wanted(half)
        ]

    def _choose(
        self, pick: int, choices: list[tuple[Stream, int]]
    ) -> tuple[Stream, int] | None:
        return choices[pick % len(choices)] if choices else None

    # What the cores report -----------------------------------------------------

    def _hear(self, side: int) -> None:
        for event in self.pair.ends[side].hear():
            match event:
                case StreamOffered(conn):
                    self._offered(side, conn)
                case PingAnswered():
                    pass  # the core asks for round trips of its own too
                case (
                    StreamOpened(conn)
                    | DataReceived(conn)
                    | StreamFinished(conn)
                    | StreamClosed(conn)
                    | CreditGranted(conn)
                ):
                    stream, owner = self.by_conn[conn]
                    assert owner == side
                    self._heard_of(stream, side, event)
                case _:
                    raise AssertionError(event)

    def _offered(self, side: int, conn: VirtualConn) -> None:
        stream = next(
            stream
            for stream in reversed(self.streams)
            if stream.opener != side
            and _conn(stream.halves[1 - side]).sock_map == conn.sock_map
        )
        assert stream.halves[side].conn is None
        stream.halves[side].conn = conn
        self.by_conn[conn] = stream, side

    def _heard_of(self, stream: Stream, side: int, event: Event) -> None:
        half, peer = stream.halves[side], stream.halves[1 - side]
        if isinstance(event, CreditGranted):
            if half.may_write:
                assert half.starved
                assert self.pair.ends[side].core.send_room(_conn(half)) > 0
            half.starved = False
            return
        assert half.alive
        match event:
            case StreamOpened():
                assert peer.accepted
            case DataReceived(_, pieces):
                payload = b"".join(pieces)
                assert not half.eof
                assert payload == stream.sent(1 - side, half.received, len(payload))
                half.received += len(payload)
            case StreamFinished():
                assert peer.finished
                assert half.received == peer.written
                half.eof = True
            case StreamClosed(_, code, _, local):
                assert not local
                assert code is peer.closed
                if code in (Code.NORMAL, Code.RESET):
                    assert half.received == peer.written
                half.over = True
            case _:
                raise AssertionError(event)


def _conn(half: Half) -> VirtualConn:
    assert half.conn is not None
    return half.conn


def _is_full(end: End) -> bool:
    return end.core.replay is not None and end.core.replay.full()


def _has_unread(half: Half) -> bool:
    return half.closed is None and half.received > half.read


class TestMux(MuxMachine.TestCase):  # type: ignore[misc,valid-type]
    """More examples than the profile's: each is small and meets few rules."""

    settings = settings(max_examples=100)


@pytest.mark.deep
@pytest.mark.timeout(600)
class TestMuxForLong(MuxMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=2_000, stateful_step_count=100)


def test_a_window_that_grows_is_no_fault_of_the_peer() -> None:
    state = MuxMachine()
    state.begin(window=1, top=2, replay_limit=0)
    state.open(early=None, side=0)
    for sizes in ([1, 1], [1, 1], [1, 2]):
        state.write_and_wait(pick=0, sizes=sizes)
        state.nobody_owes_more_than_it_has()
        state.consume(pick=0, size=1)
    state.teardown()
