from __future__ import annotations

from collections import deque

import pytest

from tunnel.proto.state import TRANSITIONS, Signal, StreamState, step

S, G = StreamState, Signal

# Written from the rules of protocol.md, not from the table: what each side may still
# say, and the end that is reached when both have said CLOSE.
MAY_SEND = {S.OPENING, S.OPEN, S.REMOTE_FINISHED}
MAY_RECEIVE = {S.OFFERED, S.OPEN, S.LOCAL_FINISHED}
LIVE = set(S) - {S.IDLE, S.CLOSING, S.CLOSED_BY_PEER}
AFTER_OUR_FIN = {
    S.OPENING: S.OPENING_FINISHED,
    S.OPEN: S.LOCAL_FINISHED,
    S.REMOTE_FINISHED: S.FINISHED,
}
AFTER_THEIR_FIN = {
    S.OFFERED: S.OFFERED_FINISHED,
    S.OPEN: S.REMOTE_FINISHED,
    S.LOCAL_FINISHED: S.FINISHED,
}
AFTER_ACCEPT = {S.OPENING: S.OPEN, S.OPENING_FINISHED: S.LOCAL_FINISHED}
AFTER_OUR_ACCEPT = {S.OFFERED: S.OPEN, S.OFFERED_FINISHED: S.REMOTE_FINISHED}


def expected(state: StreamState, signal: Signal) -> StreamState | None:
    if state is S.IDLE:
        return {G.SEND_CREATE: S.OPENING, G.RECV_CREATE: S.OFFERED}.get(signal)
    if state is S.CLOSING:
        # All that the peer may have said before it knew is still legal.
        if signal in (G.RECV_ACCEPT, G.RECV_DATA, G.RECV_FINISH, G.RECV_WINDOW):
            return S.CLOSING
        return S.IDLE if signal is G.RECV_CLOSE else None
    if state is S.CLOSED_BY_PEER:
        return S.IDLE if signal is G.SEND_CLOSE else None
    return expected_alive(state, signal)


def expected_alive(state: StreamState, signal: Signal) -> StreamState | None:
    match signal:
        case G.SEND_CREATE | G.RECV_CREATE:
            return None
        case G.SEND_ACCEPT:
            return AFTER_OUR_ACCEPT.get(state)
        case G.RECV_ACCEPT:
            return AFTER_ACCEPT.get(state)
        case G.SEND_DATA:
            return state if state in MAY_SEND else None
        case G.RECV_DATA:
            return state if state in MAY_RECEIVE else None
        case G.SEND_FINISH:
            return AFTER_OUR_FIN.get(state)
        case G.RECV_FINISH:
            return AFTER_THEIR_FIN.get(state)
        case G.SEND_WINDOW | G.RECV_WINDOW:
            return state
        case G.SEND_CLOSE:
            return S.CLOSING
        case G.RECV_CLOSE:
            return S.CLOSED_BY_PEER


@pytest.mark.parametrize("state", S, ids=lambda state: state.name)
@pytest.mark.parametrize("signal", G, ids=lambda signal: signal.name)
def test_every_pair_is_what_the_rules_say(state: StreamState, signal: Signal) -> None:
    assert step(state, signal) is expected(state, signal)


def reachable_from(start: StreamState) -> set[StreamState]:
    found, todo = {start}, deque((start,))
    while todo:
        state = todo.popleft()
        for (before, _), after in TRANSITIONS.items():
            if before is state and after not in found:
                found.add(after)
                todo.append(after)
    return found


def test_every_state_is_reached_from_idle() -> None:
    assert reachable_from(S.IDLE) == set(S)


@pytest.mark.parametrize("state", S, ids=lambda state: state.name)
def test_every_state_leads_back_to_a_free_number(state: StreamState) -> None:
    assert S.IDLE in reachable_from(state)


@pytest.mark.parametrize("state", sorted(LIVE, key=str))
def test_a_living_connection_can_be_closed_by_either_side(state: StreamState) -> None:
    assert step(state, G.SEND_CLOSE) is S.CLOSING
    assert step(state, G.RECV_CLOSE) is S.CLOSED_BY_PEER


def test_only_two_closes_free_a_number() -> None:
    into_idle = {pair for pair, after in TRANSITIONS.items() if after is S.IDLE}
    assert into_idle == {
        (S.CLOSING, G.RECV_CLOSE),
        (S.CLOSED_BY_PEER, G.SEND_CLOSE),
    }


MIRROR = {
    G.SEND_CREATE: G.RECV_CREATE,
    G.SEND_ACCEPT: G.RECV_ACCEPT,
    G.SEND_DATA: G.RECV_DATA,
    G.SEND_FINISH: G.RECV_FINISH,
    G.SEND_WINDOW: G.RECV_WINDOW,
    G.SEND_CLOSE: G.RECV_CLOSE,
}


World = tuple[StreamState, StreamState, tuple[Signal, ...], tuple[Signal, ...]]


def test_whatever_one_side_may_send_the_other_may_receive() -> None:
    """All orders of sending and arriving of a short life; no fault is the wire's."""
    start: World = (S.IDLE, S.IDLE, (), ())
    seen, todo = {start}, deque((start,))
    while todo:
        left, right, to_right, to_left = todo.popleft()
        following: list[World] = []
        for signal, arrival in MIRROR.items():
            if signal is G.SEND_CREATE and (to_right or to_left or right is not S.IDLE):
                continue  # the opener's side alone opens, when the number is free
            if len(to_right) < 3 and (after := step(left, signal)):
                following.append((after, right, (*to_right, arrival), to_left))
            if (
                len(to_left) < 3
                and signal is not G.SEND_CREATE
                and (after := step(right, signal))
            ):
                following.append((left, after, to_right, (*to_left, arrival)))
        if to_right and right is not S.CLOSED_BY_PEER:
            arrived = step(right, to_right[0])
            assert arrived, (right, to_right[0])
            following.append((left, arrived, to_right[1:], to_left))
        if to_left and left is not S.CLOSED_BY_PEER:
            arrived = step(left, to_left[0])
            assert arrived, (left, to_left[0])
            following.append((arrived, right, to_right, to_left[1:]))
        for world in following:
            if world not in seen:
                seen.add(world)
                todo.append(world)
    assert len(seen) > 1_000
