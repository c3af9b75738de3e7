"""Who gives way when few descriptors are left."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.net import descriptors
from tunnel.net.descriptors import Arrivals, Descriptors, Flows
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Descriptors:
    """Give each test descriptors of its own: other tests have sockets too."""
    made = Descriptors()
    monkeypatch.setattr(descriptors, "DESCRIPTORS", made)
    return made


@contextmanager
def connected() -> Iterator[tuple[socket.socket, FastSocket]]:
    """Give a visitor and our end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        visitor = socket.create_connection(listener.getsockname())
        ours = FastSocket(listener.accept()[0])
    with visitor:
        visitor.settimeout(10)
        try:
            yield visitor, ours
        finally:
            ours.close()


def several(stack: ExitStack, count: int) -> list[tuple[socket.socket, FastSocket]]:
    return [stack.enter_context(connected()) for _ in range(count)]


def test_who_has_said_nothing_for_longest_gives_way_first() -> None:
    with ExitStack() as stack:
        (first, a), (second, b), (_third, c) = several(stack, 3)
        arrivals = Arrivals()
        for ours in (a, b, c):
            arrivals.add(ours)
        first.sendall(b"x")
        b.socket.sendall(b"a greeting is no word of the visitor")
        assert arrivals.give_up_one()
        assert [ours.given_up for ours in (a, b, c)] == [False, True, False]
        b.close()
        assert second.recv(36, socket.MSG_WAITALL).startswith(b"a greeting")
        with pytest.raises(ConnectionResetError):
            second.recv(100)
        assert arrivals.give_up_one()
        assert c.given_up
        assert not arrivals.give_up_one()


def test_who_listens_for_long_is_not_silent() -> None:
    with ExitStack() as stack:
        [(visitor, ours)] = several(stack, 1)
        arrivals = Arrivals()
        arrivals.add(ours)
        ours.socket.sendall(bytes(descriptors.GREETING_BYTES + 1))
        size = descriptors.GREETING_BYTES + 1
        assert len(visitor.recv(size, socket.MSG_WAITALL)) == size
        assert not arrivals.give_up_one()


def test_a_target_is_silent_until_somebody_speaks_to_it() -> None:
    with ExitStack() as stack:
        (asked, one), (_quiet, _), (announced, three) = several(stack, 3)
        dialled = [FastSocket(sock.dup()) for sock in (asked, _quiet, announced)]
        for sock in dialled:
            stack.callback(sock.close)
        arrivals = Arrivals()
        for sock, said in zip(dialled, (0, 0, 6), strict=True):
            arrivals.add(sock, said)
        asked.sendall(b"a question")
        announced.sendall(b"header")
        for ours in (one, three):
            ours.socket.settimeout(10)
            ours.socket.recv(10)
        assert arrivals.give_up_one()
        assert arrivals.give_up_one()
        assert [sock.given_up for sock in dialled] == [False, True, True]


def test_the_fullest_entry_pays_for_a_newcomer(own: Descriptors) -> None:
    with ExitStack() as stack:
        few, many = Arrivals(), Arrivals()
        [(_, alone)] = several(stack, 1)
        few.add(alone)
        crowd = [ours for _, ours in several(stack, 4)]
        for ours in crowd:
            many.add(ours)

        def given_up() -> list[bool]:
            return [ours.given_up for ours in (alone, *crowd)]

        assert own.make_room(own.edge, "a newcomer")
        assert own.make_room(own.edge, "another, before the first could leave")
        assert given_up() == [False, True, False, False, False]
        # As many as its number proves to be open beyond the edge.
        assert own.make_room(own.edge + 2, "one with a higher number")
        assert given_up() == [False, True, True, True, False]
        many.left(crowd[0])
        assert own.make_room(own.edge + 3, "one more")
        assert given_up() == [True, False, True, True, True]  # the first has left
        assert not own.make_room(own.edge + 4, "one too many")


def test_a_socket_below_the_edge_asks_nobody_to_leave(own: Descriptors) -> None:
    with ExitStack() as stack:
        [(_, ours)] = several(stack, 1)
        arrivals = Arrivals()
        arrivals.add(ours)
        given_up = []
        for edge in (own.edge, ours.number()):
            own.edge = edge
            own.admit(ours.socket)
            given_up.append(ours.given_up)
        assert given_up == [False, True]
        own.edge -= 1
        with pytest.raises(OSError, match="files"):
            own.admit(ours.socket)


def test_who_has_left_is_no_more_in_the_way(own: Descriptors) -> None:
    with ExitStack() as stack:
        [(_, ours)] = several(stack, 1)
        arrivals = Arrivals()
        arrivals.add(ours)
        assert own.crowds == {arrivals}
        arrivals.give_up_one()
        assert own.leaving == 1
        arrivals.left(ours)
        arrivals.left(ours)
        assert own.leaving == 0
        assert not own.crowds


@pytest.mark.parametrize(("limit", "kept"), [(64, 16), (256, 64), (1_024, 96)])
def test_some_descriptors_are_kept_back(
    own: Descriptors, monkeypatch: pytest.MonkeyPatch, limit: int, kept: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    own.look()
    assert own.edge == limit - kept
    assert own.share(1 / 4, 4_096) == limit // 4
    assert own.share(1 / 4, 10) == 10


async def test_a_reader_of_who_was_given_up_hears_a_broken_stream() -> None:
    with ExitStack() as stack:
        [(_, ours)] = several(stack, 1)

        async def read() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await ours.receive_some()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                ours.give_up()


class FakeFlow:
    def __init__(self, name: str, ended: list[str]) -> None:
        self.name = name
        self.ended = ended

    def give_way(self) -> None:
        self.ended.append(self.name)


def test_the_flow_that_was_idle_longest_gives_way() -> None:
    ended: list[str] = []
    flows = Flows("udp.given_up")
    a, b, c, d = (FakeFlow(name, ended) for name in "abcd")
    flows.add(a, 2)
    flows.add(b, 2)
    flows.touch(a)
    flows.add(c, 2)
    assert ended == ["b"]
    flows.touch(b)  # it is over: that does not bring it back
    flows.drop(a)
    flows.add(d, 2)
    assert ended == ["b"]
    assert len(flows) == 2
    assert flows.give_up_one(but=c)
    assert ended == ["b", "d"]
    assert not flows.give_up_one(but=c)


def test_whom_nobody_speaks_to_gives_way_though_he_was_dialled_first(
    own: Descriptors,
) -> None:
    with connected() as (_target, ours):
        arrivals = Arrivals()
        arrivals.add(ours, 0)
        assert arrivals in own.crowds
        arrivals.left(ours)
        assert arrivals not in own.crowds
