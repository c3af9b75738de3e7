"""When a client dials again, by a clock that jumps and a network that is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from tunnel.access.join import JoinLine, make_token
from tunnel.center import whereabouts
from tunnel.center.backoff import MOST_S, WAITING_MOST_S
from tunnel.center.client import CenterClient
from tunnel.center.events import ClientIdChanged, LinkDown
from tunnel.center.link_keeper import ASKED_MOST_S, LinkKeeper
from tunnel.errors import Code, LocalLinkError, RemoteLinkError, StreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from tunnel.center.events import Notice
    from tunnel.errors import LinkError
    from tunnel.net.sockets import FastSocket

A_LIFE_S = 300.0


@dataclass
class Tries:
    """A client in a network that never answers, and when it dialled."""

    client: CenterClient
    notices: list[Notice]
    fails: Callable[[], LinkError | None]
    """What a dial ends with; None: with nothing, ever."""
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    async def dial(self, _host: str, _port: int, _mss: int | None = None) -> FastSocket:
        self.began.append(trio.current_time())
        try:
            error = self.fails()
            if error is not None:
                raise error
            await trio.sleep_forever()
        finally:
            self.ended.append(trio.current_time())

    def pauses(self) -> list[float]:
        return [b - a for a, b in zip(self.ended, self.began[1:], strict=False)]


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tries]:
    def make(
        fails: Callable[[], LinkError | None], *, waiting: int, plain: bool = False
    ) -> Tries:
        notices: list[Notice] = []
        join = JoinLine("ann", make_token(), "192.0.2.1", 1, None, plain)
        client = CenterClient(join, tell=notices.append, client_id=b"c" * 16)
        monkeypatch.setattr(LinkKeeper, "connections", waiting)
        made = Tries(client, notices, fails)
        monkeypatch.setattr(whereabouts, "dial", made.dial)
        return made

    return make


def refused() -> LinkError:
    return LocalLinkError(Code.LINK_LOST, "connection refused")


def away(code: Code, retry_after_s: int) -> LinkError:
    error = RemoteLinkError(code, "the server asks to wait")
    error.retry_after_s = retry_after_s
    return error


async def live(client: CenterClient, for_s: float = A_LIFE_S) -> None:
    with trio.move_on_after(for_s):
        await client.run()


async def test_no_pause_is_longer_than_3_s_while_connections_wait(
    autojump_clock: MockClock, tries: Callable[..., Tries]
) -> None:
    made = tries(refused, waiting=1)
    await live(made.client)
    assert len(made.began) > A_LIFE_S / WAITING_MOST_S
    assert 2 < max(made.pauses()) <= WAITING_MOST_S


async def test_no_dial_hangs_for_more_than_3_s_while_connections_wait(
    autojump_clock: MockClock, tries: Callable[..., Tries]
) -> None:
    made = tries(lambda: None, waiting=1)
    await live(made.client)
    dials = [b - a for a, b in zip(made.began, made.ended, strict=True)]
    assert max(dials) == pytest.approx(WAITING_MOST_S)
    # Who has waited so long for an answer need not pause as long again.
    assert max(made.pauses()) < 1
    assert "192.0.2.1:1" in made.notices[0].reason.what  # type: ignore[union-attr]


async def test_while_nothing_waits_pauses_grow_to_20_s(
    autojump_clock: MockClock, tries: Callable[..., Tries]
) -> None:
    made = tries(refused, waiting=0)
    await live(made.client)
    assert WAITING_MOST_S < max(made.pauses()) <= MOST_S


async def test_a_program_that_begins_to_wait_shortens_the_pause(
    autojump_clock: MockClock, tries: Callable[..., Tries]
) -> None:
    made = tries(refused, waiting=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.client.run)
        while not made.notices or made.notices[-1].retry_s < 8:  # type: ignore[union-attr]  # noqa: ASYNC110
            await trio.sleep(0.1)
        before, began = len(made.began), trio.current_time()
        with pytest.raises(StreamError):
            await made.client.open("db.lan:1", deadline_s=4)
        assert made.began[before] - began == pytest.approx(WAITING_MOST_S)
        made.client.stop()


async def test_what_the_server_asks_for_comes_on_top_up_to_a_minute(
    autojump_clock: MockClock, tries: Callable[..., Tries]
) -> None:
    for asked_s, least_s in ((5, 5), (65_535, ASKED_MOST_S)):
        made = tries(lambda asked_s=asked_s: away(Code.CALM, asked_s), waiting=1)
        await live(made.client)
        assert min(made.pauses()) > least_s
        assert max(made.pauses()) <= least_s + WAITING_MOST_S


async def test_on_a_plain_link_nobody_can_send_a_client_away_while_connections_wait(
    autojump_clock: MockClock, tries: Callable[..., Tries]
) -> None:
    made = tries(lambda: away(Code.CALM, 600), waiting=1, plain=True)
    await live(made.client)
    assert max(made.pauses()) <= WAITING_MOST_S


async def test_a_copy_comes_back_at_once_and_then_at_a_pace(
    autojump_clock: MockClock, tries: Callable[..., Tries]
) -> None:
    """A server that takes no id at all must not be run into without end."""
    made = tries(lambda: away(Code.DUPLICATE, 0), waiting=0)
    await live(made.client, 60)
    assert made.pauses()[0] == 0
    assert min(made.pauses()[1:]) > 0
    assert len(made.began) < 20
    ids = [one.client_id for one in made.notices if isinstance(one, ClientIdChanged)]
    assert len(set(ids)) == len(made.began)
    assert made.client.client_id == ids[-1]


async def test_a_refusal_is_a_warning_once(
    autojump_clock: MockClock,
    tries: Callable[..., Tries],
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = tries(lambda: away(Code.CALM, 5), waiting=0)
    await live(made.client)
    assert len([one for one in made.notices if isinstance(one, LinkDown)]) > 3
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
