from __future__ import annotations

import trio
import trio.testing

from tunnel.net.notify import Notify


async def test_a_ring_wakes_all_who_wait_and_nobody_later() -> None:
    bell = Notify()
    woken: list[str] = []

    async def wait(name: str) -> None:
        await bell.wait()
        woken.append(name)

    bell.ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "one")
        nursery.start_soon(wait, "two")
        await trio.testing.wait_all_tasks_blocked()
        assert bell.waiting
        assert woken == []
        bell.ring()
        assert not bell.waiting
        nursery.start_soon(wait, "late")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == ["one", "two"]
        bell.ring()
    assert woken[2:] == ["late"]


async def test_who_is_cancelled_is_not_woken() -> None:
    bell = Notify()
    with trio.move_on_after(0) as scope:
        await bell.wait()
    assert scope.cancelled_caught
    assert not bell.waiting
    bell.ring()


async def test_a_ring_and_a_cancellation_in_one_turn_wake_once() -> None:
    bell = Notify()
    came: list[bool] = []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            await bell.wait()
        came.append(scope.cancelled_caught)

    for ring_first in (True, False):
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, scope)
            await trio.testing.wait_all_tasks_blocked()
            if ring_first:
                bell.ring()
            scope.cancel()
            bell.ring()
    assert came == [False, True]
