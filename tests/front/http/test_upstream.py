"""How many targets' connections wait for a next request."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from support.town import OK, get, town

from tunnel.front.http import upstream

if TYPE_CHECKING:
    import pytest
    from support.town import Town


async def ask(one: Town, *, again: bool = False) -> None:
    await one.say(get("a.test"))
    far, _ = await one.target(again=again)
    await far.far.send_all(OK)
    await one.hear(b"ok")


async def test_the_oldest_that_waits_is_given_up_and_its_visitor_notices_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream, "MAX_KEPT", 2)
    async with AsyncExitStack() as stack:
        first, busy, third, last = [
            await stack.enter_async_context(town()) for _ in range(4)
        ]
        await busy.say(get("a.test"))
        far, _ = await busy.target()
        for one in (first, third, last):
            await ask(one)
        # The visitor whose target still answers keeps it, and so does who came last.
        assert await first.last.far.receive_some() == b""
        assert await third.last.far.receive_some() == b""
        await far.far.send_all(OK)
        await busy.hear(b"ok")
        await ask(last, again=True)
        await ask(first)
