"""Connections end soon after the time that they may rest; no look is wasted."""

from __future__ import annotations

import math
import socket

import pytest
import trio
import trio.testing
from support.wires import Offers, open_one, session_pair

from tunnel.errors import Code
from tunnel.link.rest import LEAST_STEP_S, MOST_STEP_S, Rest, step_s
from tunnel.link.session import Session
from tunnel.net.relay import relay
from tunnel.net.sockets import FastSocket
from tunnel.net.timeouts import TIMEOUTS, Timeouts


@pytest.mark.parametrize("idle_s", [5.0, 7.0, 60.0, 600.0, 7_200.0])
@pytest.mark.parametrize("spoke_after_s", [0.0, 1.3])
async def test_an_end_comes_at_most_a_fifth_late(
    autojump_clock: trio.testing.MockClock, idle_s: float, spoke_after_s: float
) -> None:
    TIMEOUTS.set(Timeouts(idle_s=idle_s))
    offers = Offers()
    ours, theirs = socket.socketpair()
    with theirs:
        async with session_pair(serve_server=offers) as sessions:
            await trio.sleep(0.7)
            virtual, _ = await open_one(sessions, offers)
            took_s = math.inf

            async def carry() -> None:
                nonlocal took_s
                result = await relay(FastSocket(ours), virtual)
                took_s = trio.current_time() - spoke_at
                assert result.code is Code.IDLE

            async with trio.open_nursery() as nursery:
                spoke_at = trio.current_time()
                nursery.start_soon(carry)
                if spoke_after_s:
                    await trio.sleep(spoke_after_s)
                    spoke_at = trio.current_time()
                    theirs.send(b"still here")
    assert idle_s <= took_s <= 1.2 * idle_s


class Looks:
    """How often a session was asked for its rest, and its streams were looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wakes = 0
        self.looks = 0
        ask, step = Session.look_for_rest, Rest.take_step

        def look_for_rest(session: Session, now: float) -> None:
            self.wakes += 1
            ask(session, now)

        def take_step(rest: Rest, now: float) -> float:
            passed_s = step(rest, now)
            self.looks += passed_s > 0
            return passed_s

        monkeypatch.setattr(Session, "look_for_rest", look_for_rest)
        monkeypatch.setattr(Rest, "take_step", take_step)


async def test_without_a_limit_nobody_is_looked_at_and_no_clock_wakes_for_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes = []
    for idle_s in (math.inf, 7_200.0):
        TIMEOUTS.set(Timeouts(idle_s=idle_s))
        looks = Looks(monkeypatch)
        async with session_pair(serve_server=Offers()):
            await trio.sleep(3_600)
        wakes.append(looks.wakes)
        monkeypatch.undo()
        if idle_s == math.inf:
            assert not looks.looks
        else:  # both ends, each a hundred times
            assert looks.looks == pytest.approx(200, abs=4)
    assert wakes[0] == pytest.approx(2 * 720, rel=0.5)  # every 5 s, and for its PINGs
    assert wakes[1] <= wakes[0] + 210


@pytest.mark.parametrize(
    ("limit_s", "expected_s"),
    [
        (1.0, LEAST_STEP_S),
        (5.0, 0.5),
        (60.0, 6.0),
        (360.0, MOST_STEP_S),
        (370.0, 370 / 11),
        (7_200.0, MOST_STEP_S),
        (math.inf, math.inf),
    ],
)
def test_steps_are_a_part_of_the_limit(limit_s: float, expected_s: float) -> None:
    assert step_s(limit_s) == expected_s


def test_time_before_a_new_link_does_not_count() -> None:
    rest = Rest(100.0, 50.0)
    assert rest.next_at == 105.0
    assert not rest.take_step(104.9)
    rest.start(1_000.0)
    assert not rest.take_step(1_004.9)
    assert rest.take_step(1_005.5) == 5.5
    rest.follow(5.0)
    assert rest.next_at == 1_006.0
