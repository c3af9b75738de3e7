from __future__ import annotations

from tunnel.ops.life import Life, State


def test_a_life_from_its_start_to_its_end() -> None:
    life = Life()
    seen: list[tuple[State, bool]] = []
    life.when_changed(lambda: seen.append((life.state, life.is_ready)))
    assert (life.state, life.is_ready) == (State.STARTING, False)
    assert life.why
    life.ready("listening on [::]:7443")
    assert (life.why, life.text) == ("", "listening on [::]:7443")
    life.not_ready("no link: gone")
    assert (life.why, life.text) == ("no link: gone", "no link: gone")
    life.ready("linked")
    life.stopping("it stops")
    assert life.why == "it stops"
    assert seen == [
        (State.READY, True),
        (State.NOT_READY, False),
        (State.READY, True),
        (State.STOPPING, False),
    ]


def test_nobody_is_told_twice_of_one_thing() -> None:
    life = Life()
    told: list[State] = []
    life.when_changed(lambda: told.append(life.state))
    for _ in range(2):
        life.not_ready("no link")
    for _ in range(2):
        life.stopping("it stops")
    assert told == [State.NOT_READY, State.STOPPING]


def test_who_reloads_is_as_ready_as_before() -> None:
    life = Life()
    with life.reloading():
        assert (life.state, life.is_ready) == (State.RELOADING, False)
    assert life.state == State.STARTING
    life.ready("linked")
    with life.reloading():
        assert (life.state, life.is_ready) == (State.RELOADING, True)
        life.not_ready("no link")
        assert not life.is_ready
    states = [life.state]
    assert states == [State.NOT_READY]


def test_nothing_comes_back_from_stopping() -> None:
    life = Life()
    life.ready("linked")
    with life.reloading():
        life.stopping("it stops")
        life.ready("linked")
        assert (life.state, life.why) == (State.STOPPING, "it stops")
    assert not life.is_ready
